"""A base that is a classifier keeps the meaning of its head's rows, or has a new head."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.base.architecture import outputs_by_class, read_config
from peft_jobs.base.heads import fresh_modules
from peft_jobs.base.own_classes import with_own_classes
from peft_jobs.data.labels import Labels
from peft_jobs.engines.solo.adapter_export import merge_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.spec import ModelSpec, SequenceClassificationSpec, TokenClassificationSpec, TrialSpec
from peft_jobs.storage.attempt_folder import read_labels

WORDS = ("the", "a", "red", "green", "blue", "cat", "dog", "bird", "sees", "likes", "good", "bad")
TEXTS = [" ".join(WORDS[(i * k + i // 5) % 12] for k in range(1, 3 + i % 4)) for i in range(40)]
ONE = SequenceClassificationSpec(type="sequence_classification", text="{text}", label="label")
SETS = SequenceClassificationSpec(type="sequence_classification", text="{text}", labels="label")
TAGS = TokenClassificationSpec(type="token_classification")


def save_classifier(folder: Path, bert: Path, names: list[str], head: str = "Sequence") -> Path:
    import transformers

    auto = getattr(transformers, f"AutoModelFor{head}Classification")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = auto.from_pretrained(bert, id2label=dict(enumerate(names)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    with torch.no_grad():  # every class is predicted for some texts, and none by a hair
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(2))
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
        model.classifier.bias -= torch.cat([found.view(-1, len(names)) for found in logits]).mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def predicted_rows(folder: Path) -> list[dict[str, Any]]:
    """Texts with the names that plain transformers gives them: its accuracy here is 1."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu")
    named = zip(TEXTS, classify(TEXTS), strict=True)
    return [{"text": text, "label": found["label"]} for text, found in named]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trial(base: Path, rows: Path, **task: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(base),
            "task": {"type": "sequence_classification", "text": "{text}", "label": "label"} | task,
            "data": {
                "train": str(rows),
                "validation": str(rows),
                "max_length": 32,
                "on_leak": "warn",
            },
            "adapter": {"method": "lora", "target_modules": "attention-qv"},
            "training": {"learning_rate": 1e-7, "max_samples": 8},
            "evaluation": {"rungs": []},
        }
    )


def test_a_base_with_the_datas_classes_in_another_order_is_as_good_as_before(
    tiny_bert_path: Path, listen: Any, tmp_path: Path
) -> None:
    base = save_classifier(tmp_path / "base", tiny_bert_path, ["positive", "negative"])
    rows = predicted_rows(base)
    assert {row["label"] for row in rows} == {"positive", "negative"}
    path = write(tmp_path / "rows.jsonl", rows)
    engine = SoloEngine(str(tmp_path / "cache"))
    prepared = engine.prepare(trial(base, path), [])
    assert prepared.baseline["validation/accuracy"] == 1.0
    driver = listen(engine, tmp_path)
    result = driver.run(trial(base, path))
    assert result.metrics["validation/accuracy"] == 1.0
    adapter = tmp_path / "attempts" / "1" / result.adapter
    assert read_labels(adapter) == ["positive", "negative"]
    spec = trial(base, path).to_json()
    merged = merge_adapter(spec, adapter, tmp_path / "merged", tmp_path / "cache")
    assert merged["validation/accuracy"] == 1.0
    # The same in capitals, as numbers of the base's rows, and with a class that no row has.
    capitals = [row | {"label": row["label"].upper()} for row in rows]
    numbers = [row | {"label": ["positive", "negative"].index(row["label"])} for row in rows]
    for name, content in (("capitals", capitals), ("numbers", numbers)):
        other = write(tmp_path / f"{name}.jsonl", content)
        found = SoloEngine(str(tmp_path / "cache")).prepare(trial(base, other), [])
        assert found.baseline["validation/accuracy"] == 1.0, name


def test_a_base_with_other_classes_has_a_new_head_of_each_trials_seed(
    tiny_bert_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_classifier(tmp_path / "base", tiny_bert_path, ["positive", "negative"])
    rows = [
        row | {"label": {"positive": "ham"}.get(row["label"], "spam")}
        for row in predicted_rows(base)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    engine = SoloEngine(str(tmp_path / "cache"))
    prepared = engine.prepare(trial(base, path), [])
    assert prepared.baseline == {}
    assert (
        "its own classes (positive, negative) are not those of the data (ham, spam)" in caplog.text
    )
    assert engine.base is not None
    assert fresh_modules(engine.base.model) == ("classifier",)
    from transformers import AutoModelForSequenceClassification

    stored = AutoModelForSequenceClassification.from_pretrained(base)
    ours: Any = engine.base.model
    assert not torch.equal(ours.classifier.weight, stored.classifier.weight)
    assert torch.equal(ours.bert.pooler.dense.weight, stored.bert.pooler.dense.weight)
    assert ours.config.id2label == {0: "ham", 1: "spam"}


@pytest.mark.parametrize(
    ("own", "labels", "classes"),
    [
        (["b", "a"], Labels(("a", "b")), ("b", "a")),
        (["B", "A"], Labels(("a", "b")), ("b", "a")),
        (["c", "b", "a"], Labels(("a", "b")), ("c", "b", "a")),
        (["3", "1", "2"], Labels((1, 2, 3), kind="integer"), (3, 1, 2)),
        (["b", "a"], Labels((0, 1), kind="integer"), ("b", "a")),
        (["LABEL_0", "LABEL_1"], Labels((0, 1), kind="integer"), (0, 1)),
        (["LABEL_0", "LABEL_1"], Labels(("b", "a"), numbered=("b", "a")), ("b", "a")),
        (["True", "False"], Labels(("false", "true"), kind="boolean"), ("true", "false")),
    ],
)
def test_names_decide_and_numbers_are_places(
    tiny_bert_path: Path, tmp_path: Path, own: list[str], labels: Labels, classes: Any
) -> None:
    base = save_classifier(tmp_path / "base", tiny_bert_path, own)
    found = with_own_classes(labels, ModelSpec(name_or_path=str(base)), ONE)
    assert found.classes == classes
    assert not found.new_head


def test_numbers_of_a_data_set_stand_for_its_own_names(
    tiny_bert_path: Path, tmp_path: Path
) -> None:
    """As in MNLI, whose models have its three classes in other orders."""
    base = save_classifier(tmp_path / "base", tiny_bert_path, ["NEUTRAL", "NO", "YES"])
    names = ("yes", "neutral", "no")
    labels = Labels(names, "label", numbered=names)
    found = with_own_classes(labels, ModelSpec(name_or_path=str(base)), ONE)
    assert found.classes == ("neutral", "no", "yes")
    assert [found.of(number) for number in range(3)] == ["yes", "neutral", "no"]
    vectors = Labels((0, 1, 2), "label", "vector", "integer", (0, 1, 2))
    found = with_own_classes(vectors, ModelSpec(name_or_path=str(base)), SETS)
    assert found.of([1, 0, 1]) == ["NEUTRAL", "YES"]


@pytest.mark.parametrize(
    ("own", "labels", "task"),
    [
        (["b", "a"], Labels(("a", "c")), ONE),
        (["LABEL_0", "LABEL_1"], Labels(("a", "b")), ONE),
        (["A", "a"], Labels(("b", "A")), ONE),
        (["a", "b"], Labels((0, 1, 2), kind="integer"), ONE),
        (["a", "b", "c"], Labels((0, 1), kind="integer"), ONE),
        (["a", "b"], Labels((1, 2), kind="integer"), ONE),
        (["a", "b", "c"], Labels(("a", "b")), SETS),
    ],
)
def test_what_does_not_agree_is_not_joined(
    tiny_bert_path: Path, tmp_path: Path, own: list[str], labels: Labels, task: Any
) -> None:
    base = save_classifier(tmp_path / "base", tiny_bert_path, own)
    found = with_own_classes(labels, ModelSpec(name_or_path=str(base)), task)
    assert found.new_head
    assert found.classes == labels.classes


def test_a_head_of_another_size_than_a_regressions_is_told(
    tiny_bert_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = ONE.model_copy(update={"problem_type": "regression"})
    three = save_classifier(tmp_path / "three", tiny_bert_path, ["a", "b", "c"])
    one = save_classifier(tmp_path / "one", tiny_bert_path, ["score"])
    for folder in (one, tiny_bert_path):
        assert with_own_classes(Labels(), ModelSpec(name_or_path=str(folder)), number) == Labels()
    assert not caplog.records
    assert with_own_classes(Labels(), ModelSpec(name_or_path=str(three)), number) == Labels()
    assert "its own head has 3 outputs (a, b, c), and 1 is wanted: its head is drawn" in caplog.text


def test_a_base_without_a_head_for_the_task_says_nothing(
    tiny_bert_path: Path, tmp_path: Path
) -> None:
    tagger = save_classifier(tmp_path / "base", tiny_bert_path, ["a", "b"], "Token")
    for folder in (tiny_bert_path, tagger):
        labels = Labels(("b", "a"))
        assert with_own_classes(labels, ModelSpec(name_or_path=str(folder)), ONE) == labels


def test_the_problem_of_the_head_is_that_of_the_task(tiny_bert_path: Path, tmp_path: Path) -> None:
    base = save_classifier(tmp_path / "base", tiny_bert_path, ["a", "b"])
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["problem_type"] = "multi_label_classification"
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = ModelSpec(name_or_path=str(base))
    number = ONE.model_copy(update={"problem_type": "regression"})
    assert read_config(model, ONE).problem_type is None
    assert read_config(model, SETS).problem_type == "multi_label_classification"
    assert read_config(model, number).problem_type == "regression"
    assert read_config(model, number).num_labels == 1


def test_only_what_follows_the_classes_is_new_in_a_head_of_two_layers(tmp_path: Path) -> None:
    from transformers import RobertaConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(vocab_size=20, intermediate_size=8, num_labels=5, **sizes)
    config.save_pretrained(tmp_path)
    names = {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert outputs_by_class(ModelSpec(name_or_path=str(tmp_path)), ONE) == names


def test_a_tagger_keeps_its_tags(tiny_bert_path: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    own = ["I-x", "O", "B-y", "B-x", "I-y"]
    base = save_classifier(tmp_path / "base", tiny_bert_path, own, "Token")
    model = AutoModelForTokenClassification.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    named, numbered = [], []
    for words in (text.split() for text in TEXTS):
        with torch.no_grad():
            best = model(**tokenizer(" ".join(words), return_tensors="pt")).logits[0].argmax(-1)
        numbers = best.tolist()[1:-1]
        named.append({"tokens": words, "tags": [own[number] for number in numbers]})
        numbered.append({"tokens": words, "tags": numbers})
    assert {tag for row in named for tag in row["tags"]} == set(own)
    for name, rows in (("named", named), ("numbered", numbered)):
        path = write(tmp_path / f"{name}.jsonl", rows)
        spec = trial(base, path).model_dump() | {"task": {"type": "token_classification"}}
        engine = SoloEngine(str(tmp_path / "cache"))
        prepared = engine.prepare(TrialSpec.model_validate(spec), [])
        assert prepared.baseline["validation/accuracy"] == 1.0
        assert prepared.baseline["validation/f1"] == 1.0
