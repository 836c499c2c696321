"""One trial in one slot: its parameters, its optimizer and its schedule.

Clipping and AdamW are torch's own formulas, on slices of the slots' rows. So a slot steps when it
is due and is untouched when it is not; those that are due step together, with one call for those of
equal settings. The state of all slots is allocated with the pack: a step asks for no memory, nor
does a trial that takes the row of another. `capture` and a new PackRow move a trial between packs
of other shapes, and to and from checkpoints.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from peft_jobs.device.host_copies import HostCopies
from peft_jobs.device.memory import RanOut, tried
from peft_jobs.engines.packed.layout import Layout, Named, Part
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.parts import Parts
from peft_jobs.spec import TrialSpec
from peft_jobs.training.schedule import Schedule

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


class PackRow:
    """The parameters of one trial while it has a slot of a pack."""

    def __init__(
        self,
        pack: Pack,
        slot: int,
        spec: TrialSpec,
        parts: Parts,
        schedule: Schedule,
        captured: Captured,
    ) -> None:
        self.pack, self.slot, self.spec, self.schedule = pack, slot, spec, schedule
        self._own = {place: value.shape for place, value in captured.values.items()}
        self.steps = captured.steps
        pack.taken.add(slot)
        pack.counts_K3[slot].fill_(captured.steps)
        self.cuts = [
            (slice(start, stop), decay, ratio, pack.counts_K3[slot, number])
            for number, (start, stop, decay, ratio) in enumerate(_slices(pack.layout, spec))
            if stop > start
        ]
        pack.own(slot, parts.shapes)
        pack.fill_frozen(slot, parts.form.frozen())
        scales = [parts.form.scales.get(name, 0.0) for name in pack.numbers]
        pack.scales_MK[:, slot] = torch.tensor(scales, dtype=pack.scales_MK.dtype)
        pack.max_norms_K[slot] = spec.training.max_grad_norm
        moments = [captured.moments.get(name, {}) for name in MOMENTS]
        for rows, named in zip(
            (pack.values_KP, pack.gradients_KP, *pack.moments_KP),
            (captured.values, captured.gradients, *moments),
            strict=True,
        ):
            pack.layout.fill(rows[slot], named)
        pack.values_changed()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.schedule.rate(self.steps)

    def clear_gradients(self) -> None:
        """Forget what was accumulated."""
        self.pack.gradients_KP[self.slot].zero_()

    def copies(
        self, arrange: Callable[[Captured], dict[str, Tensor]], moments: bool = True
    ) -> HostCopies:
        """Copies on the CPU of what the trial has now, but for gradients: of whole rows, of which
        who reads them cuts the trial's own parts."""
        pack, rows = self.pack, {"values": self.pack.values_KP[self.slot]}
        if moments and self.steps:
            rows |= {n: s[self.slot] for n, s in zip(MOMENTS, pack.moments_KP, strict=True)}
        cut = partial(pack.layout.parts, own=self._own)
        steps = self.steps

        def arranged(copied: dict[str, Tensor]) -> dict[str, Tensor]:
            values, *_ = (named := {name: cut(row) for name, row in copied.items()}).values()
            return arrange(
                Captured(values, {}, {n: named[n] for n in MOMENTS if n in named}, steps)
            )

        return HostCopies(rows, arranged)

    def capture(self) -> Captured:
        """All of the trial, to be given to another slot; perhaps in part on the CPU."""
        pack, moments = self.pack, {}
        if self.steps:
            moments = {
                name: self._copied(rows)
                for name, rows in zip(MOMENTS, pack.moments_KP, strict=True)
            }
        values, gradients = self._copied(pack.values_KP), self._copied(pack.gradients_KP)
        return Captured(values, gradients, moments, self.steps)

    def _copied(self, rows_KP: Tensor) -> Named:
        """Copies of the tensors of the trial's row."""
        parts = self.pack.layout.parts(rows_KP[self.slot], self._own)
        return {place: _copied(tensor.detach()) for place, tensor in parts.items()}


def fast_ratios(spec: TrialSpec, places: Collection[tuple[str, Part]]) -> list[float]:
    """Times which the further groups of the Trainer's optimizer learn, where the trial has these
    parameters: see `peft_jobs.methods.lora.learning_rates`."""
    ratio, parts = _ratio(spec), {part for _, part in places}
    return [ratio for part in ("lora_B", "bias") if part in parts] if ratio != 1 else []


def _ratio(spec: TrialSpec) -> float:
    """LoRA+'s."""
    return getattr(spec.adapter, "loraplus_lr_ratio", 1.0)


def _slices(layout: Layout, spec: TrialSpec) -> list[tuple[int, int, float, float]]:
    """Of a row: where each begins and ends, its weight decay, and times which it learns."""
    decay, ratio = spec.training.weight_decay, _ratio(spec)
    decayed = [(0, layout.fast, decay, 1.0), (layout.fast, layout.decayed, decay, ratio)]
    if ratio == 1:
        decayed = [(0, layout.decayed, decay, 1.0)]
    return [*decayed, (layout.decayed, layout.size, 0.0, ratio)]


@torch.no_grad()
def step_rows(rows: Sequence[PackRow]) -> None:
    """Clip, step, go on in the schedule, and clear the gradients: each row as if alone.

    The rows are of one pack.
    """
    if not rows:
        return
    pack, rows = rows[0].pack, sorted(rows, key=lambda row: row.slot)
    runs = _neighbours(rows)
    for run in runs:
        _clip(run)
    together: dict[tuple[float, ...], list[tuple[int, slice, Tensor]]] = {}
    for row in rows:
        training = row.spec.training
        betas = training.adam_beta1, training.adam_beta2
        for cut, decay, ratio, count in row.cuts:
            settings = (*betas, training.adam_epsilon, row.learning_rate * ratio, decay)
            together.setdefault(settings, []).append((row.slot, cut, count))
    for (beta1, beta2, epsilon, rate, decay), parts in together.items():
        values, gradients, first, second = (
            [state_KP[slot, cut] for slot, cut, _ in parts]
            for state_KP in (pack.values_KP, pack.gradients_KP, *pack.moments_KP)
        )
        adamw(
            values,
            gradients,
            first,
            second,
            [],
            [count for _, _, count in parts],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=decay,
            eps=epsilon,
            maximize=False,
        )
    pack.values_changed()
    for row in rows:
        row.steps += 1
    for run in runs:
        pack.gradients_KP[run[0].slot : run[-1].slot + 1].zero_()


def _clip(run: Sequence[PackRow]) -> None:
    """As torch.nn.utils.clip_grad_norm_ of each row, where it clips; they are neighbours."""
    most = [row.spec.training.max_grad_norm for row in run]
    if not any(norm > 0 for norm in most):
        return
    gradients_KP = run[0].pack.gradients_KP[run[0].slot : run[-1].slot + 1]
    most_K = run[0].pack.max_norms_K[run[0].slot : run[-1].slot + 1]
    norms_K = torch.linalg.vector_norm(gradients_KP, dim=1)
    # A number divided by a tensor, as there, is this product, which rounds otherwise than `/`.
    factors_K = (norms_K + 1e-6).reciprocal().mul_(most_K).clamp_(max=1.0)
    if not all(norm > 0 for norm in most):
        factors_K = torch.where(most_K > 0, factors_K, 1.0)
    gradients_KP.mul_(factors_K.unsqueeze(1))


def _neighbours(rows: Sequence[PackRow]) -> list[list[PackRow]]:
    """The rows, in runs of slots side by side."""
    runs: list[list[PackRow]] = []
    for row in rows:
        if runs and runs[-1][-1].slot + 1 == row.slot:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _copied(tensor: Tensor) -> Tensor:
    """A copy; on the CPU if the tensor's own device has no memory for it."""
    copy = tried(tensor.clone)
    return tensor.to("cpu", copy=True) if isinstance(copy, RanOut) else copy
