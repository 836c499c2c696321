"""Texts that models write: greedy, whatever the batches; metrics as their packages count them."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel

from peft_jobs.errors import Refused, SpecError
from peft_jobs.evaluation.decoding import turn_ends
from peft_jobs.evaluation.generation import (
    generate,
    prompt_and_reference,
    spread,
    written,
)
from peft_jobs.evaluation.scoring import score
from peft_jobs.spec import Seq2SeqSpec, TrialSpec
from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.tasks import IGNORED, TASKS

ADDED = 128
"""A token for which the models have no row."""
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
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", tokenizer.eos_token_id)]
    )
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


@contextmanager
def dictated(
    model: Any, answers: Mapping[tuple[int, ...], list[int]], after: int
) -> Iterator[list[int]]:
    """Whatever its weights are, a decoder finds these tokens the most likely ones behind these
    prompts, and then `after` for ever. Gives the number of answers in each call for a token."""
    asked: list[int] = []
    texts: list[list[int]] = []
    active = True

    def dictate(_model: Any, _args: Any, given: dict[str, Any], output: Any) -> None:
        if not active or not given.get("use_cache"):  # it is trained or scored
            return
        if given["input_ids"].shape[1] > 1:
            pairs = zip(given["input_ids"], given["attention_mask"].bool(), strict=True)
            texts[:] = [list(answers[tuple(tokens[real].tolist())]) for tokens, real in pairs]
        asked.append(len(texts))
        for text, logits in zip(texts, output.logits[:, -1], strict=True):
            logits.fill_(0.0)[text.pop(0) if text else after] = 1.0

    model.register_forward_hook(dictate, with_kwargs=True)
    try:
        yield asked
    finally:
        active = False  # detaching an adapter has put copies of the hook back


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


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"])
def test_answers_behind_virtual_tokens_do_not_depend_on_the_batches(
    method: str, llama_base: Any, trial: Any
) -> None:
    from peft_jobs.methods import METHODS

    base, adapter = llama_base("none"), METHODS[method]
    prompts = [*PROMPTS, [1, 8], [1, 10, 9, 7], [1, 6, 11, 14, 12, 9, 8, 7, 10, 13, 6], [1, 12, 7]]
    model = adapter.attach(base, trial({"adapter.method": method, "adapter.num_virtual_tokens": 5}))
    source = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=source)
            together = generate(model, base.tokenizer, prompts, 12, 8)
            assert together == generate(model, base.tokenizer, prompts, 12, 1)
            for prompt, answer in zip(prompts, together, strict=True):
                tokens = list(prompt)
                while len(tokens) < len(prompt) + 12 and tokens[-1] != base.tokenizer.eos_token_id:
                    tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
                new = tokens[len(prompt) :]
                assert answer == base.tokenizer.decode(new, skip_special_tokens=True).strip()
    finally:
        adapter.detach(model)
    assert len(set(together)) > 4


def test_a_chats_answer_ends_where_its_template_ends_a_turn(
    tiny_llama_path: Path, listen: Any, tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoTokenizer

    from peft_jobs.engines.solo.solo_engine import SoloEngine

    folder = tmp_path / "chatty"
    shutil.copytree(tiny_llama_path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert len(tokenizer) <= 128, "the model has a row for each token"
    assert tokenizer.eos_token != "<|im_end|>"
    tokenizer.save_pretrained(folder)
    pairs = [("the cat", "sees a dog"), ("a bird", "likes"), ("red", "blue green"), ("dog", "the")]
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    spec = TrialSpec.model_validate(
        {
            "model": str(folder),
            "adapter": {"method": "full"},
            "task": {"type": "causal_lm", "messages": "messages"},
            "data": {
                "train": str(path),
                "validation": str(path),
                "max_length": 32,
                "on_leak": "warn",
            },
            "training": {
                "learning_rate": 5e-3,
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "lr_scheduler_type": "constant",
            },
            "evaluation": {"generation": {"max_samples": 4, "max_new_tokens": 12}},
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"))
    base, data = engine.check(spec)
    rows = zip(data.validation["input_ids"], data.validation["labels"], strict=True)
    written = {
        tuple(prompt): answer
        for prompt, answer in (prompt_and_reference(*row, False) for row in rows)
    }
    assert len(written) == 4
    end, dog = tokenizer.convert_tokens_to_ids(["<|im_end|>", "dog"])
    assert all(end in answer for answer in written.values())
    wrong = next(prompt for prompt, answer in written.items() if dog not in answer)
    written[wrong] = [dog, *written[wrong]]
    run = listen(engine, tmp_path)
    with dictated(base.model, written, after=dog) as asked:
        result = run.run(spec)
    assert result.state == "COMPLETE", result.error
    assert result.metrics["validation/exact_match"] == 3 / 4, "nothing is read behind the end"
    longest = max(answer.index(end) + 1 for answer in written.values())
    assert asked == [4] * longest, "no token is asked for when all have ended"
    losses = [report.metrics["train/loss"] for report in run.reports]
    assert losses[-1] < losses[0]


def test_a_turns_end_is_a_special_token_that_is_nowhere_inside_of_a_turn(llama_base: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(llama_base("none").tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["|", "["]})
    tokenizer.add_tokens(["\n"])
    end, call, newline = tokenizer.convert_tokens_to_ids(["|", "[", "\n"])
    cat, eos = tokenizer.convert_tokens_to_ids("cat"), tokenizer.eos_token_id
    assert turn_ends(tokenizer, [[cat, end, newline], [call, cat, end]]) == {end}
    assert turn_ends(tokenizer, [[cat, end], [call, cat, eos]]) == {end, eos}
    assert turn_ends(tokenizer, [[cat, cat], [newline]]) == frozenset()
    # the second was cut behind what opens a call
    assert turn_ends(tokenizer, [[call, cat, end], [call]]) == {end}


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


@pytest.mark.parametrize("adapted", [False, True])
def test_tokens_that_a_checkpoint_forces_or_forbids_change_nothing(
    adapted: bool, tiny_t5_path: Path
) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_t5_path)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_path).eval()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=source)
    asked = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM")) if adapted else model
    before = generate(asked, tokenizer, PROMPTS, 6, 4)
    words = {word for answer in before for word in answer.split()}
    (forced,) = tokenizer.convert_tokens_to_ids(["bird"])
    assert words
    assert "bird" not in words
    own = type(model.generation_config)(
        **model.generation_config.to_dict()
        | {
            "forced_bos_token_id": forced,
            "bad_words_ids": [tokenizer.convert_tokens_to_ids([word]) for word in words],
            "encoder_no_repeat_ngram_size": 1,
        }
    )
    model.generation_config = own
    assert generate(asked, tokenizer, PROMPTS, 6, 4) == before
    assert model.generation_config is own
    with torch.no_grad():
        theirs = asked.generate(input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=6)
    assert int(theirs[0, 1]) == forced, "left alone, the model obeys its settings"
    with pytest.raises(IndexError):
        generate(asked, tokenizer, [[ADDED]], 6, 1)
    assert model.generation_config is own


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
    found = written(spec, base.model, tokenizer, rows, batch_size=2).metrics
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


def test_virtual_tokens_take_room_in_a_table_of_positions(llama_base: Any) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=500, n_positions=32)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
    model = get_peft_model(GPT2LMHeadModel(config), prompt)
    tokenizer = llama_base("none").tokenizer
    assert len(generate(model, tokenizer, [[1] * 10], 14, 1)) == 1
    with pytest.raises(Refused, match=r"<= 14: the base has 32 positions, 8 virtual tokens, and"):
        generate(model, tokenizer, [[1] * 10], 15, 1)
    with pytest.raises(SpecError, match="must be <= 14: ") as refused:
        generate(model, tokenizer, [[1] * 10], 23, 1)
    assert not isinstance(refused.value, Refused), "the base alone has no room for so many"


def test_only_tasks_with_a_prompt_write_texts(trial: Any) -> None:
    with pytest.raises(ValidationError, match="needs a task that answers a prompt"):
        trial({"evaluation.generation.max_samples": 4})
    spec = trial({"task.prompt": "{q}", "evaluation.generation.max_samples": 4})
    assert spec.evaluation.generation.names == (
        *("validation/exact_match", "validation/rouge1"),
        *("validation/rouge2", "validation/rougeL"),
    )


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_what_a_trial_writes_is_its_adapters_and_the_baseline_is_the_bases(
    scheme: str, tiny_llama_path: Path, rows_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from rouge_score.rouge_scorer import RougeScorer

    from peft_jobs.engines.solo.solo_engine import SoloEngine

    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_llama_path),
            "quantization": scheme,
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {
                "train": str(rows_path),
                "validation": str(rows_path),
                "max_length": 32,
                "on_leak": "warn",
            },
            "training": {"learning_rate": 2e-2, "max_samples": 240, "logging_steps": 50},
            "evaluation": {
                "rungs": [8],
                "generation": {
                    "max_samples": 12,
                    "max_new_tokens": 8,
                    "functions": [f"{__name__}:copied"],
                },
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
    assert result.metrics["validation/loss"] < baseline["validation/loss"]

    base, data = engine.check(spec)
    size = len(data.validation)
    rows = [data.validation[number * size // 12] for number in range(12)]
    pairs = [prompt_and_reference(row["input_ids"], row["labels"], False) for row in rows]
    prompts = [prompt for prompt, _ in pairs]
    decode = base.tokenizer.decode
    texts = [decode(tokens, skip_special_tokens=True).strip() for _, tokens in pairs]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    written = []
    model: Any = PeftModel.from_pretrained(base.model, tmp_path / "attempts/1/adapter")
    for metrics in (result.metrics, baseline):
        answers = generate(model.eval(), base.tokenizer, prompts, 8, 16)
        rouge = [
            scorer.score(*pair)["rougeL"].fmeasure for pair in zip(texts, answers, strict=True)
        ]
        exact = [text == answer for text, answer in zip(texts, answers, strict=True)]
        assert metrics["validation/characters"] == sum(map(len, answers))
        assert metrics["validation/rougeL"] == pytest.approx(sum(rouge) / 12)
        assert metrics["validation/exact_match"] == pytest.approx(sum(exact) / 12)
        written.append(answers)
        if metrics is not baseline:
            model = model.unload()
    assert written[0] != written[1]


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
    assert examples[1]["num_bytes"] == len("a bird likes a red")
    for row, example in zip(rows, examples, strict=True):
        plain = tokenizer(row["mr"], truncation=True, max_length=8)
        assert example["input_ids"] == plain["input_ids"]
        target = tokenizer(text_target=row["ref"], truncation=True, max_length=6)
        assert example["labels"] == target["input_ids"]
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
    from peft_jobs.engines.solo.adapter_export import score_adapter
    from peft_jobs.engines.solo.solo_engine import SoloEngine

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
    assert result.metrics["validation/loss"] < first.metrics["validation/loss"]
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
    from peft_jobs.data.tokenized import load_data

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
