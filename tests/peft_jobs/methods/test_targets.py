"""Target sets on tiny random models of every architecture that the table knows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_jobs.base.loading import load_base
from peft_jobs.errors import SpecError
from peft_jobs.methods.lora import peft_config
from peft_jobs.methods.placement import places
from peft_jobs.methods.targets import (
    ALL_LINEAR,
    SETS,
    check_targets_without_weights,
    resolve_targets,
)
from peft_jobs.spec import (
    CausalLMSpec,
    LoraSpec,
    ModelSpec,
    QuantizationSpec,
    SequenceClassificationSpec,
)

CAUSAL = CausalLMSpec(response="{text}")
CLASSES = SequenceClassificationSpec(type="sequence_classification", text="{text}", label="label")
LAYERS = 2
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 128}
USUAL = {**WIDE, "num_hidden_layers": LAYERS, "pad_token_id": 0}
GROUPED = {**USUAL, "num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": 128, "n_positions": 64}
T5 = {"d_model": 64, "d_ff": 128, "num_layers": LAYERS, "num_heads": 4, "d_kv": 16}
LLAMA = (["q_proj", "v_proj"], ["k_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"], [])
FUSED = (["query_key_value"], ["dense"], ["dense_h_to_4h", "dense_4h_to_h"], [])
BERT = (["query", "value"], ["key", "dense"], ["dense", "dense"], [])

Leaves = tuple[list[str], list[str], list[str], list[str]]
"""Per layer: query and value; key and output; mlp. Once: what only `all-linear` adds."""

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], Leaves]] = {
    "llama": ("LlamaConfig", "CausalLM", GROUPED, LLAMA),
    "mistral": ("MistralConfig", "CausalLM", GROUPED, LLAMA),
    "qwen2": ("Qwen2Config", "CausalLM", GROUPED, LLAMA),
    "qwen3": ("Qwen3Config", "CausalLM", {**GROUPED, "head_dim": 16}, LLAMA),
    "gemma": ("GemmaConfig", "CausalLM", {**GROUPED, "head_dim": 16}, LLAMA),
    "gemma2": ("Gemma2Config", "CausalLM", {**GROUPED, "head_dim": 16}, LLAMA),
    "gemma3": ("Gemma3TextConfig", "CausalLM", {**GROUPED, "head_dim": 16}, LLAMA),
    "phi": (
        "PhiConfig",
        "CausalLM",
        USUAL,
        (["q_proj", "v_proj"], ["k_proj", "dense"], ["fc1", "fc2"], []),
    ),
    "phi3": (
        "Phi3Config",
        "CausalLM",
        {**USUAL, "bos_token_id": 1, "eos_token_id": 2},
        (["qkv_proj"], ["o_proj"], ["gate_up_proj", "down_proj"], []),
    ),
    "gpt2": ("GPT2Config", "CausalLM", GPT2, (["c_attn"], ["c_proj"], ["c_fc", "c_proj"], [])),
    "pythia": ("GPTNeoXConfig", "CausalLM", USUAL, FUSED),
    "opt": (
        "OPTConfig",
        "CausalLM",
        {**USUAL, "ffn_dim": 128, "word_embed_proj_dim": 32},
        (
            ["q_proj", "v_proj"],
            ["k_proj", "out_proj"],
            ["fc1", "fc2"],
            ["project_in", "project_out"],
        ),
    ),
    "falcon": ("FalconConfig", "CausalLM", USUAL, FUSED),
    "falcon-new": (
        "FalconConfig",
        "CausalLM",
        {**USUAL, "new_decoder_architecture": True, "num_kv_heads": 2},
        FUSED,
    ),
    "bloom": (
        "BloomConfig",
        "CausalLM",
        {"hidden_size": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": 128},
        FUSED,
    ),
    "bert": ("BertConfig", "SequenceClassification", USUAL, (*BERT[:3], ["dense"])),
    "roberta": ("RobertaConfig", "SequenceClassification", USUAL, BERT),
    "distilbert": (
        "DistilBertConfig",
        "SequenceClassification",
        {"dim": 64, "hidden_dim": 128, "n_layers": LAYERS, "n_heads": 4, "vocab_size": 128},
        (["q_lin", "v_lin"], ["k_lin", "out_lin"], ["lin1", "lin2"], []),
    ),
    "deberta": (
        "DebertaV2Config",
        "SequenceClassification",
        USUAL,
        (["query_proj", "value_proj"], ["key_proj", "dense"], ["dense", "dense"], []),
    ),
    "gpt2-classifier": (
        "GPT2Config",
        "SequenceClassification",
        GPT2,
        (["c_attn"], ["c_proj"], ["c_fc", "c_proj"], []),
    ),
    "llama-classifier": ("LlamaConfig", "SequenceClassification", GROUPED, LLAMA),
    # an encoder and a decoder of two layers each, the latter with attention to the former
    "t5": (
        "T5Config",
        "Seq2SeqLM",
        {**T5, "vocab_size": 128},
        (["q", "v"] * 3, ["k", "o"] * 3, ["wi", "wo"] * 2, []),
    ),
    "t5-gated": (
        "T5Config",
        "Seq2SeqLM",
        {**T5, "vocab_size": 128, "feed_forward_proj": "gated-gelu"},
        (["q", "v"] * 3, ["k", "o"] * 3, ["wi_0", "wi_1", "wo"] * 2, []),
    ),
}


def build(architecture: str) -> Any:
    config, task, values, _ = ARCHITECTURES[architecture]
    built = getattr(transformers, config)(**values)
    return getattr(transformers, f"AutoModelFor{task}").from_config(built)


def expected(architecture: str, target_set: str) -> Counter[str]:
    qv, rest, mlp, once = ARCHITECTURES[architecture][3]
    layer = {
        "attention-qv": qv,
        "attention": qv + rest,
        "attention+mlp": qv + rest + mlp,
        ALL_LINEAR: qv + rest + mlp,
    }[target_set]
    counts = Counter(layer * LAYERS)
    return counts + Counter(once) if target_set == ALL_LINEAR else counts


def wrapped(model: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("target_set", [*SETS, ALL_LINEAR])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_set_is_the_modules_it_names_and_peft_wraps_exactly_those(
    architecture: str, target_set: str
) -> None:
    model = build(architecture)
    targets = resolve_targets(model, target_set)
    leaves = Counter(name.rpartition(".")[2] for name in targets)
    assert leaves == expected(architecture, target_set)
    assert list(targets) == sorted(targets)
    task = CLASSES if ARCHITECTURES[architecture][1] == "SequenceClassification" else CAUSAL
    config = peft_config(LoraSpec(r=2), targets, task)
    if architecture.startswith("t5"):
        config.task_type = "SEQ_2_SEQ_LM"
    assert wrapped(get_peft_model(model, config)) == set(targets)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(
    "architecture", [name for name, entry in ARCHITECTURES.items() if entry[1] == "CausalLM"]
)
def test_all_linear_is_what_peft_calls_all_linear(architecture: str) -> None:
    theirs = wrapped(
        get_peft_model(
            build(architecture), LoraConfig(task_type="CAUSAL_LM", target_modules=ALL_LINEAR, r=2)
        )
    )
    assert set(resolve_targets(build(architecture), ALL_LINEAR)) == theirs


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "phi3", "bert", "t5"])
def test_sets_are_the_same_on_a_quantized_base(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    names = {key: resolve_targets(model, key) for key in [*SETS, ALL_LINEAR]}
    model.save_pretrained(tmp_path)
    task = ARCHITECTURES[architecture][1]
    quantized = getattr(transformers, f"AutoModelFor{task}").from_pretrained(
        tmp_path,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    assert {key: resolve_targets(quantized, key) for key in names} == names
    targets = names["attention+mlp"]
    config = LoraConfig(target_modules=list(targets), r=2)
    assert wrapped(get_peft_model(quantized, config)) == set(targets)


def test_quantization_that_finds_no_layer_is_refused(tmp_path: Path, tiny_llama_path: Path) -> None:
    build("falcon").save_pretrained(tmp_path)  # its layers are a class of their own
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_llama_path / name).read_text())
    with pytest.raises(SpecError, match=r"quantizes no layer of FalconForCausalLM"):
        load_base(ModelSpec(name_or_path=str(tmp_path)), QuantizationSpec(scheme="nf4"), CAUSAL)


def test_names_match_as_in_peft_whole_or_from_a_dot() -> None:
    model = build("llama")
    assert len(resolve_targets(model, ["q_proj"])) == 2
    assert resolve_targets(model, "q_proj") == resolve_targets(model, ["q_proj"])
    assert resolve_targets(model, ["layers.1.mlp.up_proj"]) == ("model.layers.1.mlp.up_proj",)
    assert resolve_targets(model, ["1.self_attn.q_proj", "q_proj"]) == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    )


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj",
        r".*q_proj|.*v_proj",
        r"model\.layers\.[01]\.self_attn\.._proj",
        r".*layers\.1\..*_proj",
    ],
)
def test_one_text_may_be_a_regular_expression_as_in_peft(pattern: str) -> None:
    theirs = get_peft_model(build("llama"), LoraConfig(target_modules=pattern))
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    assert set(resolve_targets(build("llama"), pattern)) == wrapped


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (r".*\.(q_proj", r"is no regular expression \(missing \)"),
        (r".*\.query", r"matches no module"),
        (r"q_proj|v_proj", r"matches no module"),  # as in PEFT: whole names
        ([r".*\.q_proj"], r"matches no module"),  # a list is of names
    ],
)
def test_a_regular_expression_that_matches_nothing_is_an_error(given: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        resolve_targets(build("llama"), given)


@pytest.mark.parametrize("given", [["v_proj", "1.mlp.up_proj"], r".*(v_proj|layers\.1.*up_proj)"])
def test_excluded_names_and_patterns_are_left_out_as_peft_does(given: Any) -> None:
    targets = ["q_proj", "v_proj", "up_proj"]
    theirs = get_peft_model(
        build("llama"), LoraConfig(target_modules=targets, exclude_modules=given)
    )
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    adapter = LoraSpec(target_modules=targets, exclude_modules=given)
    assert set(places(build("llama"), adapter)) == wrapped
    assert len(wrapped) == 3


def test_excluding_nothing_or_everything_is_an_error() -> None:
    for given, told in (("k_proj", "'k_proj' matches none"), ("q_proj", "leaves no target")):
        adapter = LoraSpec(target_modules="q_proj", exclude_modules=given)
        with pytest.raises(SpecError, match=told):
            places(build("llama"), adapter)


def test_layers_are_numbered_in_the_lists_that_are_named() -> None:
    every = LoraSpec(target_modules="all-linear")
    names = set(places(build("t5"), every))
    for part, number in (("block", 1), ("layer", 0)):
        adapter = LoraSpec(
            target_modules="all-linear", layers_to_transform=number, layers_pattern=part
        )
        found = set(places(build("t5"), adapter))
        assert found == {name for name in names if f"{part}.{number}." in name}
        assert 0 < len(found) < len(names)
    with pytest.raises(SpecError, match="'blocks' is no list of layers"):
        places(build("t5"), adapter.model_copy(update={"layers_pattern": ("blocks",)}))
    with pytest.raises(ValueError, match="layers_pattern tells where layers_to_transform counts"):
        LoraSpec(layers_pattern="block")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["q_proj", "qproj"], r"'qproj' matches no module; did you mean 'q_proj'\?"),
        (["proj"], "'proj' matches no module"),
        ("atention", r"'atention' matches no module; did you mean 'attention'\?"),
        (["q_proj", "lm_head"], "'lm_head' matches no linear module of the backbone"),
        (["embed_tokens"], r"no linear module of the backbone, only model\.embed_tokens"),
        (["self_attn"], "'self_attn' matches no linear module"),
        (["attention-qv"], "'attention-qv' matches no module"),
    ],
)
def test_a_name_without_a_match_is_an_error_even_among_good_ones(given: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        resolve_targets(build("llama"), given)
    assert "linear modules: down_proj, gate_proj, k_proj" in str(caught.value)


def test_an_unknown_architecture_has_all_linear_but_no_attention_set() -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.q_lora = layer.self_attn.q_proj
        layer.self_attn.v_lora = layer.self_attn.v_proj
        del layer.self_attn.q_proj, layer.self_attn.v_proj
    assert len(resolve_targets(model, ALL_LINEAR)) == 14
    for target_set in SETS:
        with pytest.raises(SpecError, match=r"not known for the architecture llama .*q_lora"):
            resolve_targets(model, target_set)


def test_excluded_modules_are_no_targets() -> None:
    model = build("bert")
    every = resolve_targets(model, ALL_LINEAR)
    assert "bert.pooler.dense" in every
    without = resolve_targets(model, ALL_LINEAR, exclude=["bert.pooler"])
    assert set(every) - set(without) == {"bert.pooler.dense"}


@pytest.mark.parametrize("task", [CAUSAL, CLASSES], ids=lambda task: task.type)
def test_a_plan_is_checked_without_weights(
    task: Any, tiny_llama_path: Path, tmp_path: Path
) -> None:
    config = (tiny_llama_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    model = ModelSpec(name_or_path=str(tmp_path))
    names = check_targets_without_weights(model, task, "attention")
    assert names == resolve_targets(build("llama"), "attention")
    with pytest.raises(SpecError, match="'c_attn' matches no module"):
        check_targets_without_weights(model, task, ["c_attn"])


def test_checking_a_huge_model_takes_no_memory(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=20, num_attention_heads=128
    )
    config.save_pretrained(tmp_path)
    names = check_targets_without_weights(ModelSpec(name_or_path=str(tmp_path)), CAUSAL, ALL_LINEAR)
    assert len(names) == 140


def test_an_architecture_without_a_form_for_the_task_is_refused(tmp_path: Path) -> None:
    getattr(transformers, "T5Config")(**T5).save_pretrained(tmp_path)  # noqa: B009
    with pytest.raises(SpecError, match=r"\(t5\) has no form for task.type causal_lm"):
        check_targets_without_weights(ModelSpec(name_or_path=str(tmp_path)), CAUSAL, ALL_LINEAR)


def test_heads_and_embeddings_are_never_targets() -> None:
    for architecture in ARCHITECTURES:
        model = build(architecture)
        output = model.get_output_embeddings()
        for name in resolve_targets(model, ALL_LINEAR):
            module = model.get_submodule(name)
            assert module is not output
            assert not isinstance(module, nn.Embedding)
            assert name.partition(".")[0] not in ("classifier", "pre_classifier", "score", "pooler")
