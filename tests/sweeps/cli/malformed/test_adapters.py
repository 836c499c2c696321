"""A saved adapter to go on from, with whatever is wrong with it: one line, and no trial."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.demo import BASE
from tests.support.saved_adapters import write_saved

RATE = {"parameters": {"training.learning_rate": {"low": 1e-4, "high": 1e-3}}}
DEMO = json.loads((BASE / "config.json").read_text())
WIDTH, LAYERS = DEMO["hidden_size"], DEMO["num_hidden_layers"]
KEYS = WIDTH // DEMO["num_attention_heads"] * DEMO["num_key_value_heads"]


def shapes(width: int = WIDTH, keys: int = KEYS, layers: int = LAYERS, r: int = 4) -> Any:
    return {
        f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{part}.weight": shape
        for layer in range(layers)
        for name, outputs in (("q", width), ("v", keys))
        for part, shape in (("A", (r, width)), ("B", (outputs, r)))
    }


def without(given: Any, part: str) -> Any:
    return {name: shape for name, shape in given.items() if part not in name}


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"shapes": shapes(width=WIDTH * 2)}, "was made for another base or task"),
    "other keys": ({"shapes": shapes(keys=KEYS * 2)}, f"{KEYS} are needed"),
    "more layers": ({"shapes": shapes(layers=LAYERS + 1)}, "and the base has no such module"),
    "fewer layers": ({"shapes": shapes(layers=LAYERS - 1)}, "only the trial adapts model.layers."),
    "fewer modules": (
        {"shapes": without(shapes(), "v_proj")},
        "only the trial adapts model.layers.0.self_attn.v_proj",
    ),
    "fewer targets": (
        {"shapes": shapes(), "target_modules": ["q_proj"]},
        "only the saved adapter adapts model.layers.0.self_attn.v_proj",
    ),
    "half of each": (
        {"shapes": without(shapes(), "lora_B")},
        "it lacks base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    ),
    "another rank": ({"shapes": shapes(r=2)}, "is [2, "),
    "a foreign target": (
        {"shapes": shapes(), "target_modules": ["query", "value"]},
        "adapter.target_modules: 'query' matches no module",
    ),
    "embeddings": (
        {"shapes": shapes(), "target_modules": ["q_proj", "v_proj", "embed_tokens"]},
        "'embed_tokens' matches no linear module of the backbone, only model.embed_tokens",
    ),
    "a module to save that is not there": (
        {"shapes": shapes(), "modules_to_save": ["lm_head"]},
        "it lacks base_model.model.lm_head.weight",
    ),
    "a head of another task": (
        {"shapes": shapes() | {"base_model.model.score.weight": (3, WIDTH)}},
        "it has base_model.model.score.weight",
    ),
    "DoRA's weights alone": ({"shapes": shapes(), "use_dora": True}, "it lacks base_model"),
    "a matrix that is none": (
        {"shapes": {name: (4,) if "lora_A" in name else s for name, s in shapes().items()}},
        "are needed",
    ),
    "not finite": ({"shapes": shapes(), "value": float("nan")}, "values that are not finite"),
    "a base that is a number": (
        {"shapes": shapes(width=WIDTH * 2), "base_model_name_or_path": 7},
        "was made for another base (7) or task",
    ),
    "tokens of its own": (
        {"shapes": shapes(), "trainable_token_indices": [1, 2]},
        "adapter.",
    ),
    "another PEFT's settings": (
        {"shapes": shapes(), "use_future": True},
        "sets use_future, which the installed PEFT does not know",
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_does_not_fit(refusal: Callable[..., str], folder: Path, name: str) -> None:
    made, says = ADAPTERS[name]
    write_saved(folder / "saved", made["shapes"], **{k: made[k] for k in made if k != "shapes"})
    line = refusal(adapter={"from": "saved"}, space=RATE)
    assert line.startswith("adapter.")
    assert says in line


def test_one_that_fits_runs(refusal: Callable[..., str], folder: Path) -> None:
    write_saved(folder / "saved", shapes())
    with pytest.raises(AssertionError):  # nothing refuses it
        refusal(adapter={"from": "saved"}, space=RATE)


class _Planted:
    """Its pickle writes the file `pwned` when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.target = str(folder / "pwned")

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_pickled_weights_are_refused_and_never_loaded(
    refusal: Callable[..., str], folder: Path, name: str
) -> None:
    write_saved(folder / "saved", shapes())
    (folder / "saved" / "adapter_model.safetensors").unlink()
    (folder / "saved" / name).write_bytes(pickle.dumps(_Planted(folder)))
    line = refusal(adapter={"from": "saved"}, space=RATE)
    wanted = "no safetensors file" if name.endswith("safetensors") else "holds pickled weights"
    assert wanted in line
