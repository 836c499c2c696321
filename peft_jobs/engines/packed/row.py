"""One trial in one slot: its parameters, its optimizer and its schedule.

Clipping and AdamW are torch's own formulas, on the slot's row: two slices, of which one is decayed.
So a slot steps when it is due and is untouched when it is not. The state of all slots is allocated
with the pack: a step asks for no memory. `capture` and a new PackRow move a trial between packs of
other shapes, and to and from checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.optim.adamw import adamw
from transformers import TrainingArguments, get_scheduler

from peft_jobs.device.memory import RanOut, tried
from peft_jobs.engines.packed.eligibility import lora_of
from peft_jobs.engines.packed.layout import Part
from peft_jobs.engines.packed.pack import Named, Pack
from peft_jobs.randomness import ADAPTER
from peft_jobs.spec import TrainingSpec, TrialSpec
from peft_jobs.training.training_state import Tensors

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

    def on_cpu(self) -> "Captured":
        """The same, where it takes no memory of a GPU."""
        moments = {name: _on_cpu(named) for name, named in self.moments.items()}
        return Captured(_on_cpu(self.values), _on_cpu(self.gradients), moments, self.steps)


def _on_cpu(named: Named) -> Named:
    return {place: tensor.to("cpu") for place, tensor in named.items()}


class Schedule:
    """The learning rate of each step, by transformers' own schedules."""

    def __init__(self, training: TrainingSpec, num_steps: int) -> None:
        """`num_steps` is the horizon. Groups and state are those of the Trainer's scheduler."""
        leaves = [torch.nn.Parameter(torch.empty(0)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": [leaf]} for leaf in leaves], training.learning_rate)
        # It reads nothing else of its arguments.
        warmup = TrainingArguments.get_warmup_steps(cast(Any, training), num_steps)
        self._scheduler: Any = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=num_steps,
        )

    def rate(self, step: int) -> float:
        """Of the step that follows `step` steps."""
        scheduler = self._scheduler
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step))

    def state(self, step: int) -> dict[str, Any]:
        """The scheduler's state after `step` steps."""
        scheduler = self._scheduler
        scheduler.last_epoch, scheduler._step_count = step, step + 1
        scheduler._last_lr = [self.rate(step) for _ in scheduler.base_lrs]
        state: dict[str, Any] = scheduler.state_dict()
        return state


class PackRow:
    """The parameters of one trial while it has a slot of a pack."""

    def __init__(
        self, pack: Pack, slot: int, spec: TrialSpec, schedule: Schedule, captured: Captured
    ) -> None:
        self.pack, self.slot, self.spec, self.schedule = pack, slot, spec, schedule
        self._own = captured.values.keys()
        self.steps = captured.steps
        device, decayed, size = pack.values_KP.device, pack.layout.decayed, pack.layout.size
        self._cuts = [
            (slice(start, stop), decay, torch.tensor(float(captured.steps), device=device))
            for start, stop, decay in (
                (0, decayed, spec.training.weight_decay),
                (decayed, size, 0.0),
            )
            if stop > start
        ]
        adapter = lora_of(spec)
        scale = adapter.lora_alpha / (math.sqrt(adapter.r) if adapter.use_rslora else adapter.r)
        pack.scales_K[slot] = scale
        moments = [captured.moments.get(name, {}) for name in MOMENTS]
        for rows, named in zip(
            (pack.values_KP, pack.gradients_KP, *pack.moments_KP),
            (captured.values, captured.gradients, *moments),
            strict=True,
        ):
            self._fill(rows[slot], named)
        pack.values_changed()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.schedule.rate(self.steps)

    @torch.no_grad()
    def step(self) -> None:
        """Clip, step, go on in the schedule, and clear the gradients of this slot."""
        training, pack, slot = self.spec.training, self.pack, self.slot
        gradients = pack.gradients_KP[slot]
        if training.max_grad_norm > 0:  # as torch.nn.utils.clip_grad_norm_
            norm = torch.linalg.vector_norm(gradients)
            gradients.mul_((training.max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
        rate = self.learning_rate
        for cut, decay, count in self._cuts:
            adamw(
                [pack.values_KP[slot, cut]],
                [gradients[cut]],
                [pack.moments_KP[0][slot, cut]],
                [pack.moments_KP[1][slot, cut]],
                [],
                [count],
                fused=True,
                amsgrad=False,
                beta1=training.adam_beta1,
                beta2=training.adam_beta2,
                lr=rate,
                weight_decay=decay,
                eps=training.adam_epsilon,
                maximize=False,
            )
        pack.values_changed()
        self.steps += 1
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget what was accumulated."""
        self.pack.gradients_KP[self.slot].zero_()

    def values(self) -> Named:
        """The trial's parameters at its own rank; copies, perhaps in part on the CPU."""
        return self._trimmed(self.pack.values_KP[self.slot])

    def capture(self) -> Captured:
        """All of the trial, to be given to another slot; perhaps in part on the CPU."""
        pack, moments = self.pack, {}
        if self.steps:
            moments = {
                name: self._trimmed(rows[self.slot])
                for name, rows in zip(MOMENTS, pack.moments_KP, strict=True)
            }
        gradients = self._trimmed(pack.gradients_KP[self.slot])
        return Captured(self.values(), gradients, moments, self.steps)

    def _fill(self, row: Tensor, named: Named) -> None:
        """Make a row hold these tensors, and zeros beside them."""
        row.zero_()
        for place in self.pack.layout.places:
            value = named.get((place.module, place.part))
            if value is not None:
                view = row[place.start : place.stop].view(place.shape)
                view[tuple(slice(0, length) for length in value.shape)].copy_(value)

    def _trimmed(self, row: Tensor) -> Named:
        """The tensors of a row without the room that is not the trial's."""
        r, found = lora_of(self.spec).r, {}
        for place in self.pack.layout.places:
            if (place.module, place.part) not in self._own:
                continue  # another slot's
            tensor = row[place.start : place.stop].view(place.shape)
            if place.part == "lora_A":
                tensor = tensor[:r]
            elif place.part == "lora_B":
                tensor = tensor[:, :r]
            found[place.module, place.part] = _copied(tensor.detach())
        return found


def _copied(tensor: Tensor) -> Tensor:
    """A copy; on the CPU if the tensor's own device has no memory for it."""
    copy = tried(tensor.clone)
    return tensor.to("cpu", copy=True) if isinstance(copy, RanOut) else copy


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
    tensors: Tensors, places: Mapping[tuple[str, Part], Tensor], steps: int
) -> Captured | None:
    """A trial's snapshot, of either engine; `places` are the parameters that it has now.

    None if it holds other ones.
    """
    names = {peft_name(*place): place for place in places}
    shapes = {f"model/{name}": places[place].shape for name, place in names.items()}
    held = {name: value.shape for name, value in tensors.items() if name.startswith("model/")}
    if shapes != held:
        return None
    values = {place: tensors[f"model/{name}"] for name, place in names.items()}
    moments: dict[str, Named] = {}
    if steps:
        moments = {
            key: {place: tensors[f"optimizer/{name}/{key}"] for name, place in names.items()}
            for key in MOMENTS
        }
    return Captured(values, {}, moments, steps)
