"""Predictions against what the field's tables say of well-known bases."""

from pathlib import Path
from typing import Any

import pytest

from peft_jobs.host.gpus import GIB, GPUS, find_gpu
from peft_jobs.host.prediction import Lengths, Prediction
from peft_jobs.prediction.predict import predict
from tests.support.fake_bases import LLAMA_8B, LLAMA_70B, spec_on, write_config

TWO_LAYERS = LLAMA_8B | {"num_hidden_layers": 2}
QLORA = {"scheme": "nf4", "bnb_4bit_use_double_quant": True}


def of(base: Path, r: int, gpu: str, **training: Any) -> Prediction:
    spec = spec_on(
        base,
        quantization=QLORA,
        adapter={"method": "lora", "r": r},
        training={"per_device_train_batch_size": 1, "bf16": True, **training},
    )
    [found] = predict([spec], find_gpu(gpu), Lengths.of(512))
    return found


def test_qlora_of_8b_takes_six_to_seven_gib(tmp_path: Path) -> None:
    """The tables of Unsloth and LLaMA-Factory say 6 GB."""
    base = write_config(tmp_path, LLAMA_8B)
    small = of(base, 16, "24GB", gradient_checkpointing=True)
    assert 6 * GIB < small.peak_bytes < 7 * GIB
    assert small.fits
    assert small.trainable_parameters == 41_943_040
    assert of(base, 16, "24GB").peak_bytes > small.peak_bytes + 2 * GIB


def test_qlora_of_70b_fits_48_and_not_24_gb(tmp_path: Path) -> None:
    """Dettmers et al. 2023 (arXiv 2305.14314): 65B on one GPU of 48 GB, with a paged optimizer.
    Its weights alone are more than 24 GB."""
    base = write_config(tmp_path, LLAMA_70B)
    found = of(base, 64, "48GB", gradient_checkpointing=True, optim="paged_adamw_8bit")
    assert found.fits
    assert found.memory["weights"] > find_gpu("24GB").usable_bytes


@pytest.mark.parametrize("written", ["RTX 4090", "4090", "nvidia geforce rtx 4090", "rtx-4090"])
def test_a_gpu_is_found_as_people_write_it(written: str) -> None:
    assert find_gpu(written) is GPUS["RTX 4090"]


def test_ranks_between_two_that_were_run_are_as_if_they_were_run(tmp_path: Path) -> None:
    base = write_config(tmp_path, TWO_LAYERS)
    specs = [
        spec_on(
            base,
            quantization=QLORA,
            adapter={"method": "lora", "r": r},
            training={"per_device_train_batch_size": 1, "bf16": True},
        )
        for r in (4, 24, 64)
    ]
    gpu = find_gpu("24GB")
    alone = predict([specs[1]], gpu, Lengths.of(256))[0]
    between = predict(specs, gpu, Lengths.of(256))[1]
    assert between.trainable_parameters == alone.trainable_parameters
    assert between.adapter_bytes == alone.adapter_bytes
    assert between.launches == alone.launches
    assert between.peak_bytes == pytest.approx(alone.peak_bytes, rel=1e-2), "but for fragments"
    assert between.seconds_per_step == pytest.approx(alone.seconds_per_step, rel=5e-3)


def test_accumulated_micro_steps_take_their_number_of_kernels(tmp_path: Path) -> None:
    """Launches are affine in the micro-steps, and the memory of two is that of many."""
    base = write_config(tmp_path, TWO_LAYERS)
    found = {n: of(base, 8, "24GB", gradient_accumulation_steps=n) for n in (1, 2, 3, 16)}
    each = found[3].launches - found[2].launches
    assert each > 0
    assert found[16].launches == found[2].launches + 14 * each
    assert found[16].peak_bytes == found[2].peak_bytes >= found[1].peak_bytes
    assert found[16].flops == pytest.approx(16 * found[1].flops, rel=0.01)
