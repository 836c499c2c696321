"""LoRA on parameters that lie in no linear module: the experts of a mixture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from peft_jobs.base.loading import load_base
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.solo.adapter_export import merge_adapter, score_adapter
from peft_jobs.errors import SpecError
from peft_jobs.methods import METHODS
from peft_jobs.methods.adapter_files import write_adapter
from peft_jobs.methods.placement import check_places_without_weights, parameter_places
from peft_jobs.randomness import tuner_layers
from peft_jobs.spec import TrialSpec
from tests.peft_jobs.conftest import NUM_TOKENS, save_tokenizer
from tests.peft_jobs.engines.solo.test_adapter_export import CAUSAL, spec, train

SIZES = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
LORA = METHODS["lora"]


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "mixtral":
            model: Any = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
        else:
            more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **more, head_dim=16))
    model.save_pretrained(folder)
    save_tokenizer(folder, bert=False)
    return folder


def trial(model: Path, folder: Path, scheme: str = "none", **adapter: Any) -> TrialSpec:
    section = {"r": 4, "target_parameters": EXPERTS, "target_modules": ["q_proj"], **adapter}
    return spec(model, folder, CAUSAL, scheme).with_params(
        {f"adapter.{name}": value for name, value in section.items()}
    )


def test_the_same_parameters_are_adapted_as_by_peft_itself(mixture: Path, tmp_path: Path) -> None:
    asked = trial(mixture, tmp_path)
    base = load_base(asked.model, asked.quantization, asked.task)
    before = base.state_hash()
    model = LORA.attach(base, asked)
    plain = get_peft_model(
        AutoModelForCausalLM.from_pretrained(mixture),
        LoraConfig(r=4, target_modules=["q_proj"], target_parameters=list(EXPERTS)),
    )
    ours, theirs = (
        {name: part.lora_A["default"].weight.shape for name, part in tuner_layers(each)}
        for each in (model, plain)
    )
    assert ours == theirs
    assert len([name for name in ours if "experts" in name]) == 4
    LORA.detach(model)
    assert base.state_hash() == before
    assert "no packed form" in str(unpackable(asked, base))


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_experts_are_trained_saved_for_plain_peft_and_merged(
    mixture: Path, tmp_path: Path, scheme: str
) -> None:
    asked = trial(mixture, tmp_path, scheme)
    result, adapter = train(asked, tmp_path)
    recorded = result.metrics["validation/loss"]
    again, _ = score_adapter(asked.to_json(), adapter, tmp_path / "cache", test=False)
    assert again["validation/loss"] == pytest.approx(recorded, rel=1e-5)
    merged = merge_adapter(asked.to_json(), adapter, tmp_path / "merged", tmp_path / "cache")
    assert merged["validation/loss"] == pytest.approx(recorded, rel=1e-4)
    tensors = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(mixture), str(adapter)
    ).state_dict()
    trained = [name for name in tensors if "experts" in name and "lora_B" in name]
    assert len(trained) == 4
    assert all(tensors[name].any() for name in trained)


def test_adapted_logits_are_those_of_plain_peft(
    mixture: Path, tmp_path: Path, take_steps: Any
) -> None:
    asked = trial(mixture, tmp_path, target_modules=[], layers_to_transform=1)
    base = load_base(asked.model, asked.quantization, asked.task)
    model = LORA.attach(base, asked)
    take_steps(model, 3)
    model.eval()
    tokens = torch.arange(6, 30, device=base.device)[None]
    with torch.no_grad():
        ours = model(input_ids=tokens).logits
    write_adapter(model, tmp_path / "adapter")
    LORA.detach(model)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(mixture), str(tmp_path / "adapter")
    )
    assert {name.split(".")[2] for name, _ in tuner_layers(plain)} == {"1"}
    with torch.no_grad():
        theirs = plain.eval()(input_ids=tokens.cpu()).logits
        bare = plain.disable_adapter()
        with bare:
            assert not torch.allclose(ours.cpu(), plain(input_ids=tokens.cpu()).logits, atol=1e-3)
    assert torch.allclose(ours.cpu(), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("experts.gate_up", r"matches no parameter; did you mean 'experts.gate_up_proj'"),
        ("q_proj.weight", r"no matrix outside of the linear modules"),
        ("embed_tokens.weight", r"no matrix outside of the linear modules"),
        ("input_layernorm.weight", r"no matrix outside of the linear modules"),
    ],
)
def test_a_parameter_that_is_not_there_is_refused_without_weights(
    given: str, told: str, mixture: Path, tmp_path: Path
) -> None:
    asked = trial(mixture, tmp_path, target_parameters=[given])
    with pytest.raises(SpecError, match=f"target_parameters: '{given}' .*{told}"):
        check_places_without_weights(asked.model, asked.task, asked.adapter)


def test_a_set_that_needs_experts_as_modules_points_at_their_parameters(
    mixture: Path, tmp_path: Path
) -> None:
    asked = trial(mixture, tmp_path, target_modules="attention+mlp", target_parameters=[])
    with pytest.raises(SpecError, match=r"no mlp module.*experts\.down_proj in target_parameters"):
        check_places_without_weights(asked.model, asked.task, asked.adapter)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora_dropout", 0.1), ("use_dora", True), ("init_lora_weights", "pissa")],
)
def test_what_peft_cannot_do_on_parameters_is_told_before(
    field: str, value: Any, mixture: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="target_parameters"):
        trial(mixture, tmp_path, **{field: value})


def test_no_target_at_all_is_refused(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="target_modules must name at least one module"):
        trial(mixture, tmp_path, target_modules=[], target_parameters=[])
    asked = trial(mixture, tmp_path)
    base = load_base(asked.model, asked.quantization, asked.task)
    assert len(parameter_places(base.model, asked.adapter)) == 4
