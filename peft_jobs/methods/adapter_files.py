"""An adapter's files: written, and loaded again onto a fresh base."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from peft_jobs.randomness import ADAPTER
from peft_jobs.spec.adapters import OWN
from peft_jobs.storage.attempt_folder import ADAPTER_FOLDER, write_labels
from peft_jobs.storage.files import whole_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_INITIAL = "_initial_tensors"


def remember_initial(model: PeftModel) -> None:
    """Keep the LoRA as it starts: what an initialisation has moved out of the base."""
    setattr(model, _INITIAL, {name: value.clone() for name, value in _tensors(model).items()})


def save_adapter(model: Any, directory: Path, classes: Sequence[int | str]) -> str:
    """Save the adapter's files (safetensors), and the names of its classes, as `adapter/`, whole
    or not at all.

    Returns the folder's name. Replaces an older one of the same attempt.
    """
    with whole_folder(directory / ADAPTER_FOLDER) as aside:
        write_adapter(model, aside)
        write_labels(aside, classes)
    return ADAPTER_FOLDER


def write_adapter(model: Any, folder: Path) -> None:
    """Write the adapter's files (safetensors) to a folder."""
    if hasattr(model, _INITIAL):
        _write_difference(model, folder)
    else:
        # Embeddings are never resized here; "auto" would ask the Hub for the base's vocabulary.
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def _write_difference(model: PeftModel, folder: Path) -> None:
    """Write an ordinary LoRA for the untouched base: B A - B0 A0 as one product of twice the rank.

    PEFT's `path_initial_model_for_weight_conversion` does the same, but leaves out whatever else
    is trained (0.21.2: heads, modules to save).
    """
    initial: dict[str, Tensor] = getattr(model, _INITIAL)
    tensors = {name: value.detach().cpu() for name, value in _tensors(model).items()}
    for name in list(tensors):
        first = initial[name].cpu()
        if ".lora_A." in name:
            tensors[name] = torch.cat([tensors[name], first], dim=0)
        elif ".lora_B." in name:
            tensors[name] = torch.cat([tensors[name], -first], dim=1)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    wider = math.sqrt(2) if config.use_rslora else 2  # so that alpha / r or alpha / sqrt(r) stays
    config.r, config.lora_alpha = 2 * config.r, config.lora_alpha * wider  # type: ignore[assignment]
    config.rank_pattern = {key: 2 * value for key, value in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: wider * v for key, v in (config.alpha_pattern or {}).items()}
    config.init_lora_weights, config.corda_config, config.inference_mode = True, None, True
    folder.mkdir(parents=True, exist_ok=True)
    model.create_or_update_model_card(str(folder))
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _tensors(model: PeftModel) -> dict[str, Tensor]:
    found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def load_adapter(model: PreTrainedModel, folder: Path | str) -> Any:
    """`model` with a saved adapter on it, in eval mode; `model` is changed.

    Adapters of PEFT's kinds and of ours: bottleneck adapters and full fine-tuning have files of
    their own, which `PeftModel.from_pretrained` does not know.
    """
    from peft_jobs.methods.beyond_peft import load_own

    settings = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    if settings["peft_type"].lower() in OWN:
        return load_own(model, Path(folder), settings)
    return PeftModel.from_pretrained(model, str(folder)).eval()
