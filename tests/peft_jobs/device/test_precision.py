"""`auto` is true where a device computes so itself, and a CPU's numbers do not change by it."""

import json
from typing import Any

import pytest
import torch

from peft_jobs import SpecError, TrialSpec
from peft_jobs.device.precision import autocast, check_device, precision_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(major, minor) -> torch speaks of a GPU of that compute capability."""

    def show(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")

    return show


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)]
)
def test_auto_follows_the_gpu(
    trial: Any, on_gpu: Any, capability: tuple[int, int], native: bool
) -> None:
    on_gpu(*capability)
    training = trial({"training.bf16": "auto", "training.tf32": "auto"}).training
    check_device(training, GPU)
    found = precision_of(training, GPU).as_provenance()
    assert found == {"bf16": native, "fp16": False, "tf32": native}
    half = trial({"training.bf16": "auto", "training.fp16": True}).training
    assert precision_of(half, GPU).as_provenance() == {"bf16": False, "fp16": True, "tf32": False}


def test_what_is_asked_for_by_name_is_not_resolved(trial: Any, on_gpu: Any) -> None:
    on_gpu(7, 5)
    assert precision_of(trial({"training.bf16": True}).training, GPU).bf16
    with pytest.raises(SpecError, match=r"training\.tf32 needs a GPU of the Ampere generation"):
        check_device(trial({"training.tf32": True}).training, GPU)


def test_auto_is_false_on_a_cpu(trial: Any) -> None:
    training = trial({"training.bf16": "auto", "training.tf32": "auto"}).training
    check_device(training, CPU)
    assert not any(precision_of(training, CPU).as_provenance().values())
    with autocast(CPU, training):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_trials_without_auto_have_the_fingerprints_that_they_had(trial: Any) -> None:
    spec = trial()
    written = json.loads(spec.to_json())
    assert (written["training"]["bf16"], written["training"]["tf32"]) == (False, False)
    automatic = spec.with_params({"training.bf16": "auto"})
    assert automatic.fingerprint() != spec.fingerprint()
    assert TrialSpec.model_validate_json(automatic.to_json()) == automatic
