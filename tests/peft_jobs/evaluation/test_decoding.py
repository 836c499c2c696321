"""Answers are decoded alike for every method, and as an export is decoded that leaves."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_jobs.base.loading import Base, load_base
from peft_jobs.errors import Refused
from peft_jobs.evaluation.decoding import decoding_of
from peft_jobs.evaluation.generation import generate
from peft_jobs.evaluation.serving import serving_settings
from peft_jobs.methods import METHODS
from peft_jobs.randomness import generator
from peft_jobs.spec import ModelSpec, QuantizationSpec, Seq2SeqSpec, TrialSpec
from peft_jobs.spec.adapters import ADAPTERS
from peft_jobs.tasks import TASKS
from tests.support import seq2seq_families
from tests.support.method_examples import EXAMPLES

PROMPTS = [[1, 6, 11, 14], [1, 7], [1, 6, 7, 12, 14, 6, 8], [1, 9, 10]]
NEW = 8
ONE_OF_EACH = list({example.method: example for example in reversed(EXAMPLES)}.values())


@pytest.fixture(scope="module")
def sample_rows() -> Any:
    """Tokenised training rows, for the initialisations that look at them."""
    from datasets import Dataset

    draws = generator("cpu", "rows")
    tokens = [torch.randint(6, 100, (12,), generator=draws).tolist() for _ in range(24)]
    return Dataset.from_list(
        [{"input_ids": ids, "labels": [-100, *ids[1:]], "num_bytes": 12} for ids in tokens]
    )


def hostile(word: int) -> dict[str, Any]:
    """Settings of a checkpoint that change what it writes."""
    return {
        "forced_bos_token_id": word,
        "forced_eos_token_id": word,
        "suppress_tokens": [word + 1, word + 2],
        "begin_suppress_tokens": [word + 3],
        "bad_words_ids": [[word + 4], [word + 5]],
        "sequence_bias": [[[word], 9.0]],
        "min_length": NEW + 10,
        "min_new_tokens": NEW,
        "no_repeat_ngram_size": 1,
        "encoder_no_repeat_ngram_size": 1,
        "repetition_penalty": 5.0,
        "encoder_repetition_penalty": 3.0,
        "length_penalty": 4.0,
        "exponential_decay_length_penalty": (1, 3.0),
        "num_beams": 3,
        "num_return_sequences": 2,
        "do_sample": True,
        "temperature": 9.0,
        "top_k": 3,
        "top_p": 0.5,
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "stop_strings": ["a"],
        "max_length": 3,
    }


def by_hand(model: Any, tokenizer: Any, prompt: list[int], start: list[int]) -> str:
    """The most likely tokens one by one, behind a decoder's first ones where there are any."""
    seq2seq = model.config.is_encoder_decoder
    tokens = list(start) if seq2seq else list(prompt)
    first = len(tokens)
    most = NEW + (1 if seq2seq else first)
    while len(tokens) < most and (len(tokens) == first or tokens[-1] != tokenizer.eos_token_id):
        given = torch.tensor([tokens])
        with torch.no_grad():
            if seq2seq:
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=given).logits
            else:
                logits = model(given).logits
        tokens.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(tokens[first:], skip_special_tokens=True)).strip()


def shake(model: Any) -> None:
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=source)


def test_every_method_is_tried() -> None:
    assert {example.method for example in ONE_OF_EACH} == set(ADAPTERS)


@pytest.mark.parametrize("example", ONE_OF_EACH, ids=lambda example: example.method)
def test_a_checkpoints_settings_reach_no_methods_answers(
    example: Any, llama_base: Any, trial: Any, sample_rows: Any
) -> None:
    base, method = llama_base("none"), METHODS[example.method]
    spec = trial({**example.params, "training.max_steps": 8})
    model = method.attach(base, spec, rows=sample_rows)
    kept = base.model.generation_config
    own = copy.deepcopy(kept)
    own.update(**hostile(20))
    try:
        shake(model)
        expected = [by_hand(model, base.tokenizer, prompt, []) for prompt in PROMPTS]
        base.model.generation_config = own
        assert generate(model, base.tokenizer, PROMPTS, NEW, 4) == expected
        assert base.model.generation_config is own
    finally:
        base.model.generation_config = kept
        method.detach(model)
    assert len(set(expected)) > 1


def seq2seq_base(family: str, folder: Path) -> tuple[Base, Seq2SeqSpec]:
    languages = seq2seq_families.FAMILIES[family][3]
    task = Seq2SeqSpec(type="seq2seq", source="{q}", target="{a}", **languages)
    model = ModelSpec(name_or_path=str(seq2seq_families.save(family, folder)))
    return load_base(model, QuantizationSpec(scheme="none"), task), task


@pytest.mark.parametrize(
    ("family", "begin"),
    [
        ("T5", ["<pad>"]),
        ("BART", ["</s>", "<s>"]),
        ("mBART", ["de_DE"]),
        ("mBART-50", ["</s>", "de_DE"]),
        ("NLLB", ["</s>", "deu_Latn"]),
    ],
)
def test_a_decoder_begins_as_in_training_whatever_the_checkpoint_forces(
    family: str, begin: list[str], tmp_path: Path
) -> None:
    base, task = seq2seq_base(family, tmp_path)
    tokenizer: Any = base.tokenizer
    row: Any = TASKS["seq2seq"].encoder(tokenizer, task, 64, ())({"q": "a red fox", "a": "ein"})
    start = tokenizer.convert_tokens_to_ids(begin)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter += torch.randn(parameter.shape, generator=source)
    decoding = decoding_of(base.model, tokenizer, [row["labels"]])
    assert decoding.ends[0] == tokenizer.eos_token_id
    prompts = [row["input_ids"], [7, 9, 11, 2], [8, 2]]
    expected = [by_hand(base.model, tokenizer, prompt, start) for prompt in prompts]
    assert any(expected)
    assert generate(base.model, tokenizer, prompts, NEW, 3, decoding) == expected
    base.model.generation_config.update(**hostile(20), decoder_start_token_id=start[0])
    assert generate(base.model, tokenizer, prompts, NEW, 3, decoding) == expected


@pytest.mark.parametrize("example", ONE_OF_EACH, ids=lambda example: example.method)
def test_a_checkpoints_settings_reach_no_methods_answers_behind_an_encoder(
    example: Any, bart: Any, tmp_path: Path
) -> None:
    base, task = bart
    method = METHODS[example.method]
    of_llama = ("target_modules", "modules_to_save", "layers_to_transform")
    fields = {name: value for name, value in example.fields.items() if name not in of_llama}
    trial = {
        "model": base.model.name_or_path,
        "task": task.model_dump(),
        "adapter": {"method": example.method, **fields},
        "data": {"train": "train.jsonl"},
        "training": {"max_steps": 8},
    }
    try:
        model = method.attach(base, TrialSpec.model_validate(trial))
    except (Refused, ValidationError) as error:
        pytest.skip(str(error))
    kept = base.model.generation_config
    own = copy.deepcopy(kept)
    own.update(**hostile(20))
    prompts = [[0, 7, 9, 11, 2], [0, 8, 12, 2], [0, 5, 6, 7, 2]]
    try:
        shake(model)
        expected = [by_hand(model, base.tokenizer, prompt, [2, 0]) for prompt in prompts]
        base.model.generation_config = own
        assert generate(model, base.tokenizer, prompts, NEW, 3) == expected
    finally:
        base.model.generation_config = kept
        method.detach(model)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return seq2seq_base("BART", tmp_path_factory.mktemp("bart"))


def test_settings_that_do_nothing_are_no_hindrance(
    llama_base: Any, trial: Any, tmp_path: Path
) -> None:
    """As those of Llama 2's chat models, which transformers does not save any more."""
    from datasets import Dataset
    from transformers import GenerationConfig

    base = llama_base("none")
    kept = base.model.generation_config
    base.model.generation_config = GenerationConfig(
        temperature=0.6, top_p=0.9, length_penalty=2.0, repetition_penalty=1.2, eos_token_id=7
    )
    rows = Dataset.from_list([{"input_ids": [1, 6, 2], "labels": [-100, 6, 2]}] * 2)
    try:
        settings = serving_settings(base.model, base.tokenizer, trial(), rows)
    finally:
        base.model.generation_config = kept
    assert settings is not None
    settings.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found.pop("transformers_version")
    assert found == {"repetition_penalty": 1.2, "eos_token_id": [7, 2], "pad_token_id": 2}
