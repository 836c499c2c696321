"""The plan of a sweep on a base that exists as its configuration alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peft_jobs import TrialSpec
from peft_jobs.host.gpus import GIB, find_gpu
from peft_jobs.prediction.shapes import rank_of
from peft_jobs.spec.memory_settings import MemorySettings, settings_of
from sweeps import SweepSpec, build_sweep
from sweeps.cli.app import app
from sweeps.planning.planned_points import Rows, _helped, _rungs
from sweeps.planning.sweep_plan import STARTING_SECONDS, SweepPlan, plan_sweep
from tests.support.fake_bases import LLAMA_8B, spec_on, write_config

ROWS = Rows(20_000, 400, mean_tokens=180.0, longest_tokens=512, how="exact")


LAYERS = 2
"""Of 32: so many layers are run as they are."""
GPU = "5GB"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LLAMA_8B | {"num_hidden_layers": LAYERS}
    return write_config(tmp_path_factory.mktemp("8b"), config)


def qlora(base: Path, storage: Path, **sections: Any) -> SweepSpec:
    return build_sweep(
        {
            "name": "planned",
            "model": str(base),
            "quantization": {"scheme": "nf4", "bnb_4bit_use_double_quant": True},
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": "demo", "validation": "demo", "max_length": 512},
            "training": {"per_device_train_batch_size": 16, "bf16": True, "warmup_steps": 50},
            "space": {"parameters": {"adapter.r": {"choices": [8, 64]}}},
            "budget": {"n_trials": 24, "num_train_epochs": 1},
            "tracking": "none",
            "storage": str(storage),
            **sections,
        }
    )


@pytest.fixture(scope="module")
def plan(base: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    spec = qlora(base, tmp_path_factory.mktemp("runs"))
    return plan_sweep(spec, find_gpu(GPU), 4, ROWS, usd_per_gpu_hour=0.7)


def test_what_does_not_fit_is_told_with_what_would_make_it_fit(plan: SweepPlan) -> None:
    """Sixteen rows of 512 tokens keep GiB of activations; single rows do not."""
    assert plan.fitting == []
    for point in plan.points:
        assert point.peak_bytes > 5 * GIB
        assert point.remedy is not None
        assert "training.per_device_train_batch_size=" in point.remedy
    assert [point.trainable_parameters for point in plan.points] == [
        20_971_520 * LAYERS // 32,
        167_772_160 * LAYERS // 32,
    ]
    assert plan.gpus_that_fit[0] == "T4", "the smallest of the table"
    assert "L4" in plan.gpus_that_fit


def test_numbers_that_follow_from_the_file_are_exact(plan: SweepPlan) -> None:
    assert plan.max_samples == 20_000
    assert plan.steps == (1250, 1250)
    assert [(rung.samples, rung.in_warmup) for rung in plan.rungs] == [
        (2222, False),
        (6666, False),
    ]
    assert plan.rungs[0].steps == (139, 139)
    assert plan.distinct_points == 2
    assert plan.turned_away == {}
    assert plan.repeated > 0.9, "two points, drawn again and again"
    [targets] = plan.targets
    assert targets["modules"] == 7 * LAYERS
    assert plan.downloads == ()


def test_hours_are_enough_for_as_many_trials_as_the_costs_say(plan: SweepPlan) -> None:
    assert plan.trials_in(plan.costs.hours.low)[1] in (23, 24)
    assert plan.trials_in(plan.costs.hours.high)[0] in (23, 24)
    assert plan.trials_in(STARTING_SECONDS / 3600) == (0, 0)


def test_costs_are_ranges_around_what_all_trials_take(plan: SweepPlan) -> None:
    _, mean, _ = plan.seconds_per_trial
    hours = plan.costs.gpu_hours
    unpruned = 24 * mean / 3600
    assert hours.low < hours.expected < hours.high
    assert hours.low < unpruned
    assert plan.costs.hours.low == pytest.approx(hours.low / 4)
    assert plan.costs.usd is not None
    assert plan.costs.usd.low == pytest.approx(0.7 * 4 * plan.costs.hours.low)
    told = plan.to_json()
    assert told["device"] == GPU
    assert told["survival"]["complete"]["expected"] == plan.survival.complete.expected


def test_smaller_batches_fit_and_share_the_gpu(base: Path, tmp_path: Path) -> None:
    training = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "gradient_checkpointing": True,
        "bf16": True,
    }
    spec = qlora(base, tmp_path, training=training)
    found = plan_sweep(spec, find_gpu(GPU), 1, ROWS)
    assert len(found.fitting) == len(found.points) == 2
    assert all(point.remedy is None for point in found.points)
    assert found.costs.usd is None
    assert 1 <= found.trials_per_gpu <= 5
    assert found.disk_bytes > 2 * found.adapter_bytes[1]


def test_the_command_prints_a_plan_of_the_demo(tmp_path: Path) -> None:
    words = [
        "plan",
        "sweeps/examples/demo.yaml",
        "--gpu",
        "L4",
        "--hours",
        "2",
        f"storage={tmp_path}",
    ]
    space = {"adapter.r": 8, "adapter.lora_dropout": 0.0, "adapter.target_modules": "attention"}
    words += [f"space.parameters.{name}={value}" for name, value in space.items()]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (
        "lora attention: 12 modules (3 k_proj, 3 o_proj, 3 q_proj, 3 v_proj); exact" in done.output
    )
    assert "256 samples, step 16; exact" in done.output
    assert "supervised: 75,348 of 126,755 tokens" in done.output
    assert (tmp_path / "cache" / "plans" / "demo.json").is_file()
    assert "20, of at most 1,024 samples (64 steps); exact" in done.output
    assert "points fit in" in done.output
    assert "1,200 to train on" in done.output


def test_a_gpu_that_is_not_known_is_told_with_the_known_ones() -> None:
    done = CliRunner().invoke(app, ["plan", "sweeps/examples/demo.yaml", "--gpu", "H300"])
    assert done.exit_code == 2
    assert "there is no GPU 'H300' in the table" in done.output


def test_the_largest_points_that_can_be_helped_are_found_in_few_steps(base: Path) -> None:
    """Of ranks from 64 down, those up to 40 fit with the last settings, up to 20 with the first."""
    trials = [spec_on(base, adapter={"method": "lora", "r": r}) for r in range(64, 0, -1)]
    first, *_, last = _rungs(settings_of(trials[0]))
    asked = []

    def fit(trial: TrialSpec, rungs: Sequence[MemorySettings]) -> list[MemorySettings]:
        asked.append(trial)
        return [each for each in rungs if rank_of(trial) <= (40 if each == last else 20)]

    assert _helped(trials, [first, last], fit) == (64 - 40, last)
    assert len(asked) <= 2 + 7
    assert _helped(trials[:4], [first, last], fit) == (4, None)
    assert _helped(trials[50:], [first, last], fit) == (0, first)
