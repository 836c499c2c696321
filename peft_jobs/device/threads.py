"""The threads that a host computes with: as many as it was given, or as there are cores free."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peft_jobs.activity import each_move
from peft_jobs.device.free_cores import FreeCores


class Threads:
    """OpenMP keeps their number by thread, and a host's calls come from several."""

    def __init__(self, number: int | None, yields: bool = False) -> None:
        """None leaves torch's number as it is; one that `yields` has fewer while trials run and
        others use the cores."""
        self._number = number
        self._free = FreeCores(number or torch.get_num_threads()) if yields else None

    def use(self) -> None:
        """Compute with them in this thread."""
        number = self._number if self._free is None else self._free.number
        if number is not None and number != torch.get_num_threads():
            torch.set_num_threads(number)

    def change(self, number: int) -> None:
        """Have so many, or at most so many, from the next `use` on; from any thread."""
        if self._free is None:
            self._number = number
        else:
            self._free.limit(number)

    @contextmanager
    def while_trials_run(self) -> Iterator[None]:
        """Within the block, look now and then for how many cores are free."""
        free = self._free
        if free is None:
            yield
            return

        def follow() -> None:
            free.look()
            self.use()

        free.begin()
        with each_move(follow):
            yield
