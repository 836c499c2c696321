"""A plan as a person reads it: names and what is told, each with how it is known."""

from collections.abc import Callable, Mapping
from typing import Any

from sweeps.cli.display.data_summary import split_lines
from sweeps.cli.screen import size
from sweeps.planning.downloads import Download
from sweeps.planning.planned_points import PlannedPoint
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.results.words import shown
from sweeps.search.survival import Range
from sweeps.spec import SweepSpec

_MOST_GPUS = 3
"""Named of those on which the largest point would fit."""


def plan_words(
    spec: SweepSpec, made: SweepPlan, data: Mapping[str, Any], hours: float | None
) -> dict[str, str]:
    """Names and texts, in order. `data` is the summary of the rows, {} where there is none; with
    `hours`, what they are enough for is told too."""
    left, spent = made.survival, made.costs
    unit = "GPU" if made.device.kind == "cuda" else "CPU"
    speed = f"assumed at the {unit}'s peak rates" if made.learned is None else "predicted"
    trials = f"{made.n_trials}, of at most {made.max_samples:,} samples ({_span(made.steps)} steps)"
    words = {
        "trials": f"{trials}; exact",
        "rungs": "\n".join(
            f"{rung.samples:,} samples, step {_span(rung.steps)}"
            + (": inside the warm-up" if rung.in_warmup else "")
            + "; exact"
            for rung in made.rungs
        ),
        "to the end": f"{_range(left.complete, made.n_trials)} trials, with the pruner "
        f"{spec.pruner.type}; predicted",
        "memory": _memory(made),
        "at a time": f"{made.trials_per_gpu} on a {unit}; predicted",
        "a trial": f"{_time(made.seconds_per_trial[1])} of a {unit} "
        f"({_span((made.seconds_per_trial[0], made.seconds_per_trial[2]), _time)}); {speed}",
        "the sweep": f"{_hours(spent.gpu_hours)} of {unit} time, done in {_hours(spent.hours)}; "
        f"{1 / made.spread:.2g} to {made.spread:.2g} times that speed, {speed}",
    }
    if made.learned is not None:
        words["predictions"] = f"{made.learned.sentence()}; measured"
    if spent.usd is not None:
        words["price"] = f"{spent.usd.low:,.2f} to {spent.usd.high:,.2f} USD; {speed}"
    if hours is not None:
        low, high = made.trials_in(hours)
        words[f"in {hours:g} h"] = f"{low:,} to {high:,} of such trials; {speed}"
    words["disk"] = (
        f"{size(made.disk_bytes)}: adapters of {_span(made.adapter_bytes, size)}, checkpoints of "
        f"{_span(made.checkpoint_bytes, size)}; predicted"
    )
    words["points"] = _points(made)
    words["turned away"] = "\n".join(
        f"{share:.0%} of random points: {reason}; measured"
        for reason, share in made.turned_away.items()
    )
    words["targets"] = "\n".join(_targets(found) for found in made.targets)
    words["rows"] = (
        f"{made.rows.train:,} to train on, {made.rows.mean_tokens:.0f} tokens in the mean, "
        f"{made.rows.longest_tokens:,} at most; {made.rows.how}"
    )
    for name, split in data.get("splits", {}).items():
        words[f"data: {name}"] = "\n".join([f"{split['num_rows']:,} rows", *split_lines(split)])
    words["downloads"] = "\n".join(map(_download, made.downloads))
    return {name: text for name, text in words.items() if text}


def _points(made: SweepPlan) -> str:
    if made.distinct_points is None:
        return ""
    told = f"at most {made.distinct_points:,} distinct; exact"
    if made.distinct_points < made.n_trials:
        told += f"\nfewer than {made.n_trials} trials: the sweep ends when each has been tried"
    if made.repeated:
        told += f"\n{made.repeated:.0%} of random points repeat another: those are drawn again"
    return told


def _targets(found: Mapping[str, Any]) -> str:
    chosen = "" if found["targets"] is None else f" {shown(found['targets'])}"
    if found["same_as"] is not None:
        same = shown(found["same_as"])
        return (
            f"{found['method']}{chosen}: the same modules as {same}, so one of them can go; exact"
        )
    names = ", ".join(f"{count:,} {name}" for name, count in found["by_name"].items())
    return f"{found['method']}{chosen}: {found['modules']:,} modules ({names}); exact"


def _download(found: Download) -> str:
    of = f"{found.what} {found.repo_id}"
    if found.bytes is None:
        return f"{of}: not known, {found.unknown}"
    return f"{of}: {size(found.bytes)}; exact" if found.bytes else f"{of}: is here already"


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
            lines.append(f"  {_point(example)} would with {remedy or _larger(made)}")
    return "\n".join(lines)


def _larger(made: SweepPlan) -> str:
    """What else helps where no setting that leaves the result as it is does."""
    names = made.gpus_that_fit[:_MOST_GPUS]
    gpu = f"a larger GPU ({', '.join(names)})"
    gpu = gpu if names else "several GPUs for a trial (resources.gpus_per_trial: 2)"
    return f"{gpu}, fewer bits, a shorter data.max_length or a smaller rank"


def _point(point: PlannedPoint) -> str:
    named = ", ".join(f"{name.rpartition('.')[2]} {shown(v)}" for name, v in point.params.items())
    return f"{size(point.peak_bytes)} ({named}; {point.trainable_parameters:,} trained)"


def _span(values: tuple[float, float], told: Callable[[Any], str] = "{:,}".format) -> str:
    low, high = map(told, values)
    return low if low == high else f"{low} to {high}"


def _range(share: Range, of: int) -> str:
    low, high = round(share.low * of), round(share.high * of)
    return f"{low}" if low == high else f"{low} to {high} of {of}"


def _hours(hours: Range) -> str:
    return _span((3600 * hours.low, 3600 * hours.high), _time)


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
