import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from peft_jobs.base.heads import fresh_modules
from peft_jobs.base.loading import Base, base_key, load_base, reset_head
from peft_jobs.errors import SpecError
from peft_jobs.methods import METHODS
from peft_jobs.spec import (
    CausalLMSpec,
    ModelSpec,
    QuantizationSpec,
    QuestionAnsweringSpec,
    SequenceClassificationSpec,
    TrialSpec,
)

LORA = METHODS["lora"]
CAUSAL = CausalLMSpec(response="{text}")
CLASSES = SequenceClassificationSpec(type="sequence_classification", text="{text}", label="label")
QUANTIZED = {"int8": Linear8bitLt, "nf4": Linear4bit, "fp4": Linear4bit}


def load(path: Path | str, scheme: str = "none", task: Any = CAUSAL, **more: Any) -> Base:
    quantization = QuantizationSpec(scheme=scheme, **more.pop("quantization", {}))
    return load_base(
        ModelSpec(name_or_path=str(path), **more.pop("model", {})), quantization, task, **more
    )


def classifier_spec(path: Path, scheme: str, **parameters: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(path),
            "quantization": scheme,
            "task": CLASSES.model_dump(),
            "data": {"train": "train.jsonl"},
        }
    ).with_params(parameters)


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4", "fp4"])
def test_a_base_is_frozen_in_eval_mode_and_quantized_but_for_its_head(
    scheme: str, llama_base: Any
) -> None:
    base = llama_base(scheme)
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    layer = base.model.model.layers[0].mlp.up_proj
    assert type(layer) is QUANTIZED.get(scheme, torch.nn.Linear)
    assert type(base.model.lm_head) is torch.nn.Linear
    assert base.model.dtype == torch.float32
    if scheme in ("nf4", "fp4"):
        assert layer.weight.quant_type == scheme
        on_cpu = base.device.type == "cpu"
        assert layer.compute_dtype == (torch.float32 if on_cpu else torch.bfloat16)
        assert not layer.support_avx512bf16_for_cpu
    assert set(base.seconds) == {"load", "quantize"}
    assert base.seconds["load"] > 0
    assert (base.seconds["quantize"] > 0) == (scheme != "none")


def test_quantized_weights_are_those_of_bitsandbytes_own_functions(
    llama_base: Any, tiny_llama_path: Path
) -> None:
    from bitsandbytes import functional
    from safetensors.torch import load_file

    name = "model.layers.1.mlp.down_proj"
    weight = load_file(tiny_llama_path / "model.safetensors")[f"{name}.weight"]
    for scheme in ("nf4", "fp4"):
        layer = llama_base(scheme).model.get_submodule(name)
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=scheme)
        assert torch.equal(layer.weight.data.cpu(), packed)
        assert torch.equal(layer.weight.quant_state.absmax.cpu(), state.absmax)
    layer = llama_base("int8").model.get_submodule(name)
    codes, *_ = functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(layer.weight.data.cpu(), codes)


def test_double_quantization_and_skipped_modules_are_passed_on(tiny_llama_path: Path) -> None:
    more = {"bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": ("down_proj",)}
    model = load(tiny_llama_path, "nf4", quantization=more).model
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert type(model.lm_head) is torch.nn.Linear


def test_a_missing_pad_token_becomes_the_end_of_text_token(
    tiny_llama_path: Path, tiny_bert_path: Path
) -> None:
    base = load(tiny_llama_path)
    assert base.tokenizer.pad_token == "</s>"
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id == 2
    base = load(tiny_bert_path, task=CLASSES, num_labels=2)
    assert base.tokenizer.pad_token == "[PAD]"
    assert base.model.config.pad_token_id == 5


def test_fingerprint_tells_contents_and_not_places(
    llama_base: Any, tiny_llama_path: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama_path, tmp_path / "copy")
    assert load(copy).fingerprint == llama_base("none").fingerprint
    schemes = ("none", "int8", "nf4", "fp4")
    assert len({llama_base(scheme).fingerprint for scheme in schemes}) == 4
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert load(copy).fingerprint != llama_base("none").fingerprint


def test_key_tells_what_decides_a_base(tiny_llama_path: Path) -> None:
    model, none = ModelSpec(name_or_path="m"), QuantizationSpec(scheme="none")
    keys = [
        base_key(model, none, CAUSAL),
        base_key(ModelSpec(name_or_path="m", dtype="bfloat16"), none, CAUSAL),
        base_key(model, QuantizationSpec(scheme="nf4"), CAUSAL),
        base_key(model, none, CLASSES, num_labels=2),
        base_key(model, none, CLASSES, labels=["a", "b"]),
        base_key(model, none, CLASSES, labels=["b", "a"]),
    ]
    assert len(set(keys)) == len(keys)
    other_text = CausalLMSpec(prompt="{question}", response="{answer}")
    assert base_key(model, none, other_text) == keys[0]
    base = load(tiny_llama_path)
    assert base.key == base_key(ModelSpec(name_or_path=str(tiny_llama_path)), none, CAUSAL)


def test_loading_leaves_the_global_generator_alone(tiny_bert_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load(tiny_bert_path, task=CLASSES, num_labels=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert load(tiny_bert_path, task=CLASSES, num_labels=3).fingerprint == first.fingerprint


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4", "fp4"])
def test_a_new_classifier_stays_out_of_quantization_and_trains(
    scheme: str, tiny_bert_path: Path, take_steps: Any
) -> None:
    spec = classifier_spec(tiny_bert_path, scheme, seed=3)
    base = load_base(spec.model, spec.quantization, spec.task, labels=["bad", "fair", "good"])
    assert base.model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert fresh_modules(base.model) == ("classifier",)
    assert type(base.model.classifier) is torch.nn.Linear
    assert isinstance(base.model.bert.pooler.dense, QUANTIZED.get(scheme, torch.nn.Linear))
    before = base.state_hash()
    runs = []
    for _ in range(2):
        model = LORA.attach(base, spec)
        head = model.base_model.model.classifier.modules_to_save["default"]
        initial = head.weight.detach().clone()
        losses = take_steps(model, 3, num_labels=3)
        assert not torch.equal(head.weight, initial)
        assert model.base_model.model.classifier.original_module.weight.requires_grad is False
        LORA.detach(model)
        assert base.state_hash() == before
        torch.manual_seed(99)  # the base's own dropout is keyed too
        runs.append((initial, losses))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    other = LORA.attach(base, spec.with_params({"seed": 4}))
    head = other.base_model.model.classifier.modules_to_save["default"]
    assert not torch.equal(head.weight, runs[0][0])
    LORA.detach(other)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_a_saved_classifier_scores_the_same_on_a_fresh_base(
    bias: str, tiny_bert_path: Path, take_steps: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    spec = classifier_spec(tiny_bert_path, "nf4").with_params({"adapter.bias": bias})
    logits = []

    def score(model: Any) -> None:
        tokens = torch.arange(6, 24, device=model.device).view(2, 9)
        logits.append(model.eval()(input_ids=tokens).logits)

    base = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    model = LORA.attach(base, spec)
    biases = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    assert len(biases) == {"none": 1, "all": 19, "lora_only": 14}[bias]
    take_steps(model, 2, num_labels=2)
    score(model)
    model.save_pretrained(tmp_path)
    fresh = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    score(PeftModel.from_pretrained(fresh.model, tmp_path))
    assert torch.equal(*logits)


def test_reset_head_draws_the_architectures_own_distribution(tiny_bert_path: Path) -> None:
    base = load(tiny_bert_path, task=CLASSES, num_labels=50)
    head = base.model.classifier
    first = head.weight.clone()
    reset_head(base.model, 1)
    second = head.weight.clone()
    reset_head(base.model, 0)
    assert torch.equal(head.weight, first)
    assert not torch.equal(second, first)
    assert second.std().item() == pytest.approx(base.model.config.initializer_range, rel=0.05)
    assert not head.bias.any()


def test_a_pooler_that_the_checkpoint_lacks_is_new_too(
    tmp_path: Path, take_steps: Any, tiny_bert_path: Path
) -> None:
    config = BertConfig.from_pretrained(tiny_bert_path)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert_path / name, tmp_path)
    spec = classifier_spec(tmp_path, "nf4")
    base = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    assert fresh_modules(base.model) == ("bert.pooler", "classifier")
    assert type(base.model.bert.pooler.dense) is torch.nn.Linear
    assert isinstance(base.model.bert.encoder.layer[0].output.dense, Linear4bit)
    before = base.state_hash()
    model = LORA.attach(base, spec)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert len(trainable) == 4
    take_steps(model, 2, num_labels=2)
    LORA.detach(model)
    assert base.state_hash() == before


def test_a_trained_head_of_the_checkpoint_is_kept_where_it_fits(
    tmp_path: Path, tiny_bert_path: Path
) -> None:
    AutoModelForSequenceClassification.from_pretrained(
        tiny_bert_path, num_labels=4
    ).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert_path / name, tmp_path)
    same = load(tmp_path, task=CLASSES, num_labels=4)
    assert fresh_modules(same.model) == ()
    model = LORA.attach(same, classifier_spec(tmp_path, "none"))
    copy = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(copy.weight, model.base_model.model.classifier.original_module.weight)
    assert copy.weight.requires_grad
    assert fresh_modules(load(tmp_path, task=CLASSES, num_labels=3).model) == ("classifier",)


def test_a_decoder_can_classify(tiny_llama_path: Path, take_steps: Any) -> None:
    spec = classifier_spec(tiny_llama_path, "nf4")
    base = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    assert fresh_modules(base.model) == ("score",)
    model = LORA.attach(base, spec)
    losses = take_steps(model, 3, num_labels=2)
    assert losses[2] < losses[0]
    LORA.detach(model)


def test_a_new_head_trains_in_float32_on_a_bfloat16_base(
    tiny_bert_path: Path, take_steps: Any
) -> None:
    spec = classifier_spec(tiny_bert_path, "none").with_params({"model.dtype": "bfloat16"})
    base = load_base(spec.model, spec.quantization, spec.task, num_labels=2)
    assert base.model.dtype == torch.bfloat16
    model = LORA.attach(base, spec)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    losses = take_steps(model, 3, num_labels=2)
    assert losses[2] < losses[0]
    LORA.detach(model)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}


def refuse(path: Path | str, text: str, task: Any = CAUSAL, scheme: str = "none") -> None:
    with pytest.raises(SpecError, match=text):
        load(path, scheme, task)


def test_bases_that_cannot_be_had_are_refused_by_name(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no folder .*nowhere")
    refuse("./nowhere", "there is no folder nowhere")
    refuse("nobody/no-such-model", "nobody/no-such-model is neither a folder here nor")
    refuse(tmp_path, "is no model that can be loaded")


def test_pickled_weights_are_refused(tiny_llama_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama_path, tmp_path / "pickled")
    model = LlamaForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    refuse(copy, "pickled weights, which can run code")


def test_a_checkpoint_that_asks_to_run_its_own_code_is_refused(
    tiny_llama_path: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama_path, tmp_path / "code")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('code of the checkpoint ran')")
    refuse(copy, "needs Python code of its own .* which is never run")


def test_a_causal_model_without_its_head_is_refused(tiny_llama_path: Path, tmp_path: Path) -> None:
    LlamaModel(LlamaConfig.from_pretrained(tiny_llama_path)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama_path / name, tmp_path)
    refuse(tmp_path, "lacks weights of LlamaForCausalLM: lm_head.weight")


def test_a_model_whose_backbone_has_another_name_is_refused(tiny_llama_path: Path) -> None:
    # LlamaForQuestionAnswering (transformers 5.23) calls it `transformer`, and finds no weights.
    task = QuestionAnsweringSpec(
        type="question_answering", question="{q}", context="c", answers="a"
    )
    refuse(tiny_llama_path, "lacks weights of LlamaForQuestionAnswering", task)


def test_an_encoder_is_no_causal_model(tiny_bert_path: Path) -> None:
    refuse(tiny_bert_path, "attends to later tokens")


def test_a_tokenizer_without_any_end_is_refused(tiny_llama_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama_path, tmp_path / "endless")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    refuse(copy, "neither a padding nor an end-of-text token")


def test_harmless_notices_are_silent_and_others_are_not(tiny_bert_path: Path) -> None:
    code = f"""
import logging
from peft_jobs.base.loading import load_base
from peft_jobs.spec import *
task = SequenceClassificationSpec(type="sequence_classification", text="{{a}}", label="b")
for scheme in ("int8", "nf4"):
    model = ModelSpec(name_or_path={str(tiny_bert_path)!r})
    base = load_base(model, QuantizationSpec(scheme=scheme), task, 2)
    base.model(base.model.dummy_inputs["input_ids"].to(base.device))
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something else")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    assert result.stderr.strip().splitlines() == ["something else"]


def test_the_filters_hold_in_this_process(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("bitsandbytes.autograd._functions")
    log.warning("MatMul8bitLt: inputs will be cast from %s to float16", "torch.float32")
    log.warning("anything else")
    assert [record.message for record in caplog.records] == ["anything else"]
