"""Tags of words: alignment to pieces, spans as another scorer counts them, real tweets."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.data.tokenized import load_data
from peft_jobs.errors import DataError, SpecError
from peft_jobs.evaluation.scoring import evaluate
from peft_jobs.spec import TokenClassificationSpec, TrialSpec
from peft_jobs.tasks import IGNORED, TASKS
from peft_jobs.tasks.token_classification import first_pieces

TASK = TASKS["token_classification"]
SPEC = TokenClassificationSpec(type="token_classification")
TAGS = ("B-person", "B-place", "I-person", "I-place", "O")


@pytest.fixture
def tokenizer(tiny_bert_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_path)


@pytest.fixture(scope="module")
def model(tiny_bert_path: Path) -> Any:
    from transformers import AutoModelForTokenClassification

    names = dict(enumerate(TAGS))
    return AutoModelForTokenClassification.from_pretrained(tiny_bert_path, id2label=names).eval()


def rows(num_rows: int) -> list[dict[str, Any]]:
    source = random.Random(0)
    words = ["the", "red", "cat", "U.K.", "dog", "O'Hare", "!", "sees"]
    return [
        {
            "tokens": [source.choice(words) for _ in range(length)],
            "tags": [source.choice(TAGS) for _ in range(length)],
        }
        for length in (source.randint(1, 9) for _ in range(num_rows))
    ]


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer: Any) -> None:
    row = {"tokens": ["the", "U.K.", "sees"], "tags": ["O", "B-place", "O"]}
    example = TASK.encoder(tokenizer, SPEC, 32, TAGS)(row)
    assert isinstance(example, dict)
    pieces = tokenizer.convert_ids_to_tokens(example["input_ids"])
    assert pieces == ["[CLS]", "the", "U", ".", "K", ".", "sees", "[SEP]"]
    assert example["labels"] == [IGNORED, 4, 1, IGNORED, IGNORED, IGNORED, 4, IGNORED]
    cut = TASK.encoder(tokenizer, SPEC, 4, TAGS)(row)
    assert isinstance(cut, dict)
    assert cut["labels"] == [IGNORED, 4, 1, IGNORED]
    assert TASK.encoder(tokenizer, SPEC, 2, TAGS)(row) is None


def test_pieces_that_hold_the_space_before_a_word_are_the_words() -> None:
    # "ab c de" as SentencePiece cuts it: the space belongs to the piece after it, or is a piece
    assert first_pieces(["ab", "c", "de"], [(0, 0), (0, 2), (2, 4), (4, 5), (5, 7)]) == [1, 2, 4]
    # a word that the tokenizer drops has none, and the next one keeps its own
    assert first_pieces(["ab", "c", "de"], [(0, 2), (5, 6), (6, 7), (0, 0)]) == [0, None, 1]


def tag_set(letters: str, *kinds: str) -> list[str]:
    return ["O", *(f"{letter}-{kind}" for letter in letters for kind in kinds)]


def test_the_f1_of_a_model_reads_the_ends_of_its_tag_set(tiny_bert_path: Path) -> None:
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification

    tags = tag_set("BIES", "org", "loc")
    model = AutoModelForTokenClassification.from_pretrained(
        tiny_bert_path, id2label=dict(enumerate(tags))
    ).eval()
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, 100, (30, 8), generator=source)
    labels = torch.randint(0, len(tags), (30, 8), generator=source)
    with torch.no_grad():
        best = model(tokens).logits.argmax(-1)
    labels = torch.where(torch.rand(30, 8, generator=source) < 0.6, best, labels)
    named = [[[tags[i] for i in row] for row in rows.tolist()] for rows in (labels, best)]
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    found = TASK.metrics(TASK.scores(model, batch))
    assert 0.2 < found["f1"] < 0.9
    assert found["f1"] == pytest.approx(f1_score(*named))


def test_the_loss_is_that_of_transformers(tokenizer: Any, model: Any) -> None:
    encoder = TASK.encoder(tokenizer, SPEC, 32, TAGS)
    batch = TASK.collate([encoder(row) for row in rows(6)], pad_token_id=5)  # type: ignore[misc]
    theirs = model(**batch).loss
    ours = TASK.losses(model, batch).sum() / TASK.count(batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    scores = TASK.scores(model, batch)
    assert sum(score.loss_sum for score in scores) == pytest.approx(ours.item() * TASK.count(batch))


def macro_f1(true: list[list[str]], predicted: list[list[str]]) -> float:
    """The mean over tags, of words."""
    pairs = [
        (t, p) for a, b in zip(true, predicted, strict=True) for t, p in zip(a, b, strict=True)
    ]
    seen = {tag for pair in pairs for tag in pair}
    right = {tag: sum(t == p == tag for t, p in pairs) for tag in seen}
    each = {tag: sum((t == tag) + (p == tag) for t, p in pairs) for tag in seen}
    return sum(2 * right[tag] / each[tag] for tag in seen) / len(seen)


def test_metrics_are_those_of_seqeval_whatever_the_batches(tokenizer: Any, model: Any) -> None:
    from datasets import Dataset
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    encoder = TASK.encoder(tokenizer, SPEC, 128, TAGS)
    examples = [encoder(row) for row in rows(40)]
    dataset = Dataset.from_list(examples)
    sizes, device = {"pad_token_id": 5}, torch.device("cpu")
    found = [
        evaluate(model, TASK, dataset, batch_size=size, device=device, **sizes) for size in (1, 7)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    true, predicted = [row["tags"] for row in rows(40)], []
    for example in examples:
        assert isinstance(example, dict)
        with torch.no_grad():
            best = model(torch.tensor([example["input_ids"]])).logits[0].argmax(-1).tolist()
        pairs = zip(best, example["labels"], strict=True)
        predicted.append([TAGS[tag] for tag, label in pairs if label != IGNORED])
    assert found[0] == {
        "validation/loss": found[0]["validation/loss"],
        "validation/accuracy": pytest.approx(accuracy_score(true, predicted)),
        "validation/macro_f1": pytest.approx(macro_f1(true, predicted)),
        "validation/precision": pytest.approx(precision_score(true, predicted)),
        "validation/recall": pytest.approx(recall_score(true, predicted)),
        "validation/f1": pytest.approx(f1_score(true, predicted)),
    }
    assert 0 < found[0]["validation/f1"] < 1


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ({"tokens": "a b", "tags": ["O"]}, "column 'tokens' must hold a list"),
        ({"tokens": ["a"], "tags": None}, "column 'tags' must hold a list"),
        ({"tokens": [], "tags": []}, "there are no words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "must hold words, none of them empty"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "must have equal lengths"),
    ],
)
def test_rows_that_are_no_tagged_words_are_named(row: dict[str, Any], mistake: str) -> None:
    found = TASK.mistake(row, SPEC)
    assert found is not None
    assert mistake in found


def test_tags_may_be_numbers_with_names(tokenizer: Any, tmp_path: Path) -> None:
    found = [
        {"tokens": ["the", "cat"], "tags": [2, 0]},
        {"tokens": ["a", "dog"], "tags": [1, -100]},
    ]

    def load(content: list[dict[str, Any]], **task: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content * 2), encoding="utf-8")
        spec = {
            "model": "unused",
            "task": {"type": "token_classification", **task},
            "data": {"train": str(path), "validation": str(path)},
        }
        return load_data(TrialSpec.model_validate(spec), tokenizer, tmp_path)

    with pytest.raises(SpecError, match=r"task\.tag_names: column 'tags' holds numbers"):
        load(found)
    data = load(found, tag_names=("O", "B-x", "I-x"))
    assert data.train["labels"][:2] == [[IGNORED, 2, 0, IGNORED], [IGNORED, 1, IGNORED, IGNORED]]
    assert load(found, tag_names=("O", "B-x", "I-x", "B-y")).classes[3] == "B-y"
    with pytest.raises(
        DataError, match=r"rows 1, 3: tag 2 in column 'tags' is not among the 2 tags"
    ):
        load(found, tag_names=("O", "B-x"))
    with pytest.raises(DataError, match=r"rows 1, 2: the list in column 'tags' has a gap"):
        load([{"tokens": ["the", "cat"], "tags": ["O", None]}])


def test_a_data_set_may_name_the_numbers(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["O", "B-animal", "I-animal"]
    rows = {"tokens": [["the", "cat"], ["dog"]] * 2, "tags": [[0, 1], [1]] * 2}
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    content = {
        "model": "unused",
        "task": {"type": "token_classification"},
        "data": {"train": str(tmp_path / "rows.parquet"), "validation": 0.5},
    }
    data = load_data(TrialSpec.model_validate(content), tokenizer, tmp_path)
    assert data.classes == tuple(names)
    supervised = [[tag for tag in labels if tag >= 0] for labels in data.train["labels"]]
    assert all(tags in ([0, 1], [1]) for tags in supervised)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_trial_learns_to_tag_real_tweets(
    request: pytest.FixtureRequest, shared: Path, listen: Any, tmp_path: Path, kind: str
) -> None:
    from peft_jobs.engines.solo.adapter_export import score_adapter
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    source = shared / "data" / "tag" / "wnut17_train.jsonl"
    if not source.is_file():
        pytest.skip(f"no data at {source}")
    lines = source.read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:120]))
    rows = str(tmp_path / "rows.jsonl")
    base = request.getfixturevalue("tiny_bert_path" if kind == "encoder" else "tiny_llama_path")
    spec = TrialSpec.model_validate(
        {
            "model": str(base),
            "task": {"type": "token_classification", "tags": "ner_tags"},
            "data": {"train": rows, "validation": rows, "max_length": 48},
            "training": {"learning_rate": 5e-3, "max_samples": 360, "logging_steps": 20},
            "evaluation": {"rungs": [8]},
        }
    )
    driver = listen(SoloEngine(str(tmp_path / "cache")), tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 8)
    assert result.metrics["validation/loss"] < first.metrics["validation/loss"]
    assert set(spec.task.METRICS) <= set(result.metrics)
    adapter = tmp_path / "attempts" / "1" / result.adapter
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    again, _ = score_adapter(spec.to_json(), adapter, tmp_path / "cache", test=False)
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=1e-5)


def test_a_trial_learns_which_words_are_spans(
    tiny_bert_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from seqeval.metrics import f1_score

    from peft_jobs.engines.solo.solo_engine import SoloEngine

    source = random.Random(2)
    kinds = {"cat": "B-animal", "dog": "B-animal", "U.K.": "B-place", "the": "O", "sees": "O"}
    lines = []
    for _ in range(80):
        words = [source.choice(list(kinds)) for _ in range(source.randint(2, 7))]
        lines.append(json.dumps({"tokens": words, "tags": [kinds[word] for word in words]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_bert_path),
            "task": {"type": "token_classification"},
            "data": {"train": str(tmp_path / "rows.jsonl"), "validation": 0.25, "max_length": 32},
            "training": {"learning_rate": 1e-2, "max_samples": 480, "logging_steps": 20},
            "evaluation": {"rungs": [8]},
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"))
    driver = listen(engine, tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 8)
    assert result.metrics["validation/loss"] < first.metrics["validation/loss"]

    base, data = engine.check(spec)
    model: Any = PeftModel.from_pretrained(base.model, tmp_path / "attempts/1/adapter").eval()
    true, predicted = [], []
    for row in data.validation:
        words = [place for place, label in enumerate(row["labels"]) if label != IGNORED]
        with torch.no_grad():
            best = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        assert data.classes is not None
        true.append([data.classes[row["labels"][place]] for place in words])
        predicted.append([data.classes[best[place]] for place in words])
    assert len(true) == 20
    assert result.metrics["validation/f1"] == pytest.approx(f1_score(true, predicted))
