"""What stays in storage: a running trial's last and best checkpoints, the best trials' adapters."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sweeps.records.layout import SweepFolder

LATEST = 2
"""Newest checkpoints of a running trial that stay: should one be damaged, there is one before."""


class Retention:
    """Deletes what nobody needs any more: checkpoints, which hosts only write, and adapters."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._best: dict[int, tuple[float, Path]] = {}
        self._left: dict[int, list[Path]] = {}
        """Of running trials, in an object store: the checkpoints that were heard of and stay."""
        self._dropped: set[int] = set()
        """Trials whose adapters were deleted."""

    def checkpoint_left(self, number: int, checkpoint: str, loss: float | None) -> None:
        """A running trial has left a checkpoint, at a rung with its objective as a loss.

        The newest LATEST up to it stay, and that of the lowest loss. Those of earlier attempts
        beyond it go: they were written and not heard of, and the trial does not go on from there.
        """
        path = self._folder.path_of(checkpoint)
        if loss is not None and (number not in self._best or loss < self._best[number][0]):
            self._best[number] = (loss, path)
        found = self._found(number, path)
        behind = [other for other in found if other.name <= path.name]
        ahead = {other for other in found if other.name > path.name and other.parent == path.parent}
        keep = {*behind[-LATEST:], path} | ahead
        if number in self._best:
            keep.add(self._best[number][1])
        for other in found:
            if other not in keep:
                self._folder.remove(other)
        if self._folder.in_store:
            self._left[number] = [other for other in found if other in keep]

    def trial_ended(self, number: int) -> None:
        """A trial has ended: nothing will continue it."""
        self._best.pop(number, None)
        self._left.pop(number, None)
        self._folder.remove_checkpoints(number)

    def drop_adapters(
        self, superfluous: Sequence[tuple[int, str]], is_mirrored: Callable[[int], bool]
    ) -> None:
        """Delete adapters, each once MLflow has it: trials' numbers and paths in the folder."""
        for number, adapter in superfluous:
            if number not in self._dropped and is_mirrored(number):
                self._folder.remove(self._folder.path / adapter)
                self._dropped.add(number)

    def _found(self, number: int, newest: Path) -> list[Path]:
        """The trial's checkpoints, the newest last.

        An object store is not asked: what earlier drivers heard of stays until the trial's end.
        """
        if not self._folder.in_store:
            return self._folder.checkpoints(number)
        return [*(path for path in self._left.get(number, []) if path != newest), newest]
