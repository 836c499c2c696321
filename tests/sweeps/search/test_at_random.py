"""What is said of a sampler's fallback agrees with what Optuna's sampler does."""

from collections.abc import Callable
from typing import Any

import pytest

from peft_jobs.spec.dotted import flatten
from sweeps.search.at_random import drawn_at_random, why_at_random
from sweeps.study.study import SweepStudy

CHOICES = {"adapter.r": {"choices": [4, 8]}, "adapter.lora_dropout": {"choices": [0.0, 0.1]}}
MIXED = {
    "adapter.r": {"choices": [4, 8, 16]},
    "adapter.lora_alpha": "2 * adapter.r",
    "adapter.lora_dropout": {"low": 0.0, "high": 0.1},
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "training.warmup_steps": {"low": 1, "high": 9, "when": "adapter.r > 4"},
    "training.weight_decay": {"low": 0.1, "high": 0.1, "type": "float"},
}


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "qmc"])
@pytest.mark.parametrize("parameters", [CHOICES, MIXED])
def test_the_names_are_those_that_optunas_sampler_leaves_out(
    open_study: Callable[..., SweepStudy], run: Any, sampler: str, parameters: dict[str, Any]
) -> None:
    study = open_study(space={"parameters": parameters}, sampler=sampler, pruner="none")
    while len(study.launched()) < 4 and (point := study.ask()) is not None:
        run(study, point)
    trial, sampler_now = study.trials()[-1], study.optuna.sampler
    relative = sampler_now.infer_relative_search_space(study.optuna, trial)
    varying = {
        name
        for other in study.trials()
        for name, distribution in other.distributions.items()
        if not distribution.single()
    }
    first_has_all = "training.warmup_steps" in study.trials()[0].params
    told = drawn_at_random(sampler, study.spec.space, flatten(study.spec.trial))
    if sampler == "qmc" and first_has_all:
        told = [name for name in told if name != "training.warmup_steps"]
    assert set(told) == varying - relative.keys()


def test_a_sampler_that_draws_everything_itself_says_nothing(
    open_study: Callable[..., SweepStudy],
) -> None:
    space = open_study(space={"parameters": MIXED}).spec.space
    assert drawn_at_random("tpe", space, {}) == []
    assert why_at_random("tpe", []) == ""
