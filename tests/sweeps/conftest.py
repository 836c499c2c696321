"""Simulated sweeps: the demo's spec, an analytic loss in place of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import Progress, State, TrialResult
from peft_jobs.engines.simulated import final_loss, loss_at
from peft_jobs.host.job import Prepared
from sweeps import SweepSpec, build_sweep
from sweeps.spec.plan import resolve
from sweeps.study.database import open_storage
from sweeps.study.point import Point
from sweeps.study.study import SweepStudy

PREPARED = Prepared(train_rows=1000, baseline={"validation/loss": 4.0})


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Sections as keywords -> the mapping of a sweep file; a given mapping updates its section."""

    def build(**sections: Any) -> dict[str, Any]:
        whole: dict[str, Any] = {
            "name": "simulated",
            "model": "demo",
            "quantization": "nf4",
            "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
            "data": {"train": "demo", "validation": "demo"},
            "space": {
                "parameters": {
                    "adapter.r": {"choices": [4, 8, 16, 32]},
                    "adapter.lora_alpha": "2 * adapter.r",
                    "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
                    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
                }
            },
            "budget": {"n_trials": 12, "max_samples": 900},
            "resources": {"backend": "inline", "engine": "simulated"},
            "tracking": "none",
            "storage": str(tmp_path / "runs"),
            "seed": 1,
        }
        for name, given in sections.items():
            old = whole.get(name)
            merge = isinstance(given, dict) and isinstance(old, dict)
            whole[name] = {**old, **given} if merge else given
        return whole

    return build


@pytest.fixture
def sweep(tree: Callable[..., dict[str, Any]]) -> Callable[..., SweepSpec]:
    """Sections as keywords -> a checked SweepSpec (`sweep(budget={"n_trials": 4})`)."""
    return lambda **sections: build_sweep(tree(**sections))


@pytest.fixture
def open_study(sweep: Callable[..., SweepSpec], tmp_path: Path) -> Callable[..., SweepStudy]:
    """Sections -> the sweep's study in `optuna.db`; each call is a new driver's view of it."""

    def open_(**sections: Any) -> SweepStudy:
        (tmp_path / "runs").mkdir(exist_ok=True)
        spec = resolve(sweep(**sections), PREPARED)
        study = SweepStudy(spec, open_storage(f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"))
        study.take_over()
        return study

    return open_


def run_point(study: SweepStudy, point: Point) -> TrialResult:
    """Report a point's simulated loss at every rung and tell how it ended."""
    result = TrialResult(
        state=State.COMPLETE, metrics={"validation/loss": final_loss(point.spec)}, step=9
    )
    for rung in point.spec.evaluation.rungs:
        metrics = {"validation/loss": loss_at(point.spec, rung)}
        progress = Progress(step=rung, samples=rung, tokens=rung, metrics=metrics, rung=rung)
        if not study.report(point.number, progress):
            result = TrialResult(state=State.PRUNED, kind="weak")
            break
    study.tell(point.number, result)
    return result


@pytest.fixture
def run() -> Callable[[SweepStudy, Point], TrialResult]:
    """See `run_point`."""
    return run_point
