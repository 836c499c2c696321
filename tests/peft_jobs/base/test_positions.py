"""Rows and virtual tokens against the positions that a base has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from peft_jobs.base.positions import stated_limit, table_length
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.host.result import Kind, State

POSITIONS, VIRTUAL = 32, 4
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": POSITIONS}
NEO = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 100,
    "attention_types": [[["global"], 2]],
    "max_position_embeddings": POSITIONS,
}
OPT = {**BERT, "word_embed_proj_dim": 16, "ffn_dim": 32}
BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "vocab_size": 100,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": POSITIONS,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
CLASSIFIER, DECODER, BOTH = (
    AutoModelForSequenceClassification,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)
BASES: dict[str, tuple[Any, dict[str, Any], int | None]] = {
    "bert": (CLASSIFIER, BERT, POSITIONS),
    "roberta": (CLASSIFIER, BERT, POSITIONS - 2),
    "mpnet": (CLASSIFIER, BERT, POSITIONS - 2),
    "gpt2": (DECODER, GPT2, POSITIONS),
    "gpt_neo": (DECODER, NEO, POSITIONS),
    "gptj": (DECODER, {**GPT2, "rotary_dim": 4}, POSITIONS),
    "opt": (DECODER, OPT, POSITIONS),
    "bart": (BOTH, BART, POSITIONS),
    "llama": (DECODER, BERT, None),
    "bloom": (DECODER, {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 100}, None),
    "t5": (BOTH, T5, None),
}
"""By architecture: what it is, its size, and the longest row that it takes."""


def build(name: str) -> Any:
    kind, sizes, _ = BASES[name]
    torch.manual_seed(0)
    return kind.from_config(AutoConfig.for_model(name, **sizes)).eval()


def takes(model: Any, length: int, target: int = 4) -> bool:
    """Whether a row of so many tokens goes through the model."""
    tokens = torch.full((2, length), 7)
    more = {"attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = torch.full((2, target), 7)
    try:
        model(input_ids=tokens, **more)
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize("name", BASES)
def test_a_table_of_positions_is_as_long_as_the_longest_row_that_the_model_takes(name: str) -> None:
    model, expected = build(name), BASES[name][2]
    assert table_length(model) == expected
    if expected is None:
        assert takes(model, 3 * POSITIONS)
    else:
        assert takes(model, expected)
        assert not takes(model, expected + 1)


@pytest.mark.parametrize(
    ("name", "more", "limit"),
    [
        ("xlnet", {}, None),  # whose property says -1
        ("llama", {"max_position_embeddings": -1}, None),
        ("llama", {"max_position_embeddings": 0}, None),
        ("llama", {"max_position_embeddings": 10**30}, None),
        ("llama", {"max_position_embeddings": POSITIONS}, POSITIONS),
        ("gpt2", {"n_positions": POSITIONS}, POSITIONS),  # by another name
        ("gemma3", {"text_config": {"max_position_embeddings": POSITIONS}}, POSITIONS),
    ],
)
def test_sentinels_in_a_configuration_are_no_limits(
    name: str, more: dict[str, Any], limit: int | None
) -> None:
    config = AutoConfig.for_model(name)
    for field, value in more.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                setattr(getattr(config, field), inner, number)
        else:
            setattr(config, field, value)
    assert stated_limit(config) == limit


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("name", [name for name in BASES if name != "mpnet"])
def test_virtual_tokens_take_positions_of_a_table(name: str, config: Any) -> None:
    kind, _, limit = BASES[name]
    task = {CLASSIFIER: "SEQ_CLS", DECODER: "CAUSAL_LM", BOTH: "SEQ_2_SEQ_LM"}[kind]
    model = get_peft_model(build(name), config(task_type=task, num_virtual_tokens=VIRTUAL))
    if limit is None:
        assert takes(model, 3 * POSITIONS, target=3 * POSITIONS)
    elif kind is BOTH and config is PrefixTuningConfig:  # the decoder's alone
        assert takes(model, limit, target=limit - VIRTUAL)
        assert not takes(model, 8, target=limit - VIRTUAL + 1)
    else:
        assert takes(model, limit - VIRTUAL)
        assert not takes(model, limit - VIRTUAL + 1)


@pytest.fixture
def long_rows(trial: Any, tiny_bert_path: Path, tmp_path: Path) -> Any:
    """Dotted parameters -> a classification trial on a BERT of 128 positions, all of them used."""
    path = tmp_path / "long.jsonl"
    rows = [
        {"text": " ".join(["cat", "dog"][: 1 + i % 2] * 140), "label": i % 2} for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "model": {"name_or_path": str(tiny_bert_path)},
        "task": {"type": "sequence_classification", "text": "{text}", "label": "label"},
        "data": {"train": str(path), "validation": 0.25, "max_length": 128, "on_leak": "warn"},
        "training.max_steps": 1,
    }
    return lambda **params: trial({**common, **params})


@pytest.fixture
def engine(tmp_path: Path) -> SoloEngine:
    return SoloEngine(str(tmp_path / "cache"), threads=1)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"])
def test_a_trial_whose_virtual_tokens_find_no_room_is_refused(
    engine: SoloEngine, listen: Any, long_rows: Any, tmp_path: Path, method: str
) -> None:
    run = listen(engine, tmp_path / "full")
    result = run.run(long_rows(**{"adapter.method": method}))
    assert (result.state, result.kind) == (State.PRUNED, Kind.REFUSED)
    assert result.error is not None
    assert result.error.endswith("has 128; give data.max_length of at most 108")
    room = long_rows(**{"adapter.method": method, "data.max_length": 108})
    result = listen(engine, tmp_path / "room").run(room)
    assert result.state is State.COMPLETE, result.traceback


def test_only_a_sweep_all_of_whose_trials_find_no_room_is_refused_before_them(
    engine: SoloEngine, long_rows: Any
) -> None:
    prompts = long_rows(**{"adapter.method": "prompt_tuning"})
    prefixes = long_rows(**{"adapter.method": "p_tuning_v2", "adapter.num_virtual_tokens": 1})
    with pytest.raises(SpecError, match="20 virtual tokens before examples of up to 128 tokens"):
        engine.prepare(long_rows(), [prompts, prefixes])
    assert engine.prepare(prompts, [prompts, long_rows()]).train_rows == 12
