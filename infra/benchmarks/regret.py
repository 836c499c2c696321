"""What pruning loses: full curves, replayed in many orders through the product's own pruner.

    .venv/bin/python infra/benchmarks/regret.py [--orders 4000]

A sweep is so many trials, drawn without replacement in a random order. It loses its best one if the
pruner stops it; its regret is by how much the best trial that ran to the end is worse; its cost is
the share of samples that are trained. Curves are those of `curves.json`, which `curves.py` trains,
and random ones: normal final losses, and at each rung the final loss with noise of half their
standard deviation, as `sweeps/search/survival.py` has them. Trials that train equally fast get to a
rung in the order of their start, so one after the other gives what any number at a time would.
Writes `regret.md`.
"""

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from figures import table
from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from sweeps.search.pruners import PrunerSpec, build

HERE = Path(__file__).parent
PARTS = (9, 6, 4, 3, 2)
"""Of a trial, one of so many: where a curve is known."""
SAMPLES = 900
"""Of a trial, in a replay."""
SIZES = (8, 12, 20)
NOISE = 0.5
METHOD = "adapter.method"


@dataclass(frozen=True)
class Curve:
    """A trial that was trained to its end."""

    method: str
    rungs: Mapping[int, float]
    """Loss at one part of so many."""
    final: float


@dataclass(frozen=True)
class Replayed:
    """Means over orders."""

    lost: float
    """Share of sweeps whose best trial was stopped."""
    regret: float
    samples: float
    """Share of samples that were trained."""
    complete: float
    """Trials that ran to the end."""


@dataclass
class Replay:
    """A study as pruners see it: trials, and the notes that pruners make of them."""

    trials: list[FrozenTrial] = field(default_factory=list)
    direction = StudyDirection.MINIMIZE

    @property
    def _storage(self) -> "Replay":
        return self

    def ask(self, method: str) -> FrozenTrial:
        number = len(self.trials)
        trial = FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime(2026, 1, 1),
            datetime_complete=None,
            params={METHOD: method},
            distributions={METHOD: CategoricalDistribution((method,))},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        self.trials.append(trial)
        return trial

    def get_trials(self, deepcopy: bool = False, states: Any = None) -> list[FrozenTrial]:
        return self.trials

    def set_trial_system_attr(self, trial_id: int, name: str, value: Any) -> None:
        self.trials[trial_id].system_attrs[name] = value


Pool = Callable[[random.Random, int], Sequence[Curve]]
"""Draws the trials of a sweep."""


@dataclass(frozen=True)
class Rule:
    """A pruner, and its rungs at one part of so many of a trial."""

    make: Callable[[], BasePruner]
    """A sweep's own."""
    parts: tuple[int, ...] = (9, 3)


def shares(rule: Rule, curves: Sequence[Curve]) -> list[float]:
    """What each trial has trained of itself, 1 if it ran to the end."""
    study, pruner, found = Replay(), rule.make(), list[float]()
    for curve in curves:
        trial, share = study.ask(curve.method), 1.0
        for part in rule.parts:
            trial.intermediate_values[SAMPLES // part] = curve.rungs[part]
            if pruner.prune(study, trial):  # type: ignore[arg-type]
                share = 1 / part
                break
        found.append(share)
    return found


def replayed(rule: Rule, pool: Pool, size: int, orders: int) -> Replayed:
    """So many sweeps of `size` trials. Seeded."""
    rng = random.Random(0)
    lost, regret, samples, complete = [], [], [], []
    for _ in range(orders):
        curves = pool(rng, size)
        trained = shares(rule, curves)
        finals = [curve.final for curve in curves]
        done = [final for final, share in zip(finals, trained, strict=True) if share == 1.0]
        lost.append(min(finals) < min(done))
        regret.append(min(done) - min(finals))
        samples.append(mean(trained))
        complete.append(len(done))
    return Replayed(mean(lost), mean(regret), mean(samples), mean(complete))


def simulated(rng: random.Random, size: int) -> list[Curve]:
    """Random trials of one method."""
    finals = [rng.gauss(0, 1) for _ in range(size)]
    return [
        Curve("lora", {part: final + rng.gauss(0, NOISE) for part in PARTS}, final)
        for final in finals
    ]


def across_methods(rng: random.Random, size: int) -> list[Curve]:
    """Random trials of four methods, which start as unlike as they end: a method's losses at rungs
    are off by a normal number of its own."""
    offsets = [rng.gauss(0, 1) for _ in range(4)]
    found = []
    for curve in simulated(rng, size):
        number = rng.randrange(4)
        rungs = {part: value + offsets[number] for part, value in curve.rungs.items()}
        found.append(Curve(f"method {number}", rungs, curve.final))
    return found


def recorded(path: Path = HERE / "curves.json") -> dict[str, list[Curve]]:
    """The curves of each space."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: [
            Curve(
                trial["params"].get(METHOD, "lora"),
                {round(trial["samples"] / int(at)): v for at, v in trial["rungs"].items()},
                trial["final"],
            )
            for trial in trials
        ]
        for name, trials in found["spaces"].items()
    }


def product(parts: tuple[int, ...] = (9, 3), **arguments: Any) -> Rule:
    """The product's pruner, with arguments of the sweep file."""
    spec = PrunerSpec.model_validate({"type": "successive_halving", **arguments})
    return Rule(lambda: build(spec, SAMPLES, [SAMPLES // part for part in parts]), parts)


OPTUNAS_OWN = Rule(lambda: SuccessiveHalvingPruner(min_resource=SAMPLES // 9, reduction_factor=3))
"""All methods together, from the first trial on, rounded down."""
RULES: dict[str, Rule] = {
    "Optuna's own": OPTUNAS_OWN,
    "the default": product(),
    "`n_startup_trials: 8`": product(n_startup_trials=8),
    "`num_rungs: 1`": product((3,)),
    "`reduction_factor: 2`": product((4, 2), reduction_factor=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=4000)
    orders = parser.parse_args().orders
    pools: dict[str, tuple[Pool, tuple[int, ...]]] = {
        "random": (simulated, SIZES),
        "random, four methods": (across_methods, SIZES),
    }
    about = []
    for name, curves in recorded().items():
        sizes = tuple(size for size in SIZES if size <= len(curves))
        pools[f"{name}, {len(curves)} recorded"] = (
            lambda rng, size, curves=curves: rng.sample(curves, size),  # type: ignore[misc]
            sizes,
        )
        finals = [curve.final for curve in curves]
        ranks = [spearmanr([c.rungs[part] for c in curves], finals).statistic for part in (9, 3)]
        about.append(
            f"* {name}: {len(curves)} trials, final losses {min(finals):.3f} to {max(finals):.3f}; "
            f"ranks at 1/9 and 1/3 correlate with the final ones by {ranks[0]:.2f} and "
            f"{ranks[1]:.2f}."
        )
    lines = []
    for name, (pool, sizes) in pools.items():
        for size in sizes:
            for title, rule in RULES.items():
                found = replayed(rule, pool, size, orders)
                cells = [f"{found.lost:.1%}", f"{found.regret:.3f}", f"{found.samples:.0%}"]
                lines.append([name, str(size), title, *cells, f"{found.complete:.1f}"])
                print(lines[-1], flush=True)
    titles = ["curves", "trials", "pruner", "best one lost", "regret", "samples", "to the end"]
    text = (HERE / "regret.md").read_text(encoding="utf-8") if (HERE / "regret.md").exists() else ""
    words, _, _ = text.partition("<!-- figures -->")
    body = "\n".join([*about, "", *table(titles, lines)]).rstrip()
    (HERE / "regret.md").write_text(f"{words}<!-- figures -->\n{body}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
