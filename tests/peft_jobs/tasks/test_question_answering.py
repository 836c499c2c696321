"""Spans in contexts: windows, SQuAD's metrics, the best span over windows, real questions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.data.tokenized import load_data
from peft_jobs.errors import SpecError
from peft_jobs.evaluation.scoring import evaluate
from peft_jobs.spec import QuestionAnsweringSpec, TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.tasks.answers import answers_of
from peft_jobs.tasks.question_answering import best_spans
from peft_jobs.tasks.squad import WindowScore, exact_match_and_f1

TASK = TASKS["question_answering"]
SPEC = QuestionAnsweringSpec(type="question_answering", stride=2, max_answer_tokens=3)
CONTEXT = "the cat sees a red bird , the dog likes a green bird !"
ROW = {
    "question": "who likes ?",
    "context": CONTEXT,
    "answers": {"text": ["the dog"], "answer_start": [CONTEXT.index("the dog")]},
}


@pytest.fixture
def tokenizer(tiny_bert_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_path)


@pytest.fixture(scope="module")
def model(tiny_bert_path: Path) -> Any:
    from transformers import AutoModelForQuestionAnswering

    return AutoModelForQuestionAnswering.from_pretrained(tiny_bert_path).eval()


def encode(tokenizer: Any, row: dict[str, Any], max_length: int = 64, spec: Any = SPEC) -> Any:
    return TASK.encoder(tokenizer, spec, max_length, ())(row)


@pytest.mark.parametrize(
    ("predicted", "answers", "expected"),
    [
        ("The Panthers!", ["panthers"], (1.0, 1.0)),
        ("in New York city", ["New York", "york"], (0.0, 2 * (2 / 4) * 1 / (2 / 4 + 1))),
        ("a a cat", ["cat cat"], (0.0, 2 * 1 * (1 / 2) / (1 + 1 / 2))),
        ("dog", ["cat"], (0.0, 0.0)),
        ("", [], (1.0, 1.0)),
        ("dog", [], (0.0, 0.0)),
        ("", ["cat"], (0.0, 0.0)),
        ("U.S.A.", ["usa"], (1.0, 1.0)),
    ],
)
def test_answers_are_compared_as_squad_compares_them(
    predicted: str, answers: list[str], expected: tuple[float, float]
) -> None:
    assert exact_match_and_f1(predicted, answers) == pytest.approx(expected)


def test_the_answer_is_found_in_the_windows_that_hold_it(tokenizer: Any) -> None:
    (whole,) = encode(tokenizer, ROW)
    pieces = tokenizer.convert_ids_to_tokens(whole["input_ids"])
    assert pieces[whole["start"] : whole["end"] + 1] == ["the", "dog"]
    windows = encode(tokenizer, ROW, max_length=12)
    assert len(windows) > 2
    covered = 0
    for window in windows:
        assert len(window["input_ids"]) <= 12
        context, answers = json.loads(window["texts"])
        assert answers == ["the dog"]
        inside = [c for c in zip(window["begins"], window["ends"], strict=True) if c[0] >= 0]
        pieces = tokenizer.convert_ids_to_tokens(window["input_ids"])[-1 - len(inside) : -1]
        assert [context[first:last] for first, last in inside] == [
            piece if piece != "<unk>" else context[first:last]
            for piece, (first, last) in zip(pieces, inside, strict=True)
        ]
        if "the dog" in context:
            first, last = window["begins"][window["start"]], window["ends"][window["end"]]
            assert context[first:last] == "the dog"
            covered += 1
        else:
            assert (window["start"], window["end"]) == (0, 0)
    assert covered
    assert encode(tokenizer, ROW, max_length=6) == []  # no room for a context


def test_the_best_span_is_that_of_a_search_over_all_pairs() -> None:
    source = torch.Generator().manual_seed(0)
    starts, ends = torch.randn(2, 5, 20, generator=source)
    begins = torch.full((5, 20), -1)
    begins[:, 4:15] = torch.arange(11)
    batch = {"begins": begins, "longest": torch.full((5,), 4)}
    logits, firsts, lasts = best_spans(starts, ends, batch)
    for row in range(5):
        best = max(
            (float(starts[row, i] + ends[row, j]), i, j)
            for i in range(4, 15)
            for j in range(i, min(i + 4, 15))
        )
        found = (logits[row].item(), firsts[row].item(), lasts[row].item())
        assert found == (pytest.approx(best[0]), *best[1:])


def test_the_loss_is_that_of_transformers(tokenizer: Any, model: Any) -> None:
    batch = TASK.collate(encode(tokenizer, ROW), pad_token_id=5)
    theirs = model(
        batch["input_ids"],
        batch["attention_mask"],
        start_positions=batch["start"],
        end_positions=batch["end"],
    ).loss
    assert TASK.losses(model, batch).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_metrics_do_not_depend_on_the_batches(tokenizer: Any, model: Any) -> None:
    from datasets import Dataset

    windows = [w for length in (40, 14, 12) for w in encode(tokenizer, ROW, length)]
    other = {**ROW, "question": "what sees ?", "answers": {"text": ["cat"], "answer_start": [4]}}
    dataset = Dataset.from_list([*windows, *encode(tokenizer, other, 12)])
    device = torch.device("cpu")
    found = [
        evaluate(model, TASK, dataset, batch_size=size, pad_token_id=5, device=device)
        for size in (1, 3, 50)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)
    model.train()  # bert drops activations: an evaluation must not
    again = evaluate(model, TASK, dataset, batch_size=3, pad_token_id=5, device=device)
    model.eval()
    assert again == found[1]


def test_the_best_window_answers_a_row_and_none_only_where_there_may_be_none() -> None:
    cat = {"row": 1, "answers": ("cat",)}
    rows = [
        WindowScore(1.0, 1, text="dog", logit=1.0, none_logit=5.0, **cat),
        WindowScore(2.0, 1, text="the cat", logit=3.0, none_logit=4.0, **cat),
    ]
    assert TASK.metrics(rows) == {"loss": 1.5, "exact_match": 1.0, "f1": 1.0}
    empty = WindowScore(0.0, 1, row=2, text="x", logit=1.0, none_logit=2.0)
    assert TASK.metrics([*rows, empty]) == {"loss": 1.0, "exact_match": 0.5, "f1": 0.5}
    sure = WindowScore(0.0, 1, text="cat", logit=9.0, none_logit=-1.0, **cat)
    assert TASK.metrics([*rows, empty, sure])["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("changed", "mistake"),
    [
        ({"question": " "}, "the question is empty (column 'question')"),
        ({"context": None}, "column 'context' must hold a text"),
        ({"answers": "the dog"}, "column 'answers' must hold {text: [...], answer_start: [...]}"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "column 'answers' must hold"),
        ({"answers": {"text": ["a"], "answer_start": [0]}}, "does not lie at its answer_start"),
    ],
)
def test_rows_without_a_question_or_its_answer_are_named(
    changed: dict[str, Any], mistake: str
) -> None:
    found = TASK.mistake(ROW | changed, SPEC)
    assert found is not None
    assert mistake in found


def test_answers_come_as_lists_or_one_by_one() -> None:
    pairs = [("a", 1), ("b", 2)]
    assert answers_of({"text": ["a", "b"], "answer_start": [1, 2]}) == pairs
    assert answers_of([{"text": t, "answer_start": s} for t, s in pairs]) == pairs
    assert answers_of([]) == answers_of({"text": [], "answer_start": []}) == []
    assert answers_of(None) is None


def xquad(shared: Path, tmp_path: Path, num_rows: int) -> Path:
    source = shared / "data" / "qa" / "xquad_en.jsonl"
    if not source.is_file():
        pytest.skip(f"no data at {source}")
    path = tmp_path / "xquad.jsonl"
    path.write_text("\n".join(source.read_text(encoding="utf-8").splitlines()[:num_rows]))
    return path


def trial(base: Path, rows: Path, **data: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(base),
            "task": {"type": "question_answering", "stride": 16},
            "data": {"train": str(rows), "max_length": 64, "validation": 0.2, **data},
            "training": {"learning_rate": 1e-2, "max_samples": 320, "logging_steps": 20},
            "evaluation": {"rungs": [16]},
        }
    )


def test_a_context_lies_on_one_side_of_the_hold_out(
    shared: Path, tmp_path: Path, tokenizer: Any
) -> None:
    rows = xquad(shared, tmp_path, 200)
    with pytest.raises(SpecError, match=r"data\.group_by: several questions share a context"):
        load_data(trial(Path("unused"), rows), tokenizer, tmp_path)
    data = load_data(trial(Path("unused"), rows, group_by="context"), tokenizer, tmp_path)
    contexts = [json.loads(line)["context"] for line in rows.read_text().splitlines()]
    sides = []
    for split in (data.train, data.validation):
        parts = {json.loads(texts)[0] for texts in split["texts"]}
        sides.append({context for context in contexts if any(part in context for part in parts)})
        assert len(set(split["row"])) > 20
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(contexts)


def test_a_trial_learns_answers_to_real_questions(
    shared: Path, tiny_bert_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft_jobs.engines.solo.adapter_export import score_adapter
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    rows = xquad(shared, tmp_path, 20)
    spec = trial(tiny_bert_path, rows, validation=str(rows))
    driver = listen(SoloEngine(str(tmp_path / "cache")), tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 16)
    assert result.metrics["validation/loss"] < first.metrics["validation/loss"]
    assert set(spec.task.METRICS) <= set(result.metrics)
    assert 0 <= result.metrics["validation/exact_match"] <= result.metrics["validation/f1"] <= 1
    adapter = tmp_path / "attempts" / "1" / result.adapter
    again, _ = score_adapter(spec.to_json(), adapter, tmp_path / "cache", test=False)
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=1e-5)
