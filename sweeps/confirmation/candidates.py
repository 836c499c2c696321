"""Which configurations are worth repeating: those that noise may have put behind the first one."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from sweeps.confirmation.seeds import Losses, standings

LEAST = 3
"""Of the best recorded ones, whatever their distance."""
NOISE_SDS = 2.0
"""Of the loss over seeds: so far behind the first one a recorded loss may be by chance."""


@dataclass(frozen=True)
class Recorded:
    """A trial that is complete and feasible, as it was recorded."""

    number: int
    loss: float
    """Its objective, as a loss."""
    method: str
    trainable_parameters: int
    is_given: bool = False
    """Whether the space was told to evaluate it: what somebody trains today."""


def candidates(recorded: Sequence[Recorded], losses: Losses, most: int) -> list[int]:
    """Numbers of the trials to repeat, `most` at most, the most important ones first.

    The best three, the best of each method, the smallest of which none with fewer parameters is
    better, and what was given. Once repeats show how much a seed changes (`losses`), all within
    NOISE_SDS of the first one.
    """
    ordered = sorted(recorded, key=lambda one: (one.loss, one.number))
    if not ordered:
        return []
    best_of_method = {one.method: one for one in reversed(ordered)}
    smallest = min(ordered, key=lambda one: (one.trainable_parameters, one.loss))
    chosen = [
        *ordered[:LEAST],
        *sorted(best_of_method.values(), key=lambda one: one.loss),
        smallest,
        *(one for one in ordered if one.is_given),
    ]
    if scatter := [one.sd for one in standings(losses)]:
        limit = ordered[0].loss + NOISE_SDS * mean(scatter)
        chosen += [one for one in ordered if one.loss <= limit]
    return list(dict.fromkeys(one.number for one in chosen))[:most]
