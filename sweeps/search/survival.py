"""How far trials get before the pruner stops them: told before a sweep, by trying its pruner."""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import optuna

from sweeps.search.pruners import PrunerSpec, build

TRIALS_TRIED = 2000
"""Over all tries of a sweep; there are two tries at least."""
MAX_TRIALS = 500
"""Of one try; what happens to more trials is taken from these."""
NOISE = 0.5
"""Standard deviation of what a rung says of a trial, in those of the trials' final values: ranks
at a rung and at the end then correlate by about 0.88."""
MAX_IMPROVEMENT = 4.0
"""By how many of those standard deviations the last trials of a sampler that learns are better at
most than its first ones; tries take all values from 0 on alike. Second halves of five recorded
sweeps were better by 0 to 7, in the middle by 1.9 (`infra/benchmarks/pruning.json`)."""


@dataclass(frozen=True)
class Range:
    """A tenth of the tries was below `low`, a tenth above `high`."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Survival:
    """What a sweep's pruner leaves, as shares of what there would be without it."""

    complete: Range
    """Trials that run to their end."""
    samples: Range
    """Samples that are trained."""
    evaluations: Range
    """Evaluations of a trial: at each rung that it gets to, and at its end."""


def survival(
    pruner: PrunerSpec,
    n_trials: int,
    max_samples: int,
    rungs: Sequence[int],
    at_once: int,
    first_learnt: int | None,
    trials_tried: int = TRIALS_TRIED,
) -> Survival:
    """Tries the pruner on trials with random final values and noisy rungs, `at_once` at a time.

    From trial `first_learnt` on they get better, if they ever do. All train equally fast.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study
    number = min(n_trials, MAX_TRIALS)
    first = number if first_learnt is None else min(first_learnt, number)
    complete, samples, evaluations = [], [], []
    stops = [*rungs, max_samples]
    for seed in range(max(2, trials_tried // number)):
        rng = random.Random(seed)
        best = -rng.uniform(0, MAX_IMPROVEMENT)
        learnt = [best * max(0, i - first) / max(1, number - 1 - first) for i in range(number)]
        values = [centre + rng.gauss(0, 1) for centre in learnt]
        ends = [*_ends(build(pruner, max_samples, rungs), values, stops, at_once, rng)]
        evaluations.append(sum(1 + stops.index(end) for end in ends) / number)
        complete.append(sum(end == max_samples for end in ends) / number)
        samples.append(sum(ends) / (number * max_samples))
    return Survival(_range(complete), _range(samples), _range(evaluations))


def _ends(
    pruner: optuna.pruners.BasePruner,
    values: Sequence[float],
    stops: Sequence[int],
    at_once: int,
    rng: random.Random,
) -> Iterator[int]:
    """Samples that each trial of one sweep has trained at its end; `values` are the final ones."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(), pruner=pruner)
    live: list[tuple[int, int, int, optuna.Trial]] = []
    """When a trial gets to its next stop, its number, that of its stop, itself."""

    def start(now: int) -> None:
        trial = study.ask()
        heapq.heappush(live, (now + stops[0], trial.number, 0, trial))

    for _ in range(min(at_once, len(values))):
        start(0)
    while live:
        now, number, stop, trial = heapq.heappop(live)
        if stop + 1 < len(stops):
            trial.report(values[number] + rng.gauss(0, NOISE), step=stops[stop])
            if not trial.should_prune():
                then = now + stops[stop + 1] - stops[stop]
                heapq.heappush(live, (then, number, stop + 1, trial))
                continue
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, values[number])
        yield stops[stop]
        if len(study.get_trials(deepcopy=False)) < len(values):
            start(now)


def _range(values: list[float]) -> Range:
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return Range(ordered[tenth], mean(ordered), ordered[-1 - tenth])
