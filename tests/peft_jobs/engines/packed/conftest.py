"""Trials that differ in everything that trials of a pack may differ in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

MIXED = (
    # r, alpha, targets, dropout, learning rate, batch, accumulation, decay, clip, schedule, warmup
    (4, 8, "all-linear", 0.0, 1e-2, 4, 1, 0.0, 1.0, "linear", 0),
    (8, 8, "attention-qv", 0.1, 3e-3, 2, 2, 0.1, 0.1, "cosine", 3),
    (16, 32, "all-linear", 0.3, 1e-3, 1, 4, 0.01, 1.0, "constant", 0),
    (8, 4, "attention", 0.0, 1e-2, 4, 1, 0.0, 0.0, "inverse_sqrt", 0.25),
    (16, 16, ["q_proj", "down_proj"], 0.05, 5e-3, 2, 1, 0.3, 0.05, "constant_with_warmup", 4),
)
FORMS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "dora orthogonal": {"use_dora": True, "init_lora_weights": "orthogonal", "r": 6},
    "dora rslora": {"use_dora": True, "use_rslora": True, "loraplus_lr_ratio": 4.0},
    "ia3": {"method": "ia3"},
    "ia3 of outputs": {"method": "ia3", "target_modules": "attention", "feedforward_modules": []},
    "vera": {"method": "vera", "r": 12, "d_initial": 0.5, "target_modules": "all-linear"},
    "vera of its own": {
        "method": "vera",
        "r": 20,
        "vera_dropout": 0.2,
        "projection_prng_key": 7,
        "target_modules": ["q_proj", "down_proj"],
    },
    "miss": {"method": "miss", "r": 10, "target_modules": "all-linear"},
    "miss of its own": {
        "method": "miss",
        "r": 4,
        "miss_dropout": 0.3,
        "target_modules": ["v_proj", "down_proj"],
    },
    "lora": {},
}
"""Adapters that share a step, by what they are called here."""
CAUSAL = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
CLASSES = {"type": "sequence_classification", "text": "{q} {a}", "label": "class"}


@pytest.fixture(scope="session")
def common(rows_path: Path) -> dict[str, Any]:
    """Parameters of every trial here: few rows of several lengths."""
    return {
        "task": CAUSAL,
        "data.train": {"path": str(rows_path)},
        "data.validation": 0.2,
        "data.subset": 30,
        "training.max_steps": 8,
        "training.logging_steps": 1,
    }


@pytest.fixture(scope="session")
def mixed(trial: Any, common: dict[str, Any]) -> Callable[..., list[Any]]:
    """(more parameters) -> five specs of MIXED, with seeds of their own."""

    def build(**params: Any) -> list[Any]:
        names = (
            *("adapter.r", "adapter.lora_alpha", "adapter.target_modules", "adapter.lora_dropout"),
            *("training.learning_rate", "training.per_device_train_batch_size"),
            *("training.gradient_accumulation_steps", "training.weight_decay"),
            *("training.max_grad_norm", "training.lr_scheduler_type", "training.warmup_steps"),
        )
        return [
            trial({**common, **dict(zip(names, row, strict=True)), "seed": seed, **params})
            for seed, row in enumerate(MIXED)
        ]

    return build


@pytest.fixture(scope="session")
def formed(mixed: Any) -> Callable[..., list[Any]]:
    """(names of FORMS, more parameters) -> trials that differ in all else too."""

    def build(*names: str, **params: Any) -> list[Any]:
        built = []
        for number, name in enumerate(names):
            spec, own = mixed(**params)[number % 5], FORMS[name]
            if "method" in own:
                tree = {**spec.model_dump(mode="json"), "adapter": own}
                built.append(type(spec).model_validate({**tree, "seed": number}))
            else:
                changed = {f"adapter.{key}": value for key, value in own.items()}
                built.append(spec.with_params({**changed, "seed": number}))
        return built

    return build


@pytest.fixture(scope="session")
def double(trial: Any, common: dict[str, Any], tmp_path_factory: Any) -> Any:
    """(base, training rows) of the tiny Llama, in float64 throughout."""
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    base, data = SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1).check(trial(common))
    make_double(base)
    return base, data.train


def make_double(base: Any) -> None:
    """Put a Llama into float64 throughout."""
    base.model.double()
    for module in base.model.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # transformers' own computes in float32
            module.forward = in_own_dtype(module)


def in_own_dtype(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        scaled: torch.Tensor = norm.weight * (x * torch.rsqrt(mean + norm.variance_epsilon))
        return scaled

    return forward


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def base_is_unchanged() -> Iterator[Callable[[Any], None]]:
    """Takes bases; at the test's end they must hold what they held then."""
    seen: list[tuple[Any, str]] = []

    def watch(base: Any) -> None:
        seen.append((base, base.state_hash()))

    yield watch
    assert seen
    for base, before in seen:
        assert base.state_hash() == before
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
