"""A trial that goes on from a checkpoint is the trial that never stopped: bit for bit."""

import time
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import Fenced
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.messages import Assignment, Interrupted, Report
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.randomness import epoch_order

CAUSAL = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
CLASSES = {"type": "sequence_classification", "text": "{q}", "text_pair": "{a}", "label": "class"}
COMMON = {
    "adapter.r": 4,
    "adapter.lora_dropout": 0.2,
    "task": CAUSAL,
    "data.validation": 0.2,
    "data.subset": 20,  # three epochs in ten steps of six samples: batches cross their borders
    "training.learning_rate": 1e-2,
    "training.max_steps": 10,
    "training.per_device_train_batch_size": 6,
    "training.logging_steps": 1,
    "evaluation.rungs": [18, 40],
    "seed": 5,
}
CASES = {
    "float32": {
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 3,
        "training.warmup_steps": 0.3,
        "training.lr_scheduler_type": "cosine",
        "training.weight_decay": 0.3,
        "training.max_grad_norm": 0.05,
        "training.logging_steps": 4,
    },
    "nf4": {"quantization.scheme": "nf4", "training.gradient_accumulation_steps": 2},
    "bf16": {
        "training.bf16": True,
        "training.gradient_checkpointing": True,
        "training.lr_scheduler_type": "inverse_sqrt",
        "training.warmup_steps": 3,
        "training.adam_beta1": 0.5,
    },
    "8bit": {"adapter.r": 64, "training.optim": "adamw_8bit", "training.weight_decay": 0.1},
    "bert": {
        "task": CLASSES,
        "adapter.bias": "lora_only",
        "adapter.target_modules": "attention-qv",
        "training.lr_scheduler_type": "polynomial",
        "training.max_grad_norm": 0,
    },
}
NUM_STEPS = 10


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    """Leaves a checkpoint at every step."""
    cache = tmp_path_factory.mktemp("cache")
    return SoloEngine(str(cache), threads=1, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def make(trial: Any, rows_path: Path, tiny_bert_path: Path) -> Any:
    """(name of a case, more parameters) -> its spec."""

    def build(case: str, **params: Any) -> Any:
        model = {"model": {"name_or_path": str(tiny_bert_path)}} if case == "bert" else {}
        data = {"data.train": {"path": str(rows_path)}}
        return trial({**COMMON, **data, **model, **CASES[case], **params})

    return build


def told(reports: list[Any]) -> list[tuple[Any, ...]]:
    """What reports say, but for checkpoints."""
    return [(p.step, p.samples, p.tokens, p.rung, p.metrics) for p in reports if p.metrics]


def adapter(trial: Any, attempt: int = 1) -> bytes:
    folder = trial.folder / "attempts" / str(attempt) / "adapter"
    return (folder / "adapter_model.safetensors").read_bytes()


def check_end(found: Any, whole: Any) -> None:
    names = ("state", "metrics", "step", "samples", "tokens", "trainable_parameters")
    assert found.error is None, found.traceback
    assert {n: getattr(found, n) for n in names} == {n: getattr(whole, n) for n in names}


@pytest.mark.parametrize("case", CASES)
def test_from_every_step_a_trial_goes_on_as_if_it_had_not_stopped(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, case: str
) -> None:
    spec = make(case)
    plain = listen(SoloEngine(str(engine._resident.cache_dir), threads=1), tmp_path / "plain")
    unbroken = plain.run(spec)
    curve = told(plain.reports)
    assert not plain.checkpoints()
    assert all(report.checkpoint is None for report in plain.reports)

    first = listen(engine, tmp_path / "trial")
    check_end(first.run(spec), unbroken)
    assert told(first.reports) == curve, "leaving checkpoints changes nothing"
    checkpoints = first.checkpoints()
    assert [path.name for path in checkpoints] == [f"step-{n:08d}" for n in range(1, NUM_STEPS)]
    assert len({metrics["train/loss"] for *_, metrics in curve}) == len(curve)

    for step, path in enumerate(checkpoints, start=1):
        again = listen(engine, first.folder)
        result = again.run(spec, attempt=step + 1, checkpoint=path)
        check_end(result, unbroken)
        assert result.provenance["resumed_from"] == step
        assert told(again.reports) == [report for report in curve if report[0] >= step]
        assert adapter(again, step + 1) == adapter(plain)
        if again.reports[0].step == step:
            assert again.reports[0].checkpoint == str(path)


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    """Leaves checkpoints at rungs and interruptions only."""
    return SoloEngine(str(tmp_path_factory.mktemp("rare")), threads=1, checkpoint_seconds=1e9)


@pytest.fixture(scope="module")
def unbroken(
    rare: SoloEngine, listen: Any, make: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """(spec, its result, what it told) of a trial that reaches its rungs at steps 3 and 7."""
    whole = listen(rare, tmp_path_factory.mktemp("whole"))
    spec = make("float32", **{"training.logging_steps": 1})
    result = whole.run(spec)
    assert [path.name for path in whole.checkpoints()] == ["step-00000003", "step-00000007"]
    return spec, result, told(whole.reports)


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("reports_made", [True, False])
def test_an_interrupted_trial_leaves_a_checkpoint_at_its_step(
    rare: SoloEngine,
    listen: Any,
    unbroken: Any,
    watch_forward: Any,
    tmp_path: Path,
    cut: int,
    reports_made: bool,
) -> None:
    spec, result, curve = unbroken
    broken = listen(rare, tmp_path / "broken")
    micro_steps: list[bool] = []

    def in_report(progress: Any) -> None:
        if progress.step == cut and reports_made:
            broken.job.cancelled = "interrupted"

    def in_forward(training: bool, rows: int) -> None:
        micro_steps.append(training)
        if sum(micro_steps) == 3 * cut and training and not reports_made:
            broken.job.cancelled = "interrupted"

    base, _ = rare.check(spec)
    broken.on_report = in_report
    with watch_forward(base, in_forward):
        assert broken.run(spec) is None
    before = broken.reports
    assert before[-1].checkpoint == str(broken.checkpoints()[-1])
    assert before[-1].checkpoint.endswith(f"step-{cut:08d}")

    again = listen(rare, broken.folder)
    check_end(again.run(spec, attempt=2, checkpoint=before[-1].checkpoint), result)
    assert told(again.reports) == [report for report in curve if report[0] >= cut]
    assert told(before) == [report for report in curve if report[0] <= cut - (not reports_made)]


def test_a_rung_is_reported_again_without_evaluating_again(
    rare: SoloEngine, listen: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(
        "calls = []\n"
        "def count(model, tokenizer, rows):\n"
        "    calls.append(len(rows))\n"
        "    return {'rows': len(rows)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import counting  # type: ignore[import-not-found]

    spec = make("nf4", **{"evaluation.metrics": ["counting:count"]})
    first = listen(rare, tmp_path / "trial")
    unbroken = first.run(spec)
    assert len(counting.calls) == 3, "two rungs and the end"
    assert unbroken.metrics["validation/rows"] == counting.calls[0] > 1
    again = listen(rare, first.folder)
    check_end(again.run(spec, attempt=2, checkpoint=first.checkpoints()[-1]), unbroken)
    assert len(counting.calls) == 4, "the end alone"
    at_rungs = [[p for p in run.reports if p.rung is not None] for run in (first, again)]
    assert at_rungs[1] == at_rungs[0][-1:]
    assert at_rungs[1][0].metrics["validation/rows"] == counting.calls[0]


def test_a_resumed_trial_waits_for_the_decision_of_its_rung(
    rare: SoloEngine, listen: Any, make: Any, tmp_path: Path
) -> None:
    spec = make("nf4")
    first = listen(rare, tmp_path / "trial")
    first.run(spec)
    host = TrialHost(rare)
    directory, checkpoint = first.folder / "attempts" / "2", first.checkpoints()[0]
    host.submit(Assignment(0, 2, spec.to_json(), str(directory), str(checkpoint)))
    message = host.next_report(0, 2, 0, 60.0)
    assert message is not None
    assert (message.progress.rung, message.progress.step) == (18, 2)
    time.sleep(0.5)
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 1
    assert host.cancel(0, 2, "weak", 60.0)
    end = host.poll(0, 2, message.seq)
    assert end is not None
    assert (end.result.kind, end.result.step) == ("weak", 2)
    assert not (directory / "checkpoints").exists(), "a weak trial leaves none"
    assert host.close()


def test_closing_the_host_leaves_a_checkpoint_from_which_another_goes_on(
    rare: SoloEngine, listen: Any, make: Any, tmp_path: Path
) -> None:
    spec = make("float32", **{"training.max_steps": 40, "training.logging_steps": 5})
    whole = listen(rare, tmp_path / "whole")
    unbroken = whole.run(spec)
    directory = tmp_path / "trial" / "attempts" / "1"
    host, seq, reports = TrialHost(rare), 0, []
    host.submit(Assignment(0, 1, spec.to_json(), str(directory)))
    while (message := host.next_report(0, 1, seq, 60.0)) is not None and isinstance(
        message, Report
    ):
        reports.append(message.progress)
        seq = message.seq
        if reports[-1].step == 10:
            assert host.close()
    assert message == Interrupted()
    last = reports[-1]
    assert 10 <= last.step < 40
    assert last.checkpoint == str(directory / "checkpoints" / f"step-{last.step:08d}")
    again = listen(rare, tmp_path / "trial")
    check_end(again.run(spec, attempt=2, checkpoint=last.checkpoint), unbroken)
    joined = {(step, rung): (step, *rest, rung, m) for step, *rest, rung, m in told(reports)}
    joined |= {(step, rung): (step, *rest, rung, m) for step, *rest, rung, m in told(again.reports)}
    assert list(joined.values()) == told(whole.reports)


def test_a_checkpoint_is_left_when_asked_and_every_so_many_seconds(
    rare: SoloEngine, engine: SoloEngine, listen: Any, make: Any, tmp_path: Path
) -> None:
    spec = make("nf4", **{"evaluation.rungs": [], "training.logging_steps": 1000})
    asked = listen(rare, tmp_path / "asked")

    def ask(progress: Any) -> None:
        if progress.step == 1:
            asked.job.checkpoint_requested = True

    asked.on_report = ask
    assert asked.run(spec).error is None
    assert [path.name for path in asked.checkpoints()] == ["step-00000002"]
    told_of = [(p.step, p.rung, p.checkpoint, bool(p.metrics)) for p in asked.reports]
    path = str(asked.checkpoints()[0])
    assert told_of == [(1, None, None, True), (2, None, path, False), (10, None, None, True)]

    always = listen(engine, tmp_path / "always")
    always.run(spec)
    assert len(always.checkpoints()) == NUM_STEPS - 1
    slow = SoloEngine(str(engine._resident.cache_dir), threads=1, checkpoint_seconds=0.1)
    some, began = listen(slow, tmp_path / "some"), time.monotonic()
    some.run(spec.with_params({"training.max_steps": 30}))
    assert 1 <= len(some.checkpoints()) <= (time.monotonic() - began) / 0.1


def test_the_host_passes_a_request_on_and_fences_it(
    rare: SoloEngine, make: Any, tmp_path: Path
) -> None:
    spec = make("nf4", **{"training.max_steps": 60, "evaluation.rungs": []})
    host = TrialHost(rare)
    host.submit(Assignment(3, 2, spec.to_json(), str(tmp_path / "3" / "attempts" / "2")))
    with pytest.raises(Fenced):
        host.checkpoint(3, 1)
    with pytest.raises(KeyError, match="trial 4 was never submitted"):
        host.checkpoint(4, 1)
    seq, named = 0, []
    while (message := host.next_report(3, 2, seq, 60.0)) is not None and isinstance(
        message, Report
    ):
        seq = message.seq
        if seq == 1:
            host.checkpoint(3, 2)
            host.checkpoint(3, 2)
        named += filter(None, [message.progress.checkpoint])
    assert 1 <= len(named) <= 2
    assert all(Path(path).is_dir() for path in named)
    host.checkpoint(3, 2)  # of a trial that has ended: nothing
    assert host.close()


def test_an_order_can_be_entered_anywhere() -> None:
    whole = list(SampleOrder(seed=1, num_rows=10, num_samples=35))
    for first in (0, 1, 9, 10, 11, 29, 35):
        rest = SampleOrder(1, 10, 35, first=first)
        assert list(rest) == whole[first:]
        assert len(rest) == 35 - first
    assert next(iter(SampleOrder(1, 10, 10**12, first=10**11))) == epoch_order(1, 10**10, 10)[0]


def test_a_real_trial_goes_on_from_where_it_was(
    listen: Any, trial: Any, tmp_path: Path, shared: Path, stories_path: Path
) -> None:
    spec = trial(
        {
            "model": {"name_or_path": str(stories_path)},
            "quantization.scheme": "nf4",
            "adapter.lora_dropout": 0.1,
            "task": {"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
            "data.train": {"path": str(shared / "data" / "nlg" / "e2e_dev.csv")},
            "data.validation_subset": 16,
            "data.max_length": 256,
            "training.learning_rate": 3e-3,
            "training.max_steps": 6,
            "training.warmup_steps": 2,
            "training.logging_steps": 1,
            "evaluation.rungs": [24],
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"), threads=1, checkpoint_seconds=0)
    first = listen(engine, tmp_path / "trial")
    unbroken = first.run(spec)
    curve = told(first.reports)
    for attempt, cut in ((2, 2), (3, 3), (4, 5)):
        again = listen(engine, first.folder)
        result = again.run(spec, attempt, first.checkpoints()[cut - 1])
        check_end(result, unbroken)
        assert told(again.reports) == [report for report in curve if report[0] >= cut]
