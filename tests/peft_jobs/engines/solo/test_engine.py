"""Whole trials on the solo engine: through a host, on a resident base, with whatever goes wrong."""

import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.base.loading import load_base
from peft_jobs.data.tokenized import load_data
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.evaluation.scoring import evaluate
from peft_jobs.host.messages import Assignment, End, Report
from peft_jobs.host.result import Kind, State, TrialResult
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS
from tests.support.devices import needs_cuda, on_each_device

DIVERGING = {"training.learning_rate": 1e12, "adapter.lora_alpha": 1e12}
PETABYTE = 2**50


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1)


def trial(
    model: Path, rows: Path, params: dict[str, Any] | None = None, **sections: Any
) -> TrialSpec:
    content = {
        "model": str(model),
        "quantization": "nf4",
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
        "data": {"train": str(rows), "validation": 0.2, "max_length": 64},
        "training": {"learning_rate": 1e-2, "max_steps": 8, "logging_steps": 2},
        "seed": 3,
    }
    return TrialSpec.model_validate(content | sections).with_params(params or {})


def classifier(model: Path, rows: Path, **params: Any) -> TrialSpec:
    task = {"type": "sequence_classification", "text": "{q}", "text_pair": "{a}", "label": "class"}
    return trial(model, rows, params, task=task)


class Driver:
    """What stands above a host: submits, acknowledges, and cancels at a rung if it is told to."""

    def __init__(self, engine: SoloEngine, folder: Path) -> None:
        self.host, self.folder, self.submitted = TrialHost(engine), folder, 0

    def run(self, spec: TrialSpec, cancel_at_rung: str | None = None) -> TrialResult | None:
        self.submitted += 1
        trial = self.submitted
        self.host.submit(Assignment(trial, 1, spec.to_json(), str(self.directory)))
        after = 0
        while True:
            message = self.host.next_report(trial, 1, after)
            if message is None:
                continue
            if not isinstance(message, Report):
                return message.result if isinstance(message, End) else None
            if message.progress.rung is not None and cancel_at_rung is not None:
                self.host.request_cancel(trial, 1, cancel_at_rung)
            after = message.seq

    @property
    def directory(self) -> Path:
        return self.folder / f"{self.submitted:04}" / "attempts" / "1"


@pytest.fixture
def driver(engine: SoloEngine, tmp_path: Path) -> Any:
    driver = Driver(engine, tmp_path)
    yield driver
    assert driver.host.close()


def finished(result: TrialResult | None) -> TrialResult:
    assert result is not None
    assert result.error is None, result.traceback
    assert result.state is State.COMPLETE
    return result


def test_a_trial_leaves_its_records_and_an_adapter_that_gives_its_loss(
    driver: Driver, engine: SoloEngine, tiny_llama_path: Path, rows_path: Path
) -> None:
    from peft import PeftModel

    spec = trial(tiny_llama_path, rows_path, {"evaluation.rungs": [16]})
    result = finished(driver.run(spec))
    assert (result.step, result.samples) == (8, 64)
    assert {"load", "quantize", "tokenize", "train", "evaluate"} <= result.seconds.keys()
    assert result.memory["peak_rss_bytes"] > 100 * 2**20
    assert result.trainable_parameters == 2 * 4 * sum((64 + 64, 64 + 32, 64 + 32, 64 + 64, 3 * 192))
    named = {"spec", "base", "data", "template", "versions", "commit", "device", "threads", "seed"}
    assert named <= result.provenance.keys()
    assert result.provenance["threads"] == torch.get_num_threads()
    lines = (driver.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["rung"] for line in lines] == [None, 16, None, None, None]

    assert result.adapter == "adapter"
    base = load_base(spec.model, spec.quantization, spec.task)
    reloaded = PeftModel.from_pretrained(base.model, str(driver.directory / "adapter"))
    data = load_data(spec, base.tokenizer, engine._resident.cache_dir)
    again = evaluate(
        reloaded,
        TASKS["causal_lm"],
        data.validation,
        batch_size=16,
        pad_token_id=base.tokenizer.pad_token_id,
        device=base.device,
    )
    assert again["validation/loss"] == pytest.approx(result.metrics["validation/loss"], rel=1e-5)


def test_a_trial_after_others_is_the_same_trial(
    driver: Driver, tmp_path: Path, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path)
    first = finished(driver.run(spec))
    other = trial(tiny_llama_path, rows_path, {"adapter.r": 16, "training.learning_rate": 0.1})
    assert finished(driver.run(other)).metrics != first.metrics
    assert driver.run(spec.with_params(DIVERGING)) is not None
    again = finished(driver.run(spec))
    alone = Driver(SoloEngine(str(tmp_path / "cache"), threads=1), tmp_path / "alone")
    fresh = finished(alone.run(spec))
    assert alone.host.close()
    assert first.metrics == again.metrics == fresh.metrics
    assert again.seconds["load"] == 0.0
    assert fresh.seconds["load"] > 0.0
    assert again.provenance["base"] == fresh.provenance["base"]


def test_prepare_measures_the_untouched_base(
    engine: SoloEngine, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path, quantization="none")
    prepared = engine.prepare(spec, [spec.with_params({"adapter.target_modules": "attention"})])
    assert prepared.train_rows == 64
    base, data = engine.check(spec)
    nats = tokens = 0
    for row in data.validation:
        counted = sum(label != -100 for label in row["labels"])
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        nats += base.model(ids, labels=labels).loss.item() * counted
        tokens += counted
    loss = nats / tokens
    bits = nats / math.log(2) / sum(data.validation["num_bytes"])
    assert prepared.baseline["validation/loss"] == pytest.approx(loss, rel=1e-5)
    assert prepared.baseline["validation/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert prepared.baseline["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_prepare_names_the_value_that_matches_nothing(
    engine: SoloEngine, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path)
    other = spec.with_params({"quantization.scheme": "none"})
    for variant in (spec, other):
        wrong = variant.with_params({"adapter.target_modules": ["q_proj", "q_porj"]})
        with pytest.raises(SpecError, match="'q_porj' matches no module; did you mean 'q_proj'"):
            engine.prepare(spec, [spec, wrong])
    long = spec.with_params({"data.max_length": 500, "task.prompt": "{q} " * 100})
    with pytest.raises(SpecError, match=r"data\.max_length must be <= 128, the positions of"):
        engine.prepare(long, [])


def test_a_weak_trial_stops_at_its_rung(
    driver: Driver, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path, {"evaluation.rungs": [32]})
    result = driver.run(spec, cancel_at_rung="weak")
    assert result is not None
    assert (result.state, result.kind, result.step) == (State.PRUNED, Kind.WEAK, 4)
    assert "validation/loss" in result.metrics
    assert result.adapter is None
    assert driver.run(spec, cancel_at_rung="interrupted") is None


def test_divergence_and_mistakes_end_one_trial_alone(
    driver: Driver, tiny_llama_path: Path, rows_path: Path, tmp_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path)
    before = finished(driver.run(spec))
    diverged = driver.run(spec.with_params(DIVERGING))
    assert diverged is not None
    assert (diverged.state, diverged.kind) == (State.PRUNED, Kind.DIVERGED)
    assert diverged.step > 0
    assert diverged.trainable_parameters == before.trainable_parameters
    wrong = driver.run(spec.with_params({"adapter.modules_to_save": ["nothing"]}))
    assert wrong is not None
    assert (wrong.state, wrong.kind) == (State.PRUNED, Kind.REFUSED)
    assert "modules_to_save: 'nothing' matches no module" in str(wrong.error)
    assert "Traceback" in str(wrong.traceback)
    log = driver.directory / "log.txt"
    assert "the trial failed" in log.read_text()
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"q": "a", "a": " "}\n' * 3)
    no_data = driver.run(spec.with_params({"data.train": str(empty)}))
    assert no_data is not None
    assert (no_data.state, no_data.kind) == (State.FAIL, Kind.DATA)
    assert finished(driver.run(spec)).metrics == before.metrics


def test_a_changed_base_is_noticed_and_loaded_anew(
    driver: Driver, engine: SoloEngine, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path, quantization="none")
    before = finished(driver.run(spec))
    base, _ = engine.check(spec)
    with torch.no_grad():
        base.model.model.norm.weight[0] += 1e-3
    assert finished(driver.run(spec)).metrics != before.metrics
    assert "changed the resident base" in (driver.directory / "log.txt").read_text()
    after = finished(driver.run(spec))
    assert after.metrics == before.metrics
    assert after.seconds["load"] > 0


def test_a_base_that_gives_way_to_another_is_gone_even_from_a_cycle(
    engine: SoloEngine, tiny_llama_path: Path, rows_path: Path
) -> None:
    def leave() -> weakref.ref[Any]:
        base, _ = engine.check(trial(tiny_llama_path, rows_path))
        base.model.cycle = [base.model]
        return weakref.ref(base.model)

    left = leave()
    assert left() is not None
    engine.check(trial(tiny_llama_path, rows_path, quantization="none"))
    assert left() is None


def test_a_classifier_trains_its_head_and_is_reproduced(
    driver: Driver, engine: SoloEngine, tiny_bert_path: Path, rows_path: Path
) -> None:
    spec = classifier(tiny_bert_path, rows_path, **{"training.max_steps": 4})
    prepared = engine.prepare(spec, [])
    assert prepared.baseline == {}
    result = finished(driver.run(spec))
    assert {f"validation/{name}" for name in ("loss", "accuracy", "macro_f1")} <= set(
        result.metrics
    )
    assert finished(driver.run(trial_like(spec, 11))).metrics != result.metrics
    assert finished(driver.run(spec)).metrics == result.metrics
    assert result.tokens == result.samples == 32


def test_an_adapter_that_peft_refuses_on_this_base_is_no_failure(
    driver: Driver, tiny_llama_path: Path, rows_path: Path
) -> None:
    """The first form of MiSS takes any rank; the other only one that divides 64 and 128."""
    plain = trial(tiny_llama_path, rows_path, quantization="none", adapter={"method": "miss"})
    for form, r, refused in (("bat", 8, False), ("bat", 5, True), ("default", 5, False)):
        result = driver.run(plain.with_params({"adapter.init_weights": form, "adapter.r": r}))
        assert result is not None
        assert (result.kind is Kind.REFUSED) == refused
        assert result.state is (State.PRUNED if refused else State.COMPLETE)
        if refused:
            assert result.error is not None
            assert result.error.startswith("adapter: PEFT's miss refuses this base: ")
            assert "divisible" in result.error


def trial_like(spec: TrialSpec, seed: int) -> TrialSpec:
    return spec.with_params({"seed": seed})


def test_the_test_split_is_scored_only_when_asked(
    tmp_path: Path, tiny_llama_path: Path, rows_path: Path
) -> None:
    spec = trial(tiny_llama_path, rows_path, {"data.test": {"path": str(rows_path)}})
    driver = Driver(SoloEngine(str(tmp_path), threads=1, score_test=True), tmp_path)
    scored = finished(driver.run(spec))
    assert driver.host.close()
    assert scored.metrics["test/loss"] != scored.metrics["validation/loss"]
    plain = Driver(SoloEngine(str(tmp_path), threads=1), tmp_path / "plain")
    assert "test/loss" not in finished(plain.run(spec)).metrics
    assert plain.host.close()


def test_data_to_text_on_a_real_base(driver: Driver, shared: Path, stories_path: Path) -> None:
    spec = trial(
        stories_path,
        shared / "data" / "nlg" / "e2e_dev.csv",
        {"data.validation_subset": 16, "data.max_length": 256, "training.max_steps": 8},
        task={"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
    )
    prepared = driver.host.prepare(spec.to_json(), [])
    result = finished(driver.run(spec))
    assert result.metrics["validation/loss"] < prepared.baseline["validation/loss"]


def sst2(shared: Path, model: Path, **params: Any) -> TrialSpec:
    folder = shared / "data" / "cls"
    return trial(
        model,
        folder / "sst2_train.jsonl",
        {"data.validation": {"path": str(folder / "sst2_validation.jsonl")}, **params},
        task={"type": "sequence_classification", "text": "{sentence}", "label": "label"},
    )


def test_sentiment_on_a_real_base(driver: Driver, shared: Path, stories_path: Path) -> None:
    params = {"data.subset": 400, "data.validation_subset": 100, "training.max_steps": 5}
    result = finished(driver.run(sst2(shared, stories_path, **params)))
    right = 100 * result.metrics["validation/accuracy"]
    assert right == pytest.approx(round(right)), "of 100 rows"
    assert 0 <= right <= 100
    assert 0 < result.metrics["validation/loss"] < math.inf
    assert result.provenance["dropped_rows"] == {"train": 0, "validation": 0}


@pytest.mark.slow
def test_sentiment_is_learned(driver: Driver, shared: Path, stories_path: Path) -> None:
    params = {
        "training.max_steps": 300,
        "training.per_device_train_batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.warmup_steps": 0.1,
        "adapter.r": 8,
        "adapter.lora_dropout": 0.0,
    }
    result = finished(driver.run(sst2(shared, stories_path, **params)))
    lines = (driver.directory / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["metrics"]["train/loss"] for line in lines]
    assert len(losses) == 150
    assert sum(losses[-15:]) < sum(losses[:15])
    # Whoever knows only that the larger class has a share of 0.509 has this loss.
    assert result.metrics["validation/loss"] < -sum(p * math.log(p) for p in (0.509, 0.491))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("scheme", ["nf4", "int8", "none"])
def test_a_trial_on_a_gpu(
    driver: Driver, engine: SoloEngine, tiny_llama_path: Path, rows_path: Path, scheme: str
) -> None:
    spec = trial(tiny_llama_path, rows_path, {"training.bf16": True}, quantization=scheme)
    spec = spec.with_params({"training.gradient_checkpointing": True})
    assert engine.device.type == "cuda"
    first, again = finished(driver.run(spec)), finished(driver.run(spec))
    assert first.metrics["validation/loss"] == pytest.approx(
        again.metrics["validation/loss"], rel=1e-3
    )
    for result in (first, again):
        assert result.memory["peak_reserved_bytes"] >= result.memory["peak_allocated_bytes"] > 0
    assert again.provenance["device"] == torch.cuda.get_device_name()


@on_each_device
def test_a_device_that_is_too_small_ends_one_trial_alone(
    device: torch.device,
    driver: Driver,
    engine: SoloEngine,
    watch_forward: Any,
    tiny_llama_path: Path,
    rows_path: Path,
) -> None:
    spec = trial(tiny_llama_path, rows_path)
    before = finished(driver.run(spec))
    base, _ = engine.check(spec)
    sizes: list[int] = []

    def look(training: bool, rows: int) -> None:
        sizes.append(rows)
        torch.empty(PETABYTE, device=device)

    with watch_forward(base, look):
        result = driver.run(spec.with_params({"training.per_device_train_batch_size": 4}))
    assert result is not None
    assert (result.state, result.kind) == (State.PRUNED, Kind.OUT_OF_MEMORY)
    assert sizes == [4, 2, 1, 1], "the ladder's last rung checkpoints activations"
    assert finished(driver.run(spec)).metrics == pytest.approx(before.metrics, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does all of it")
@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"training.fp16": True}, "training.fp16 needs a GPU"),
        ({"training.tf32": True}, "training.tf32 needs a GPU"),
        ({"training.optim": "paged_adamw_8bit"}, "training.optim paged_adamw_8bit needs a GPU"),
    ],
)
def test_what_the_device_lacks_is_told_before_any_trial(
    engine: SoloEngine, tiny_llama_path: Path, rows_path: Path, params: dict[str, Any], said: str
) -> None:
    spec = trial(tiny_llama_path, rows_path)
    with pytest.raises(SpecError, match=said):
        engine.prepare(spec, [spec.with_params(params)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does all of it")
def test_what_the_device_of_its_own_node_lacks_ends_a_trial(
    driver: Driver, tiny_llama_path: Path, rows_path: Path
) -> None:
    """Nodes differ: the host that was asked before the first trial may have had another device."""
    spec = trial(tiny_llama_path, rows_path)
    result = driver.run(spec.with_params({"training.tf32": True}))
    assert result is not None
    assert result.state is State.FAIL
    assert "training.tf32 needs a GPU" in str(result.error)
