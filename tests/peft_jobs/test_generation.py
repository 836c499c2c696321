"""Texts that models write: greedy, whatever the batches; metrics as their packages count them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_jobs.errors import SpecError
from peft_jobs.evaluation import score
from peft_jobs.generation import generate, generation_metrics, prompt_and_reference, spread
from peft_jobs.generation_spec import GenerationSpec
from peft_jobs.spec import Seq2SeqSpec, TrialSpec
from peft_jobs.tasks import IGNORED, TASKS

PROMPTS = [[1, 6, 11, 14], [1, 7], [1, 6, 7, 12, 14, 6, 8], [1, 9, 10]]


@pytest.fixture(scope="session")
def tiny_t5_path(tmp_path_factory: pytest.TempPathFactory, tiny_bert_path: Path) -> Path:
    """Random T5ForConditionalGeneration: d_model 64, 2 layers, vocabulary 128, the BERT words."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-t5")
    config = T5Config(
        vocab_size=128,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=5,
        eos_token_id=4,
        decoder_start_token_id=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def e2e(shared: Path, folder: Path, num_rows: int) -> Path:
    source = shared / "data" / "nlg" / "e2e_dev.csv"
    if not source.is_file():
        pytest.skip(f"no data at {source}")
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[: num_rows * 8 : 8]
    path = folder / "e2e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_are_the_most_likely_tokens_one_by_one(llama_base: Any) -> None:
    base = llama_base("none")
    answers = generate(base.model, base.tokenizer, PROMPTS, max_new_tokens=6, batch_size=3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 6 and tokens[-1] != base.tokenizer.eos_token_id:
            with torch.no_grad():
                tokens.append(int(base.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        new = tokens[len(prompt) :]
        assert answer == base.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert len(set(answers)) > 1
    for batch_size in (1, 4):
        assert generate(base.model, base.tokenizer, PROMPTS, 6, batch_size) == answers


def test_a_checkpoints_own_generation_settings_change_nothing(llama_base: Any) -> None:
    base = llama_base("none")
    before = generate(base.model, base.tokenizer, PROMPTS, 6, 4)
    kept = base.model.generation_config
    own = type(kept)(do_sample=True, temperature=9.0, num_beams=3, repetition_penalty=5.0)
    base.model.generation_config = own
    try:
        assert generate(base.model, base.tokenizer, PROMPTS, 6, 4) == before
    finally:
        base.model.generation_config = kept


def test_the_last_run_of_supervised_tokens_is_the_reference() -> None:
    no = IGNORED
    assert prompt_and_reference([1, 2, 3, 4], [no, no, 3, 4], False) == ([1, 2], [3, 4])
    turns = [no, 2, no, no, 5, 6, no]
    assert prompt_and_reference([1, 2, 3, 4, 5, 6, 7], turns, False) == ([1, 2, 3, 4], [5, 6])
    assert prompt_and_reference([1, 2], [8, 9, 4], True) == ([1, 2], [8, 9, 4])
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 4) == [0, 25, 50, 75]


def copied(answers: list[str], references: list[str]) -> dict[str, float]:
    return {"characters": float(sum(map(len, answers))), "pairs": float(len(references))}


def test_metrics_are_those_of_their_packages(llama_base: Any) -> None:
    import sacrebleu
    from datasets import Dataset
    from rouge_score.rouge_scorer import RougeScorer

    base = llama_base("none")
    tokenizer = base.tokenizer
    answers = generate(base.model, tokenizer, PROMPTS, 6, 4)
    references = [answers[0], f"{answers[1]} a cat", "the bird", answers[3].upper()]
    labels = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in references]
    rows = Dataset.from_list(
        [
            {"input_ids": [*prompt, *label], "labels": [IGNORED] * len(prompt) + label}
            for prompt, label in zip(PROMPTS, labels, strict=True)
        ]
    )
    spec = GenerationSpec(
        max_new_tokens=6,
        metrics=("exact_match", "rouge", "bleu"),
        functions=(f"{__name__}:copied",),
    )
    found = generation_metrics(spec, base.model, tokenizer, rows, batch_size=2)
    texts = [tokenizer.decode(label, skip_special_tokens=True).strip() for label in labels]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [scorer.score(t, a)["rougeL"].fmeasure for t, a in zip(texts, answers, strict=True)]
    exact = sum(t == a for t, a in zip(texts, answers, strict=True)) / 4
    assert 0 < exact < 1
    assert found["exact_match"] == exact
    assert found["rougeL"] == pytest.approx(sum(rouge) / 4)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [texts]).score)
    assert (found["pairs"], found["characters"]) == (4.0, sum(map(len, answers)))
    assert set(spec.names) <= {f"validation/{name}" for name in found}


def test_a_base_without_room_for_the_answers_is_refused(llama_base: Any) -> None:
    base = llama_base("none")
    with pytest.raises(SpecError, match=r"max_new_tokens must be <= 121: .* got 122"):
        generate(base.model, base.tokenizer, PROMPTS, 122, 4)


def test_only_tasks_with_a_prompt_write_texts(trial: Any) -> None:
    with pytest.raises(ValidationError, match="needs a task that answers a prompt"):
        trial({"evaluation.generation.max_samples": 4})
    spec = trial({"task.prompt": "{q}", "evaluation.generation.max_samples": 4})
    assert spec.evaluation.generation.names == (
        *("validation/exact_match", "validation/rouge1"),
        *("validation/rouge2", "validation/rougeL"),
    )


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_adapters_write_and_learn_to_write_better(
    scheme: str, tiny_llama_path: Path, rows_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft_jobs.solo import SoloEngine

    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_llama_path),
            "quantization": scheme,
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {"train": str(rows_path), "validation": str(rows_path), "max_length": 32},
            "training": {"learning_rate": 2e-2, "max_samples": 800, "logging_steps": 50},
            "evaluation": {
                "rungs": [8],
                "generation": {"max_samples": 12, "max_new_tokens": 8},
            },
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"))
    baseline = engine.prepare(spec, [spec]).baseline
    driver = listen(engine, tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 8)
    assert {"validation/exact_match", "validation/rougeL"} <= set(baseline) & set(first.metrics)
    assert result.metrics["validation/rougeL"] > 0.2 + baseline["validation/rougeL"]


SEQ2SEQ = Seq2SeqSpec(type="seq2seq", source="{mr}", target="{ref}", max_target_length=6)


def test_targets_and_their_loss_are_those_of_transformers(tiny_t5_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    task = TASKS["seq2seq"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_path).eval()
    encoder = task.encoder(tokenizer, SEQ2SEQ, 8, ())
    rows = [
        {"mr": "the cat", "ref": "a dog"},
        {
            "mr": "the red dog sees a cat and more",
            "ref": "a bird likes a red cat and \N{WHITE SMILING FACE}",
        },
    ]
    examples: list[Any] = [encoder(row) for row in rows]
    assert tokenizer.convert_ids_to_tokens(examples[0]["labels"]) == ["a", "dog", "[SEP]"]
    assert examples[0]["num_bytes"] == len("a dog")
    assert [len(examples[1][name]) for name in ("input_ids", "labels")] == [8, 6]
    assert examples[1]["num_bytes"] == len("a bird likes a red cat")
    batch = task.collate(examples, pad_token_id=5)
    theirs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    ).loss
    ours = task.losses(model, batch).sum() / task.count(batch)
    assert task.count(batch) == 9
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    apart = [task.scores(model, task.collate([e], pad_token_id=5))[0] for e in examples]
    for alone, together in zip(apart, task.scores(model, batch), strict=True):
        assert alone.loss_sum == pytest.approx(together.loss_sum, rel=1e-5)
    assert task.metrics(apart)["loss"] == pytest.approx(theirs.item(), rel=1e-5)
    mistake = task.mistake({"mr": "a", "ref": " "}, SEQ2SEQ)
    assert mistake == "the target is empty (column 'ref')"


def test_an_encoder_and_decoder_learn_real_descriptions(
    shared: Path, tiny_t5_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft_jobs.export import score_adapter
    from peft_jobs.solo import SoloEngine

    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_t5_path),
            "task": {"type": "seq2seq", "source": "{mr}", "target": "{ref}"},
            "data": {"train": str(e2e(shared, tmp_path, 40)), "max_length": 32},
            "training": {"learning_rate": 2e-2, "max_samples": 240, "logging_steps": 20},
            "evaluation": {
                "rungs": [16],
                "generation": {
                    "max_samples": 4,
                    "max_new_tokens": 12,
                    "metrics": ["bleu", "rouge"],
                },
            },
        }
    )
    driver = listen(SoloEngine(str(tmp_path / "cache")), tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 16)
    assert result.metrics["validation/loss"] < 0.8 * first.metrics["validation/loss"]
    assert {"validation/bleu", "validation/rougeL", "validation/bits_per_byte"} <= set(
        result.metrics
    )
    adapter = tmp_path / "attempts" / "1" / result.adapter
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    again, _ = score_adapter(spec.to_json(), adapter, tmp_path / "cache", test=False)
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=1e-5)


def test_texts_are_written_in_the_trials_evaluation(
    tiny_llama_path: Path, rows_path: Path, llama_base: Any, tmp_path: Path
) -> None:
    from peft_jobs.tokenized import load_data

    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_llama_path),
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {"train": str(rows_path), "max_length": 32},
            "evaluation": {"generation": {"max_samples": 3, "max_new_tokens": 4}},
        }
    )
    base = llama_base("none")
    data = load_data(spec, base.tokenizer, tmp_path)
    base.model.train()
    found = score(base.model, base, spec, data.validation, "test")
    assert base.model.training
    base.model.eval()
    assert found == score(base.model, base, spec, data.validation, "test")
    assert {"test/loss", "test/exact_match", "test/rougeL"} <= set(found)
