"""`plan`: what a sweep will take, told before anything is started or paid for."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from peft_jobs import SpecError
from peft_jobs.host.gpus import find_gpu
from sweeps.cli.devices import as_device
from sweeps.cli.preflight import load_checked, summary_of
from sweeps.cli.screen import err, out, pairs, print_json, size
from sweeps.planning.learned import learned
from sweeps.planning.planned_points import PlannedPoint, Rows
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep
from sweeps.results.words import shown
from sweeps.search.survival import Range
from sweeps.spec import SweepSpec

UNKNOWN_ROWS = 10_000
"""Assumed where the data cannot be read and the budget is in epochs."""


def plan(
    path: Path,
    overrides: Sequence[str],
    gpu: str | None,
    num_gpus: int,
    usd_per_gpu_hour: float | None,
    json: bool,
) -> None:
    """Print the plan of a sweep file; SpecError where the base's configuration cannot be read."""
    spec = load_checked(path, overrides)
    device = find_gpu(gpu) if gpu is not None else as_device()
    known = learned(Path(spec.storage), device)
    with err.status("Looking at the data ..."), contextlib.redirect_stdout(sys.stderr):
        rows, unread = _rows(spec)
    with err.status("Trying steps of its points ..."), contextlib.redirect_stdout(sys.stderr):
        made = plan_sweep(spec, device, num_gpus, rows, usd_per_gpu_hour, known)
    if json:
        print_json({**made.to_json(), "unread": unread})
        return
    out.print(f"[bold]{escape(str(path))}[/] on {num_gpus} x {escape(device.name)}\n")
    out.print(pairs(_words(spec, made)))
    for line in unread:
        out.print(f"\n{line}", style="yellow", markup=False, soft_wrap=True)


def _rows(spec: SweepSpec) -> tuple[Rows, list[str]]:
    """What the data hold, and why something is assumed instead."""
    limit = spec.trial.data.max_length
    found: Mapping[str, Any] = {}
    try:
        found = summary_of(spec)
        unread = [*found["mistakes"], *found["unread"]]
    except SpecError as error:
        unread = str(error).splitlines()
    train = found.get("splits", {}).get("train", {})
    if not train.get("lengths") or not train.get("num_examples"):
        unread.append(
            f"The rows cannot be counted here: assumed are {UNKNOWN_ROWS:,} of data.max_length."
        )
        return Rows(UNKNOWN_ROWS, UNKNOWN_ROWS // 20, limit, limit, "assumed"), unread
    validation = found["splits"].get("validation", {}).get("num_rows", 0)
    longest = min(limit, train["lengths"]["longest"])
    mean = train["num_tokens"] / train["num_examples"]
    return Rows(train["num_rows"], validation, min(mean, longest), longest, "exact"), unread


def _words(spec: SweepSpec, made: SweepPlan) -> dict[str, str]:
    left, spent = made.survival, made.costs
    unit = "GPU" if made.device.kind == "cuda" else "CPU"
    speed = f"assumed at the {unit}'s peak rates" if made.learned is None else "predicted"
    trials = f"{made.n_trials}, of at most {made.max_samples:,} samples ({_span(made.steps)} steps)"
    words = {
        "trials": f"{trials}; exact",
        "rungs": "\n".join(
            f"{rung.samples:,} samples, step {_span(rung.steps)}"
            + (": inside the warm-up" if rung.in_warmup else "")
            for rung in made.rungs
        ),
        "to the end": f"{_range(left.complete, made.n_trials)} trials, with the pruner "
        f"{spec.pruner.type}; predicted",
        "memory": _memory(made),
        "at a time": f"{made.trials_per_gpu} on a {unit}; predicted",
        "a trial": f"{_time(made.seconds_per_trial[1])} of a {unit} "
        f"({_time(made.seconds_per_trial[0])} to {_time(made.seconds_per_trial[2])}); {speed}",
        "the sweep": f"{_hours(spent.gpu_hours)} {unit}-hours, done in {_hours(spent.hours)} "
        f"hours; {1 / made.spread:.2g} to {made.spread:.2g} times that speed",
    }
    if made.learned is not None:
        words["predictions"] = f"{made.learned.sentence()}; measured"
    if spent.usd is not None:
        words["price"] = f"{spent.usd.low:,.2f} to {spent.usd.high:,.2f} USD"
    words["disk"] = (
        f"{size(made.disk_bytes)}: adapters of {_span(made.adapter_bytes, size)}, checkpoints of "
        f"{_span(made.checkpoint_bytes, size)}; predicted"
    )
    if made.distinct_points is not None:
        words["points"] = f"at most {made.distinct_points:,} distinct; exact"
    words["turned away"] = "\n".join(
        f"{share:.0%} of random points: {reason}" for reason, share in made.turned_away.items()
    )
    words["rows"] = (
        f"{made.rows.train:,} to train on, {made.rows.mean_tokens:.0f} tokens in the mean, "
        f"{made.rows.longest_tokens:,} at most; {made.rows.how}"
    )
    return {name: text for name, text in words.items() if text}


def _memory(made: SweepPlan) -> str:
    points = made.points
    middle = points[len(points) // 2]
    lines = [
        f"smallest {_point(points[0])}",
        f"median {_point(middle)}",
        f"largest {_point(points[-1])}",
    ]
    usable = size(made.device.usable_bytes)
    missing = [point for point in points if not point.fits]
    if not missing:
        lines.append(f"all {len(points)} points fit in {usable}; predicted")
    else:
        lines.append(f"{len(missing)} of {len(points)} points do not fit in {usable}; predicted")
        for remedy, example in {point.remedy: point for point in missing}.items():
            told = remedy or "nothing that leaves the result as it is: a larger GPU, fewer bits, a "
            told += "" if remedy else "shorter data.max_length or a smaller rank"
            lines.append(f"  {_point(example)} would with {told}")
    return "\n".join(lines)


def _point(point: PlannedPoint) -> str:
    named = ", ".join(f"{name.rpartition('.')[2]} {shown(v)}" for name, v in point.params.items())
    return f"{size(point.peak_bytes)} ({named}; {point.trainable_parameters:,} trained)"


def _span(values: tuple[int, int], told: Callable[[int], str] = "{:,}".format) -> str:
    low, high = map(told, values)
    return low if low == high else f"{low} to {high}"


def _range(share: Range, of: int) -> str:
    low, high = round(share.low * of), round(share.high * of)
    return f"{low}" if low == high else f"{low} to {high} of {of}"


def _hours(hours: Range) -> str:
    return f"{hours.low:.1f} to {hours.high:.1f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
