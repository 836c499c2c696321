"""predict: what trials will take of a device, by their own steps on fake tensors.

A base of many layers is run with few, twice, and the rest follows: see `depth`. Trials whose shapes
are equal are run once, and those that differ in LoRA's rank alone twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from peft_jobs.base.architecture import read_config
from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import CATEGORIES, Lengths, Prediction
from peft_jobs.prediction.depth import depths, extrapolated, full_depth
from peft_jobs.prediction.fake_base import Kind, meta_base
from peft_jobs.prediction.packed_steps import packed_steps
from peft_jobs.prediction.roofline import Work, seconds_of, work_of
from peft_jobs.prediction.shapes import rank_of, ranks_of, runs_of
from peft_jobs.prediction.solo_steps import Steps, solo_steps, trainee_of
from peft_jobs.spec import TrialSpec

Run = Callable[[int | None], Steps]
"""The steps with so many layers, or with all."""
MOST_STATE = 0.25
"""Share of the peak up to which the optimizer's state tells little of the allocator's fragments;
where it is more, as in full fine-tuning, they are not affine in the number of layers."""


@dataclass(frozen=True)
class Whole:
    """What the steps of the whole base take."""

    peak_bytes: int
    memory: dict[str, int]
    trainable_parameters: int
    adapter_bytes: int
    state_bytes: int
    work: Work


def predict(
    specs: Sequence[TrialSpec],
    device: Device,
    lengths: Lengths,
    *,
    slots: int = 1,
    ranks: Mapping[str, tuple[int, int]] | None = None,
    known: dict[str, Whole] | None = None,
    mapped: Callable[..., Iterable[Any]] = map,
) -> list[Prediction]:
    """What each of the trials takes on `device`, in their order.

    With more than one of `slots`, so many trials like each share a packed step. Reads config.json
    alone. `ranks` are of all trials that may be asked for, see `ranks_of`, by default of these;
    `known` is what was found before for the same device, lengths and slots, and takes what is found
    now. `mapped` calls a function of this module with each of many trials, as `map` does, and may
    do so in other processes. Raises SpecError where the base cannot be had, or takes no such
    adapter.
    """
    known = {} if known is None else known
    ends = ranks_of(specs) if ranks is None else ranks
    told_by = [runs_of(spec, ends) for spec in specs]
    unknown: dict[str, TrialSpec] = {}
    for spec, runs in zip(specs, told_by, strict=True):
        for key, rank in runs.items():
            if key not in known:
                is_own = rank == rank_of(spec)
                unknown[key] = spec if is_own else spec.with_params({"adapter.r": rank})
    steps = mapped(partial(_whole, device, lengths, slots), unknown.values())
    known.update(zip(unknown, steps, strict=True))
    found = []
    for spec, runs in zip(specs, told_by, strict=True):
        one, *other = (known[key] for key in runs)
        if other:
            low, high = runs.values()
            one = _between([one, *other], (rank_of(spec) - low) / (high - low))
        found.append(_prediction(spec, one, device, lengths, slots))
    return found


def _between(few: Sequence[Whole], share: float) -> Whole:
    """What lies between two that are affine in something."""
    first, second = few

    def at(low: float, high: float) -> float:
        return low + share * (high - low)

    names = first.memory.keys() | second.memory.keys()
    memory = {n: round(at(first.memory.get(n, 0), second.memory.get(n, 0))) for n in names}
    return Whole(
        peak_bytes=sum(memory.values()),
        memory=memory,
        trainable_parameters=round(at(first.trainable_parameters, second.trainable_parameters)),
        adapter_bytes=round(at(first.adapter_bytes, second.adapter_bytes)),
        state_bytes=round(at(first.state_bytes, second.state_bytes)),
        work=Work(
            *(
                at(getattr(first.work, field.name), getattr(second.work, field.name))
                for field in fields(Work)
            )
        ),
    )


def _whole(device: Device, lengths: Lengths, slots: int, spec: TrialSpec) -> Whole:
    kind: Kind = device.kind

    def run(depth: int | None) -> Steps:
        base = meta_base(spec, kind, lengths.num_labels, depth)
        if slots > 1:
            return packed_steps(spec, base, kind, lengths, slots)
        return solo_steps(spec, trainee_of(spec, base), kind, lengths)

    labels = lengths.num_labels if spec.task.HAS_HEAD else None
    config = read_config(spec.model, spec.task, labels)
    few = None if getattr(spec.adapter, "layers_to_transform", None) else depths(config)
    return whole(run, device, few, full_depth(config))


def whole(run: Run, device: Device, few: tuple[int, int] | None, depth: int) -> Whole:
    """What all `depth` layers take, from runs with as many as `few`; from one run without."""
    if few is None:
        return _of_run(run(None), device)
    runs = [run(number) for number in few]
    found = extrapolate(few, runs, device, depth)
    if device.kind == "cuda" and found.state_bytes > MOST_STATE * found.peak_bytes:
        return _of_run(run(None), device)
    return found


def _of_run(steps: Steps, device: Device) -> Whole:
    return extrapolate((0, 1), [steps, steps], device, 1)


def extrapolate(few: tuple[int, int], runs: Sequence[Steps], device: Device, depth: int) -> Whole:
    """What `depth` layers take, by runs with as many as `few`: each phase of a step apart."""

    def at(*values: float) -> float:
        return extrapolated(few, values, depth)

    phases = {phase: at(*(run.peaks[phase].bytes for run in runs)) for phase in runs[0].peaks}
    phase = max(phases, key=lambda name: phases[name])
    memory = {
        name: max(0, round(at(*(run.peaks[phase].by_category.get(name, 0) for run in runs))))
        for name in CATEGORIES
    }
    if device.kind == "cuda":
        beside = (
            run.reserved_bytes - max(peak.bytes for peak in run.peaks.values()) for run in runs
        )
        memory["fragments"] = max(0, round(at(*beside)))
    works = [work_of(run.operations, device) for run in runs]
    return Whole(
        peak_bytes=sum(memory.values()),
        memory={name: size for name, size in memory.items() if size},
        trainable_parameters=round(at(*(run.trainable_parameters for run in runs))),
        adapter_bytes=round(at(*(run.adapter_bytes for run in runs))),
        state_bytes=round(at(*(run.state_bytes for run in runs))),
        work=Work(
            at(*(work.launches for work in works)),
            at(*(work.flops for work in works)),
            at(*(work.bytes for work in works)),
            at(*(work.kernel_seconds for work in works)),
        ),
    )


def _prediction(
    spec: TrialSpec, found: Whole, device: Device, lengths: Lengths, slots: int
) -> Prediction:
    seconds = seconds_of(found.work, device)
    return Prediction(
        device=device.name,
        slots=slots,
        longest_tokens=lengths.tokens,
        peak_bytes=found.peak_bytes,
        memory=found.memory,
        trainable_parameters=found.trainable_parameters,
        adapter_bytes=found.adapter_bytes,
        checkpoint_bytes=found.state_bytes + 4 * found.trainable_parameters,
        launches=round(found.work.launches),
        flops=round(found.work.flops),
        moved_bytes=round(found.work.bytes),
        seconds_per_step=seconds,
        seconds_per_sample=seconds_of(found.work, device, lengths.mean_share)
        / spec.training.samples_per_step
        / slots,
        usable_bytes=device.usable_bytes,
        is_of_gpu=device.kind == "cuda",
    )
