"""Runs a base to detect hidden randomness, rows that depend on each other or on their padding, and
layers that would pass an adapter by.

Some models take the weight of a linear layer and multiply by themselves (Mamba, and what is built
like it), which passes an adapter by; some drop activations by functions, at rates of their
configuration, of which others belong to heads that the model does not have; some look at padding,
having no attention mask (FNet), or mix rows. Which of these happens differs by kernel, so it is
looked at on the device where it will.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.base_dropout import KeyedBaseDropout, has_dropout
from peft_jobs.engines.packed.micro_batches import Chunk, MicroBatch
from peft_jobs.engines.packed.slot_masks import BaseMasks, NoRow
from peft_jobs.randomness import dropped

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
    stretches: bool = False
    """It gives its layers rows of other lengths than it was given."""
    shared: frozenset[str] = frozenset()
    """Linear layers that it gives what belongs to no row (DeBERTa's relative positions)."""
    opened: frozenset[str] = frozenset()
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
    model, found, seen = base.model, BaseTraits(), _Seen()
    token = base.tokenizer.eos_token_id or 0  # which encoders with a decoder look for
    ids = torch.full((1, 2), token, device=base.device)
    snapshot, keyed = Snapshot.of(model), KeyedBaseDropout(model)
    try:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear | Conv1D):
                parent, _, child = name.rpartition(".")
                closed = _Closed(layer, name, seen)
                setattr(model.get_submodule(parent), child, closed)
        model.train()
        with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
            before = _generators(base.device)
            keyed.draw = partial(_dropped, 0)
            with keyed:
                model(**_inputs(model, ids, torch.ones_like(ids)))
            states = zip(before, _generators(base.device), strict=True)
            found.draws = any(not torch.equal(*state) for state in states)
        found.stretches = not seen.lengths <= {1, ids.shape[1]}
        if has_dropout(model) and not found.draws:
            with keyed:
                found.mixes = _mixes(
                    base, keyed, seen
                )  # perhaps by what it drops of what all rows share
        model.eval()  # type: ignore[no-untyped-call]
        found.mixes = found.mixes or _mixes(base, keyed, seen)
        found.opened = frozenset(name for name, times in seen.opened.items() if times)
        found.shared = frozenset(seen.shared)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # these tokens are ours: a trial's own may do
        log.warning("the base could not be watched", exc_info=error)
        found.failure = str(error) or type(error).__name__
    finally:
        snapshot.restore()
    return found


def _dropped(seed: int, x: torch.Tensor, p: float, where: str) -> torch.Tensor:
    return dropped(x, p, seed, 1, where)


def _mixes(base: Base, keyed: KeyedBaseDropout, seen: "_Seen") -> bool:
    tokenizer = base.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    words = [number for number in range(20) if number not in ends][-8:]
    end = [tokenizer.eos_token_id or 0]
    long, short = [*words[:7], *end], [words[7], words[2], *end]
    padding = [tokenizer.pad_token_id or 0] * (len(long) - len(short))
    rows = [MicroBatch([{"input_ids": tokens, "labels": tokens}]) for tokens in (long, short)]
    chunks = [Chunk(row, 1, 0, 1, 1.0, ends_step=True) for row in rows]
    sites = keyed.masks
    keyed.draw = BaseMasks(sites, range(2), chunks, [len(long)], base.device).dropped
    seen.num_rows = 2
    try:
        together = _outputs(base, [long, short + padding], [len(long), len(short)])
    except NoRow:
        return True
    finally:
        seen.num_rows = 1
    for row, tokens in enumerate((long, short)):
        keyed.draw = partial(_dropped, row)
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
    found = base.model(**_inputs(base.model, ids, mask))
    return [
        value
        for value in found.values()
        if isinstance(value, torch.Tensor) and value.shape[:1] == ids.shape[:1]
    ]


def _inputs(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """What a model is called with; one that writes behind what it reads writes the same."""
    found = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        found["decoder_input_ids"] = ids
    return found


def _generators(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@dataclass
class _Seen:
    """What was seen of all layers."""

    num_rows: int = 1
    """Of the batch; what belongs to rows has a multiple of so many."""
    lengths: set[int] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    opened: Counter[str] = field(default_factory=Counter)


class _Watched:
    """A weight that is asked for. Its layer is `opened` unless only its type is looked at, as T5
    does: handing it on unseen counts too."""

    def __init__(self, weight: nn.Parameter, name: str, opened: Counter[str]) -> None:
        self._weight, self._name, self._opened = weight, name, opened
        opened[name] += 1

    @property  # type: ignore[misc]  # `isinstance` asks for it
    def __class__(self) -> Any:
        self._type_seen()
        return nn.Parameter

    @property
    def dtype(self) -> torch.dtype:
        self._type_seen()
        return self._weight.dtype

    def _type_seen(self) -> None:
        if "_seen" not in vars(self):
            self._seen = True
            self._opened[self._name] -= 1

    def __getattr__(self, name: str) -> Any:
        self._opened[self._name] += 1
        return getattr(self._weight, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def used(value: Any) -> Any:
            if type(value) is not _Watched:
                return value
            value._opened[value._name] += 1
            return value._weight

        args, kwargs = tree_map(used, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Closed(nn.Module):
    """A layer of which `seen` notes what it is given, and where anything but a call is asked of
    it."""

    def __init__(self, layer: nn.Module, name: str, seen: _Seen) -> None:
        super().__init__()
        self.layer, self.name, self.seen = layer, name, seen

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.seen.lengths.add(x.shape[:-1].numel())
        if len(x) % self.seen.num_rows:
            self.seen.shared.add(self.name)
        return self.layer(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.layer, name)
        if name == "weight":
            return _Watched(value, self.name, self.seen.opened)
        self.seen.opened[self.name] += 1
        return value
