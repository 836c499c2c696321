"""Methods that PEFT does not have, bottleneck adapters and full fine-tuning: model and files.

PEFT's types are a closed enumeration, so these adapters are no PeftModel; the few things that the
rest of the package asks of one are here. Their `adapter_config.json` says what loads them.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from transformers import PreTrainedModel

from peft_jobs.methods.bottleneck_layer import Adapted
from peft_jobs.methods.float32_copies import raise_to_float32
from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import Setting
from peft_jobs.spec.adapters import BottleneckSpec, FullSpec

WEIGHTS = "adapter_model.safetensors"
LOADER = "peft_jobs.methods:load_adapter"


class OwnModel(nn.Module):
    """A base with trainable parameters of its own."""

    _hf_peft_config_loaded = True
    """What transformers' Trainer (5.23) asks of a quantized model that it is to train."""

    def __init__(self, base_model: PreTrainedModel, settings: dict[str, Any]) -> None:
        """`settings` are what `load_own` needs to build the same, as JSON."""
        super().__init__()
        self.base_model, self.settings = base_model, settings

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def get_base_model(self) -> PreTrainedModel:
        return self.base_model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all), as PEFT's."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)

    def merge_and_unload(self) -> PreTrainedModel:
        """The base with its new weights; only of a method that merges."""
        return self.base_model

    def save_pretrained(self, folder: str, **_options: Any) -> None:
        """Write the trainable parameters and the settings."""
        tensors = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.base_model.named_parameters()
            if parameter.requires_grad
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        about = {
            **self.settings,
            "base_model_name_or_path": self.base_model.name_or_path,
            "loader": LOADER,
            "note": "PEFT has no such method: load this folder with the function `loader` of the "
            "package peft-sweeps",
        }
        text = json.dumps(about, indent=2, sort_keys=True)
        (Path(folder) / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")


def load_own(model: PreTrainedModel, folder: Path, settings: dict[str, Any]) -> OwnModel:
    """The model that `OwnModel.save_pretrained` has written to `folder`, on a fresh base."""
    adapter = settings["adapter"]
    if settings["peft_type"] == "BOTTLENECK":
        built = bottleneck(model, BottleneckSpec(**adapter), settings["targets"], settings["whole"])
    else:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        built = OwnModel(model, settings)
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    found = built.base_model.load_state_dict(tensors, strict=False)
    if found.unexpected_keys:
        raise ValueError(f"{folder} holds weights of another model: {found.unexpected_keys[0]}")
    return built.eval()


def bottleneck(
    model: PreTrainedModel, adapter: BottleneckSpec, targets: Sequence[str], whole: Sequence[str]
) -> OwnModel:
    """`model` with fresh bottlenecks after `targets` and trainable copies of `whole`, in place."""
    for name in whole:
        for full in [n for n, _ in model.named_modules() if n.endswith(name)]:
            own = copy.deepcopy(model.get_submodule(full)).requires_grad_(True)
            raise_to_float32(own)
            _replace(model, full, own)
    for name in targets:
        layer = model.get_submodule(name)
        _replace(model, name, Adapted(layer, adapter))
    settings = {
        "peft_type": "BOTTLENECK",
        "adapter": adapter.model_dump(mode="json", exclude={"from"}),
        "targets": list(targets),
        "whole": list(whole),
    }
    return OwnModel(model, settings)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def build_bottleneck(setting: Setting) -> nn.Module:
    """The base with a bottleneck after each target (Houlsby et al. 2019; Pfeiffer et al. 2020)."""
    adapter: BottleneckSpec = setting.adapter
    return bottleneck(setting.base.model, adapter, setting.targets, setting.whole)


def build_full(setting: Setting) -> nn.Module:
    """The base itself, in float32; its weights are put back afterwards."""
    adapter: FullSpec = setting.adapter
    model = setting.base.model
    embeddings = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(adapter.train_embeddings or parameter not in embeddings)
    return OwnModel(model, {"peft_type": "FULL", "adapter": adapter.model_dump(mode="json")})


BOTTLENECK = Method(name="bottleneck", build=build_bottleneck)


FULL = Method(name="full", build=build_full)
