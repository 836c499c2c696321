"""Memory that runs out for real: the same trial in smaller bites, each bite recorded."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.engines.solo.adapter_export import score_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.spec.memory_settings import LadderRung, below, settings_of
from tests.support.devices import needs_cuda
from tests.support.repository import REPOSITORY

PETABYTE = 2**50


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    """Leaves checkpoints at rungs and interruptions."""
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1, checkpoint_seconds=1e9)


@pytest.fixture
def spec(trial: Any, rows_path: Path) -> Any:
    """Eight rows a step, eight steps, rungs at the second and fifth; no dropout."""
    return trial(
        {
            "adapter.r": 4,
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data.train": {"path": str(rows_path)},
            "data.validation": 0.2,
            "training.learning_rate": 1e-2,
            "training.max_steps": 8,
            "training.logging_steps": 1,
            "evaluation.rungs": [16, 40],
        }
    )


@pytest.fixture
def short_of_memory(engine: SoloEngine, spec: Any, watch_forward: Any) -> Any:
    """(too_large) -> a context in which forward passes of (training, rows) for which it holds ask
    for a petabyte; gives the passes that were made. What a failed pass held is gone at the next.
    """

    @contextmanager
    def short(too_large: Callable[[bool, int], bool]) -> Iterator[list[tuple[bool, int]]]:
        base, _ = engine.check(spec)
        passes: list[tuple[bool, int]] = []
        held: list[weakref.ref[torch.Tensor]] = []

        def look(training: bool, rows: int) -> None:
            assert all(reference() is None for reference in held), "a failed run is kept alive"
            passes.append((training, rows))
            if too_large(training, rows):
                activations = torch.zeros(1000)
                held.append(weakref.ref(activations))
                torch.empty(PETABYTE)

        with watch_forward(base, look):
            yield passes

    return short


def tried(result: Any) -> list[tuple[Any, ...]]:
    return [
        (
            rung.phase,
            rung.step,
            rung.tried.per_device_train_batch_size,
            rung.tried.gradient_accumulation_steps,
            rung.tried.gradient_checkpointing,
            rung.tried.per_device_eval_batch_size,
        )
        for rung in result.memory_ladder
    ]


def losses(run: Any) -> list[float]:
    return [p.metrics["train/loss"] for p in run.reports if p.metrics]


@pytest.mark.parametrize(
    ("batch", "accumulation", "sizes"),
    [(8, 1, [4, 2, 1, 1]), (12, 1, [6, 3, 1, 1]), (5, 2, [2, 1, 1]), (7, 1, [1, 1])],
)
def test_every_step_down_keeps_the_samples_of_a_step(
    spec: Any, batch: int, accumulation: int, sizes: list[int]
) -> None:
    training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    settings, seen = (
        settings_of(spec.with_params({f"training.{n}": v for n, v in training.items()})),
        [],
    )
    while (lower := below(settings, "train")) is not None:
        settings = lower
        seen.append(settings.per_device_train_batch_size)
        samples = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        assert samples == batch * accumulation
        assert settings.gradient_checkpointing == (len(seen) == len(sizes))
        assert settings.per_device_eval_batch_size == 16
    assert seen == sizes


def test_training_that_does_not_fit_is_the_trial_with_smaller_batches(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    dropped = spec.with_params({"adapter.lora_dropout": 0.2})
    with short_of_memory(lambda training, rows: training and rows > 3):
        short = listen(engine, tmp_path / "short")
        result = short.run(dropped)
    assert result.error is None, result.traceback
    assert tried(result) == [("train", 0, 8, 1, False, 16), ("train", 0, 4, 2, False, 16)]
    for rung in result.memory_ladder:
        assert rung.peak["peak_rss_bytes"] > 100 * 2**20
        assert "can't allocate memory" in rung.error
    smaller = {"training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 4}
    plain = listen(engine, tmp_path / "plain")
    expected = plain.run(dropped.with_params(smaller))
    assert result.metrics == expected.metrics
    assert losses(short) == losses(plain)
    assert result.provenance["spec"] == dropped.fingerprint()
    log = (tmp_path / "short" / "attempts" / "1" / "log.txt").read_text()
    assert log.count("out of memory (train)") == 2


def test_training_goes_on_from_the_latest_checkpoint_and_reports_nothing_twice(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    plain = listen(engine, tmp_path / "plain")
    expected = plain.run(spec)
    short = listen(engine, tmp_path / "short")

    def at_step_four(training: bool, rows: int) -> bool:
        return training and rows > 4 and len([p for p in passes if p[0]]) > 3

    with short_of_memory(at_step_four) as passes:
        result = short.run(spec)
    assert tried(result) == [("train", 3, 8, 1, False, 16)]
    training = [rows for training, rows in passes if training]
    assert training == [8] * 4 + [4] * 12, "steps 3 to 8 again, after the rung of step 2"
    assert [(p.step, p.rung) for p in short.reports] == [(p.step, p.rung) for p in plain.reports]
    assert losses(short) == pytest.approx(losses(plain), rel=1e-4)
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-4)
    assert (result.step, result.samples, result.tokens) == (8, 64, expected.tokens)
    assert result.provenance["resumed_from"] == 0

    later = listen(engine, short.folder)
    with short_of_memory(lambda training, rows: False) as passes:
        again = later.run(spec, 2, short.checkpoints()[-1])
    assert {rows for training, rows in passes if training} == {4}, "what did not fit is not tried"
    assert again.memory_ladder == result.memory_ladder
    assert again.metrics == result.metrics


def test_without_checkpoints_training_begins_again(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    alone = SoloEngine(str(engine._resident.cache_dir), threads=1)
    alone._resident = engine._resident
    plain, short = listen(alone, tmp_path / "plain"), listen(alone, tmp_path / "short")
    expected = plain.run(spec)

    def at_step_seven(training: bool, rows: int) -> bool:
        return training and rows > 4 and len([p for p in passes if p[0]]) > 6

    with short_of_memory(at_step_seven) as passes:
        result = short.run(spec)
    assert [rows for training, rows in passes if training] == [8] * 7 + [4] * 16
    assert [(p.step, p.rung) for p in short.reports] == [(p.step, p.rung) for p in plain.reports]
    assert losses(short) == pytest.approx(losses(plain), rel=1e-4)
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-4)


def test_a_trial_begins_below_the_settings_that_are_known_not_to_fit(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    rung = LadderRung(
        phase="train", step=0, tried=settings_of(spec), error="predicted", is_predicted=True
    )
    plain, told = listen(engine, tmp_path / "plain"), listen(engine, tmp_path / "told")
    plain.run(spec)
    with short_of_memory(lambda training, rows: False) as passes:
        result = told.run(spec, ladder=rung)
    assert {rows for training, rows in passes if training} == {4}
    assert result.memory_ladder == [rung]
    assert losses(told) == pytest.approx(losses(plain), rel=1e-4)


def test_gradient_checkpointing_is_the_last_resort(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    base, _ = engine.check(spec)

    def without(training: bool, rows: int) -> bool:
        return training and not base.model.is_activation_checkpointing

    short, plain = listen(engine, tmp_path / "short"), listen(engine, tmp_path / "plain")
    with short_of_memory(without):
        result = short.run(spec)
    assert [rung[2:5] for rung in tried(result)] == [
        (8, 1, False),
        (4, 2, False),
        (2, 4, False),
        (1, 8, False),
    ]
    plain.run(spec)
    assert losses(short) == pytest.approx(losses(plain), rel=1e-4)


def test_a_trial_that_never_fits_ends_as_out_of_memory_with_its_peaks(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    short = listen(engine, tmp_path)
    with short_of_memory(lambda training, rows: training):
        result = short.run(spec)
    assert (result.state, result.kind) == ("PRUNED", "out_of_memory")
    assert "nothing left to save" in result.error
    assert tried(result)[-1] == ("train", 0, 1, 8, True, 16)
    assert len(result.memory_ladder) == 5
    assert result.memory["peak_rss_bytes"] > 100 * 2**20
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_an_evaluation_that_does_not_fit_is_made_again_in_smaller_batches(
    engine: SoloEngine, listen: Any, spec: Any, short_of_memory: Any, tmp_path: Path
) -> None:
    plain, short = listen(engine, tmp_path / "plain"), listen(engine, tmp_path / "short")
    expected = plain.run(spec)
    with short_of_memory(lambda training, rows: not training and rows > 5) as passes:
        result = short.run(spec)
    assert tried(result) == [("evaluate", 2, 8, 1, False, 16), ("evaluate", 2, 8, 1, False, 8)]
    assert [rows for training, rows in passes if training] == [8] * 8, "no step is made again"
    assert losses(short) == losses(plain)
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-5)

    with short_of_memory(lambda training, rows: not training):
        result = listen(engine, tmp_path / "never").run(spec)
    assert (result.state, result.kind, result.step) == ("PRUNED", "out_of_memory", 2)
    assert [rung[5] for rung in tried(result)] == [16, 8, 4, 2, 1]
    assert {rung[0] for rung in tried(result)} == {"evaluate"}


LIMITED = """
import json, resource, sys, threading
from pathlib import Path
from peft_jobs.host.job import Job
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.spec import TrialSpec

class Decided(Job):
    def report(self, progress):
        pass

def run(spec, number):
    directory = Path(sys.argv[2], str(number), "attempts", "1")
    return engine.run(Decided(number, 1, spec, directory, None, threading.Condition()))

engine = SoloEngine(sys.argv[2] + "/cache", threads=1)
texts = json.loads(Path(sys.argv[1]).read_text())
small, large = map(TrialSpec.model_validate_json, texts)
expected = run(small, 0)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20,) * 2)
again = run(large, 1)
after = run(small, 2)
print(json.dumps([result.model_dump(mode="json") for result in (expected, again, after)]))
"""


def test_the_base_alone_is_evaluated_in_smaller_batches_too(
    engine: SoloEngine, spec: Any, short_of_memory: Any
) -> None:
    expected = engine.prepare(spec, []).baseline
    with short_of_memory(lambda _, rows: rows > 3) as passes:
        baseline = engine.prepare(spec, []).baseline
    assert baseline == pytest.approx(expected, rel=1e-5)
    assert [rows for _, rows in passes[:3]] == [16, 8, 4]
    with (
        short_of_memory(lambda *_: True),
        pytest.raises(SpecError, match="the base must be evaluated without an adapter"),
    ):
        engine.prepare(spec, [])


def test_an_adapter_leaves_by_the_same_ladder(
    engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path
) -> None:
    run = listen(engine, tmp_path / "trial")
    result = run.run(spec)
    adapter = tmp_path / "trial" / "attempts" / "1" / str(result.adapter)
    asked: list[int] = []

    def too_large(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            asked.append(len(given[0]))
            if len(given[0]) > 3:
                torch.empty(PETABYTE)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(too_large)
    try:
        validation, test = score_adapter(spec.model_dump_json(), adapter, tmp_path / "c", False)
    finally:
        hook.remove()
    assert asked[:3] == [16, 8, 4]
    expected = result.metrics["validation/loss"]
    assert validation["validation/loss"] == pytest.approx(expected, rel=1e-5)
    assert test == {}


def test_an_address_space_that_is_too_small_is_survived(trial: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    text = "the cat sees a red bird " * 20
    rows.write_text("".join(json.dumps({"t": f"{i % 7} {text}"}) + "\n" for i in range(100)))
    small = trial(
        {
            "quantization.scheme": "nf4",
            "task": {"type": "causal_lm", "response": "{t}"},
            "data.train": {"path": str(rows)},
            "data.validation": 0.02,
            "data.max_length": 120,
            "training.learning_rate": 1e-2,
            "training.max_steps": 2,
            "training.per_device_train_batch_size": 4,
            "training.gradient_accumulation_steps": 16,
        }
    )
    large = small.with_params(
        {"training.per_device_train_batch_size": 64, "training.gradient_accumulation_steps": 1}
    )
    (tmp_path / "specs.json").write_text(json.dumps([small.to_json(), large.to_json()]))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "specs.json"), str(tmp_path), "50"],
        cwd=REPOSITORY,
        env=os.environ
        | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected, result, after = json.loads(done.stdout.splitlines()[-1])
    assert result["error"] is None, result["traceback"]
    sizes = [rung["tried"]["per_device_train_batch_size"] for rung in result["memory_ladder"]]
    assert sizes in ([64], [64, 32], [64, 32, 16]), result["memory_ladder"]
    assert result["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    assert after["metrics"] == expected["metrics"]


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_that_is_too_small_is_survived(
    listen: Any, trial: Any, watch_forward: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    text = "the cat sees a red bird " * 20
    rows.write_text("".join(json.dumps({"t": f"{i % 7} {text}"}) + "\n" for i in range(300)))
    spec = trial(
        {
            "quantization.scheme": "nf4",
            "task": {"type": "causal_lm", "response": "{t}"},
            "data.train": {"path": str(rows)},
            "data.validation": 0.02,
            "data.max_length": 120,
            "training.learning_rate": 1e-2,
            "training.max_steps": 3,
            "training.logging_steps": 1,
            "training.per_device_train_batch_size": 1024,
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"), checkpoint_seconds=0)
    plain, short = listen(engine, tmp_path / "plain"), listen(engine, tmp_path / "short")
    expected = plain.run(spec)
    base, _ = engine.check(spec)
    total = torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(0.4 * expected.memory["peak_reserved_bytes"] / total)
    try:
        result = short.run(spec)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    # No limit is low enough: one row fits into what the allocator holds of small blocks.
    with watch_forward(base, lambda training, rows: torch.empty(PETABYTE, device=base.device)):
        exhausted = listen(engine, tmp_path / "never").run(spec)
    gc.collect()
    assert result.error is None, result.traceback
    sizes = [rung[2] for rung in tried(result)]
    assert sizes
    assert sizes == [1024 >> rung for rung in range(len(sizes))]
    assert losses(short) == pytest.approx(losses(plain), rel=1e-2)
    assert result.memory["peak_reserved_bytes"] < 0.45 * expected.memory["peak_reserved_bytes"]
    assert (exhausted.state, exhausted.kind) == ("PRUNED", "out_of_memory")
    assert exhausted.memory["peak_allocated_bytes"] > 0
    assert torch.cuda.memory_allocated() == before
    assert listen(engine, tmp_path / "after").run(spec).metrics == pytest.approx(
        expected.metrics, rel=1e-3
    )
