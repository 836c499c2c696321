"""AdaLoRA's importances stay numbers, and are compared on one device."""

from typing import Any

import pytest
import torch

from peft_jobs.base.loading import load_base
from peft_jobs.errors import Diverged, Refused, SpecError
from peft_jobs.methods import METHODS
from peft_jobs.training.training_state import METHOD_STATE

ADALORA = METHODS["adalora"]
NUM_STEPS, LAST_CUT = 6, 4


@pytest.fixture
def spec(trial: Any) -> Any:
    adapter = {"init_r": 4, "target_r": 2, "tinit": 0, "tfinal": NUM_STEPS - LAST_CUT, "deltaT": 1}
    named = {f"adapter.{name}": value for name, value in adapter.items()}
    return trial({"adapter.method": "adalora", **named, "training.max_steps": NUM_STEPS})


@pytest.fixture
def model(llama_base: Any, spec: Any) -> Any:
    attached = ADALORA.attach(llama_base("none"), spec)
    yield attached
    ADALORA.detach(attached)


def step(model: Any, number: int, spoilt: float | None = None) -> None:
    """A step as a gradient scaler makes it: one with a `spoilt` gradient changes no weight."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tokens = torch.arange(6, 24).view(2, 9)
    model(input_ids=tokens, labels=tokens).loss.backward()
    if spoilt is None:
        torch.optim.SGD(parameters.values(), lr=1.0).step()
    else:
        next(p for n, p in parameters.items() if "lora_B" in n).grad[0, 0] = spoilt
    assert ADALORA.after_step is not None
    ADALORA.after_step(model, number)
    model.zero_grad()


def importance(model: Any) -> dict[str, torch.Tensor]:
    kept = getattr(model, METHOD_STATE).tensors()
    return {name: value.clone() for name, value in kept.items() if "exp_avg" in name}


def test_a_trial_without_a_step_before_the_last_cut_is_refused(llama_base: Any, trial: Any) -> None:
    short = trial({"adapter.method": "adalora", "training.max_steps": 2})
    with pytest.raises(SpecError, match="none of the trial's 2 steps to cut ranks in"):
        ADALORA.attach(llama_base("none"), short)
    shortest = trial({"adapter.method": "adalora", "training.max_steps": 3})
    model = ADALORA.attach(llama_base("none"), shortest)
    for number in (1, 2, 3):
        step(model, number)
    ADALORA.detach(model)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_step_without_finite_gradients_does_not_count(
    model: Any, spoilt: float, first: int
) -> None:
    for number in range(1, first):
        step(model, number)
    before = importance(model)
    step(model, first, spoilt)
    after = importance(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    for number in range(first + 1, LAST_CUT):
        step(model, number)
    assert all(value.isfinite().all() for value in importance(model).values())
    step(model, LAST_CUT, spoilt)  # by what the steps before have shown
    pattern = model.peft_config["default"].rank_pattern
    assert sum(sum(kept) for kept in pattern.values()) == 2 * len(pattern)


def test_ranks_cannot_be_cut_where_no_gradient_was_finite(model: Any) -> None:
    for number in range(1, LAST_CUT):
        step(model, number, spoilt=float("inf"))
    with pytest.raises(Diverged, match="no gradient was finite before step 4"):
        step(model, LAST_CUT)


def test_a_base_over_several_devices_is_refused(spec: Any) -> None:
    base = load_base(spec.model, spec.quantization, spec.task)
    base.model.model.layers[1].to("meta")
    with pytest.raises(Refused, match=r"adalora compares .* this base is spread over several"):
        ADALORA.attach(base, spec)
