"""How many slots share a step: as many as give the most tokens per second here, one included.

In a round every slot that may go on takes one chunk, in one step of all or in several of some of
them: the width. A trial's numbers do not depend on it, so widths are tried on the work that has to
be done anyway, and compared by what a token costs, padding not counted. Rounds of two widths take
turns, and only neighbours in time are compared: a machine that others use is never still.

The cost of a token has a fixed part, shared by a step's slots, and one that grows where a device
has no more to give; so from the widest on, once narrower is no better, still narrower is worse.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import TypeVar

T = TypeVar("T")
EVERY_TRIAL = 1 << 30
"""The width of all slots, however many there are."""
MIN_PAIRS_TO_DROP = 3
"""Pairs of rounds after which a width that is slower by SLOWER_RATIO is given up."""
MIN_PAIRS_TO_ACCEPT = 7
"""Pairs of rounds after which a faster one is believed."""
SLOWER_RATIO = 1.1
RECALIBRATE_EVERY_ROUNDS = 300
"""Rounds after which widths are compared again: the work, or the device, may have changed."""


@dataclass
class _Comparison:
    """Of one kind of work: the best width so far, and the narrower one that is tried."""

    best: int = EVERY_TRIAL
    tried: int | None = None
    cost: float | None = None
    """Of a token in the last round of the best width, if the next one is of the other."""
    ratios: list[float] = field(default_factory=list)
    """Cost of the width that is tried, in parts of the best one's."""
    is_settled: bool = False
    num_slots: int = 0
    """The largest number of slots that was compared with fewer."""
    rounds: int = 0


class Calibration:
    """What has been found out about each kind of work."""

    def __init__(self) -> None:
        self._found: dict[Hashable, _Comparison] = {}

    def width(self, work: Hashable, num_slots: int) -> int:
        """Slots of a step in the next round, of `num_slots` that bring `work`."""
        found = self._found.setdefault(work, _Comparison())
        if found.is_settled and found.best == EVERY_TRIAL and num_slots > found.num_slots:
            found = self._found[work] = _Comparison()
        found.num_slots = max(found.num_slots, num_slots)
        best, narrower = min(found.best, num_slots), _narrower(min(found.best, num_slots))
        if found.is_settled or narrower is None:
            return best
        if found.tried != narrower:
            found.tried, found.cost, found.ratios = narrower, None, []
        return best if found.cost is None else narrower

    def limit(self, work: Hashable) -> int | None:
        """The width beyond which slots gain nothing; None if there is none, or none known."""
        found = self._found.get(work)
        limited = found is not None and found.is_settled and found.best != EVERY_TRIAL
        return found.best if found is not None and limited else None

    def saw(self, work: Hashable, width: int, seconds: float, num_tokens: int) -> None:
        """The round of this width took so long."""
        found = self._found[work]
        found.rounds += 1
        if found.rounds >= RECALIBRATE_EVERY_ROUNDS:
            self._found[work] = _Comparison()
        elif found.is_settled or found.tried is None:
            return
        elif found.cost is None:
            found.cost = seconds / num_tokens
        elif width == found.tried:
            found.ratios.append(seconds / num_tokens / found.cost)
            found.cost = None
            self._judge(found, found.ratios[1:])  # the first round of a width warms up

    def _judge(self, found: _Comparison, ratios: Sequence[float]) -> None:
        if len(ratios) < MIN_PAIRS_TO_DROP:
            return
        ratio = median(ratios)
        if ratio > SLOWER_RATIO or (len(ratios) >= MIN_PAIRS_TO_ACCEPT and ratio >= 1):
            found.is_settled = True
        elif len(ratios) >= MIN_PAIRS_TO_ACCEPT:
            assert found.tried is not None
            found.best, found.is_settled = found.tried, found.tried == 1
            found.tried = None


def _narrower(width: int) -> int | None:
    """The next width to try: powers of two."""
    return 1 << (width - 1).bit_length() - 1 if width > 1 else None


def groups(slots: Sequence[T], width: int) -> list[Sequence[T]]:
    """As few groups as the width allows, of sizes as even as can be."""
    number = -(-len(slots) // width)
    bounds = [len(slots) * index // number for index in range(number + 1)]
    return [slots[start:stop] for start, stop in pairwise(bounds)]
