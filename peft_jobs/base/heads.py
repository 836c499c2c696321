"""Heads that the checkpoint does not have: which they are, and their initial weights by key."""

import copy
from collections.abc import Iterable

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from peft_jobs.base.architecture import inside
from peft_jobs.randomness import ADAPTER, key
from peft_jobs.tasks.task import base_of

FRESH = "_fresh_modules"
"""Attribute of a base: names of the modules that its checkpoint lacks, topmost ones, sorted."""


def fresh_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules of the base (also under a PeftModel) that its checkpoint lacks."""
    names: tuple[str, ...] = getattr(model, FRESH, ())
    return names


def topmost_modules(model: nn.Module, parameters: Iterable[str]) -> tuple[str, ...]:
    """The largest modules that have no parameters beside `parameters`, sorted."""
    missing = set(parameters)
    found: list[str] = []
    for name, module in model.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if name and own and own <= missing and not inside(name, found):
            found.append(name)
    return tuple(sorted(found))


def forget(model: nn.Module, parameters: Iterable[str]) -> None:
    """Make the modules of a base that have no parameters beside these fresh ones, too."""
    fresh = {*fresh_modules(model), *topmost_modules(model, parameters)}
    setattr(model, FRESH, tuple(sorted(fresh)))


def reset_head(model: nn.Module, seed: int) -> None:
    """Give the fresh modules of `model` new weights from (seed, module name), in place.

    `model` is a base, or has an adapter on it: then the trial's trainable copies are reset and the
    base stays as it is. The distribution is the architecture's own, drawn in float32 on the CPU, so
    a GPU gets the same weights. Does nothing to a base whose checkpoint was complete.
    """
    base = base_of(model)
    for name in fresh_modules(base):
        head = base.get_submodule(name)
        if isinstance(head, ModulesToSaveWrapper):
            head = head.modules_to_save[ADAPTER]
        _draw(base, head, name, seed)


def initial_head(model: PreTrainedModel, name: str, seed: int) -> nn.Module:
    """A trial's own copy of the head `name` of a base: the checkpoint's weights in float32.

    What the checkpoint lacks is drawn as `reset_head` draws it.
    """
    head = copy.deepcopy(model.get_submodule(name)).float()
    if name in fresh_modules(model):
        _draw(model, head, name, seed)
    return head


def _draw(base: PreTrainedModel, head: nn.Module, name: str, seed: int) -> None:
    """Give every module of `head`, which `base` calls `name`, the weights of its key."""
    for part, module in head.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            _reset(base, module, key("head", seed, f"{name}.{part}".rstrip(".")))


def _reset(base: PreTrainedModel, module: nn.Module, seed: int) -> None:
    drawn = copy.deepcopy(module).to("cpu", torch.float32)
    with torch.random.fork_rng(devices=[]):
        # `_init_weights` takes no generator; the CPU's global one is put back at once.
        torch.default_generator.manual_seed(seed)
        base._init_weights(drawn)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for target, source in zip(module.parameters(), drawn.parameters(), strict=True):
            target.copy_(source)
