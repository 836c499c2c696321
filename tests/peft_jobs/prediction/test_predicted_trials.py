"""What a trial takes that is about to start, and where its memory ladder would end."""

from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError
from peft_jobs.host.gpus import CONTEXT_BYTES, GPUS, cpu_of, device_of, find_gpu, find_kind
from peft_jobs.host.prediction import MARGIN, Lengths
from peft_jobs.prediction.predict import predict
from peft_jobs.prediction.predicted_trials import PredictedTrials
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import below, settings_of, with_settings
from tests.support.fake_bases import LLAMA_8B, spec_on, write_config

SMALL = LLAMA_8B | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 256, "num_hidden_layers": 2}
LENGTHS = Lengths.of(8192)


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    return spec_on(write_config(tmp_path, SMALL), training={"per_device_train_batch_size": 4})


def test_the_ladder_is_gone_down_to_the_first_settings_that_fit(spec: TrialSpec) -> None:
    gpu = GPUS["L4"]
    smaller = with_settings(spec, below(settings_of(spec), "train") or settings_of(spec))
    whole, half = (predict([each], gpu, LENGTHS)[0].peak_bytes for each in (spec, smaller))
    assert whole > 1.2 * half
    room = gpu.model_copy(update={"memory_bytes": CONTEXT_BYTES + half})
    found = PredictedTrials(room, LENGTHS).of(spec)
    assert found.fits
    assert found.ladder is not None
    assert found.ladder.tried == settings_of(spec)
    assert found.ladder.peak == {"peak_reserved_bytes": whole}
    assert found.prediction.peak_bytes == half, "that of the settings that it begins with"

    just = int(whole / (1 + MARGIN)) + 1
    room = gpu.model_copy(update={"memory_bytes": CONTEXT_BYTES + just})
    assert PredictedTrials(room, LENGTHS).of(spec).ladder is None, "what may fit is tried"

    none = gpu.model_copy(update={"memory_bytes": CONTEXT_BYTES + 1})
    assert not PredictedTrials(none, LENGTHS).of(spec).fits


def test_nothing_follows_from_a_cpu_s_memory(spec: TrialSpec) -> None:
    found = PredictedTrials(cpu_of(1, 1), LENGTHS).of(spec)
    assert found.fits
    assert found.ladder is None
    assert found.numbers.keys() == {"trainable_parameters", "seconds_per_sample"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *(("A100", "A100 40GB"), ("A100-80G", "A100 80GB"), ("A100-40G", "A100 40GB")),
        *(("L4", "L4"), ("L40S", "L40S"), ("H100", "H100 SXM"), ("A10", "A10")),
        *(("RTX-4090", "RTX 4090"), ("A6000", "A6000"), ("V100", "V100"), ("H200", "H200")),
    ],
)
def test_a_kind_of_ray_s_is_a_gpu_of_the_table(kind: str, expected: str) -> None:
    assert find_kind(kind) is GPUS[expected]


def test_a_kind_that_is_not_known_is_told() -> None:
    with pytest.raises(SpecError, match="no GPU 'A10G' in the table"):
        find_kind("A10G")
    with pytest.raises(SpecError, match="'a100' is one of several GPUs: A100 80GB, A100 40GB"):
        find_gpu("a100")


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.1, "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100 SXM"),
        ("NVIDIA H100 PCIe", 79.1, "H100 PCIe"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA L4", 22.0, "L4"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX 3090"),
        ("NVIDIA RTX A6000", 47.4, "A6000"),
        ("Tesla T4", 14.6, "T4"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100"),
        ("NVIDIA GeForce GTX 1650", 3.8, "T4"),
    ],
)
def test_a_device_has_the_rates_of_the_gpu_that_cuda_names(
    name: str, gib: float, expected: str
) -> None:
    found: Any = device_of(name, int(gib * 2**30))
    assert found.name == name
    assert found.memory_bytes == int(gib * 2**30)
    assert found.half_flops == GPUS[expected].half_flops
    assert found.bytes_per_second == GPUS[expected].bytes_per_second
