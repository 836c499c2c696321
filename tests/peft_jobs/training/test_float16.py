"""float16: the scale of its gradients is in checkpoints, and needs trained weights in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_jobs.base.loading import load_base
from peft_jobs.errors import Refused
from peft_jobs.methods import METHODS
from peft_jobs.spec import TrialSpec
from peft_jobs.training.training_state import restore_model, restore_scaler, snapshot


def trial(path: Path, params: dict[str, Any]) -> TrialSpec:
    task = {"type": "sequence_classification", "text": "{q}", "label": "class"}
    spec = {"model": str(path), "task": task, "data": {"train": "unused.jsonl"}}
    return TrialSpec.model_validate(spec).with_params(params)


@pytest.mark.parametrize(
    "adapter",
    [
        {"adapter.bias": "all"},
        {"adapter.bias": "lora_only"},
        {"adapter.method": "oft", "adapter.bias": "oft_only", "adapter.oft_block_size": 8},
    ],
)
def test_biases_in_float16_are_refused(tiny_bert_path: Path, adapter: dict[str, Any]) -> None:
    half = {"model.dtype": "float16"}
    spec = trial(tiny_bert_path, {**half, **adapter, "training.fp16": True})
    base = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    before = base.state_hash()
    method = METHODS[spec.adapter.method]
    with pytest.raises(Refused, match=r"training.fp16 needs .*\.bias is float16; give"):
        method.attach(base, spec)
    assert base.state_hash() == before
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    for other in ({"training.fp16": False}, {"adapter.bias": "none"}):
        method.detach(method.attach(base, spec.with_params(other)))


class Scaled:
    """A model under a scaler, whose every fourth step overflows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)

    def step(self, number: int) -> tuple[float, int]:
        loss = self.model(torch.ones(1, 3) * number).square().sum()
        self.scaler.scale(loss if number % 4 else loss * torch.inf).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return self.scaler.get_scale(), self.scaler.state_dict()["_growth_tracker"]


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.parametrize("begun", [False, True])
def test_the_scale_goes_on_from_a_checkpoint(cut: int, begun: bool) -> None:
    whole, again = Scaled(), Scaled()
    for number in range(1, cut + 1):
        whole.step(number)
    tensors = snapshot(whole.model, whole.optimizer, whole.scaler).read()
    rest = [whole.step(number) for number in range(cut + 1, 13)]
    if begun:  # the scaler has its tensors already
        again.step(1)
    restore_model(again.model, tensors)
    restore_scaler(again.scaler, tensors)
    assert [again.step(number) for number in range(cut + 1, 13)] == rest
    assert torch.equal(again.model.weight, whole.model.weight)


def test_a_checkpoint_without_a_scale_is_read_as_one() -> None:
    fresh = Scaled()
    before = fresh.scaler.state_dict()
    tensors = snapshot(fresh.model, fresh.optimizer).read()
    restore_scaler(fresh.scaler, tensors)
    assert fresh.scaler.state_dict() == before
    restore_scaler(None, snapshot(fresh.model, fresh.optimizer, fresh.scaler).read())
