"""A checkpoint that is quantized already is trained as what it is, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peft_jobs.base.loading import Base, load_base
from peft_jobs.base.stored_quantization import check_quantization
from peft_jobs.errors import SpecError
from peft_jobs.methods import setting_of
from peft_jobs.spec import (
    CausalLMSpec,
    ModelSpec,
    QuantizationSpec,
    SequenceClassificationSpec,
    TrialSpec,
)

CAUSAL = CausalLMSpec(response="{text}")
CLASSES = SequenceClassificationSpec(type="sequence_classification", text="{text}", label="label")
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
DOUBLE = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
ASKED_DOUBLE = {"scheme": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def stored(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Options of BitsAndBytesConfig -> the tiny Llama as transformers saves it so quantized."""

    def save(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("stored")
        model = AutoModelForCausalLM.from_pretrained(
            tiny_llama_path,
            quantization_config=BitsAndBytesConfig(**options),
            dtype=torch.float32,
            device_map={"": "cpu"},
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama_path).save_pretrained(folder)
        return folder

    return save


def load(path: Path, quantization: Any, task: Any = CAUSAL, **more: Any) -> Base:
    asked = {"scheme": quantization} if isinstance(quantization, str) else quantization
    return load_base(ModelSpec(name_or_path=str(path)), QuantizationSpec(**asked), task, **more)


@pytest.mark.parametrize(
    ("options", "asked", "record"),
    [
        pytest.param(FP4, "fp4", {"bnb_4bit_use_double_quant": False, "blocksize": 64}, id="fp4"),
        pytest.param(DOUBLE, ASKED_DOUBLE, {"bnb_4bit_use_double_quant": True}, id="nf4, double"),
        pytest.param(
            {**FP4, "bnb_4bit_quant_storage": "bfloat16"},
            "fp4",
            {"bnb_4bit_quant_storage": "bfloat16"},
            id="fp4, stored as bfloat16",
        ),
        pytest.param(INT8, "int8", {"llm_int8_threshold": 6.0}, id="int8"),
    ],
)
def test_the_checkpoints_own_scheme_gives_its_own_logits_and_is_recorded(
    options: dict[str, Any], asked: Any, record: dict[str, Any], stored: Any
) -> None:
    path, tokens = stored(**options), torch.arange(6, 30)[None]
    base = load(path, asked)
    scheme = asked if isinstance(asked, str) else asked["scheme"]
    assert (
        base.quantization.items() >= {"scheme": scheme, "from_checkpoint": True, **record}.items()
    )
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map={"": "cpu"})
    tokens = tokens.to(base.device)
    with torch.no_grad():
        # in eval mode, bitsandbytes repacks weights for a kernel of some CPUs that rounds more
        theirs = plain.to(base.device).train(scheme != "int8")(input_ids=tokens).logits
        assert torch.allclose(base.model(input_ids=tokens).logits, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "asked", "told"),
    [
        (FP4, "none", r"scheme must be fp4, got none: .*write `quantization: fp4`"),
        (FP4, "nf4", r"scheme must be fp4, got nf4"),
        (FP4, "int8", r"scheme must be fp4, got int8"),
        (INT8, "none", r"scheme must be int8, got none"),
        (INT8, "fp4", r"scheme must be int8, got fp4"),
        (DOUBLE, "nf4", r"double_quant must be true, got false: .*bnb_4bit_use_double_quant: true"),
        (FP4, {"scheme": "fp4", "bnb_4bit_use_double_quant": True}, "must be false, got true"),
    ],
)
def test_another_scheme_than_the_checkpoints_is_refused_without_its_weights(
    options: dict[str, Any], asked: Any, told: str, stored: Any
) -> None:
    path = stored(**options)
    (path / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=told):
        load(path, asked)
    quantization = QuantizationSpec(**({"scheme": asked} if isinstance(asked, str) else asked))
    with pytest.raises(SpecError, match=told):
        check_quantization(ModelSpec(name_or_path=str(path)), quantization, CAUSAL)


@pytest.mark.parametrize(
    "method",
    ["gptq", "awq", "fp8", "fbgemm_fp8", "mxfp4", "hqq", "compressed-tensors", "torchao", "other"],
)
@pytest.mark.parametrize("asked", ["none", "nf4"])
def test_other_libraries_quantizations_are_refused_by_name(
    method: str, asked: str, tiny_llama_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama_path, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(SpecError, match=f"quantized already, by {method}, .*before quantization"):
        load(tmp_path, asked)


def rewrite(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps(config))


def test_how_the_layers_compute_is_as_asked(stored: Any) -> None:
    base = load(
        stored(**FP4, bnb_4bit_compute_dtype="float16"),
        {"scheme": "fp4", "bnb_4bit_compute_dtype": "bfloat16"},
    )
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    assert base.quantization["bnb_4bit_compute_dtype"] == "bfloat16"
    int8 = load(stored(**INT8), {"scheme": "int8", "llm_int8_threshold": 0}).quantization
    assert (int8["scheme"], int8["llm_int8_threshold"]) == ("int8", 0)


def test_modules_that_the_checkpoint_left_out_stay_out_and_others_cannot_be(stored: Any) -> None:
    path = stored(**FP4, llm_int8_skip_modules=["lm_head", "q_proj"])
    for skipped in ([], ["q_proj"]):
        layer = load(path, {"scheme": "fp4", "llm_int8_skip_modules": skipped}).model.model.layers[
            0
        ]
        assert type(layer.self_attn.q_proj) is torch.nn.Linear
        assert type(layer.self_attn.k_proj) is Linear4bit
    with pytest.raises(SpecError, match=r"skip_modules: 'k_proj' was asked for, .* is quantized"):
        load(path, {"scheme": "fp4", "llm_int8_skip_modules": ["k_proj"]})


@pytest.mark.parametrize("skipped", [None, ["lm_head", "q_proj"], []])
def test_a_new_head_on_a_quantized_checkpoint_is_not_quantized(skipped: Any, stored: Any) -> None:
    path = stored(**FP4, llm_int8_skip_modules=skipped)
    base = load(path, "fp4", CLASSES, labels=["a", "b"])
    assert type(base.model.score) is torch.nn.Linear
    assert type(base.model.model.layers[0].mlp.up_proj) is Linear4bit
    assert base.model.score.weight.abs().sum() > 0


def test_weights_that_are_not_what_the_configuration_says_are_refused(
    stored: Any, tiny_llama_path: Path, tmp_path: Path
) -> None:
    claimed = json.loads((stored(**FP4) / "config.json").read_text())["quantization_config"]
    shutil.copytree(tiny_llama_path, tmp_path / "plain")
    rewrite(tmp_path / "plain", quantization_config=claimed)
    with pytest.raises(SpecError, match=r"came as none; its config.json does not describe"):
        load(tmp_path / "plain", "fp4")
    int8 = stored(**INT8)  # whose weights have the shapes of plain ones
    rewrite(int8, quantization_config=None)
    with pytest.raises(SpecError, match=r"holds .*SCB, for which .* has no use"):
        load(int8, "none")


def test_loftq_needs_the_weights_before_quantization(stored: Any) -> None:
    path = stored(**FP4)
    spec = TrialSpec.model_validate(
        {
            "model": str(path),
            "quantization": "fp4",
            "task": CAUSAL.model_dump(),
            "data": {"train": "x.jsonl"},
            "adapter": {"init_lora_weights": "loftq"},
        }
    )
    with pytest.raises(SpecError, match="loftq needs the weights before quantization"):
        setting_of(load(path, "fp4"), spec)


def test_a_base_quantized_here_is_recorded_as_such(llama_base: Any) -> None:
    assert llama_base("none").quantization == {"scheme": "none"}
    found = llama_base("nf4").quantization
    assert (found["scheme"], found["from_checkpoint"]) == ("nf4", False)
