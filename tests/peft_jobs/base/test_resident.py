"""A trial on a resident base is the trial alone: bit for bit, and the base stays as it was."""

from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16

from peft_jobs.base.loading import load_base
from peft_jobs.methods import METHODS, clock_of
from peft_jobs.spec import ModelSpec, QuantizationSpec

SCHEMES = ("none", "int8", "nf4", "fp4")
LORA = METHODS["lora"]
PARAMETERS = {"adapter.r": 4, "adapter.lora_dropout": 0.2, "seed": 11}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of the LoRA parameters of all layers, in one micro-step on fixed tokens."""
    tokens = torch.arange(6, 24, device=model.device).view(2, 9)
    model.train().zero_grad()
    clock_of(model).micro_step = 1
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def evaluate(model: Any) -> None:
    """As evaluations run: eval mode, no gradients, then back."""
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(6, 24, device=model.device).view(2, 9))
    model.train()


def away_from_zero(model: Any) -> None:
    """Give B values, so that gradients reach A."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                source = torch.Generator().manual_seed(len(name))
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=source))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_evaluation_does_not_change_later_gradients(
    scheme: str, llama_base: Any, trial: Any
) -> None:
    base = llama_base(scheme)
    model = LORA.attach(base, trial(PARAMETERS))
    away_from_zero(model)
    before = gradients(model)
    evaluate(model)
    after = gradients(model)
    LORA.detach(model)
    for layer in ("layers.0.", "layers.1."):
        assert any(layer in name and grad.norm() > 0 for name, grad in before.items())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(
    torch.cuda.is_available() or not has_avx512bf16(),
    reason="weights are repacked on a CPU with AVX512-BF16 only",
)
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_without_the_cure_an_evaluation_breaks_gradients(
    scheme: str, tiny_llama_path: Any, trial: Any
) -> None:
    spec = trial({**PARAMETERS, "adapter.lora_dropout": 0.0, "quantization.scheme": scheme})
    base = load_base(spec.model, spec.quantization, spec.task)
    unpacked = base.state_hash()
    model = LORA.attach(base, spec)
    away_from_zero(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    before = gradients(model)
    evaluate(model)
    after = gradients(model)
    first = [name for name in before if "layers.0.self_attn.q_proj.lora_A" in name]
    cosine = torch.cosine_similarity(before[first[0]].view(-1), after[first[0]].view(-1), dim=0)
    assert cosine < 0.9
    LORA.detach(model)
    assert base.state_hash() != unpacked


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_trial_has_identical_losses_whatever_ran_before(
    scheme: str, llama_base: Any, trial: Any, take_steps: Any
) -> None:
    base, spec = llama_base(scheme), trial(PARAMETERS)
    before = base.state_hash()

    def run(parameters: dict[str, Any] | None = None) -> list[float]:
        model = LORA.attach(base, trial({**PARAMETERS, **(parameters or {})}))
        losses: list[float] = take_steps(model, 4)
        evaluate(model)
        losses += take_steps(model, 2)
        LORA.detach(model)
        assert base.state_hash() == before
        return losses

    alone = run()
    others = [
        run({"seed": 12}),
        run({"adapter.r": 2, "adapter.target_modules": "attention-qv"}),
        run({"adapter.modules_to_save": ["lm_head"], "training.gradient_checkpointing": True}),
    ]
    torch.manual_seed(12345)
    torch.rand(7)
    assert run() == alone
    assert run({"training.gradient_checkpointing": True}) == alone
    assert all(other != alone for other in others)

    fresh = load_base(spec.model, QuantizationSpec(scheme=scheme), spec.task)
    model = LORA.attach(fresh, spec)
    assert take_steps(model, 4) == alone[:4]


def test_initial_weights_of_a_module_do_not_depend_on_the_other_targets(
    llama_base: Any, trial: Any
) -> None:
    base, name = llama_base("none"), "model.layers.1.self_attn.v_proj"
    weights = []
    for targets in ("all-linear", ["v_proj"], [name]):
        model = LORA.attach(base, trial({**PARAMETERS, "adapter.target_modules": targets}))
        weights.append(base.model.get_submodule(name).lora_A["default"].weight.clone())
        LORA.detach(model)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_trained_biases_of_the_base_are_put_back(
    trial: Any, take_steps: Any, tiny_bert_path: Any
) -> None:
    spec = trial(
        {
            "model": {"name_or_path": str(tiny_bert_path)},
            "adapter.bias": "all",
            "adapter.target_modules": "attention-qv",
            "task": {"type": "sequence_classification", "text": "{text}", "label": "label"},
        }
    )
    base = load_base(spec.model, spec.quantization, spec.task, labels=["bad", "good"])
    before = base.state_hash()
    model = LORA.attach(base, spec)
    biases = [p for n, p in model.named_parameters() if n.endswith(".bias") and p.requires_grad]
    kept = [bias.detach().clone() for bias in biases]
    take_steps(model, 2, num_labels=2)
    assert len(biases) == 19  # 8 in each layer, embeddings, pooler, the classifier's copy
    assert not any(torch.equal(a, b) for a, b in zip(biases, kept, strict=True))
    LORA.detach(model)
    assert base.state_hash() == before


def test_a_failed_attach_leaves_the_base_as_it_was(llama_base: Any, trial: Any) -> None:
    base = llama_base("nf4")
    before, classes = base.state_hash(), [type(m) for m in base.model.modules()]
    for parameters in (
        {"adapter.target_modules": ["q_proj", "nothing"]},
        {"adapter.modules_to_save": ["nothing"]},
        {"adapter.modules_to_save": ["down_proj"]},
    ):
        with pytest.raises(ValueError, match=r"adapter\.(target_modules|modules_to_save)"):
            LORA.attach(base, trial(parameters))
    assert [type(m) for m in base.model.modules()] == classes
    assert base.state_hash() == before


def test_a_real_model_keeps_its_state_over_trials(
    stories_path: Any, trial: Any, take_steps: Any
) -> None:
    spec = trial({**PARAMETERS, "model": {"name_or_path": str(stories_path)}})
    base = load_base(
        ModelSpec(name_or_path=str(stories_path)),
        QuantizationSpec(scheme="nf4", bnb_4bit_use_double_quant=True),
        spec.task,
    )
    before, losses = base.state_hash(), []
    for _ in range(2):
        model = LORA.attach(base, spec)
        losses.append(take_steps(model, 2))
        LORA.detach(model)
    assert losses[0] == losses[1]
    assert base.state_hash() == before
