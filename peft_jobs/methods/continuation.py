"""Puts the weights of a saved adapter in the place of fresh ones (`adapter.from`).

The adapter is built as a fresh one is, from the spec, and with what its own settings hold beside
the spec's fields; then every weight is read from its file. Names and shapes must be those of the
file: nothing is left out, and nothing keeps a fresh value, but for a head that the task has and the
adapter has not.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import safetensors.torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import skeleton
from peft_jobs.errors import SpecError
from peft_jobs.methods.placement import parameter_places, places
from peft_jobs.spec import LoraSpec, ModelSpec, TaskSpec
from peft_jobs.spec.adapters import Adapter, saved_adapter
from peft_jobs.storage.saved_adapter import CONFIG_FILE, WEIGHTS_FILE, SavedAdapter

PREFIX = "base_model.model."
"""Stands before a module's name in PEFT's files."""
_OF_THE_TRIAL = (
    *("task_type", "peft_type", "inference_mode", "runtime_config", "modules_to_save"),
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    *("target_modules", "target_parameters", "exclude_modules", "feedforward_modules"),
    *("layers_to_transform", "layers_pattern"),
)
"""PEFT's settings that say where an adapter comes from, how it began, and which modules are meant,
which the trial says by their full names."""


def check_continues_without_weights(model: ModelSpec, task: TaskSpec, adapter: Adapter) -> None:
    """Raise SpecError if the saved adapter was not made for a base like this: seconds, no weights.

    DataError if it is gone, or has changed. Nothing is checked of a trial that begins anew.
    """
    if adapter.source is not None:
        check_fits(skeleton(model, task), adapter, saved_adapter(adapter))


def check_fits(
    model: PreTrainedModel, adapter: Adapter, saved: SavedAdapter, exclude: Sequence[str] = ()
) -> None:
    """Raise SpecError unless the modules in a saved adapter are those that `adapter` stands for.

    Of LoRA the shapes too; those of other methods are compared once they are built. `model` may be
    on the meta device; modules in `exclude` are left out, as the head is.
    """
    try:
        targets = {*places(model, adapter, exclude), *parameter_places(model, adapter, exclude)}
    except SpecError as error:
        raise SpecError(f"{_foreign(saved)}: {error}") from error
    modules = dict(model.named_modules())
    adapted: set[str] = set()
    for name, shape in saved.shapes.items():
        if not name.startswith(PREFIX):
            continue
        place = _module(name.removeprefix(PREFIX), modules)
        if not place or isinstance(modules[place], nn.ModuleList):
            raise SpecError(f"{_foreign(saved)}: it has {name}, and the base has no such module")
        if ".lora_" in name:
            adapted.add(place)
            _check_shape(name, shape, modules[place], saved)
    if isinstance(adapter, LoraSpec) and not adapter.target_parameters and adapted != targets:
        kind, names = "only the trial", targets - adapted
        if not names:
            kind, names = "only the saved adapter", adapted - targets
        raise SpecError(
            f"adapter.from: {kind} adapts {', '.join(sorted(names)[:3])}: leave "
            f"adapter.target_modules out, which are then those of {saved.folder}; or name modules "
            "that are"
        )


def _module(name: str, modules: Collection[str]) -> str:
    """The one of `modules` to which a weight belongs; the empty name if there is none.

    LoRA's belong to the module before their names, of other methods nothing but the innermost
    module is known.
    """
    if ".lora_" in name:
        name = name.partition(".lora_")[0].replace(".base_layer", "")
        return name if name in modules else ""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _check_shape(name: str, shape: Sequence[int], module: nn.Module, saved: SavedAdapter) -> None:
    """Compare the inputs of A and the outputs of B with those of a linear module."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    elif isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
    else:
        return
    for part, side, size in ((".lora_A.weight", 1, inputs), (".lora_B.weight", 0, outputs)):
        if name.endswith(part) and (len(shape) != 2 or shape[side] != size):
            raise SpecError(f"{_foreign(saved)}: {name} is {list(shape)}, and {size} are needed")


def further_settings(saved: SavedAdapter, adapter: Adapter, fresh: PeftConfig) -> dict[str, Any]:
    """What the settings of a saved adapter hold beside the fields of the spec, by name.

    `fresh` is the configuration that follows from the spec. Raises SpecError for what the installed
    PEFT does not know.
    """
    known = {field.name for field in dataclasses.fields(fresh)}
    unknown = [name for name in saved.settings.keys() - known if saved.settings[name]]
    if unknown:
        raise SpecError(
            f"adapter.from: {saved.folder / CONFIG_FILE} sets {', '.join(sorted(unknown))}, which "
            "the installed PEFT does not know"
        )
    theirs = type(fresh)(**{k: v for k, v in saved.settings.items() if k in known})
    ours = {*_OF_THE_TRIAL, *type(adapter).model_fields}
    return {name: getattr(theirs, name) for name in known - ours}


def is_plain(saved: SavedAdapter, adapter: Adapter) -> bool:
    """Whether the settings of a saved adapter of PEFT's hold nothing beside the fields of the
    spec."""
    defaults: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(adapter.method.upper())]()
    found = further_settings(saved, adapter, defaults)
    return all(value == getattr(defaults, name) for name, value in found.items())


def load_weights(model: Any, saved: SavedAdapter, whole: Sequence[str]) -> None:
    """Give an adapter that was built for a trial the weights of the saved one, in place.

    `whole` are the modules that are trained whole. Raises SpecError unless names and shapes agree.
    """
    if isinstance(model, PeftModel):
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
        set_peft_model_state_dict(model, {**own, **read_weights(saved, own, whole)})
        return
    own = {name: p for name, p in model.base_model.named_parameters() if p.requires_grad}
    model.base_model.load_state_dict(read_weights(saved, own, whole), strict=False)


def read_weights(
    saved: SavedAdapter, own: Mapping[str, Tensor], whole: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a saved adapter, on the CPU, which must be those of a trial, `own`.

    Of the modules that are trained `whole`, one that the settings of the saved adapter do not name
    may be missing: the head of a task that it does not know. Raises SpecError.
    """
    shapes = saved.shapes
    named = saved.settings.get("modules_to_save") or saved.settings.get("whole") or ()
    lacking = own.keys() - shapes.keys()
    for name in set(whole) - set(named):
        if not holds(saved, name):
            lacking = {weight for weight in lacking if not _is_in(weight, name)}
    for names, words in ((shapes.keys() - own.keys(), "has"), (lacking, "lacks")):
        if names:
            raise SpecError(f"{_foreign(saved)}: it {words} {', '.join(sorted(names)[:3])}")
    for name, shape in shapes.items():
        if shape != tuple(own[name].shape):
            told = f"{name} is {list(shape)} there and {list(own[name].shape)} here"
            if any(_is_in(name, module) for module in whole):
                told += " (other classes than those of the data, or another vocabulary)"
            raise SpecError(f"{_foreign(saved)}: {told}")
    path = saved.folder / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise SpecError(f"adapter.from: {path} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SpecError(f"adapter.from: {name} of {path} holds values that are not finite")
    return dict(tensors)


def holds(saved: SavedAdapter, module: str) -> bool:
    """Whether a saved adapter has weights of a module that is trained whole."""
    return any(_is_in(name, module) for name in saved.shapes)


def _is_in(weight: str, module: str) -> bool:
    return weight.removeprefix(PREFIX).startswith(f"{module}.")


def _foreign(saved: SavedAdapter) -> str:
    base = saved.settings.get("base_model_name_or_path")
    of = f" ({base})" if base else ""
    return f"adapter.from: {saved.folder} was made for another base{of} or task"
