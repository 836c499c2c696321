"""Which modules a text never reaches: towers of a checkpoint that also sees or hears, and the like.

An adapter there would be counted and saved, and never trained. The model's outline runs a few
tokens on the meta device, without weights or numbers, and every module that is called is noted: no
names of architectures are needed, and validation sees what a trial sees.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_UNREACHED = "_modules_out_of_reach"
_TOKENS = 4
_KNOWN: dict[tuple[type, str], frozenset[str]] = {}


def unreached_modules(model: nn.Module) -> frozenset[str]:
    """Full names of the modules with parameters that no text reaches, as far as it is noted."""
    found: frozenset[str] = getattr(model, _UNREACHED, frozenset())
    return found


def note_unreached(outline: PreTrainedModel) -> None:
    """Find out, on a model on the meta device, what `unreached_modules` gives for it.

    Nothing is out of reach of a model that does not run there.
    """
    key = (type(outline), outline.config.to_json_string(use_diff=True))
    if key not in _KNOWN:
        _KNOWN[key] = _unreached(outline)
    setattr(outline, _UNREACHED, _KNOWN[key])


def carry_unreached(model: PreTrainedModel, outline: PreTrainedModel) -> None:
    """Say of `model` what was found out on its outline."""
    setattr(model, _UNREACHED, unreached_modules(outline))


def _unreached(outline: PreTrainedModel) -> frozenset[str]:
    parts = {
        name: module
        for name, module in outline.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    called: set[str] = set()
    for name, module in parts.items():
        module.forward = _noting(module.forward, called, _kind(name))
    try:
        _run(outline)
    except Exception as error:  # what the model asks of real numbers: nothing is known of it
        log.debug("%s does not run on the meta device", type(outline).__name__, exc_info=error)
        return frozenset()
    finally:
        for module in parts.values():
            del module.forward
    return frozenset(name for name in parts if _kind(name) not in called)


def _kind(name: str) -> str:
    """A module's name without numbers: of several layers, or experts, one that is called counts."""
    return re.sub(r"\b\d+\b", "#", name)


def _noting(forward: Callable[..., Any], called: set[str], kind: str) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        called.add(kind)
        return forward(*args, **kwargs)

    return noting


@torch.no_grad()
def _run(outline: PreTrainedModel) -> None:
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if outline.config.is_encoder_decoder and outline.can_generate():
        inputs["decoder_input_ids"] = tokens
    if hasattr(outline, "set_experts_implementation"):
        outline.set_experts_implementation("batched_mm")  # the others ask which expert is chosen
    training = outline.training
    try:
        with _Answers():  # type: ignore[no-untyped-call]
            outline.train(False)(**inputs)
    finally:
        outline.train(training)


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Says yes where a model asks for a tensor's value: of a mask, whether all of it is set."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        return func(*args, **(kwargs or {}))


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1
