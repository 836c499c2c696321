"""A base whose trials would not be their own in a pack is told from one whose trials are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.base.loading import load_base
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.errors import SpecError
from peft_jobs.spec import TrialSpec
from tests.peft_jobs.conftest import NUM_TOKENS, save_tokenizer
from tests.peft_jobs.engines.packed.test_engine import both, check_same, engines_of

SMALL = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ATTENTION = {
    **SMALL,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 12,
}
PHI = {**ATTENTION, "rope_parameters": LONGROPE, "original_max_position_embeddings": 12}
PLAIN, DYNAMIC = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
)
GEMMA = {**ATTENTION, "head_dim": 16, "layer_types": ["full_attention", "sliding_attention"]}
RELATIVE = {
    "relative_attention": True,
    "share_att_key": True,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
}
WHOLE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MAMBA = {**SMALL, "state_size": 8}
MAMBA2 = {**MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}


@pytest.fixture(scope="session")
def on(trial: Any, common: dict[str, Any], tmp_path_factory: Any) -> Callable[..., Any]:
    """(name of an architecture, its configuration, parameters) -> a trial on a random model."""
    import transformers

    def build(name: str, config: dict[str, Any], **params: Any) -> Any:
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        built = getattr(transformers, f"{name}Config")(**config)
        getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(built).save_pretrained(
            folder
        )
        save_tokenizer(folder, bert=False)
        return trial({**common, "model.name_or_path": str(folder), **params})

    return build


def reason(spec: Any) -> str | None:
    return unpackable(spec, load_base(spec.model, spec.quantization, spec.task))


@pytest.mark.parametrize(
    ("name", "config", "length"),
    [
        ("Phi3", PHI, 12),
        ("Llama", {**ATTENTION, "rope_parameters": DYNAMIC}, 128),
        (
            "Gemma3Text",
            {**GEMMA, "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": PLAIN}},
            128,
        ),
        (
            "Gemma3Text",
            {**GEMMA, "rope_parameters": {"full_attention": PLAIN, "sliding_attention": LONGROPE}},
            12,
        ),
    ],
    ids=["longrope", "dynamic", "dynamic layers", "longrope layers"],
)
def test_rows_that_choose_the_frequencies_of_others_are_not_packed(
    on: Any, name: str, config: dict[str, Any], length: int
) -> None:
    spec = on(name, config, **{"data.max_length": length})
    assert reason(spec) is None
    found = reason(spec.with_params({"data.max_length": length + 1}))
    assert found is not None
    assert found.startswith(f"beyond {length} tokens")


def test_rope_of_any_fixed_kind_is_packed_at_any_length(on: Any) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    assert reason(on("Llama", {**ATTENTION, "rope_parameters": yarn})) is None


def test_trials_beyond_the_length_of_longrope_have_their_own_frequencies(
    cache: str, on: Any, tmp_path: Path
) -> None:
    one = on(
        "Phi3", {**PHI, "initializer_range": 0.2}, **{"training.per_device_train_batch_size": 1}
    )
    specs = [one.with_params({"seed": seed}) for seed in range(3)]
    expected, found, _ = both(cache, specs, tmp_path)
    check_same(expected, found)


@pytest.mark.parametrize(
    ("name", "config", "targets", "opened"),
    [
        ("Mamba", MAMBA, ["in_proj", "x_proj"], "x_proj"),
        ("Mamba2", MAMBA2, ["in_proj", "out_proj"], "out_proj"),
        ("Mamba2", MAMBA2, ["in_proj"], None),
    ],
)
def test_a_layer_of_which_the_base_takes_the_weight_is_not_packed(
    on: Any, name: str, config: dict[str, Any], targets: list[str], opened: str | None
) -> None:
    found = reason(on(name, config, **{"adapter.target_modules": targets}))
    if opened is None:
        assert found is None
    else:
        assert found is not None
        assert f"{opened} past its adapter" in found


def test_a_mamba_trains_alone_what_a_pack_cannot_train(cache: str, on: Any, tmp_path: Path) -> None:
    steps = {"training.max_steps": 3}
    some = on("Mamba", MAMBA, **{**steps, "adapter.target_modules": ["in_proj", "x_proj"]})
    expected, found, _ = both(cache, [some, some.with_params({"seed": 1})], tmp_path)
    check_same(expected, found)
    assert "packed" not in engines_of(found)
    with pytest.raises(SpecError, match="'dt_proj' matches only modules that no text"):
        reason(on("Mamba", MAMBA, **{"adapter.target_modules": ["in_proj", "dt_proj"]}))


def test_dropout_of_a_head_that_the_model_lacks_is_no_dropout(
    cache: str, on: Any, tmp_path: Path
) -> None:
    config = {**SMALL, "intermediate_size": 128, "num_attention_heads": 4}
    one = on("GPTNeoX", {**config, "classifier_dropout": 0.1}, **{"training.max_steps": 3})
    expected, found, _ = both(cache, [one, one.with_params({"seed": 1})], tmp_path)
    check_same(expected, found)
    assert engines_of(found) == ["packed"] * 2


def test_a_base_that_leaves_out_layers_by_chance_is_not_packed(on: Any) -> None:
    sizes = {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 64, "num_attention_heads": 4}
    assert reason(on("OPT", {**sizes, "dropout": 0.1})) is None
    assert "by a generator that all rows share" in str(
        reason(on("OPT", {**sizes, "layerdrop": 0.1}))
    )


@pytest.mark.parametrize("scheme", ["none", "nf4", "int8"])
def test_watching_a_base_leaves_it_and_the_generators_as_they_were(on: Any, scheme: str) -> None:
    quantization = {"quantization.scheme": scheme, "quantization.llm_int8_threshold": 0.0}
    spec = on("Llama", {**ATTENTION, "attention_dropout": 0.1}, **quantization)
    base = load_base(spec.model, spec.quantization, spec.task)
    before = base.state_hash(), torch.get_rng_state(), [type(m) for m in base.model.modules()]
    assert unpackable(spec, base) is None
    assert base.state_hash() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [type(module) for module in base.model.modules()] == before[2]
    assert not any(module.training for module in base.model.modules())


@pytest.mark.parametrize(
    ("name", "own", "why"),
    [
        ("FNet", {"hidden_dropout_prob": 0.0}, "depends on the rows beside it, or on padding"),
        ("Bert", {}, "None"),
        ("DebertaV2", RELATIVE, "depends on the rows beside it, or on padding"),
        ("DebertaV2", {**RELATIVE, **WHOLE}, "key_proj what belongs to no row"),
    ],
)
def test_a_base_that_looks_at_padding_or_has_what_rows_share_is_not_packed(
    name: str, own: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """DeBERTa projects its relative positions, which all rows share, and drops of them."""
    import transformers

    sizes = {**ATTENTION, "initializer_range": 0.2, **own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**sizes)
        getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(
            tmp_path / "base"
        )
    save_tokenizer(tmp_path / "base", bert=True)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a cat", "label": "a"}\n{"text": "dogs", "label": "b"}\n' * 4)
    spec = TrialSpec.model_validate(
        {
            "model": str(tmp_path / "base"),
            "adapter": {"target_modules": "all-linear"},
            "task": {"type": "sequence_classification", "text": "{text}", "label": "label"},
            "data": {"train": str(path), "validation": str(path), "max_length": 16},
            "training": {"max_steps": 1},
        }
    )
    base = load_base(spec.model, spec.quantization, spec.task, labels=["a", "b"])
    found = unpackable(spec, base)
    assert why in str(found)
