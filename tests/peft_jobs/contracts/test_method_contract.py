"""What every method must satisfy; the examples with their hand-made counts are beside."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_jobs.methods import METHODS, load_adapter, write_adapter
from peft_jobs.randomness import generator
from peft_jobs.spec.adapters import ADAPTERS, OWN
from tests.support.method_examples import EXAMPLES, Example

INEXACT = {
    *("adalora", "p_tuning", "lora-pissa", "lora-olora", "lora-corda"),
    *("oft-coft", "prefix_tuning"),
}
"""Saved as other matrices of one product, or as what a network gave, projected again in every
forward, or read by PEFT on another way than in training: equal but for rounding."""
IDS = [f"{index}-{example.method}" for index, example in enumerate(EXAMPLES)]
PLAIN_FIELDS = {
    *("method", "modules_to_save", "target_modules", "exclude_modules", "layers_pattern"),
    *("target_parameters", "from"),
}
"""Held by tests of their own, or in some examples."""
NO_EFFECT = {"save_projection", "layers_to_transform", "bias", "eva_config", "corda_config"}
"""What files hold; the others have a test elsewhere, or an effect in some initialisations only."""
OVER_MANY_STEPS = {"loraplus_lr_ratio", "beta1", "beta2"}
"""The optimizer's, and averages that decide a choice only now and then."""


@pytest.fixture(params=EXAMPLES, ids=IDS)
def example(request: pytest.FixtureRequest) -> Example:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def rows() -> Any:
    """Tokenised training rows, for the initialisations that look at them."""
    from datasets import Dataset

    draws = generator("cpu", "rows")
    tokens = [torch.randint(6, 100, (12,), generator=draws).tolist() for _ in range(24)]
    return Dataset.from_list(
        [{"input_ids": ids, "labels": [-100, *ids[1:]], "num_bytes": 12} for ids in tokens]
    )


@pytest.fixture(scope="session")
def unchanged() -> dict[int, Any]:
    """Losses and logits of the examples as they stand, by `id`, once each was trained."""
    return {}


@pytest.fixture
def attached(llama_base: Any, trial: Any, rows: Any) -> Any:
    """(example, scheme, changes) -> base, method, spec and model; skips what cannot be done."""
    models = []

    def attach(example: Example, scheme: str = "none", **changes: Any) -> Any:
        params = {**example.params, "quantization.scheme": scheme, "training.max_steps": 8}
        params |= {f"adapter.{name}": value for name, value in changes.items()}
        try:
            spec = trial(params)
        except ValidationError as error:
            if {item["type"] for item in error.errors()} != {"incompatible"}:
                raise
            pytest.skip(error.errors()[0]["msg"])
        base, method = llama_base(scheme), METHODS[example.method]
        models.append(method.attach(base, spec, rows=rows))
        return base, method, spec, models[-1]

    yield attach
    for model in models[-1:]:  # also after a failed test: the base is everybody's
        METHODS["lora"].detach(model)


def logits_of(model: Any) -> torch.Tensor:
    """Of two rows; without the places of virtual tokens."""
    tokens = torch.arange(6, 24, device=model.device).view(2, 9)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=tokens).logits
    return logits[:, -9:]


def quantized(example: Example) -> str:
    """A quantization on which the example must work too; `none` where there is none."""
    wanted = "nf4" if "nf4" in ADAPTERS[example.method].SCHEMES else "none"
    return "none" if str(example.fields.get("init_lora_weights")) in (
        "pissa", "pissa_niter_4", "olora", "corda", "eva"
    ) else wanted  # fmt: skip


def test_every_method_has_an_example_and_every_field_is_changed_in_one() -> None:
    assert {example.method for example in EXAMPLES} == set(METHODS) == set(ADAPTERS)
    for method, section in ADAPTERS.items():
        shown = {
            name
            for example in EXAMPLES
            if example.method == method
            for name in {**example.others, **(example.fields if method == "lora" else {})}
        }
        free = PLAIN_FIELDS | NO_EFFECT | OVER_MANY_STEPS
        assert set(section.model_fields) - free <= shown, method


@pytest.mark.parametrize("quantize", [False, True])
def test_training_changes_every_trainable_tensor_and_nothing_of_the_base(
    example: Example, quantize: bool, attached: Any, llama_base: Any, take_steps: Any
) -> None:
    scheme = quantized(example) if quantize else "none"
    if quantize and scheme == "none":
        pytest.skip("for a base without quantization alone")
    base = llama_base(scheme)
    before, untouched = base.state_hash(), logits_of(base.model)
    classes = [type(module) for module in base.model.modules()]
    base, method, _, model = attached(example, scheme)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == example.count
    assert model.get_nb_trainable_parameters()[0] == example.count
    assert all(p.dtype == torch.float32 for p in trainable.values())
    if example.starts_as_base:
        assert torch.allclose(logits_of(model), untouched, atol=2e-5)
    initial = {n: p.detach().clone() for n, p in trainable.items()}
    losses = take_steps(model, 4, method=method)
    unchanged = [n for n, p in trainable.items() if torch.equal(p, initial[n])]
    assert unchanged == []
    assert losses[-1] < losses[0]

    restored = method.detach(model)
    assert restored is base.model
    assert base.state_hash() == before
    assert [type(module) for module in restored.modules()] == classes
    assert not any(p.requires_grad or p.grad is not None for p in restored.parameters())
    assert not any(module.training for module in restored.modules())
    assert not any(module._forward_hooks for module in restored.modules())
    assert not any(module._forward_pre_hooks for module in restored.modules())
    assert not hasattr(restored, "peft_config")
    assert torch.equal(logits_of(restored), untouched)


def test_saved_adapter_scores_the_same_on_a_fresh_base(
    example: Example, attached: Any, take_steps: Any, tmp_path: Path
) -> None:
    from peft_jobs.base.loading import load_base

    scheme = quantized(example)
    base, method, spec, model = attached(example, scheme)
    take_steps(model, 4, method=method)
    trained = logits_of(model)
    write_adapter(model, tmp_path)
    method.detach(model)
    assert not torch.equal(trained, logits_of(base.model))
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert about.get("init_lora_weights", True) is True, "whoever loads it must not repeat that"
    alphas = [about[name] for name in ("lora_alpha", "alpha") if about.get(name) is not None]
    assert all(type(alpha) is int for alpha in alphas if alpha == int(alpha))
    assert ("peft_jobs.methods:load_adapter" in about.values()) == (example.method in OWN)

    fresh = load_base(spec.model, spec.quantization, spec.task)
    again = logits_of(load_adapter(fresh.model, tmp_path))
    name = str(example.fields.get("init_lora_weights", "")).partition("_")[0]
    name = "coft" if example.fields.get("coft") else name
    kind = f"{example.method}-{name}".rstrip("-")
    assert (again - trained).abs().max() <= (2e-5 if kind in INEXACT else 0)


@pytest.mark.parametrize(
    ("example", "name"),
    [
        pytest.param(example, name, id=f"{label}-{name}")
        for label, example in zip(IDS, EXAMPLES, strict=True)
        for name in example.others
    ],
)
def test_every_field_changes_the_model_or_its_training(
    example: Example, name: str, attached: Any, take_steps: Any, unchanged: dict[int, Any]
) -> None:
    def outcome(**changes: Any) -> tuple[list[float], torch.Tensor]:
        _, method, _, model = attached(example, **changes)
        torch.manual_seed(0)
        losses, logits = take_steps(model, 4, method=method), logits_of(model)
        method.detach(model)
        return losses, logits

    if id(example) not in unchanged:
        unchanged[id(example)] = outcome()
    losses, logits = unchanged[id(example)]
    other_losses, other_logits = outcome(**{name: example.others[name]})
    assert losses != other_losses or not torch.equal(logits, other_logits)


def test_a_trial_does_not_depend_on_what_ran_before(
    example: Example, attached: Any, take_steps: Any
) -> None:
    outcomes = []
    for state in (1, 2):
        torch.manual_seed(state)
        scheme = "nf4" if example.fields.get("init_lora_weights") == "loftq" else "none"
        _, method, _, model = attached(example, scheme)
        losses = take_steps(model, 2, method=method)
        outcomes.append((losses, {n: p.clone() for n, p in model.state_dict().items()
                                  if isinstance(p, torch.Tensor)}))  # fmt: skip
        method.detach(model)
    (losses, first), (again, second) = outcomes
    assert losses == again
    assert all(torch.equal(first[name], second[name]) for name in first)
