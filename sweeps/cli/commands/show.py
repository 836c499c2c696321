"""`show`: all that is known of one trial."""

import json as json_text
import shlex
from typing import Any

from optuna.trial import FrozenTrial

from peft_jobs import SpecError, TrialResult
from peft_jobs.storage.attempt_folder import LOG_FILE, METRICS_FILE
from sweeps.cli.screen import out, pairs, print_json, size
from sweeps.records.layout import SweepFolder
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.states import state_of, word
from sweeps.results.words import shown
from sweeps.study.lease import Holder


def show(sweep: RecordedSweep, number: int, json: bool) -> None:
    """Print a trial; SpecError if the sweep has none of that number."""
    name, trials = sweep.name, sweep.study.trials()
    if number >= len(trials):
        last = f"its last one is {len(trials) - 1}" if trials else "it has none yet"
        raise SpecError(f"the sweep {name!r} has no trial {number}: {last}")
    record = describe(trials[number], sweep.folder, sweep.study.holder)
    if json:
        print_json(record)
    else:
        _print(name, record, sweep.spec.trial.training.max_samples)


def describe(trial: FrozenTrial, folder: SweepFolder, holder: Holder | None) -> dict[str, Any]:
    """The trial as plain JSON values."""
    said = trial.user_attrs
    result = TrialResult.model_validate(said.get("result", {"state": trial.state.name}))
    attempt = said.get("attempt", 1)
    files = {
        "trial": folder.trial_file(trial.number),
        "result": folder.result(trial.number),
        "adapter": folder.path / (result.adapter or "none"),
        "metrics": folder.attempt(trial.number, attempt) / METRICS_FILE,
        "log": folder.attempt(trial.number, attempt) / LOG_FILE,
    }
    there = {folder.trial(trial.number) / file for file in folder.files(folder.trial(trial.number))}
    there |= {parent for path in there for parent in path.parents}
    return {
        "number": trial.number,
        "state": state_of(trial, holder),
        "kind": said.get("kind"),
        "reason": said.get("reason"),
        "attempt": attempt,
        "params": said.get("params", {}),
        "value": trial.value,
        "rungs": {str(rung): value for rung, value in sorted(trial.intermediate_values.items())},
        **result.model_dump(mode="json", exclude={"state", "kind", "adapter", "traceback"}),
        "traceback": _traceback(folder.read(files["result"])),
        "files": {name: folder.location_of(path) for name, path in files.items() if path in there},
    }


def _traceback(result: str | None) -> str | None:
    if result is None:
        return None
    try:
        found = json_text.loads(result).get("traceback")
    except ValueError:
        return "result.json is damaged; the next launch of the sweep writes it anew"
    return None if found is None else str(found)


def _print(name: str, record: dict[str, Any], max_samples: int | None) -> None:
    out.print(f"Trial {record['number']:04d} of {name}: {_headline(record, max_samples)}")
    rungs = {f"at {int(rung):,} samples": f"{v:.6g}" for rung, v in record["rungs"].items()}
    seconds = {phase: f"{value:.1f}" for phase, value in record["seconds"].items() if value >= 0.05}
    trained = record["trainable_parameters"]
    sections = {
        "parameters": {key: shown(value) for key, value in record["params"].items()},
        "metrics": {key: f"{value:.6g}" for key, value in record["metrics"].items()},
        "rungs": rungs,
        "memory": {key: size(value) for key, value in record["memory"].items()},
        "size": {} if trained is None else {"trainable parameters": f"{trained:,}"},
        "seconds": {**seconds, "in all": f"{sum(record['seconds'].values()):.1f}"},
        "files": record["files"],
    }
    for title, items in sections.items():
        if items and not (title == "seconds" and not seconds):
            out.print(f"\n[bold]{title}[/]")
            out.print(pairs(items))
    if record["traceback"]:
        out.print("\n[bold]traceback[/]")
        out.print(record["traceback"].rstrip(), markup=False, soft_wrap=True)
    if record["error"]:
        out.print(f"\n{record['error']}", style="red", markup=False, soft_wrap=True)
    if "trial" in record["files"]:
        out.print("\nRun it again, alone:", style="dim")
        command = f"python -m peft_jobs run {shlex.quote(record['files']['trial'])}"
        out.print(f"  {command}", markup=False, soft_wrap=True)


def _headline(record: dict[str, Any], max_samples: int | None) -> str:
    state = word(record["state"])
    kind = f" ({record['kind'].replace('_', ' ')})" if record["kind"] else ""
    reason = f": {record['reason']}" if record["reason"] else ""
    of = f" of {max_samples:,}" if max_samples else ""
    samples = f", {record['samples']:,}{of} samples" if record["samples"] else ""
    again = f", attempt {record['attempt']}" if record["attempt"] > 1 else ""
    return f"{state}{kind}{reason}{samples}{again}"
