"""What stays on disk: of a running trial its last and best checkpoints, of ended ones adapters."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from sweeps.layout import SweepFolder

LATEST = 2
"""Newest checkpoints of a running trial that stay: should one be damaged, there is one before."""


class Checkpoints:
    """Deletes checkpoints that nobody needs any more. Hosts only write them."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._best: dict[int, tuple[float, Path]] = {}

    def left(self, number: int, checkpoint: str, loss: float | None) -> None:
        """A running trial has left a checkpoint, at a rung with its objective as a loss.

        The newest LATEST stay, and that of the lowest loss.
        """
        path = Path(checkpoint)
        if loss is not None and (number not in self._best or loss < self._best[number][0]):
            self._best[number] = (loss, path)
        found = self._folder.checkpoints(number)
        keep = set(found[-LATEST:]) | {path}
        if number in self._best:
            keep.add(self._best[number][1])
        _delete(other for other in found if other not in keep)

    def ended(self, number: int) -> None:
        """A trial has ended: nothing will continue it."""
        self._best.pop(number, None)
        attempts = self._folder.trial(number) / "attempts"
        _delete(attempts.glob("*/checkpoints"))


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # a host that was cut off may still be writing
