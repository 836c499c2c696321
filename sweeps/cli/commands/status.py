"""`status`, `watch` and `stop`: a sweep seen, and asked to stop, from outside its driver.

All they know comes from the study's database and the sweep's folder, so they work from any machine
that reaches both, while the driver runs and after it has died.
"""

import json as json_text
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial
from pydantic import ValidationError
from rich.live import Live

from peft_jobs import Progress, SpecError, TrialResult
from peft_jobs.storage.attempt_folder import METRICS_FILE
from sweeps.cli.display.live import Shown, render
from sweeps.cli.display.plain import ending
from sweeps.cli.display.snapshot import LATEST, EndedTrial, RunningTrial, Snapshot
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import clock, err, out, pairs, print_json, say
from sweeps.records.layout import SweepFolder
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.states import INTERRUPTED, RUNNING, STATES, state_of
from sweeps.study.lease import Holder, read_lease, request_stop

STOP_SECONDS = 60.0
"""How long `stop` waits for the driver."""
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Standing:
    """What a sweep is at."""

    sweep: RecordedSweep
    holder: Holder | None
    snapshot: Snapshot
    ended: tuple[EndedTrial, ...]
    """Newest first."""
    interrupted: tuple[int, ...]
    """Trials that a driver has left, to be taken up by the next one."""

    @property
    def is_driven(self) -> bool:
        return self.holder is not None and not self.holder.is_gone


def status(sweep: RecordedSweep, json: bool) -> None:
    """Print who drives the sweep, its trials by state, and what is running."""
    standing = _look(sweep)
    if json:
        print_json(_record(standing))
        return
    out.print(
        pairs({"driver": driver_of(standing.holder), "interrupted": _numbers(standing.interrupted)})
    )
    _print(standing)
    if not standing.is_driven and not _is_done(standing):
        again = f"peft-sweep resume {sweep.name}{sweep.folder.option}"
        out.print(f"\n`{again}` takes it up again.", markup=False, soft_wrap=True)


def watch(sweep: RecordedSweep) -> None:
    """Show the sweep until nobody drives it any more; Ctrl-C ends the watching only."""
    name, standing = sweep.name, _look(sweep)
    if not standing.is_driven:
        shows = f"peft-sweep status {name}{sweep.folder.option}"
        raise SpecError(f"nobody drives the sweep {name!r}; `{shows}` shows it")
    if err.is_terminal:
        with Live(console=err, auto_refresh=False, transient=True) as live:
            while standing.is_driven:
                live.update(_drawn(standing), refresh=True)
                time.sleep(WATCH_SECONDS)
                standing = _look(sweep)
    else:
        told = {trial.number for trial in standing.ended}
        while standing.is_driven:
            time.sleep(WATCH_SECONDS)
            standing = _look(sweep)
            for trial in reversed(standing.ended):
                if trial.number not in told:
                    told.add(trial.number)
                    metric = sweep.spec.objective.metric
                    say(f"trial {trial.number:04d} {ending(trial, metric)}")
    _print(standing)


def stop(sweep: RecordedSweep) -> ExitCode:
    """Ask the driver to stop, and wait until it has."""
    name, holder = sweep.name, sweep.study.holder
    if holder is None or holder.is_gone:
        raise SpecError(f"nobody drives the sweep {name!r}")

    def left() -> str:
        return f"trials left unfinished: {_numbers(_look(sweep).interrupted)}"

    return end_driver(name, sweep.folder.option, sweep.study.storage.engine, holder, left)


def end_driver(
    name: str, option: str, engine: sa.Engine, holder: Holder, left: Callable[[], str]
) -> ExitCode:
    """Ask the driver of a sweep to stop, and wait until it has; `left` says what it left then."""
    request_stop(engine, holder)
    say(f"Stopping {holder}: the running trials leave a checkpoint at their next step.")
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        now = read_lease(engine, name)
        if now is None or now.owner != holder.owner:
            say(f"Stopped; {left()}.")
            return ExitCode.DONE
        if now.is_gone:
            shows = f"peft-sweep status {name}{option}"
            raise SpecError(f"{holder} is gone without an answer; `{shows}` shows what it left")
        time.sleep(0.2)
    say(f"{holder} has not stopped in {STOP_SECONDS:g} s; `kill` it there.", style="red")
    return ExitCode.FAILED


def _look(sweep: RecordedSweep) -> Standing:
    study = sweep.study
    holder = study.holder
    launched = study.launched()
    by_state: dict[str, list[FrozenTrial]] = {state: [] for state in STATES}
    for trial in launched:
        by_state.setdefault(state_of(trial, holder), []).append(trial)
    running = by_state[RUNNING]
    finished = [t for t in launched if t.state.is_finished() and "result" in t.user_attrs]
    finished.sort(key=lambda t: str(t.datetime_complete), reverse=True)
    ended = tuple(map(_ended, finished))
    best = sweep.leaderboard().best
    snapshot = Snapshot(
        counts={state: len(trials) for state, trials in by_state.items()},
        running=tuple(_running(t, sweep.folder) for t in running),
        latest=ended[:LATEST],
        best=None if best is None or best.value is None else (best.number, best.value),
        best_params={} if best is None else best.params,
        started=_started(launched, holder),
    )
    interrupted = tuple(trial.number for trial in by_state[INTERRUPTED])
    return Standing(sweep, holder, snapshot, ended, interrupted)


def _started(launched: Sequence[FrozenTrial], holder: Holder | None) -> float:
    """When the driver started its first trial, as its own display counts the time."""
    if holder is None:
        return time.time()
    times = [float(t.user_attrs.get("started_at", 0)) for t in launched]
    return min((at for at in times if at >= holder.since), default=time.time())


def _running(trial: FrozenTrial, folder: SweepFolder) -> RunningTrial:
    known = trial.user_attrs
    started = float(known["started_at"])
    attempt = int(known.get("attempt", 1))
    progress = _progress(folder, folder.attempt(trial.number, attempt) / METRICS_FILE)
    return RunningTrial(trial.number, attempt, started, known.get("params", {}), progress)


def _progress(folder: SweepFolder, metrics: Path) -> Progress | None:
    """The last report in a trial's file, which its host may be writing just now."""
    try:
        lines = (folder.read(metrics) or "").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return Progress.model_validate_json(line)
        except ValidationError:
            continue
    return None


def _ended(trial: FrozenTrial) -> EndedTrial:
    result = TrialResult.model_validate(trial.user_attrs["result"])
    values = trial.intermediate_values
    value = trial.value if trial.value is not None else values[max(values)] if values else None
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return EndedTrial(trial.number, seconds, trial.user_attrs["params"], result, value)


def driver_of(holder: Holder | None) -> str:
    """Who drives a sweep, in words."""
    if holder is None:
        return "nobody"
    if holder.is_gone:
        return f"nobody; {holder} has died"
    now = time.time()
    stopping = ", stopping" if holder.stop else ""
    heard = f"{max(0.0, now - holder.renewed):.0f} s ago"
    return f"{holder}, since {clock(now - holder.since)}, last heard of {heard}{stopping}"


def _is_done(standing: Standing) -> bool:
    ended = standing.snapshot.ended
    return ended >= standing.sweep.spec.budget.n_trials and not standing.interrupted


def _drawn(standing: Standing) -> Any:
    spec = standing.sweep.spec
    size, n_trials = spec.space.size(), spec.budget.n_trials
    total = n_trials if size is None else min(size, n_trials)
    shown = Shown(spec, total, time.time(), max(3, err.height - 16), err.width)
    return render(standing.snapshot, shown)


def _print(standing: Standing) -> None:
    out.print(_drawn(standing), width=min(out.width, 100))


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(f"{number:04d}" for number in numbers) or "none"


def _record(standing: Standing) -> dict[str, Any]:
    """The standing as plain JSON values."""
    holder, snapshot = standing.holder, standing.snapshot
    return {
        "sweep": standing.sweep.spec.name,
        "driven": standing.is_driven,
        "driver": None if holder is None else asdict(holder),
        "trials": dict(snapshot.counts),
        "n_trials": standing.sweep.spec.budget.n_trials,
        "running": [
            {
                "number": trial.number,
                "attempt": trial.attempt,
                "progress": None
                if trial.progress is None
                else json_text.loads(trial.progress.model_dump_json()),
            }
            for trial in snapshot.running
        ],
        "interrupted": list(standing.interrupted),
        "starting": False,
        "best": None
        if snapshot.best is None
        else {
            "number": snapshot.best[0],
            "value": snapshot.best[1],
        },
    }
