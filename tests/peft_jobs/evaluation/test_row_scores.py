"""Per-row scores: every task's metrics follow from them, and they are the same in a pack."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import sacrebleu
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as span_f1
from sklearn.metrics import accuracy_score, f1_score

from peft_jobs import TrialSpec
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.storage.attempt_folder import ROWS_FILE
from tests.support.packed_runs import run_all
from tests.support.seq2seq_families import save

WORDS = ("red", "green", "cat", "dog", "bird")
CONTEXT = "the cat sees a red bird , the dog likes a green bird !"
TAGS = ("B-x", "I-x", "O")


def classes(number: int) -> dict[str, Any]:
    return {"text": f"{WORDS[number % 5]} {WORDS[number // 5 % 5]}", "label": number * 7 % 3}


def sets(number: int) -> dict[str, Any]:
    held = [word for place, word in enumerate(WORDS[:3]) if number >> place & 1]
    return {"text": f"{WORDS[number % 5]} {WORDS[number // 5 % 5]}", "labels": held}


def regression(number: int) -> dict[str, Any]:
    return {"text": f"{WORDS[number % 5]} {WORDS[number // 5 % 5]}", "label": number * 7 % 5 / 3}


def tags(number: int) -> dict[str, Any]:
    words = [WORDS[(number + place) % 5] for place in range(1 + number % 4)]
    return {"tokens": words, "tags": [TAGS[(number * 5 + n) % 3] for n, _ in enumerate(words)]}


def answers(number: int) -> dict[str, Any]:
    word = ("cat", "dog", "bird", "red")[number % 4]
    found = [] if number % 5 == 0 else [word]
    starts = [CONTEXT.index(word)] * len(found)
    return {
        "question": f"{WORDS[number % 5]} {WORDS[number // 5 % 5]} ?",
        "context": CONTEXT,
        "answers": {"text": found, "answer_start": starts},
    }


def texts(number: int) -> dict[str, Any]:
    question = f"{WORDS[number % 5]} {WORDS[number // 5 % 5]}"
    answer = " ".join(WORDS[(number + n) % 5] for n in range(1 + number % 4))
    return {"q": question, "a": answer, "text": " ".join([question, *[answer] * 6])}


def of_texts(rows: pandas.DataFrame) -> dict[str, float]:
    nats = math.fsum(rows["loss_sum"])
    loss = nats / rows["count"].sum()
    bits = nats / math.log(2) / rows["num_bytes"].sum()
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}


def of_answers(rows: pandas.DataFrame) -> dict[str, float]:
    written = rows.dropna(subset="answer")
    assert len(written) == 5
    equal = (written["answer"] == written["reference"]).mean()
    bleu = sacrebleu.corpus_bleu([*written["answer"]], [[*written["reference"]]]).score
    return {
        **of_texts(rows),
        "exact_match": equal,
        "bleu": bleu,
        "rougeL": written["rougeL"].mean(),
    }


def of_classes(rows: pandas.DataFrame) -> dict[str, float]:
    pair = (rows["actual"], rows["predicted"])
    return {
        "loss": rows["loss_sum"].mean(),
        "accuracy": accuracy_score(*pair),
        "macro_f1": f1_score(*pair, average="macro", zero_division=0),
    }


def of_sets(rows: pandas.DataFrame) -> dict[str, float]:
    pair = (np.stack(rows["actual"]), np.stack(rows["predicted"]))
    return {
        "loss": rows["loss_sum"].mean(),
        "accuracy": accuracy_score(*pair),
        "macro_f1": f1_score(*pair, average="macro", zero_division=0),
        "micro_f1": f1_score(*pair, average="micro", zero_division=0),
    }


def of_numbers(rows: pandas.DataFrame) -> dict[str, float]:
    pair = (rows["output"], rows["target"])
    mse = float(((pair[0] - pair[1]) ** 2).mean())
    assert rows["loss_sum"].mean() == pytest.approx(mse, rel=1e-5)  # float32 outputs
    return {
        "mse": rows["loss_sum"].mean(),
        "pearson": pearsonr(*pair).statistic,
        "spearman": spearmanr(*pair).statistic,
    }


def of_tags(rows: pandas.DataFrame) -> dict[str, float]:
    actual, predicted = ([*map(list, rows[name])] for name in ("actual", "predicted"))
    flat = (np.concatenate(actual), np.concatenate(predicted))
    named = [[[TAGS[tag] for tag in row] for row in side] for side in (actual, predicted)]
    return {
        "loss": rows["loss_sum"].sum() / rows["count"].sum(),
        "accuracy": accuracy_score(*flat),
        "macro_f1": f1_score(*flat, average="macro", zero_division=0),
        "f1": span_f1(*named),
    }


def of_spans(rows: pandas.DataFrame) -> dict[str, float]:
    exact = []
    for _, windows in rows.groupby("key"):
        best = windows.loc[windows["logit"].idxmax()]
        text = "" if windows["none_logit"].min() >= best["logit"] else best["text"]
        exact.append(text in [*best["answers"]] or (not text and not len(best["answers"])))
        assert set(windows["exact_match"]) == {float(exact[-1])}
    assert len(rows) > len(exact), "long contexts have several windows"
    return {"loss": rows["loss_sum"].mean(), "exact_match": np.mean(exact)}


CASES: dict[str, tuple[str, dict[str, Any], Callable[[int], Any], Callable[..., Any]]] = {
    "causal_lm": ("llama", {"prompt": "{q}", "response": "{a}"}, texts, of_answers),
    "plain text": ("llama", {"text": "{text}"}, texts, of_texts),
    "seq2seq": ("T5", {"source": "{q}", "target": "{a}"}, texts, of_answers),
    "one class": ("bert", {"text": "{text}", "label": "label"}, classes, of_classes),
    "sets": ("bert", {"text": "{text}", "labels": "labels"}, sets, of_sets),
    "regression": (
        "bert",
        {"text": "{text}", "label": "label", "problem_type": "regression"},
        regression,
        of_numbers,
    ),
    "tags": ("bert", {}, tags, of_tags),
    "answers": ("bert", {"stride": 2, "max_answer_tokens": 1}, answers, of_spans),
}
TYPES = {
    "causal_lm": "causal_lm",
    "plain text": "causal_lm",
    "seq2seq": "seq2seq",
    "tags": "token_classification",
    "answers": "question_answering",
}


def spec_of(case: str, base: Path, folder: Path, **sections: Any) -> TrialSpec:
    _, fields, row, _ = CASES[case]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(25)))
    validation: dict[str, Any] = {"validation": 0.5}
    if case == "answers":
        validation["group_by"] = "question"
    tree = {
        "model": str(base),
        "task": {"type": TYPES.get(case, "sequence_classification"), **fields},
        "data": {"train": str(path), "max_length": 16, **validation},
        "training": {"learning_rate": 3e-3, "max_samples": 24, "per_device_train_batch_size": 4},
        "evaluation": {"per_device_eval_batch_size": 3, "rungs": [8]},
        **sections,
    }
    if case in ("causal_lm", "seq2seq"):
        written = {"metrics": ["exact_match", "rouge", "bleu"], "max_new_tokens": 3}
        tree["evaluation"]["generation"] = {**written, "max_samples": 5}
    return TrialSpec.model_validate(tree)


@pytest.mark.parametrize("case", CASES)
def test_the_metrics_of_every_task_follow_from_its_rows(
    case: str, tiny_llama_path: Path, tiny_bert_path: Path, listen: Any, tmp_path: Path
) -> None:
    bases = {"llama": tiny_llama_path, "bert": tiny_bert_path}
    base = bases.get(CASES[case][0]) or save("T5", tmp_path / "t5")
    spec = spec_of(case, base, tmp_path)
    engine = SoloEngine(str(tmp_path / "cache"), threads=1)
    result = listen(engine, tmp_path).run(spec)
    assert result.state == "COMPLETE", result.error
    path = tmp_path / "attempts" / "1" / ROWS_FILE
    rows = pandas.read_parquet(path)
    assert path.stat().st_size < 50_000
    assert [*path.parent.glob(f".{ROWS_FILE}*")] == []
    found = CASES[case][3](rows)
    assert found == pytest.approx(
        {name: result.metrics[f"validation/{name}"] for name in found}, rel=1e-9, abs=1e-9
    )
    held_out = {n + 1 for n in range(25)}
    _, data = engine.check(spec)
    assert len(rows) == len(data.validation)
    assert set(rows["row"]) < held_out
    assert not set(rows["row"]) & set(map(int, data.numbers["train"]))
    if case == "plain text":
        assert max(rows["row"].value_counts()) > 1, "long rows have several examples"


@pytest.mark.parametrize("case", ["causal_lm", "one class"])
def test_rows_of_a_pack_are_those_of_trials_alone(
    case: str, tiny_llama_path: Path, tmp_path: Path
) -> None:
    spec = spec_of(case, tiny_llama_path, tmp_path).with_params({"evaluation.generation": None})
    specs = [spec.with_params({"adapter.r": r, "seed": r}) for r in (2, 4, 8)]
    cache, found = str(tmp_path / "cache"), []
    for engine in (SoloEngine(cache, threads=1), PackedEngine(cache, num_slots=3, threads=1)):
        folder = tmp_path / type(engine).__name__
        _, ends = run_all(engine, specs, folder)
        packed = {end.provenance.get("engine") for end in ends.values() if end is not None}
        assert packed == {"packed" if isinstance(engine, PackedEngine) else None}
        files = [folder / str(number) / "attempts" / "1" / ROWS_FILE for number in range(3)]
        found.append([pandas.read_parquet(file) for file in files])
    for alone, together in zip(*found, strict=True):
        pandas.testing.assert_frame_equal(alone, together, rtol=1e-4)
    assert not found[0][0]["loss_sum"].equals(found[0][1]["loss_sum"])


def test_a_folder_that_cannot_be_written_ends_no_trial(
    tiny_bert_path: Path, listen: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of("one class", tiny_bert_path, tmp_path)
    (tmp_path / "attempts" / "1" / ROWS_FILE / "in the way").mkdir(parents=True)
    result = listen(SoloEngine(str(tmp_path / "cache"), threads=1), tmp_path).run(spec)
    assert result.state == "COMPLETE"
    assert f"{ROWS_FILE} cannot be written" in caplog.text
