"""Runs a base to detect hidden randomness, rows that depend on each other or on their padding, and
layers that would pass an adapter by.

Some models take the weight of a linear layer and multiply by themselves (Mamba, and what is built
like it), which passes an adapter by; some drop activations by functions, at rates of their
configuration, of which others belong to heads that the model does not have; some look at padding,
having no attention mask (FNet), or mix rows. Which of these happens differs by kernel, so it is
looked at on the device where it will.
"""

import logging
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot

log = logging.getLogger(__name__)

MIXED = 1e-4
"""Of the largest of a base's outputs, what float32 may round otherwise in a batch."""
_KNOWN: "WeakKeyDictionary[PreTrainedModel, BaseTraits]" = WeakKeyDictionary()


@dataclass
class BaseTraits:
    """Of one model."""

    draws: bool = False
    """It takes random numbers."""
    mixes: bool = False
    """What it gives for a row is another beside a longer row than alone."""
    opened: set[str] = field(default_factory=set)
    """Linear layers of which it uses more than what they give when called."""
    failure: str | None = None
    """Why it could not be watched."""


def traits_of(base: Base) -> BaseTraits:
    """Of the bare base; looked at once. Leaves the base and torch's generators as they were."""
    if base.model not in _KNOWN:
        _KNOWN[base.model] = _detect(base)
    return _KNOWN[base.model]


@torch.no_grad()
def _detect(base: Base) -> BaseTraits:
    model, found = base.model, BaseTraits()
    token = base.tokenizer.eos_token_id or 0  # which encoders with a decoder look for
    ids = torch.full((1, 2), token, device=base.device)
    snapshot = Snapshot.of(model)
    try:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear | Conv1D):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _Closed(layer, name, found.opened))
        model.train()
        with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
            before = _generators(base.device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            states = zip(before, _generators(base.device), strict=True)
            found.draws = any(not torch.equal(*state) for state in states)
        model.eval()  # type: ignore[no-untyped-call]
        found.mixes = _mixes(base)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # these tokens are ours: a trial's own may do
        log.warning("the base could not be watched", exc_info=error)
        found.failure = str(error) or type(error).__name__
    finally:
        snapshot.restore()
    return found


def _mixes(base: Base) -> bool:
    tokenizer = base.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    words = [number for number in range(20) if number not in ends][-8:]
    end = [tokenizer.eos_token_id or 0]
    long, short = [*words[:7], *end], [words[7], words[2], *end]
    padding = [tokenizer.pad_token_id or 0] * (len(long) - len(short))
    together = _outputs(base, [long, short + padding], [len(long), len(short)])
    for row, tokens in enumerate((long, short)):
        alone = _outputs(base, [tokens], [len(tokens)])
        for several, one in zip(together, alone, strict=True):
            several = several[row]
            if one.ndim > 1 and one.shape[1] == len(tokens) != several.shape[0]:
                several = several[: len(tokens)]
            tolerance = max(MIXED, 32 * torch.finfo(one.dtype).eps) * float(one.abs().max())
            if one[0].shape != several.shape or float((one[0] - several).abs().max()) > tolerance:
                return True
    return False


def _outputs(base: Base, rows: list[list[int]], lengths: list[int]) -> list[torch.Tensor]:
    """Every tensor that the base gives for rows of one length, of which so much is no padding."""
    ids = torch.tensor(rows, device=base.device)
    places = torch.arange(ids.shape[1], device=base.device)
    mask = (places < torch.tensor(lengths, device=base.device)[:, None]).long()
    found = base.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return [
        value
        for value in found.values()
        if isinstance(value, torch.Tensor) and value.shape[:1] == ids.shape[:1]
    ]


def _generators(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


class _Closed(nn.Module):
    """A layer that notes its name in `opened` where anything but a call is asked of it."""

    def __init__(self, layer: nn.Module, name: str, opened: set[str]) -> None:
        super().__init__()
        self.layer, self.name, self.opened = layer, name, opened

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.layer, name)
        self.opened.add(self.name)
        return value
