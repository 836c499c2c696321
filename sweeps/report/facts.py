"""Facts of a sweep that no leaderboard has: what it cost, on which data, and with what it ran."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from peft_jobs import State, TrialResult
from peft_jobs.host.job import Prepared
from sweeps.records.layout import SweepFolder
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.verdict import Spending
from sweeps.spec import SweepSpec
from sweeps.spec.identity import planned_key
from sweeps.study.reruns import repeats
from sweeps.study.study import SweepStudy

Record = Mapping[str, Any]
"""`sweep.json`, of earlier versions too."""
_MOST_CLASSES = 20


def cost(board: Leaderboard, study: SweepStudy, spent: Spending) -> dict[str, str]:
    """What the sweep took, and what its pruner left undone."""
    complete = [row for row in board.rows if row.state == State.COMPLETE]
    others = [row for row in board.rows if row.state != State.COMPLETE]
    minutes = {
        "of complete trials": sum(row.minutes for row in complete),
        "of all others": sum(row.minutes for row in others),
        "of repeats": sum(_minutes(trial) for trial in repeats(study)),
    }
    told = {"driven": _hours(spent.hours)}
    if spent.gpu_hours is not None:
        told["GPUs held, together"] = _hours(spent.gpu_hours)
    told |= {f"minutes {what}": f"{value:,.1f}" for what, value in minutes.items() if value}
    if spent.share_saved is not None:
        told["pruning saved"] = (
            f"{100 * spent.share_saved:.0f} % of the samples of complete and weak trials, "
            f"by stopping {spent.num_pruned} early"
        )
    return told


def planned(folder: SweepFolder, spec: SweepSpec) -> dict[str, str]:
    """What `plan` told of this sweep; {} where nobody asked, or the sweep is another by now."""
    try:
        kept = json.loads(folder.plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    words: dict[str, str] = kept["words"] if kept["key"] == planned_key(spec) else {}
    return words


def data(spec: SweepSpec, record: Record) -> dict[str, str]:
    """Where the rows come from, and how many there are."""
    prepared, given = Prepared.model_validate(record["prepared"]), spec.trial.data
    validation = given.validation
    told = {
        "task": spec.trial.task.type,
        "training rows from": given.train.path,
        "rows of an epoch": f"{prepared.train_rows:,}",
        "validation rows from": (
            f"the training rows: a share of {validation:g}, held out"
            if isinstance(validation, int | float)
            else validation.path
        ),
    }
    if (rows := _seen(record).get("num_rows")) is not None:
        told["validation rows"] = f"{rows['validation']:,}"
    if given.test is not None:
        told["test rows from"] = f"{given.test.path}, read by `export` alone"
    if dropped := {n: c for n, c in _seen(record).get("dropped_rows", {}).items() if c}:
        told["left out"] = ", ".join(f"{count:,} of {name}" for name, count in dropped.items())
    if counts := prepared.class_counts:
        first = sorted(counts.items(), key=lambda item: -item[1])[:_MOST_CLASSES]
        more = f", and {len(counts) - len(first)} more" if len(counts) > len(first) else ""
        told["classes"] = ", ".join(f"{name} {count:,}" for name, count in first) + more
    if prepared.leaks:
        told["leaks"] = "; ".join(prepared.leaks)
    for title, part in (("validation", "data"), ("training", "train_data")):
        if digest := _seen(record).get(part):
            told[f"fingerprint, {title} rows"] = str(digest)
    return told


def environment(spec: SweepSpec, record: Record) -> dict[str, str]:
    """With what the last launch ran."""
    seen, around = _seen(record), record["environment"]
    versions = (f"{name} {number}" for name, number in around["versions"].items() if number)
    base = seen.get("model") or spec.trial.model.name_or_path
    told = {
        "base": f"{base}@{seen['model_commit']}" if seen.get("model_commit") else base,
        "quantization": spec.trial.quantization.scheme,
        "device": seen.get("device"),
        "engine, backend": f"{spec.resources.engine}, {spec.resources.backend}",
        "sampler, pruner": f"{spec.sampler.type}, {spec.pruner.type}",
        "seed": str(spec.seed),
        "Python": around["python"],
        "platform": f"{around['platform']}, {around['cores']} cores",
        "versions": ", ".join(versions),
        "commit": around.get("commit"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _seen(record: Record) -> Mapping[str, Any]:
    seen: Mapping[str, Any] = record["prepared"]["provenance"]
    return seen


def _minutes(trial: FrozenTrial) -> float:
    record = trial.user_attrs.get("result")
    return TrialResult.model_validate(record).minutes if record else 0.0


def _hours(hours: float) -> str:
    return f"{hours:.2f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"
