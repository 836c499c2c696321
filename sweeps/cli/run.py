"""`run`: launch a sweep, show how it goes, and say what came of it and what to do next."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from peft_jobs import State
from peft_jobs.job import Prepared
from sweeps.cli.board import print_board
from sweeps.cli.devices import device
from sweeps.cli.errors import ExitCode
from sweeps.cli.screen import err, out, pairs, print_json, say
from sweeps.cli.signals import Interrupts
from sweeps.database import open_storage
from sweeps.driver import Driver
from sweeps.layout import SweepFolder
from sweeps.loading import load_sweep
from sweeps.redact import redact
from sweeps.reports import summary
from sweeps.run import Outcome, launch
from sweeps.spec import SweepSpec


class Watcher(Protocol):
    """Shows progress; `LiveProgress` on a terminal, `Lines` elsewhere."""

    @property
    def interrupted(self) -> list[int]: ...
    def prepared(self, spec: SweepSpec, prepared: Prepared) -> None: ...
    def changed(self, driver: Driver) -> None: ...
    def stopping(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def run(
    path: Path,
    overrides: Sequence[str],
    address: str | None,
    inline: bool,
    study_url: str | None,
    plain: bool,
    json: bool,
) -> ExitCode:
    """Run the sweep of the file at `path`; SweepFileError with every mistake of it."""
    spec = load_sweep(path, [*overrides, *options(address, inline, study_url)])
    if spec.study_url is not None:
        open_storage(spec.study_url)  # a mistake in it is told before anything is loaded
    say(f"Sweep {spec.name}", style="bold")
    err.print(pairs(uses(spec)))
    outcome, interrupted = _launch(spec, path.read_text(encoding="utf-8"), _watcher(spec, plain))
    if outcome is None:
        say("Interrupted.", style="yellow")
        say(f"`peft-sweep run {path}` takes the sweep up where the study stands.")
        return ExitCode.INTERRUPTED
    if json:
        print_json(_record(spec, outcome, interrupted))
    else:
        _tell(spec, outcome)
    return _tell_status(spec, path, outcome, interrupted)


def options(address: str | None, inline: bool, study_url: str | None) -> Iterator[str]:
    """Command line options as overrides of the sweep file."""
    if address is not None:
        yield f"resources.address='{address}'"
    if inline:
        yield "resources.backend=inline"
    if study_url is not None:
        yield f"study_url='{study_url}'"


def uses(spec: SweepSpec) -> dict[str, str]:
    """What the sweep will use, known before anything is started."""
    resources, tracking = spec.resources, spec.tracking
    address = resources.address or os.environ.get("RAY_ADDRESS")
    if resources.backend == "inline":
        where = f"{device()}; inline, without Ray"
    elif address not in (None, "local"):
        where = f"the Ray cluster at {address}"
    else:
        where = f"{device()}; Ray on this machine"
    if resources.engine != "solo":
        where += f"; {resources.engine} engine"
    folder = SweepFolder.of(spec)
    words = {
        "device": where,
        "base": f"{spec.trial.model.name_or_path}, {spec.trial.quantization.scheme}",
        "storage": str(folder.path),
        "tracking": f"MLflow, {redact(tracking.uri or folder.tracking_url)}",
    }
    if not tracking.enabled:
        words["tracking"] = "off"
    if spec.study_url is not None:
        words["study"] = redact(spec.study_url)
    return words


def _watcher(spec: SweepSpec, plain: bool) -> Watcher:
    if plain or not err.is_terminal or err.is_dumb_terminal:
        from sweeps.cli.lines import Lines

        return Lines(spec)
    from sweeps.cli.live import LiveProgress

    return LiveProgress(spec)


def _launch(spec: SweepSpec, source: str, watcher: Watcher) -> tuple[Outcome | None, list[int]]:
    """The outcome, and the trials that were left unfinished.

    The outcome is None if the interruption came before the first trial, or a second time.
    """

    def prepared(resolved: SweepSpec, found: Prepared) -> None:
        interrupts.take_back()
        watcher.prepared(resolved, found)

    def changed(driver: Driver) -> None:
        interrupts.take_back()
        watcher.changed(driver)

    with (
        watcher,
        Interrupts(watcher.stopping) as interrupts,
        contextlib.redirect_stdout(sys.stderr),
    ):
        try:
            outcome = launch(spec, source, on_change=changed, on_prepared=prepared)
        except KeyboardInterrupt:
            return None, watcher.interrupted
    return outcome, watcher.interrupted


def _record(spec: SweepSpec, outcome: Outcome, interrupted: Sequence[int]) -> dict[str, Any]:
    folder, best = SweepFolder.of(spec), outcome.leaderboard.best
    return {
        "sweep": spec.name,
        "folder": str(folder.path),
        "status": outcome.status,
        "reason": outcome.reason,
        "interrupted": sorted(interrupted),
        "undelivered": outcome.undelivered,
        "adapter": str(folder.path / best.adapter) if best and best.adapter else None,
        "leaderboard": outcome.leaderboard.to_json(),
    }


def _tell(spec: SweepSpec, outcome: Outcome) -> None:
    """The leaderboard, where the winner lies, what to do next."""
    board, folder = outcome.leaderboard, SweepFolder.of(spec)
    out.print(f"\nSweep {spec.name}: {summary(board)}\n", markup=False)
    if board.rows:
        print_board(board, out)
        out.print()
    if board.best is None or outcome.status != "complete":
        return
    if board.best.adapter is not None:
        out.print(f"The winner's adapter is in [bold]{folder.path / board.best.adapter}[/]\n")
    where = "" if folder.storage == Path("runs").absolute() else f" --storage {folder.storage}"
    steps = {f"peft-sweep export {spec.name}{where}": "write the winner, scored again as written"}
    if spec.tracking.enabled and spec.tracking.uri is None:
        steps = {f"peft-sweep ui{where}": "browse the trials in MLflow"} | steps
    width = max(map(len, steps))
    out.print("Next:")
    for command, what in steps.items():
        out.print(f"  {command:{width}}  [dim]{what}[/]", soft_wrap=True)


def _tell_status(
    spec: SweepSpec, path: Path, outcome: Outcome, interrupted: Sequence[int]
) -> ExitCode:
    """Whatever is not as hoped, in a line each, and the exit code."""
    if outcome.undelivered:
        say(
            f"{outcome.undelivered} records could not be delivered to the tracking server; they "
            "are kept, and `peft-sweep run` again delivers them.",
            style="yellow",
        )
    if outcome.status == "interrupted":
        names = ", ".join(f"{number:04d}" for number in sorted(interrupted)) or "none"
        say(f"Interrupted; trials left unfinished: {names}.", style="yellow")
        say(f"`peft-sweep run {path}` takes the sweep up again, with the same options.")
        return ExitCode.INTERRUPTED
    if outcome.status == "failed":
        say(f"The sweep failed: {outcome.reason}.", style="red")
        for row in [row for row in outcome.leaderboard.rows if row.state == State.FAIL][:3]:
            first = (row.error or "").partition("\n")[0]
            say(f"  trial {row.number:04d} ({row.kind}): {first}")
            say(f"    peft-sweep show {spec.name} {row.number} --storage {spec.storage}")
        return ExitCode.FAILED
    if outcome.reason is not None:
        say(f"It ended early: {outcome.reason}.")
    return ExitCode.DONE
