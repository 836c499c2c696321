"""Which configuration is repeated next: two seeds each, then more where the tie is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sweeps.confirmation.seeds import Losses, standings

FIRST_SEEDS = 2
"""Of every candidate, before any is dropped."""


@dataclass(frozen=True)
class Race:
    """Candidates are trained under the same fresh seeds, in their order."""

    candidates: Sequence[int]
    seeds: Sequence[int]
    """As many as a candidate is repeated at most."""
    max_repeats: int
    """Of all candidates together."""

    def next(self, losses: Losses, failed: Collection[int] = ()) -> list[tuple[int, int]]:
        """Candidates and seeds that are to run now; none at the end.

        `losses` are those of all repeats that were asked for before. Candidates of which a repeat
        `failed` are out.
        """
        left = [number for number in self.candidates if number not in failed]
        done = {number: losses.get(number, {}) for number in left}
        first = self.seeds[:FIRST_SEEDS]
        if missing := [(n, s) for s in first for n in left if s not in done[n]]:
            return missing[: self._room(losses)]
        looks = max(1, len(self.seeds) - FIRST_SEEDS + 1)
        tied = [one.number for one in standings(done, looks) if one.is_tied]
        rounds = len(done[tied[0]]) if tied else len(self.seeds)
        if len(tied) < 2 or rounds >= len(self.seeds):
            return []
        following = [(n, self.seeds[rounds]) for n in self.candidates if n in tied]
        return following if len(following) <= self._room(losses) else []

    def _room(self, losses: Losses) -> int:
        return max(0, self.max_repeats - sum(len(of) for of in losses.values()))
