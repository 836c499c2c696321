"""PackedEngine and SoloEngine, through the same host, give the same trials."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.evaluation.scoring import score
from tests.peft_jobs.engines.packed.conftest import CLASSES
from tests.support.packed_runs import furthest, run_all, told

CLOSE = 1e-5


def both(
    cache: str, specs: list[Any], folder: Path, num_slots: int = 3, **options: Any
) -> tuple[Any, Any, PackedEngine]:
    """Reports and ends of SoloEngine and of PackedEngine, and the latter."""
    solo = SoloEngine(cache, threads=1, **options)
    packed = PackedEngine(cache, num_slots=num_slots, threads=1, **options)
    expected = run_all(solo, specs, folder / "solo")
    found = run_all(packed, specs, folder / "packed")
    return expected, found, packed


def check_same(expected: Any, found: Any, close: float = CLOSE) -> None:
    for trial, reports in expected[0].items():
        one, other = expected[1][trial], found[1][trial]
        assert one.error is None, one.traceback
        assert other.error is None, other.traceback
        assert told(found[0][trial]) == told(reports)
        assert furthest(reports, found[0][trial]) < close
        assert other.metrics == pytest.approx(one.metrics, rel=close)
        names = ("state", "kind", "step", "samples", "tokens", "trainable_parameters")
        assert [getattr(other, n) for n in names] == [getattr(one, n) for n in names]


def engines_of(found: Any) -> list[str]:
    return [end.provenance.get("engine", "solo") for end in found[1].values()]


def adapters(folder: Path, trial: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = folder / str(trial) / "attempts" / "1" / "adapter"
    return (
        load_file(path / "adapter_model.safetensors"),
        json.loads((path / "adapter_config.json").read_text()),
    )


@pytest.mark.parametrize("scheme", ["none", "nf4", pytest.param("fp4", marks=pytest.mark.slow)])
def test_packed_trials_are_the_solo_engines(
    cache: str, mixed: Any, tmp_path: Path, scheme: str
) -> None:
    specs = mixed(**{"quantization.scheme": scheme, "evaluation.rungs": [5, 12]})
    expected, found, engine = both(cache, specs, tmp_path)
    check_same(expected, found)
    assert engines_of(found) == ["packed"] * 5
    assert engine.solo.base is not None, "the hash of the base is what it was"
    for trial, spec in enumerate(specs):
        (one, its), (other, others) = (adapters(tmp_path / e, trial) for e in ("solo", "packed"))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert (tensor - other[name]).abs().max() < 30 * spec.training.learning_rate * 1e-3
        assert {k for k in its if its[k] != others[k]} <= {"target_modules"}


def test_int8_is_packed_without_a_threshold_and_goes_alone_with_one(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    for threshold, name in ((0.0, "packed"), (6.0, "solo")):
        params = {"quantization.scheme": "int8", "quantization.llm_int8_threshold": threshold}
        specs = mixed(**params, **{"training.max_steps": 4})[:3]
        # Activations are rounded to 255 steps: a last bit that differs moves some by a step.
        expected, found, _ = both(cache, specs, tmp_path / name)
        check_same(expected, found, 2e-3)
        assert engines_of(found) == [name] * 3


@pytest.mark.parametrize("fresh", [True, False])
def test_classifiers_with_their_heads_are_packed(
    cache: str, mixed: Any, tmp_path: Path, fresh: bool, tiny_llama_path: Path
) -> None:
    params: dict[str, Any] = {"task": CLASSES, "evaluation.rungs": [9]}
    if not fresh:
        from transformers import AutoTokenizer, LlamaForSequenceClassification

        model = LlamaForSequenceClassification.from_pretrained(
            tiny_llama_path, num_labels=2, id2label={0: "even", 1: "odd"}
        )
        model.save_pretrained(tmp_path / "trained")
        AutoTokenizer.from_pretrained(tiny_llama_path).save_pretrained(tmp_path / "trained")
        params["model"] = {"name_or_path": str(tmp_path / "trained")}
    expected, found, _ = both(cache, mixed(**params), tmp_path)
    check_same(expected, found)
    assert engines_of(found) == ["packed"] * 5
    assert any("score.weight" in name for name in adapters(tmp_path / "packed", 0)[0])


def test_regressions_are_packed(cache: str, mixed: Any, tmp_path: Path, rows_path: Path) -> None:
    rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "rows.jsonl"
    numbered = [json.dumps(row | {"n": len(row["a"]) / 10}) + "\n" for row in rows]
    path.write_text("".join(numbered), encoding="utf-8")
    task = {"type": "sequence_classification", "text": "{a}", "label": "n"}
    params = {
        "task": task | {"problem_type": "regression"},
        "data.train": {"path": str(path)},
        "evaluation.rungs": [9],
    }
    expected, found, _ = both(cache, mixed(**params), tmp_path)
    check_same(expected, found)
    assert engines_of(found) == ["packed"] * 5
    assert {"validation/mse", "validation/pearson", "validation/spearman"} <= set(
        found[1][0].metrics
    )


@contextmanager
def products() -> Iterator[set[torch.dtype]]:
    """The types that linear layers give in the block, in any thread."""
    seen: set[torch.dtype] = set()

    def see(module: torch.nn.Module, _args: Any, found: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.add(found.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "params",
    [
        {"training.bf16": True},
        pytest.param({"model.dtype": "bfloat16"}, marks=pytest.mark.slow),
        {
            "model.dtype": "bfloat16",
            "quantization.scheme": "nf4",
            "quantization.bnb_4bit_compute_dtype": "bfloat16",
        },
    ],
    ids=["autocast", "bfloat16 base", "bfloat16 nf4"],
)
def test_bfloat16_differs_no_more_than_another_padding_does(
    cache: str, mixed: Any, tmp_path: Path, params: dict[str, Any]
) -> None:
    check_bfloat16(cache, mixed(**params, **{"adapter.lora_dropout": 0.0}), tmp_path)


def check_bfloat16(cache: str, specs: list[Any], tmp_path: Path) -> None:
    """Six steps of trials that drop nothing: packed differ from solo no more than solo does from
    itself where rows are padded otherwise."""
    steps = {"training.gradient_accumulation_steps": 1, "training.max_steps": 6}
    specs = [spec.with_params(steps) for spec in specs]
    # The same rows one by one: each is padded to its own length alone.
    repadded = [
        spec.with_params(
            {
                "training.gradient_accumulation_steps": spec.training.per_device_train_batch_size,
                "training.per_device_train_batch_size": 1,
            }
        )
        for spec in specs
    ]
    with products() as alone:
        expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    with products() as together:
        found = run_all(PackedEngine(cache, num_slots=3, threads=1), specs, tmp_path / "packed")
    assert torch.bfloat16 in alone & together
    other = run_all(SoloEngine(cache, threads=1), repadded, tmp_path / "other")
    noise, differences = [], []
    for trial in expected[0]:
        one = [p.metrics["train/loss"] for p in expected[0][trial]]
        for run, into in ((other, noise), (found, differences)):
            curve = [p.metrics["train/loss"] for p in run[0][trial]]
            into += [abs(a - b) for a, b in zip(one, curve, strict=True)]
    assert engines_of(found) == ["packed"] * len(specs)
    # Where another padding happens to round alike, no more than a loss in bfloat16 is rounded.
    first = max(reports[0].metrics["train/loss"] for reports in expected[0].values())
    unit = first * torch.finfo(torch.bfloat16).eps / 2
    assert max(differences) < max(3 * max(noise), unit)
    assert sum(differences) < max(3 * sum(noise), unit / 4 * len(differences))


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_gradient_checkpointing_of_some_changes_nothing(
    cache: str, mixed: Any, tmp_path: Path, scheme: str
) -> None:
    specs = mixed(**{"quantization.scheme": scheme, "training.max_steps": 5})[:3]
    specs[1] = specs[1].with_params({"training.gradient_checkpointing": True})
    check_same(*both(cache, specs, tmp_path)[:2])


def test_what_cannot_be_packed_runs_alone_in_its_turn(
    cache: str, mixed: Any, tiny_bert_path: Path, tmp_path: Path
) -> None:
    bert = {"model": {"name_or_path": str(tiny_bert_path)}, "task": CLASSES}
    llama = mixed(**{"training.max_steps": 4})
    bert |= {"adapter.target_modules": "attention-qv", "adapter.init_lora_weights": "olora"}
    decomposed = mixed(**bert, **{"training.max_steps": 3})
    biased = llama[3].with_params({"adapter.modules_to_save": ["lm_head"]})
    specs = [llama[0], decomposed[0], llama[1], llama[2], biased, llama[3], llama[4]]
    expected, found, _ = both(cache, specs, tmp_path)
    check_same(expected, found)
    packed = ["packed"]
    assert engines_of(found) == [*packed, "solo", *packed * 2, "solo", *packed * 2]


@pytest.fixture
def lively(mixed: Any) -> list[Any]:
    """Three trials that differ, of ten steps, with a rung at the fourth."""
    params = {"training.gradient_accumulation_steps": 1, "training.max_steps": 10}
    return [
        spec.with_params({"evaluation.rungs": [4 * spec.training.samples_per_step]})
        for spec in mixed(**params)[:3]
    ]


def test_pruned_and_diverged_trials_leave_the_others_as_they_were(
    cache: str, lively: list[Any], mixed: Any, tmp_path: Path
) -> None:
    growth = {"training.learning_rate": 1e12, "training.weight_decay": 1e12}  # to infinity
    wild = lively[0].with_params({**growth, "training.max_loss": None})
    specs = [*lively, wild, mixed()[4]]
    expected = run_all(SoloEngine(cache, threads=1), [*lively, mixed()[4]], tmp_path / "solo")

    def prune(host: Any, trial: int, report: Any) -> None:
        if trial == 1 and report.rung is not None:
            host.request_cancel(1, 1, "weak")

    engine = PackedEngine(cache, num_slots=4, threads=1)
    reports, ends = run_all(engine, specs, tmp_path / "packed", prune)
    assert (ends[1].kind, ends[1].step) == ("weak", 4)
    assert told(reports[1]) == told(expected[0][1][:4])
    assert ends[3].kind == "diverged"
    assert "nan" in ends[3].error or "inf" in ends[3].error
    as_alone = ((0, 0), (2, 2), (4, 3))
    kept = [{trial: part[number] for trial, number in as_alone} for part in expected]
    check_same(kept, (reports, ends))


def test_a_slot_that_waits_for_its_decision_holds_nobody_up(
    cache: str, lively: list[Any], tmp_path: Path
) -> None:
    expected = run_all(SoloEngine(cache, threads=1), lively, tmp_path / "solo")
    ended: set[int] = set()

    def decide_last(host: Any, trial: int, report: Any) -> bool:
        if trial != 0 and report.step == 10:
            ended.add(trial)
        return trial != 0 or report.rung is None or ended == {1, 2}

    engine = PackedEngine(cache, num_slots=3, threads=1)
    check_same(expected, run_all(engine, lively, tmp_path / "packed", decide_last))


@pytest.mark.parametrize(("first", "second"), [("packed", "solo"), ("solo", "packed")])
def test_either_engine_goes_on_from_the_others_checkpoints(
    cache: str, mixed: Any, tmp_path: Path, first: str, second: str
) -> None:
    specs = mixed(**{"task": CLASSES, "quantization.scheme": "nf4", "evaluation.rungs": [9]})
    for trial, further in enumerate(
        [
            {"loraplus_lr_ratio": 4.0},
            {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 40}},
            {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
            {"exclude_modules": ["k_proj"], "init_lora_weights": "orthogonal"},
        ]
    ):
        specs[trial] = specs[trial].with_params({f"adapter.{k}": v for k, v in further.items()})
    kinds: dict[str, Callable[[], Any]] = {
        "solo": lambda: SoloEngine(cache, threads=1, checkpoint_seconds=0),
        "packed": lambda: PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=0),
    }
    expected = run_all(kinds[first](), specs, tmp_path)
    starts = {}
    for trial, reports in expected[0].items():
        starts[trial] = [p.checkpoint for p in reports if p.checkpoint][trial % 3]
    reports, ends = run_all(kinds[second](), specs, tmp_path, checkpoints=starts, attempt=2)
    for trial, whole in expected[0].items():
        assert ends[trial].error is None, ends[trial].traceback
        step = ends[trial].provenance["resumed_from"]
        assert 0 < step < 8
        rest = [report for report in whole if report.step >= step]
        assert told(reports[trial]) == told(rest)
        assert furthest(rest, reports[trial]) < CLOSE
        assert ends[trial].metrics == pytest.approx(expected[1][trial].metrics, rel=CLOSE)


def test_closing_the_host_leaves_checkpoints_of_all_that_runs(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    specs = mixed(**{"training.max_steps": 30})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")

    def close(host: Any, trial: int, report: Any) -> None:
        if trial == 0 and report.step == 9:
            host.close()

    def engine() -> PackedEngine:
        return PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=1e9)

    before, ends = run_all(engine(), specs, tmp_path / "packed", close)
    assert list(ends.values()) == [None] * 5
    last = {t: found[-1].checkpoint for t, found in before.items() if found}
    assert len(last) == 3, "the others had not begun"
    assert all(path and Path(path).is_dir() for path in last.values())
    steps = {t: before[t][-1].step for t in last}
    after, ends = run_all(engine(), specs, tmp_path / "packed", checkpoints=last, attempt=2)
    for trial, whole in expected[0].items():
        assert ends[trial].provenance["resumed_from"] == steps.get(trial, 0)
        joined = {p.step: p for p in [*before[trial], *after[trial]] if p.metrics}
        assert told(list(joined.values())) == told(whole)
        assert furthest(whole, list(joined.values())) < CLOSE


def test_waiting_jobs_can_be_cancelled(cache: str, mixed: Any, tmp_path: Path) -> None:
    specs = mixed(**{"training.max_steps": 12, "training.bf16": False})
    specs[1] = specs[1].with_params({"training.bf16": True})  # cannot be beside the first
    at: dict[int, int] = {}

    def cancel(host: Any, trial: int, report: Any) -> None:
        if trial == 0 and report.step == 3:
            assert host.cancel(1, 1, "weak", 5.0)
            at[1] = report.step

    engine = PackedEngine(cache, num_slots=3, threads=1)
    _, ends = run_all(engine, specs, tmp_path, cancel)
    assert (ends[1].kind, ends[1].step) == ("weak", 0)
    assert at == {1: 3}
    assert [end.state for trial, end in ends.items() if trial != 1] == ["COMPLETE"] * 4


def test_an_exported_adapter_gives_the_engines_own_metric(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    specs = mixed()
    engine = PackedEngine(cache, num_slots=5, threads=1)
    _, ends = run_all(engine, specs, tmp_path)
    for trial in (0, 1, 2):
        folder = tmp_path / str(trial) / "attempts" / "1" / "adapter"
        base, data = engine.solo.check(specs[trial])
        plain = copy.deepcopy(base.model)
        model = PeftModel.from_pretrained(plain, folder)
        found = score(model, base, specs[trial], data.validation)
        for name, value in found.items():
            assert value == pytest.approx(ends[trial].metrics[name], rel=CLOSE)
        assert found != score(base.model, base, specs[trial], data.validation)
    assert AutoPeftModelForCausalLM.from_pretrained(folder) is not None


PETABYTE = 2**50


@pytest.mark.parametrize("checkpoint_seconds", [None, 1e9])
def test_memory_that_runs_out_evicts_the_newest_and_kills_nobody(
    cache: str,
    lively: list[Any],
    watch_forward: Any,
    tmp_path: Path,
    checkpoint_seconds: float | None,
) -> None:
    """In the second step, which all make together: the rung, where each waits for its own
    checkpoint, comes after it."""
    from tests.peft_jobs.engines.packed.test_moving import AllTogether
    from tests.peft_jobs.engines.packed.test_rounds import Answered, Queue

    specs = [*lively, lively[0].with_params({"seed": 7})]
    specs = [spec.with_params({"training.per_device_train_batch_size": 2}) for spec in specs]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1, checkpoint_seconds=checkpoint_seconds)
    engine.rounds.calibration = AllTogether()
    base, _ = engine.solo.check(specs[0])
    steps: list[int] = []
    fitting: list[int] = []

    def look(training: bool, rows: int) -> None:
        steps.extend([rows] * training)
        fitting.append(engine.num_slots)
        if training and rows > 4 and len(steps) > 2:
            torch.empty(PETABYTE)

    changed = threading.Condition()
    jobs = [
        Answered(number, 1, spec, tmp_path / "packed" / str(number), None, changed)
        for number, spec in enumerate(specs)
    ]
    with watch_forward(base, look):
        engine.serve(Queue(jobs))
    found = {job.trial: job.heard for job in jobs}, {job.trial: job.result for job in jobs}
    check_same(expected, found)
    assert steps[:5] == [1, 8, 8, 6, 4], "a look at the base, and then steps"
    assert min(fitting) == 2
    assert engine.num_slots == 4, "where nobody runs any more, there is room again"
    assert engines_of(found) == ["packed"] * 4


def test_memory_that_runs_out_in_a_part_of_the_pack_makes_its_parts_smaller(
    cache: str, lively: list[Any], watch_forward: Any, tmp_path: Path
) -> None:
    specs = [*lively, lively[0].with_params({"seed": 7})]
    specs = [spec.with_params({"training.per_device_train_batch_size": 2}) for spec in specs]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1)
    base, _ = engine.solo.check(specs[0])
    steps: list[int] = []
    fitting: list[int] = []

    def look(training: bool, rows: int) -> None:
        steps.extend([rows] * training)
        if training and 2 < rows < 8 and len(steps) > 2:
            torch.empty(PETABYTE)  # as on a GPU that longer rows of some of them fill

    def heard(host: Any, trial: int, report: Any) -> None:
        fitting.append(engine.num_slots)

    with watch_forward(base, look):
        found = run_all(engine, specs, tmp_path / "packed", heard)
    check_same(expected, found)
    assert set(fitting) == {4}, "nobody was evicted"
    assert 8 in steps
    assert steps.count(4) == 1, "two slots share a step no more"
    assert steps[-1] == 2


def test_a_trial_too_large_for_one_slot_takes_the_solo_engines_ladder(
    cache: str, lively: list[Any], watch_forward: Any, tmp_path: Path
) -> None:
    specs = [lively[0].with_params({"training.per_device_train_batch_size": 8})]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1)
    base, _ = engine.solo.check(specs[0])
    passes: list[int] = []

    def look(training: bool, rows: int) -> None:
        passes.append(rows)
        if training and rows > 4 and len(passes) > 3:
            torch.empty(PETABYTE)

    with watch_forward(base, look):
        found = run_all(engine, specs, tmp_path / "packed")
    check_same(expected, found, 1e-4)
    assert [rung.tried.per_device_train_batch_size for rung in found[1][0].memory_ladder] == [8]
    assert engine.num_slots == 4, "one trial says nothing of the number of slots"


def test_an_evaluation_that_does_not_fit_is_made_in_smaller_batches(
    cache: str, lively: list[Any], watch_forward: Any, tmp_path: Path
) -> None:
    expected = run_all(SoloEngine(cache, threads=1), lively, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=3, threads=1)
    base, _ = engine.solo.check(lively[0])

    def look(training: bool, rows: int) -> None:
        if not training and rows > 5:
            torch.empty(PETABYTE)

    with watch_forward(base, look):
        found = run_all(engine, lively, tmp_path / "packed")
    check_same(expected, found)
    assert engine.num_slots == 3
    for end in found[1].values():
        assert [rung.tried.per_device_eval_batch_size for rung in end.memory_ladder] == [16, 8]


def test_the_width_that_is_best_is_used_and_told(cache: str, mixed: Any, tmp_path: Path) -> None:
    specs = mixed(**{"training.max_steps": 5, "training.per_device_train_batch_size": 2})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1)
    kind = frozenset({2})
    for _ in range(50):
        width = engine.rounds.calibration.width(kind, 4)
        engine.rounds.calibration.saw(kind, width, {4: 4.0, 2: 1.0, 1: 3.0}[width], 1)
    assert engine.rounds.calibration.limit(kind) == 2
    found = run_all(engine, specs, tmp_path / "packed")
    check_same(expected, found)
    assert engine.status()["width"] == 1, "the last one was alone"
    assert [end.provenance["slots"] for end in found[1].values()][:2] == [2, 2]
    assert engine.status()["num_slots"] == 4
