"""The tensors of a training run: trainable parameters and the optimizer's state, by name.

Nothing of the frozen base is among them, nothing is quantized, and no pickle is read or written.
"""

import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from peft_jobs.device.host_copies import HostCopies
from peft_jobs.errors import Damaged

Tensors = dict[str, Tensor]
"""`model/<parameter>`, `optimizer/<parameter>/<name of the state>`, `method/<what it keeps>`,
`scaler/<name of the state>`."""
METHOD_STATE = "_method_state"
"""Attribute of a model whose method keeps more than parameters: an object with `tensors()` and
`load(tensors)`."""


def snapshot(
    model: nn.Module, optimizer: Any, scaler: torch.amp.GradScaler | None = None
) -> HostCopies:
    """Copies of the tensors as they are now; `scaler` is float16's."""
    tensors: Tensors = {f"model/{name}": value for name, value in _trainable(model).items()}
    for name, parameter in _trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    if (kept := getattr(model, METHOD_STATE, None)) is not None:
        tensors |= {f"method/{name}": value for name, value in kept.tensors().items()}
    if scaler is not None:
        state = scaler.state_dict().items()
        tensors |= {f"scaler/{name}": torch.as_tensor(value) for name, value in state}
    return HostCopies(tensors)


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file; other threads go on meanwhile. Raises OSError if the disk refuses.

    The library's `save` would hold Python's lock for a second of each gigabyte.
    """
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:  # it tells the disk's errors in its own way
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def parse(content: bytes) -> Tensors:
    """The tensors of a `snapshot`; none of an empty one."""
    return safetensors.torch.load(content) if content else {}


def restore_model(model: nn.Module, tensors: Tensors) -> None:
    """Give the trainable parameters the values of a snapshot, in place.

    Raises Damaged, and changes nothing, if the model has other ones.
    """
    own = _trainable(model)
    saved = {
        name.removeprefix("model/"): value
        for name, value in tensors.items()
        if name.startswith("model/")
    }
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved or own[name].shape != saved[name].shape:
            raise Damaged(f"the trial trains other parameters now: {name}")
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)
    if (kept := getattr(model, METHOD_STATE, None)) is not None:
        prefix = "method/"
        kept.load({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def restore_optimizer(
    model: nn.Module, optimizer: Any, scheduler: Any, tensors: Tensors, schedule: dict[str, Any]
) -> None:
    """Give a fresh optimizer and its schedule the state of a snapshot, in place."""
    scheduler.load_state_dict(dict(schedule))
    saved: dict[str, Tensors] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            parameter, _, key = rest.rpartition("/")
            saved.setdefault(parameter, {})[key] = value
    names = {parameter: name for name, parameter in _trainable(model).items()}
    state, groups = {}, optimizer.state_dict()["param_groups"]
    for group, own, rate in zip(
        groups, optimizer.param_groups, scheduler.get_last_lr(), strict=True
    ):
        group["lr"] = rate
        for index, parameter in zip(group["params"], own["params"], strict=True):
            if names[parameter] in saved:
                held = saved[names[parameter]]
                # bitsandbytes counts steps in a plain int
                state[index] = {
                    k: v.item() if v.dtype == torch.int64 else v for k, v in held.items()
                }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_scaler(scaler: torch.amp.GradScaler | None, tensors: Tensors) -> None:
    """Give float16's scaler the state of a snapshot, in place; one without it changes nothing."""
    prefix = "scaler/"
    saved = {k.removeprefix(prefix): v.item() for k, v in tensors.items() if k.startswith(prefix)}
    if scaler is not None and saved:
        scaler.load_state_dict(saved)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
