"""Randomness that belongs to the trial: every draw has a key, no draw reads global state.

Initial weights come from (trial seed, module), the order of the data from (trial seed, epoch),
dropout masks from (trial seed, micro-step, module). So a trial draws the same numbers alone, after
others on a resident base, or beside others in a pack.
"""

import hashlib
import json
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peft_jobs.dropout_masks import (
    TOKEN_STRIDE,
    LayerMasks,
    MaskColumns,
    draw_kept,
    layer_of,
    num_words,
    signed,
    stream_key,
    threshold,
)

ADAPTER = "default"
"""PEFT's name of the one adapter that a trial attaches."""


def key(*parts: str | int) -> int:
    """64 bits from `parts`: equal parts give equal keys, on every machine and in every process."""
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(device: torch.device | str, *parts: str | int) -> torch.Generator:
    """A generator on `device` seeded with `key(*parts)`."""
    return torch.Generator(device).manual_seed(key(*parts))


def epoch_order(seed: int, epoch: int, num_rows: int) -> torch.Tensor:
    """A permutation of `num_rows` row numbers, int64, from (seed, epoch)."""
    return torch.randperm(num_rows, generator=generator("cpu", "order", seed, epoch))


def initial_lora_A(seed: int, module: str, r: int, in_features: int) -> torch.Tensor:
    """The first `lora_A` of `module`: float32 on the CPU, [r, in_features].

    The distribution is PEFT's (`LoraLayer.reset_lora_parameters`): kaiming_uniform with a=sqrt(5).
    """
    weight = torch.empty(r, in_features)
    source = generator("cpu", "lora_A", seed, module)
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=source)


@dataclass
class Clock:
    """Where the trial is; one object shared by its trainer and its dropout modules."""

    micro_step: int = 0
    """Forward-backward passes begun: the trainer adds one for each, accumulated or not."""


def dropped(x: torch.Tensor, p: float, seed: int, micro_step: int, module: str) -> torch.Tensor:
    """`x` with each element zeroed with probability `p`, the others scaled by 1 / (1 - p).

    Elements are counted along the last dimension and over all others; see `dropout_masks`.
    """
    width, device = x.shape[-1], x.device
    stream = stream_key(dropout_step_key(seed, micro_step), dropout_module_key(module))
    keys_11 = torch.full((1, 1), stream, device=device)
    words_C = torch.arange(num_words(width), device=device)
    counters_1T = counters_of(x.shape[:-1].numel(), device)
    kept_1TI = draw_kept(keys_11, keys_11 * words_C, counters_1T, threshold(p))[..., :width]
    return x * kept_1TI.reshape(x.shape) / (1 - p)


def counters_of(tokens: int, device: torch.device) -> torch.Tensor:
    """[1, tokens]: of the tokens of a trial alone."""
    return torch.arange(tokens, device=device).mul_(TOKEN_STRIDE)[None]


def dropout_step_key(seed: int, micro_step: int) -> int:
    """Of all masks of a trial's micro-step, counted from 1."""
    return key("dropout", seed, micro_step)


def dropout_module_key(module: str) -> int:
    """Of all masks of a module, by its name in the base."""
    return key("dropout", module)


class TrialMasks:
    """What a trial's modules keep, drawn for a layer at once: fewer launches, the same bits.

    What they are asked for in one micro-step says what is drawn together in the next.
    """

    def __init__(self, seed: int, clock: Clock) -> None:
        self.seed, self.clock = seed, clock
        self._asked: dict[str, tuple[int, int, float]] = {}
        """Width, tokens and rate of each module, where it has asked first."""
        self._columns: MaskColumns | None = None
        self._masks: LayerMasks | None = None
        self._micro_step: int | None = None
        self._counters: dict[int, torch.Tensor] = {}

    def dropped(self, x: torch.Tensor, p: float, module: str) -> torch.Tensor:
        """As the function `dropped`."""
        width, tokens = x.shape[-1], x.shape[:-1].numel()
        if self._micro_step != self.clock.micro_step:
            self._begin(x.device)
        asked = self._asked.setdefault(module, (width, tokens, p))
        known = self._columns is not None and module in self._columns.columns
        if self._masks is None or not known or asked[0] != width or asked[2] != p:
            return dropped(x, p, self.seed, self.clock.micro_step, module)
        if tokens not in self._counters:
            self._counters[tokens] = counters_of(tokens, x.device)
        kept_1TI = self._masks.kept(module, self._counters[tokens], threshold(p))
        return x * kept_1TI.reshape(x.shape) / (1 - p)

    def _begin(self, device: torch.device) -> None:
        """Draws of another micro-step follow."""
        self._micro_step, self._counters, self._masks = self.clock.micro_step, {}, None
        if not self._asked:
            return
        if self._columns is None or len(self._columns.columns) < len(self._asked):
            widths = {name: width for name, (width, _, _) in self._asked.items()}
            keys = {name: dropout_module_key(name) for name in widths}
            layers = {
                name: f"{layer_of(name)} {tokens} {p}"
                for name, (_, tokens, p) in self._asked.items()
            }
            self._columns = MaskColumns(widths, keys, layers, device)
        step = signed(dropout_step_key(self.seed, self.clock.micro_step))
        self._masks = LayerMasks(self._columns, torch.full((1, 1), step, device=device))


class KeyedDropout(nn.Module):
    """Dropout whose mask depends on (seed, micro-step, module) only.

    Recomputation in the same micro-step draws the same mask. The identity in eval mode. No state.
    """

    def __init__(self, p: float, module: str, masks: TrialMasks) -> None:
        """`masks` are those of the trial, shared by its modules."""
        super().__init__()
        self.p, self.module, self.masks = p, module, masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        return self.masks.dropped(x, self.p, self.module)

    def extra_repr(self) -> str:
        return f"p={self.p}, seed={self.masks.seed}, module={self.module}"


def base_name(name: str) -> str:
    """The name in the base of a module of a PeftModel (`base_model.model.` taken off)."""
    return name.removeprefix("base_model.model.")


def tuner_layers(peft_model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name in the base, PEFT layer) of all modules that PEFT has put in the base's place.

    A layer that adapts one parameter of a module has the name of the parameter; those of several
    lie in one another.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in peft_model.named_modules():
        if isinstance(module, BaseTunerLayer):
            own = getattr(module, "parameter_name", None)
            place = base_name(name)
            yield place if own is None else f"{place.replace('.base_layer', '')}.{own}", module


def key_dropout(adapted: nn.Module, own: Container[nn.Module], seed: int, clock: Clock) -> None:
    """Replace every dropout of the adapter by a `KeyedDropout`; those of the base, `own`, stay.

    The first one in a PEFT layer has the layer's name in the base, others a longer one.
    """
    layers, masks = dict(tuner_layers(adapted)), TrialMasks(seed, clock)
    named: set[str] = set()
    for name, module in list(adapted.named_modules()):
        for child_name, child in list(module.named_children()):
            full = base_name(f"{name}.{child_name}")
            if type(child) is not nn.Dropout or child in own or child.p == 0:
                continue
            if ".modules_to_save." in full:
                continue
            layer = next((other for other in layers if full.startswith(f"{other}.")), full)
            place = full if layer in named else layer
            named.add(place)
            setattr(module, child_name, KeyedDropout(child.p, place, masks))
