"""Trials that go on from a saved adapter, against plain transformers and PEFT."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    get_scheduler,
)

from peft_jobs.base.snapshot import Snapshot
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.adapter_export import merge_adapter, score_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import DataError, SpecError
from peft_jobs.methods import METHODS, load_adapter
from peft_jobs.spec import TrialSpec
from tests.peft_jobs.contracts.test_method_runs import CASES, some
from tests.support.packed_runs import run_all

CAUSAL = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
CLASSES = {"type": "sequence_classification", "text": "{q} {a}", "label": "class"}
NOT_CONTINUED = ("adalora", "full", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")
STEPS = 6

Make = Callable[..., TrialSpec]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    """Leaves a checkpoint at every step."""
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def make(trial: Any, rows_path: Path, tiny_bert_path: Path) -> Make:
    """(dotted parameters) -> a spec on the tiny Llama; on BERT for a classification."""

    def build(bert: bool = False, **params: Any) -> TrialSpec:
        common = {
            "task": CLASSES if bert else CAUSAL,
            "data.train": {"path": str(rows_path)},
            "data.validation": 0.2,
            "training.learning_rate": 5e-3,
            "training.max_steps": STEPS,
            "training.per_device_train_batch_size": 4,
            "training.logging_steps": 1,
            "seed": 3,
        }
        if bert:
            common["model"] = {"name_or_path": str(tiny_bert_path)}
        return trial({**common, **params})  # type: ignore[no-any-return]

    return build


@pytest.fixture(scope="module")
def plain_adapter(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that PEFT alone has made and saved; its B is not zero."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.1,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    save(tiny_llama_path, config, folder)
    return folder


def save(model_path: Path, config: LoraConfig, folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config)
    source = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=source)
            parameter.data.copy_(0.1 * values)
    model.save_pretrained(str(folder))


def copy_with(folder: Path, target: Path, **settings: Any) -> str:
    """A copy of an adapter's folder with other settings."""
    shutil.copytree(folder, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(target)


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(6, 40).reshape(2, 17)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens).logits
    return found


def adapter(run: Any, attempt: int = 1) -> Path:
    return Path(run.folder / "attempts" / str(attempt) / "adapter")


def plain_peft(
    model_path: Path, folder: Path, spec: TrialSpec, rows: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a loop of transformers, PEFT and AdamW that goes on from a folder."""
    base = AutoModelForCausalLM.from_pretrained(model_path)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()  # no dropout
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.training.learning_rate, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, 0, STEPS)
    order, losses = iter(SampleOrder(spec.seed, len(rows), 10**6)), []
    for _ in range(STEPS):
        chosen = [rows[next(order)] for _ in range(4)]
        total, count = torch.zeros(()), 0
        for row in chosen:
            tokens, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            found = model(tokens).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(
                found, labels[1:], ignore_index=-100, reduction="sum"
            )
            count += int((labels[1:] != -100).sum())
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    named = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    return losses, named


@pytest.mark.parametrize("packed", [False, True], ids=["solo", "packed"])
def test_a_plain_adapter_goes_on_as_in_plain_peft(
    make: Make, plain_adapter: Path, tiny_llama_path: Path, tmp_path: Path, packed: bool
) -> None:
    spec = make(**{"adapter.from": str(plain_adapter), "adapter.lora_dropout": 0.0})
    cache = str(tmp_path / "cache")
    engine = PackedEngine(cache, threads=1) if packed else SoloEngine(cache, threads=1)
    prepared = engine.prepare(spec, [])
    _, data = SoloEngine(cache, threads=1).check(spec)
    untrained = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama_path), str(plain_adapter)
    ).eval()
    with torch.no_grad():
        total, count = 0.0, 0
        for row in data.validation:
            found = untrained(torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"])[1:]
            total += torch.nn.functional.cross_entropy(found, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    assert prepared.baseline["validation/loss"] == pytest.approx(total / count, abs=1e-6)

    reports, ends = run_all(engine, [spec], tmp_path / "trials")
    result = ends[0]
    assert result is not None
    assert (result.state, result.provenance.get("engine")) == (
        "COMPLETE",
        "packed" if packed else None,
    ), result.traceback
    expected, weights = plain_peft(tiny_llama_path, plain_adapter, spec, data.train)
    losses = [r.metrics["train/loss"] for r in reports[0] if "train/loss" in r.metrics]
    assert losses[:STEPS] == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - expected[-1]) > 1e-3, "training changes something"
    folder = tmp_path / "trials/0/attempts/1/adapter"
    saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == weights.keys()
    for name, value in saved.items():
        assert torch.allclose(value, weights[name], atol=2e-6), name


@pytest.mark.parametrize(
    "case",
    some([c for c in CASES if c not in NOT_CONTINUED], "lora", "pissa", "bottleneck", "vera"),
)
def test_every_method_goes_on_where_it_was_left_whatever_the_seed(
    engine: SoloEngine, listen: Any, make: Make, tmp_path: Path, case: str
) -> None:
    first = listen(engine, tmp_path / "first")
    given = first.run(make(**CASES[case]))
    assert given.error is None, given.traceback
    spec = make(**{"adapter.from": str(adapter(first)), "seed": 8})
    begun = engine.prepare(spec, []).baseline
    assert begun == pytest.approx({k: v for k, v in given.metrics.items() if k in begun}, rel=1e-6)

    second = listen(engine, tmp_path / "second")
    whole = second.run(spec)
    assert whole.error is None, whole.traceback
    assert "changed the resident base" not in (second.folder / "attempts/1/log.txt").read_text()
    assert whole.metrics["validation/loss"] != begun["validation/loss"]
    scored, _ = score_adapter(spec.to_json(), adapter(second), tmp_path / "cache", test=False)
    assert scored == pytest.approx({name: whole.metrics[name] for name in scored}, rel=1e-6)

    again = listen(engine, second.folder)
    resumed = again.run(spec, attempt=2, checkpoint=second.checkpoints()[2])
    assert resumed.provenance["resumed_from"] == 3
    assert resumed.metrics == whole.metrics
    files = [adapter(second, number) / "adapter_model.safetensors" for number in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_leaves_is_a_whole_adapter_for_the_untouched_base(
    engine: SoloEngine,
    listen: Any,
    make: Make,
    plain_adapter: Path,
    tiny_llama_path: Path,
    tmp_path: Path,
) -> None:
    spec = make(**{"adapter.from": str(plain_adapter)})
    run = listen(engine, tmp_path / "trial")
    result = run.run(spec)
    settings = json.loads((adapter(run) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_llama_path)
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 12, 0.1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    untouched = logits(base)
    model = PeftModel.from_pretrained(base, str(adapter(run))).eval()
    assert not torch.allclose(logits(model), untouched)
    merged = merge_adapter(spec.to_json(), adapter(run), tmp_path / "merged", tmp_path / "cache")
    assert merged["validation/loss"] == pytest.approx(result.metrics["validation/loss"], abs=1e-5)


def test_packed_trials_from_several_adapters_are_those_of_the_solo_engine(
    engine: SoloEngine, make: Make, plain_adapter: Path, tiny_llama_path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    targets = ["v_proj", "up_proj"]
    save(tiny_llama_path, LoraConfig(r=8, use_rslora=True, target_modules=targets), other)
    specs = [
        make(**{"adapter.from": str(plain_adapter)}),
        make(**{"adapter.from": str(other), "seed": 4, "training.weight_decay": 0.1}),
        make(**{"adapter.r": 4, "adapter.target_modules": "attention-qv"}),
    ]
    alone, _ = run_all(engine, specs, tmp_path / "solo")
    packed = PackedEngine(str(tmp_path / "cache"), num_slots=3, threads=1)
    together, ends = run_all(packed, specs, tmp_path / "packed")
    for number in range(3):
        assert ends[number].provenance["engine"] == "packed"  # type: ignore[union-attr]
        for one, two in zip(alone[number], together[number], strict=True):
            assert two.metrics == pytest.approx(one.metrics, rel=1e-6, abs=1e-6)


def test_a_variant_of_lora_goes_alone_with_the_reason(
    engine: SoloEngine, make: Make, tiny_llama_path: Path, tmp_path: Path
) -> None:
    found = []
    for number, options in enumerate(({"lora_bias": True}, {"use_dora": True}, {})):
        folder = tmp_path / str(number)
        config = LoraConfig(r=4, target_modules=["gate_proj"], **options)
        save(tiny_llama_path, config, folder)
        spec = make(**{"adapter.from": str(folder)})
        base, _ = engine.check(spec)
        found.append(unpackable(spec, base))
    assert found[0] == "the saved adapter that it goes on from is a variant of lora"
    assert found[1:] == [None, None]


def test_what_the_sections_do_not_know_is_kept_as_peft_has_it(
    engine: SoloEngine, listen: Any, make: Make, tiny_llama_path: Path, tmp_path: Path
) -> None:
    """lora_bias is no field here: B's bias is loaded, trained and saved all the same."""
    folder = tmp_path / "biased"
    config = LoraConfig(r=4, lora_bias=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama_path), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    model.save_pretrained(str(folder))
    spec = make(**{"adapter.from": str(folder)})
    run = listen(engine, tmp_path / "trial")
    assert run.run(spec).error is None
    saved = safetensors.torch.load_file(adapter(run) / "adapter_model.safetensors")
    biases = [value for name, value in saved.items() if name.endswith("lora_B.bias")]
    assert len(biases) == 2
    assert all(not torch.allclose(bias, torch.full_like(bias, 0.02)) for bias in biases)
    assert json.loads((adapter(run) / "adapter_config.json").read_text())["lora_bias"] is True


def test_a_classifier_goes_on_with_its_head(
    engine: SoloEngine, listen: Any, make: Make, tmp_path: Path
) -> None:
    first = listen(engine, tmp_path / "first")
    given = first.run(make(task=CLASSES))
    spec = make(**{"task": CLASSES, "adapter.from": str(adapter(first)), "seed": 9})
    begun = engine.prepare(spec, []).baseline
    assert begun == pytest.approx({name: given.metrics[name] for name in begun}, rel=1e-6)
    packed = PackedEngine(str(tmp_path / "cache"), threads=1)
    alone, _ = run_all(engine, [spec], tmp_path / "solo")
    together, ends = run_all(packed, [spec], tmp_path / "packed")
    assert ends[0].provenance["engine"] == "packed"  # type: ignore[union-attr]
    for one, two in zip(alone[0], together[0], strict=True):
        assert two.metrics == pytest.approx(one.metrics, rel=1e-5, abs=1e-6)


def test_classes_in_another_order_or_number_are_refused(
    engine: SoloEngine, listen: Any, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = listen(engine, tmp_path / "first")
    first.run(make(bert=True))
    folder = adapter(first)
    labels = folder / "labels.json"
    assert json.loads(labels.read_text()) == ["even", "odd"]
    labels.write_text('["odd", "even"]')
    with pytest.raises(SpecError, match="are odd, even, and those of the data even, odd"):
        engine.check(make(bert=True, **{"adapter.from": str(folder)}))
    labels.write_text("[")
    with pytest.raises(SpecError, match=r"labels.json cannot be read"):
        engine.check(make(bert=True, **{"adapter.from": str(folder)}))
    labels.unlink()
    with caplog.at_level(logging.WARNING):
        engine.check(make(bert=True, **{"adapter.from": str(folder)}))
    assert "has no labels.json; its classes are taken to be" in caplog.text
    task = {**CLASSES, "label": "q"}
    with pytest.raises(SpecError, match=r"\(other classes than those of the data"):
        engine.check(make(bert=True, **{"adapter.from": str(folder), "task": task}))


def test_an_adapter_without_a_head_goes_on_under_a_new_one(
    engine: SoloEngine, listen: Any, make: Make, plain_adapter: Path, tmp_path: Path
) -> None:
    """A language model's adapter goes on in a classifier, whose head is drawn from the seed."""
    spec = make(**{"task": CLASSES, "adapter.from": str(plain_adapter)})
    assert engine.prepare(spec, []).baseline == {}
    run = listen(engine, tmp_path / "trial")
    result = run.run(spec)
    assert result.error is None, result.traceback
    saved = safetensors.torch.load_file(adapter(run) / "adapter_model.safetensors")
    assert [tuple(v.shape) for name, v in saved.items() if "score" in name] == [(2, 64)]


def test_an_adapter_of_another_base_is_told_before_the_base_is_loaded(
    engine: SoloEngine, make: Make, plain_adapter: Path, tmp_path: Path
) -> None:
    tensors = safetensors.torch.load_file(plain_adapter / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    wider, deeper, fewer = (tmp_path / name for name in ("wider", "deeper", "fewer"))
    for folder in (wider, deeper, fewer):
        shutil.copytree(plain_adapter, folder)
    safetensors.torch.save_file(
        {n: torch.zeros(4, 99) if n == first else v for n, v in tensors.items()},
        wider / "adapter_model.safetensors",
    )
    safetensors.torch.save_file(
        {n.replace("layers.1.", "layers.7."): v for n, v in tensors.items()},
        deeper / "adapter_model.safetensors",
    )
    safetensors.torch.save_file(
        {n: v for n, v in tensors.items() if "q_proj" in n}, fewer / "adapter_model.safetensors"
    )
    loaded = engine.base
    other = {"quantization.scheme": "int8"}  # which would have to be loaded
    for folder, words in (
        (wider, r"lora_A.weight is \[4, 99\], and (64|128) are needed"),
        (deeper, "the base has no such module"),
        (fewer, "only the trial adapts .*down_proj"),
    ):
        with pytest.raises(SpecError, match=words):
            engine.check(make(**other, **{"adapter.from": str(folder)}))
    written = {"adapter.from": str(plain_adapter), "adapter.target_modules": "attention-qv"}
    with pytest.raises(SpecError, match=r"only the trial adapts .*v_proj.*: leave"):
        engine.check(make(**other, **written))
    assert engine.base is loaded


def test_another_name_of_the_base_is_a_warning(
    engine: SoloEngine,
    make: Make,
    plain_adapter: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        engine.check(make(**{"adapter.from": str(plain_adapter)}))
        assert "was trained on" not in caplog.text
        folder = copy_with(plain_adapter, tmp_path / "a", base_model_name_or_path="meta/other")
        engine.check(make(**{"adapter.from": folder}))
    assert "was trained on the base meta/other, and goes on on" in caplog.text


def test_settings_that_the_installed_peft_does_not_know_are_refused(
    engine: SoloEngine, make: Make, plain_adapter: Path, tmp_path: Path
) -> None:
    folder = copy_with(plain_adapter, tmp_path / "a", from_the_future={"on": True}, and_idle=None)
    with pytest.raises(SpecError, match="sets from_the_future, which the installed PEFT does not"):
        engine.check(make(**{"adapter.from": folder}))


def test_an_adapter_that_changes_under_a_trial_is_told(
    engine: SoloEngine, listen: Any, make: Make, plain_adapter: Path, tmp_path: Path
) -> None:
    folder = Path(copy_with(plain_adapter, tmp_path / "a"))
    spec = make(**{"adapter.from": str(folder)})
    weights = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: value + 1 for name, value in tensors.items()}, weights)
    with pytest.raises(DataError, match=r"adapter.from: .* has changed since the trial was made"):
        engine.check(spec)
    result = listen(engine, tmp_path / "trial").run(spec)
    assert (result.state, result.kind) == ("FAIL", "data")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"adapter.from: there is no folder"):
        engine.check(spec)


def test_a_spec_that_was_written_over_by_hand_is_told(
    engine: SoloEngine, make: Make, plain_adapter: Path
) -> None:
    tree = json.loads(make(**{"adapter.from": str(plain_adapter)}).to_json())
    tree["adapter"]["lora_alpha"] = 99
    with pytest.raises(SpecError, match="lora_alpha is 12 there and 99"):
        engine.check(TrialSpec.model_validate(tree))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_quantized_base_computes_what_plain_peft_computes_on_it(
    make: Make, llama_base: Any, plain_adapter: Path, scheme: str
) -> None:
    spec = make(**{"adapter.from": str(plain_adapter), "quantization.scheme": scheme})
    base = llama_base(scheme)
    before = base.state_hash()
    model = METHODS["lora"].attach(base, spec)
    found = logits(model)
    METHODS["lora"].detach(model)
    assert base.state_hash() == before
    snapshot = Snapshot.of(base.model)
    expected = logits(load_adapter(base.model, plain_adapter))
    snapshot.restore()
    assert torch.equal(found, expected)


def test_a_plain_classifier_of_peft_goes_on_with_its_head(
    engine: SoloEngine, make: Make, tiny_bert_path: Path, tmp_path: Path
) -> None:
    """PEFT writes two names of heads for every classifier, of which this base has one."""
    config = LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_path, num_labels=2)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(str(tmp_path / "plain"))
    settings = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["classifier", "score"]
    spec = make(bert=True, **{"adapter.from": str(tmp_path / "plain")})
    begun = engine.prepare(spec, []).baseline
    _, data = engine.check(spec)
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_bert_path, num_labels=2)
    plain = PeftModel.from_pretrained(fresh, str(tmp_path / "plain")).eval()
    with torch.no_grad():
        losses = [
            plain(
                input_ids=torch.tensor([row["input_ids"]]),
                labels=torch.tensor([row["label"]]),
            ).loss.item()
            for row in data.validation
        ]
    assert begun["validation/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_weights_in_half_precision_are_trained_in_float32(
    make: Make, llama_base: Any, plain_adapter: Path, tmp_path: Path
) -> None:
    folder = Path(copy_with(plain_adapter, tmp_path / "half"))
    weights = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({n: v.bfloat16() for n, v in tensors.items()}, weights)
    base = llama_base("none")
    model = METHODS["lora"].attach(base, make(**{"adapter.from": str(folder)}))
    trained = {n.replace(".default.", "."): p for n, p in model.named_parameters()}
    for name, value in tensors.items():
        assert trained[name].dtype == torch.float32
        assert torch.equal(trained[name], value.bfloat16().float())
    METHODS["lora"].detach(model)
