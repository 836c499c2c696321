"""The card of an export: its loading code, run as it stands, gives the model that was scored."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from peft_jobs import TrialSpec
from sweeps import build_sweep, open_sweep
from sweeps.exporters.card.card_sections import sample_answers
from sweeps.exporters.card.front_matter import front_matter
from sweeps.exporters.export import Exported, export_trial
from sweeps.run import launch

ANIMALS = ("zebra", "cat", "dog", "bird")
ROWS = [
    {
        "text": f"a {ANIMALS[i % 4]} sees {i}",
        "kind": ANIMALS[i % 4],
        "size": 0.25 * (i % 4),
        "kinds": [ANIMALS[i % 4], ANIMALS[(i + i // 4) % 4]],
        "tokens": ["a", ANIMALS[i % 4], "here"],
        "tags": ["O", f"B-{ANIMALS[i % 4]}", "O"],
        "question": f"who sees {i}?",
        "context": f"a {ANIMALS[i % 4]} sees {i}",
        "answers": {"text": [ANIMALS[i % 4]], "answer_start": [2]},
    }
    for i in range(24)
]
CLASSIFY = {"type": "sequence_classification", "text": "{text}", "label": "kind"}
SETS = {"type": "sequence_classification", "text": "{text}", "labels": "kinds"}
NUMBER = {**CLASSIFY, "label": "size", "problem_type": "regression"}
TAG = {"type": "token_classification"}
ANSWER = {"type": "question_answering"}
WRITE = {"type": "causal_lm", "prompt": "{question} ", "response": "{kind}"}
TRANSLATE = {"type": "seq2seq", "source": "{question}", "target": "{kind}</s>"}
SKIPPING = {"scheme": "int8", "llm_int8_skip_modules": ["down_proj"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small bases by task: random ones where the demo's has no form for it."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, T5Config
    from transformers import T5ForConditionalGeneration as T5

    from peft_jobs.demo import BASE

    folder, words = tmp_path_factory.mktemp("bases"), {"vocab_size": 1024, "num_hidden_layers": 2}
    heads = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    widths = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "decoder_start_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**words, **heads)).save_pretrained(folder / "bert")
        T5(T5Config(**words, **widths)).save_pretrained(folder / "t5")
    for name in ("bert", "t5"):
        AutoTokenizer.from_pretrained(BASE).save_pretrained(folder / name)
    return {"question_answering": str(folder / "bert"), "seq2seq": str(folder / "t5")}


@pytest.fixture
def export(tmp_path: Path, bases: dict[str, str]) -> Callable[..., Exported]:
    """Sections of a sweep of one trial -> its export."""

    def run(task: dict[str, Any], **sections: Any) -> Exported:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        rate = {"training.learning_rate": {"low": 1e-3, "high": 2e-3}}
        sweep = {
            "name": "one",
            "model": bases.get(task["type"], "demo"),
            "task": task,
            "data": {
                "train": str(rows),
                "validation": str(rows),
                "on_leak": "warn",
                "max_length": 64,
            },
            "space": {"parameters": rate},
            "budget": {"n_trials": 1, "max_samples": 32, "num_rungs": 1},
            "resources": {"backend": "inline"},
            "tracking": {"enabled": False},
            "storage": str(tmp_path / "runs"),
            **sections,
        }
        assert launch(build_sweep(sweep)).status == "complete"
        return export_trial(tmp_path / "runs", "one", out=tmp_path / "out")

    return run


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(code)


def scored(exported: Exported, loaded: dict[str, Any], cache: Path) -> dict[str, float]:
    """Validation metrics of what the card's code gives."""
    import torch

    from peft_jobs.data.tokenized import load_data
    from peft_jobs.evaluation.scoring import evaluate
    from peft_jobs.tasks import TASKS

    spec = TrialSpec.model_validate_json((exported.path / "trial.json").read_text())
    return evaluate(
        loaded["model"],
        TASKS[spec.task.type],
        load_data(spec, loaded["tokenizer"], cache).validation,
        batch_size=8,
        pad_token_id=loaded["base"].config.pad_token_id,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    ("task", "adapter", "quantization"),
    [
        pytest.param(CLASSIFY, {"r": 4}, "none", id="classes"),
        pytest.param(
            SETS, {"method": "prefix_tuning"}, "none", id="label sets", marks=pytest.mark.slow
        ),
        pytest.param(NUMBER, {"r": 4}, "none", id="numbers"),
        pytest.param(TAG, {"method": "bottleneck"}, "none", id="tags, own method"),
        pytest.param(ANSWER, {"r": 4}, "none", id="answers"),
        pytest.param(TRANSLATE, {"r": 4}, "none", id="targets"),
        pytest.param(WRITE, {"r": 4}, "none", id="texts"),
        pytest.param(
            WRITE, {"method": "full"}, "none", id="texts, own method", marks=pytest.mark.slow
        ),
        pytest.param(CLASSIFY, {"r": 4}, SKIPPING, id="classes, int8"),
        pytest.param(WRITE, {"r": 4}, SKIPPING, id="texts, int8", marks=pytest.mark.slow),
        pytest.param(WRITE, {"r": 4}, "nf4", id="texts, nf4"),
    ],
)
def test_the_cards_code_loads_the_model_that_was_scored(
    task: dict[str, Any],
    adapter: dict[str, Any],
    quantization: Any,
    export: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = export(task=task, adapter=adapter, quantization=quantization)
    card = (exported.path / "README.md").read_text()
    own = adapter.get("method") in ("bottleneck", "full")
    assert ("PeftModel.from_pretrained" in card, "load_adapter(" in card) == (not own, own)
    monkeypatch.chdir(exported.path)
    loaded: dict[str, Any] = {}
    exec(code_of(card), loaded)
    found = scored(exported, loaded, tmp_path / "tokens")
    close = 1e-6 if quantization == "nf4" else 1e-5
    assert found == pytest.approx({name: exported.recorded[name] for name in found}, rel=close)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_card_of_a_checkpoint_that_is_stored_quantized_says_so_and_loads_it(
    compute: str, export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from peft_jobs.demo import BASE

    fp4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    stored = AutoModelForCausalLM.from_pretrained(
        BASE, quantization_config=fp4, dtype=torch.float32, device_map={"": "cpu"}
    )
    stored.save_pretrained(tmp_path / "stored")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "stored")
    quantization = {"scheme": "fp4", "bnb_4bit_compute_dtype": compute}
    exported = export(
        WRITE, adapter={"r": 4}, quantization=quantization, model=str(tmp_path / "stored")
    )
    card = (exported.path / "README.md").read_text()
    assert "quantized as it is stored (`fp4`)" in card
    assert "BitsAndBytesConfig" not in card
    monkeypatch.chdir(exported.path)
    loaded: dict[str, Any] = {}
    exec(code_of(card), loaded)
    layer = loaded["base"].model.layers[0].mlp.up_proj.base_layer
    assert (layer.weight.quant_type, layer.compute_dtype) == ("fp4", getattr(torch, compute))
    found = scored(exported, loaded, tmp_path / "tokens")
    close = 1e-6 if compute == "float32" else 1e-4
    assert found == pytest.approx({name: exported.recorded[name] for name in found}, rel=close)


def test_an_export_names_the_classes_of_its_outputs(
    export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoConfig

    exported = export(task=CLASSIFY, adapter={"r": 4})
    assert json.loads((exported.path / "labels.json").read_text()) == sorted(ANIMALS)
    monkeypatch.chdir(exported.path)
    loaded: dict[str, Any] = {}
    exec(code_of((exported.path / "README.md").read_text()), loaded)
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    inputs = tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    wanted = [model.config.label2id[row["kind"]] for row in ROWS]
    loss = cross_entropy(logits, torch.tensor(wanted)).item()
    right = [
        model.config.id2label[number] == row["kind"]
        for number, row in zip(logits.argmax(-1).tolist(), ROWS, strict=True)
    ]
    assert loss == pytest.approx(exported.recorded["validation/loss"], rel=1e-5)
    assert sum(right) / len(ROWS) == exported.recorded["validation/accuracy"]
    merged = export_trial(tmp_path / "runs", "one", out=exported.path, to=("merged",))
    named = AutoConfig.from_pretrained(str(merged.merged_path)).id2label
    assert named == dict(enumerate(sorted(ANIMALS)))
    assert (
        '`AutoModelForSequenceClassification.from_pretrained("merged")`'
        in (exported.path / "README.md").read_text()
    )


def test_a_merge_that_broke_off_is_made_again(export: Any, tmp_path: Path) -> None:
    exported = export(task=WRITE, adapter={"r": 4})
    for left in ("merged", ".merged"):
        (exported.path / left).mkdir()
        (exported.path / left / "leftover.safetensors").write_text("half")
    again = export_trial(tmp_path / "runs", "one", out=exported.path, to=("merged",))
    assert again.merged == pytest.approx(exported.validation, rel=1e-4)
    assert again.merged_path is not None
    assert (again.merged_path / "config.json").is_file()
    assert not (again.merged_path / "leftover.safetensors").exists()
    assert not (exported.path / ".merged").exists()


def metadata(exported: Exported) -> ModelCardData:
    """The card's metadata, by huggingface_hub's own reader, which refuses what is malformed."""
    card = (exported.path / "README.md").read_text()
    found: ModelCardData = ModelCard(card, ignore_metadata_errors=False).data
    return found


def test_the_card_says_what_the_hub_and_its_visitors_ask_for(export: Any) -> None:
    exported = export(task=WRITE, adapter={"r": 4})
    found = metadata(exported)
    assert (found.library_name, found.pipeline_tag) == ("peft", "text-generation")
    assert found.base_model is None  # the demo's is not on the Hub
    assert {"lora", "peft-sweeps"} <= set(found.tags or ())
    results = {result.metric_name: result for result in found.eval_results or ()}
    assert {name: result.metric_value for name, result in results.items()} == exported.validation
    loss = results["validation/loss"]
    assert (loss.dataset_name, loss.dataset_split, loss.metric_type) == (
        "rows.jsonl",
        "validation",
        "loss",
    )
    low, high = loss.metric_args["interval_95"]  # type: ignore[index]
    assert low < loss.metric_value < high
    assert (low, high) == pytest.approx(bootstrapped(exported), rel=0.02)

    card = (exported.path / "README.md").read_text()
    rows = [f"{ROWS[n]['question']} " for n in (0, 8, 16)]  # spread evenly over 24
    shown = re.findall(r"Prompt \d:\n\n```text\n(.*)\n```", card)
    assert shown == rows
    references = re.findall(r"Reference:\n\n```text\n(.*)\n```", card)
    assert references == [ROWS[n]["kind"] for n in (0, 8, 16)]
    assert "```text\n{question} \n```" in card
    for words in (
        *("train: `rows.jsonl`, 24 examples", "seen: 32 samples", "4 optimizer steps of 8"),
        *("hardware: a CPU", "1 trials were launched", "No test split was scored"),
        "licence is not known here",
    ):
        assert words in card, words
    sweep = open_sweep(exported.path.parent / "runs", "one")
    for sentence in sweep.verdict().sentences(with_steps=False):
        assert f"* {sentence}\n" in card
    prose = re.sub(r"```.*?```", "", card.split("\n---\n")[1], flags=re.DOTALL)
    assert str(exported.path.parent) not in prose  # no folder of this machine


def bootstrapped(exported: Exported) -> tuple[float, float]:
    """A second implementation: the mean loss by token on rows drawn with replacement."""
    import numpy as np

    frame = open_sweep(exported.path.parent / "runs", "one").rows(0)
    source, found = np.random.default_rng(1), []
    losses, counts = np.asarray(frame["loss_sum"]), np.asarray(frame["count"])
    for _ in range(4000):
        drawn = source.integers(0, len(frame), len(frame))
        found.append(losses[drawn].sum() / counts[drawn].sum())
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def test_what_the_base_s_own_card_says_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\nA base.\n")
    trial = {
        "model": {"name_or_path": "org/base", "revision": "v1"},
        "task": WRITE,
        "data": {
            "train": {"path": "org/rows", "split": "train[:50%]", "revision": "r1"},
            "validation": str(tmp_path / "held_out.jsonl"),
        },
    }
    record = {"validation": {"validation/loss": 1.5}, "test": {"test/loss": 1.75}}
    of_hub = front_matter(TrialSpec.model_validate(trial), record, "mine")
    assert (of_hub.base_model, of_hub.datasets) == ("org/base", ["org/rows"])
    assert of_hub.to_dict()["base_model_relation"] == "adapter"
    assert of_hub.license is None
    split = {r.metric_name: (r.dataset_name, r.dataset_split) for r in of_hub.eval_results or ()}
    assert split["validation/loss"] == ("held_out.jsonl", "validation")
    local = front_matter(
        TrialSpec.model_validate({**trial, "model": str(tmp_path)}), record, "mine"
    )
    assert (local.license, local.language, local.base_model) == ("mit", ["en", "de"], None)


def test_no_text_of_a_row_ends_its_block() -> None:
    sample = {"prompt": "```python\nx\n```", "answer": "````", "reference": "a"}
    lines = list(sample_answers({"answers": [sample]}))
    assert lines[lines.index("Prompt 1:") + 2] == "````text"
    assert lines[lines.index("Answer:") + 2] == "`````text"
