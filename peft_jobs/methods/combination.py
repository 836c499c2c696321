"""Several saved adapters on one base: loaded together, switched, and combined into one.

PEFT's `add_weighted_adapter` combines, of LoRA and (IA)3. What PEFT 0.21.2 leaves wrong is put
right here: the result keeps the first adapter's `use_rslora`, though its factors are scaled
already, and a layer whose factors are narrower than the result's rank does not load again.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_jobs.spec.combination import CombinationSpec

_SEED = 0
"""Of what DARE drops."""


def load_together(model: PreTrainedModel, folders: Mapping[str, Path]) -> PeftModel:
    """`model` with the adapters in `folders` on it, by name, in eval mode; `model` is changed.

    A name stands in the names of weights: letters, digits and underscores, none the beginning of
    another. The first is active; `set_adapter` switches.
    """
    (first, folder), *others = folders.items()
    loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=first)
    for name, folder in others:
        loaded.load_adapter(str(folder), adapter_name=name)
    loaded.set_adapter(first)
    return loaded.eval()


def combine(
    model: PeftModel, name: str, weights: Mapping[str, float], how: CombinationSpec
) -> None:
    """Add the adapter `name` to `model`: those in `weights`, combined as `how` says; it is active.

    Deterministic: what DARE drops follows from a seed of its own. Those combined stay as they are.
    """
    options: dict[str, Any] = {}
    is_lora = isinstance(model.peft_config[next(iter(weights))], LoraConfig)
    if is_lora:
        options = {"combination_type": how.type, "svd_rank": how.rank, "density": how.density}
        options |= {"svd_full_matrices": False}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(_SEED)
        combined: Any = model.base_model
        combined.add_weighted_adapter([*weights], [*weights.values()], name, **options)
        if is_lora:
            _put_right(model, name)
    model.set_adapter(name)
    model.eval()


def save_combined(model: PeftModel, name: str, folder: Path) -> None:
    """Write the adapter `name` as PEFT reads it into `folder`, which is there."""
    model.save_pretrained(
        str(folder),
        selected_adapters=[name],
        safe_serialization=True,
        save_embedding_layers=False,
    )
    for path in (folder / name).iterdir():
        shutil.move(path, folder / path.name)
    (folder / name).rmdir()


def _put_right(model: PeftModel, name: str) -> None:
    """Scale the combined factors by 1, and give them the rank that the configuration says."""
    config = model.peft_config[name]
    assert isinstance(config, LoraConfig)
    config.use_rslora, config.inference_mode = False, True
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or name not in layer.scaling:
            continue
        layer.scaling[name] = 1.0
        if name in layer.lora_A:
            down: Any = layer.lora_A[name]
            up: Any = layer.lora_B[name]
            for factor, side in ((down, 0), (up, 1)):
                factor.weight = nn.Parameter(_widened(factor.weight, config.r, side), False)
        else:
            for factors, side in ((layer.lora_embedding_A, 0), (layer.lora_embedding_B, 1)):
                factors[name] = nn.Parameter(_widened(factors[name], config.r, side), False)


def _widened(factor: Tensor, rank: int, side: int) -> Tensor:
    """A factor with zeros up to `rank` rows or columns: the product stays."""
    missing = rank - factor.shape[side]
    padding = (0, missing) if side == 1 else (0, 0, 0, missing)
    return nn.functional.pad(factor.detach(), padding)
