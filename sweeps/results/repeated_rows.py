"""What other validation rows would change in a confirmation: rows drawn anew, beside the seeds.

In each draw the rows are the same for all repeats, so differences are taken row by row and seed by
seed. What fresh seeds change is not drawn here: of two to five seeds it is known by Student's t.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from sweeps.confirmation.seeds import RowNoise
from sweeps.results.row_intervals import resampled, same_rows
from sweeps.results.row_metrics import Numbers, whole_rows
from sweeps.results.told_apart import SPLIT
from sweeps.study.reruns import REPEAT_OF, REPEAT_SEED, repeats
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas


def row_noise(
    study: SweepStudy, read: "Callable[[int], pandas.DataFrame | None]"
) -> RowNoise | None:
    """How means over seeds scatter with the rows; `read` gives a trial's scores by row.

    None without repeats, where one of them has no scores by row or those of other rows, and where
    the objective does not follow from rows.
    """
    metric = study.spec.objective.metric
    done = [trial for trial in repeats(study) if trial.state == TrialState.COMPLETE]
    if not done or not metric.startswith(SPLIT):
        return None
    name = metric.removeprefix(SPLIT)
    frames: dict[tuple[int, int], pandas.DataFrame] = {}
    for trial in done:
        frame = whole_rows(name, trial.value, read(trial.number))
        if frame is None:
            return None
        frames[trial.user_attrs[REPEAT_OF], trial.user_attrs[REPEAT_SEED]] = frame
    return noise_of(name, frames)


def noise_of(metric: str, frames: "Mapping[tuple[int, int], pandas.DataFrame]") -> RowNoise | None:
    """`row_noise` from the scores by row of each configuration and seed; `metric` has no split."""
    first, *others = frames.values()
    if not all(same_rows(first, other) for other in others):
        return None
    values = resampled(metric, [first, *others])
    if values is None:
        return None
    drawn: dict[int, dict[int, Numbers]] = {}
    for (number, seed), of in zip(frames, values, strict=True):
        drawn.setdefault(number, {})[seed] = of
    pairs = {
        frozenset((one, other)): _scatter([a[seed] - b[seed] for seed in a.keys() & b.keys()])
        for (one, a), (other, b) in combinations(drawn.items(), 2)
    }
    return RowNoise(
        alone={number: _scatter([*of.values()]) for number, of in drawn.items()},
        pairs=pairs | {frozenset((number,)): 0.0 for number in drawn},
        df=float(first["row"].nunique() - 1),
    )


def _scatter(of_seeds: list[Numbers]) -> float:
    """Standard deviation over draws of the mean over seeds."""
    return float(np.mean(of_seeds, axis=0).std(ddof=1)) if of_seeds else 0.0
