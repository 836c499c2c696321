"""One trial in one slot: its parameters, its optimizer and its schedule.

Optimizer, clipping and schedule are torch's and transformers' own, on the slot's row: two slices,
of which one is decayed. So a slot steps when it is due and is untouched when it is not. `capture`
and `restore` move a trial between packs of other shapes, and to and from checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from peft_jobs.keyed import ADAPTER
from peft_jobs.packed.layout import Part
from peft_jobs.packed.pack import Named, Pack
from peft_jobs.spec import TrialSpec
from peft_jobs.training_state import Tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Captured:
    """All that a trial has in a slot, at its own rank."""

    values: Named
    gradients: Named = field(default_factory=dict)
    """Of the optimizer step that is not complete; none where nothing was accumulated."""
    moments: Mapping[str, Named] = field(default_factory=dict)
    """By name of the optimizer's state; none before the first step."""
    steps: int = 0
    schedule: Mapping[str, Any] | None = None


class Tenant:
    """The parameters of one trial while it has a slot of a pack."""

    def __init__(
        self, pack: Pack, slot: int, spec: TrialSpec, num_steps: int, captured: Captured
    ) -> None:
        """`num_steps` is the horizon of the schedule."""
        self.pack, self.slot, self.spec = pack, slot, spec
        self._own = captured.values.keys()
        training, decayed = spec.training, pack.layout.decayed
        self._cuts = [
            cut
            for cut in (slice(0, decayed), slice(decayed, pack.layout.size))
            if cut.stop > cut.start
        ]
        self._leaves = [_leaf(pack, slot, cut) for cut in self._cuts]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [leaf], "weight_decay": training.weight_decay if index == 0 else 0.0}
                for index, leaf in enumerate(self._leaves)
            ],
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            fused=True,
        )
        warmup = training.warmup_steps
        self.scheduler = get_scheduler(
            training.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=int(warmup) if warmup >= 1 else math.ceil(num_steps * warmup),
            num_training_steps=num_steps,
        )
        adapter = spec.adapter
        scale = adapter.lora_alpha / (math.sqrt(adapter.r) if adapter.use_rslora else adapter.r)
        pack.scales_K[slot] = scale
        self._restore(captured)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Clip, step, go on in the schedule, and clear the gradients of this slot."""
        if self.spec.training.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self._leaves, self.spec.training.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget what was accumulated."""
        self.pack.gradients_KP[self.slot].zero_()

    def values(self) -> Named:
        """The trial's parameters at its own rank; copies."""
        return self._trimmed(self.pack.values_KP[self.slot])

    def capture(self) -> Captured:
        """All of the trial, to be given to another slot."""
        moments = {}
        for name in MOMENTS:
            parts = [self.optimizer.state[leaf].get(name) for leaf in self._leaves]
            if all(part is not None for part in parts):
                moments[name] = self._trimmed(torch.cat(parts))
        return Captured(
            values=self.values(),
            gradients=self._trimmed(self.pack.gradients_KP[self.slot]),
            moments=moments,
            steps=int(self.optimizer.state[self._leaves[0]].get("step", 0)),
            schedule=self.scheduler.state_dict(),
        )

    def _restore(self, captured: Captured) -> None:
        for rows, named in (
            (self.pack.values_KP, captured.values),
            (self.pack.gradients_KP, captured.gradients),
        ):
            rows[self.slot].copy_(self._row_of(named))
        if captured.schedule is not None:
            self.scheduler.load_state_dict(dict(captured.schedule))
            rates = self.scheduler.get_last_lr()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if captured.moments:
            moments = {name: self._row_of(named) for name, named in captured.moments.items()}
            for leaf, cut in zip(self._leaves, self._cuts, strict=True):
                self.optimizer.state[leaf] = {
                    "step": torch.tensor(float(captured.steps), device=leaf.device),
                    **{name: row[cut].clone() for name, row in moments.items()},
                }

    def _row_of(self, named: Named) -> Tensor:
        """A row that holds these tensors, and zeros beside them."""
        row = torch.zeros_like(self.pack.values_KP[self.slot])
        for place in self.pack.layout.places:
            value = named.get((place.module, place.part))
            if value is not None:
                view = row[place.start : place.stop].view(place.shape)
                view[tuple(slice(0, length) for length in value.shape)].copy_(value)
        return row

    def _trimmed(self, row: Tensor) -> Named:
        """The tensors of a row without the room that is not the trial's."""
        r, found = self.spec.adapter.r, {}
        for place in self.pack.layout.places:
            if (place.module, place.part) not in self._own:
                continue  # another slot's
            tensor = row[place.start : place.stop].view(place.shape)
            if place.part == "lora_A":
                tensor = tensor[:r]
            elif place.part == "lora_B":
                tensor = tensor[:, :r]
            found[place.module, place.part] = tensor.detach().clone()
        return found


def peft_name(module: str, part: Part) -> str:
    """The name of a parameter in PEFT's model of the trial."""
    whole = part in ("weight", "bias")
    inner = f"modules_to_save.{ADAPTER}.{part}" if whole else f"{part}.{ADAPTER}.weight"
    return f"base_model.model.{module}.{inner}"


def to_snapshot(captured: Captured) -> bytes:
    """As `training_state.snapshot` of the same trial alone: either engine goes on from it."""
    tensors: Tensors = {}
    for (module, part), value in captured.values.items():
        name = peft_name(module, part)
        tensors[f"model/{name}"] = value
        for key, named in captured.moments.items():
            tensors[f"optimizer/{name}/{key}"] = named[module, part]
        if captured.moments:
            tensors[f"optimizer/{name}/step"] = torch.tensor(float(captured.steps))
    content: bytes = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    )
    return content


def from_snapshot(
    tensors: Tensors, places: Mapping[tuple[str, Part], Any], steps: int, schedule: Any
) -> Captured:
    """A trial's snapshot, of either engine; `places` are the parameters that it has.

    Raises KeyError if it lacks one of them.
    """
    names = {place: peft_name(*place) for place in places}
    values = {place: tensors[f"model/{name}"] for place, name in names.items()}
    moments = {
        key: {place: tensors[f"optimizer/{name}/{key}"] for place, name in names.items()}
        for key in MOMENTS
        if any(f"optimizer/{name}/{key}" in tensors for name in names.values())
    }
    return Captured(values, {}, moments, steps, schedule)


def _leaf(pack: Pack, slot: int, cut: slice) -> nn.Parameter:
    leaf = nn.Parameter(pack.values_KP[slot, cut])
    leaf.grad = pack.gradients_KP[slot, cut]
    return leaf
