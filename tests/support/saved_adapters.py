"""Makes the folder of a saved adapter without PEFT: settings, and tensors of any shape."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.1,
    "target_modules": ["v_proj", "q_proj"],
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
}
SHAPES = {
    f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{part}.weight": shape
    for layer in range(2)
    for name, outputs in (("q", 64), ("v", 32))
    for part, shape in (("A", (4, 64)), ("B", (outputs, 4)))
}
"""Of a LoRA on queries and values of the tests' tiny Llama."""


def write_saved(
    folder: Path,
    shapes: dict[str, tuple[int, ...]] | None = None,
    value: float = 0.01,
    **settings: Any,
) -> str:
    """The folder's path, with an adapter in it whose weights all have one value."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
    tensors = {
        name: np.full(shape, value, np.float32)
        for name, shape in (SHAPES if shapes is None else shapes).items()
    }
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)
