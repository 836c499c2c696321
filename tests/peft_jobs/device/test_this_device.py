"""No trial trains on the CPU of a machine that was to have a GPU, unless somebody wants it."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from peft_jobs import SpecError
from peft_jobs.device.precision import check_device
from peft_jobs.device.this_device import this_device
from peft_jobs.engines import load_engine
from peft_jobs.spec import TrainingSpec

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


@without_cuda
@pytest.mark.parametrize("visible", ["0", "3,4", "GPU-8932f937"])
@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_an_engine_refuses_a_gpu_that_torch_cannot_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, engine: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SpecError) as told:
        load_engine(engine, {"cache_dir": str(tmp_path)})
    message = str(told.value)
    assert re.match(rf"torch {re.escape(torch.__version__)} cannot use the GPU of \S+: ", message)
    if torch.version.cuda is None:
        assert "Torch not compiled with CUDA enabled; install a build of torch with CUDA" in message
    assert "CUDA_VISIBLE_DEVICES to nothing to train on the CPU" in message
    assert "\n" not in message, "of an actor's constructor, Ray hands on the last line"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_the_cpu_is_wanted_where_no_gpu_is_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_device() == torch.device("cpu")


def test_the_reason_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with CUDA 13 on a machine whose driver is of CUDA 12."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your\nsystem is too old (found version 12020).")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SpecError, match=r"on your system is too old \(found version 12020") as told:
        this_device()
    assert "install an NVIDIA driver for CUDA 13.0" in str(told.value)


@pytest.mark.parametrize(("major", "native"), [(7, False), (8, True), (9, True)])
def test_bf16_is_refused_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, major: int, native: bool
) -> None:
    """A T4 takes bfloat16, and computes it many times slower than float16."""
    card = SimpleNamespace(major=major, minor=5, name="a card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card.name)
    asked, cuda = TrainingSpec(bf16=True), torch.device("cuda", 0)
    if native:
        check_device(asked, cuda)
        return
    with pytest.raises(SpecError, match=r"training\.bf16 needs .* Ampere .* got a card"):
        check_device(asked, cuda)


ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
OPENMP = {"GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (None, ALLOCATOR | OPENMP),
        ("PYTORCH_ALLOC_CONF", OPENMP),
        ("PYTORCH_CUDA_ALLOC_CONF", OPENMP),
        ("GOMP_SPINCOUNT", ALLOCATOR),
        ("OMP_WAIT_POLICY", ALLOCATOR),
    ],
)
def test_allocator_and_openmp_are_set_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, added: dict[str, str]
) -> None:
    environment = {} if given is None else {given: "as it was"}
    monkeypatch.setattr(os, "environ", dict(environment))
    load_engine("simulated", {})
    assert os.environ == environment | added
