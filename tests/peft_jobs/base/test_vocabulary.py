"""Tokenizers that know more tokens than their checkpoint has rows for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, T5Config, T5ForConditionalGeneration

from peft_jobs.base.loading import load_base
from peft_jobs.base.vocabulary import check_padding
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.spec import CausalLMSpec, ModelSpec, QuantizationSpec, TrialSpec

ADDED = 128
"""The number of the first token behind the tiny bases' tables."""


def fill_up(tokenizer: Any) -> None:
    """Words up to the last row of the table."""
    tokenizer.add_tokens([f"filler{number}" for number in range(ADDED - len(tokenizer))])
    assert len(tokenizer) == ADDED


def load(folder: Path) -> Any:
    model = ModelSpec(name_or_path=str(folder))
    return load_base(model, QuantizationSpec(scheme="none"), CausalLMSpec(response="{text}"))


@pytest.mark.parametrize("told", [True, False])
def test_a_padding_token_without_a_row_is_refused(
    told: bool, tiny_llama_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama_path, tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fill_up(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.save_pretrained(folder)
    if told:  # transformers itself cannot build this model
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": ADDED}))
    with pytest.raises(SpecError, match=r"the 128 rows .* got '\[NEW\]', number 128; resize the"):
        load(folder)
    tokenizer.pad_token = "filler0"
    tokenizer.save_pretrained(folder)
    assert load(folder).model.config.pad_token_id == tokenizer.pad_token_id < ADDED


def test_the_table_of_a_nested_configuration_counts(tiny_llama_path: Path) -> None:
    from transformers import LlavaConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_path)
    tokenizer.pad_token = "~"
    config = LlavaConfig(text_config=LlamaConfig(vocab_size=tokenizer.pad_token_id))
    with pytest.raises(SpecError, match=f"number {tokenizer.pad_token_id}"):
        check_padding(config, tokenizer, "some")
    config.text_config.vocab_size += 1
    check_padding(config, tokenizer, "some")


def rows_with(path: Path, *, question: str = "the cat", answer: str = "a dog") -> Path:
    rows = [{"q": "a", "a": "red"}] * 7 + [{"q": question, "a": answer}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spec_of(base: Path, rows: Path, task: dict[str, str]) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(base),
            "task": task,
            "data": {
                "train": str(rows),
                "validation": str(rows),
                "max_length": 16,
                "on_leak": "warn",
            },
            "training": {"max_steps": 1},
        }
    )


def test_a_token_without_a_row_is_refused_before_a_step(
    tiny_llama_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama_path, tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fill_up(tokenizer)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    engine = SoloEngine(str(tmp_path / "cache"), threads=1)
    task = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
    fits = spec_of(folder, rows_with(tmp_path / "fits.jsonl", question="filler0"), task)
    assert engine.prepare(fits, [fits]).train_rows == 8
    beyond = spec_of(folder, rows_with(tmp_path / "beyond.jsonl", question="zebra"), task)
    with pytest.raises(SpecError, match=r"the 128 rows .* got 'zebra', number 128; resize the emb"):
        engine.prepare(beyond, [beyond])


def test_a_token_of_a_target_needs_a_row_too(tiny_bert_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    config = T5Config(
        vocab_size=ADDED,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=5,
        decoder_start_token_id=5,
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    tokenizer.eos_token = "[SEP]"
    fill_up(tokenizer)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    engine = SoloEngine(str(tmp_path / "cache"), threads=1)
    task = {"type": "seq2seq", "source": "{q}", "target": "{a}"}
    spec = spec_of(folder, rows_with(tmp_path / "rows.jsonl", answer="zebra"), task)
    with pytest.raises(SpecError, match="got 'zebra', number 128"):
        engine.prepare(spec, [spec])
