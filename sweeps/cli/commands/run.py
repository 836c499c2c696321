"""`run`, `resume`, `retry` and `confirm`: launch a sweep, show how it goes, say what came of it.

On Ray the command supervises: the sweep's driver is this same command, in a child process that is
started again when it dies. An inline sweep runs in this process, so that a debugger works.
"""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

from peft_jobs.host.job import Prepared
from peft_jobs.spec.dotted import flatten
from sweeps.cli.devices import device
from sweeps.cli.display.outcome import record, tell, tell_status
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.preflight import check_data, check_tracking, load_checked
from sweeps.cli.screen import err, pairs, print_json, say
from sweeps.cli.supervisor import supervise
from sweeps.driver.driver import Driver
from sweeps.driver.heartbeat import VARIABLE, Heartbeat
from sweeps.driver.interrupts import termination_as_interrupt
from sweeps.records.layout import SweepFolder
from sweeps.records.reader import recorded_spec
from sweeps.redact import redact
from sweeps.run import LaunchCallbacks, Outcome, launch
from sweeps.search.at_random import drawn_at_random, why_at_random
from sweeps.spec import SweepSpec

Verb = Literal["resume", "retry", "confirm"]
"""What is to come of a recorded sweep."""


@dataclass(frozen=True)
class Options:
    """What all of these commands take."""

    overrides: Sequence[str] = ()
    address: str | None = None
    inline: bool = False
    study_url: str | None = None
    plain: bool = False
    json: bool = False
    supervise: bool = True
    moved: bool = False

    def words(self) -> Iterator[str]:
        """As words of the driver's command line; the study's URL goes by the environment."""
        yield from self.overrides
        if self.address is not None:
            yield from ("--address", self.address)
        yield from (f"--{name}" for name in ("plain", "json", "moved") if getattr(self, name))
        yield "--no-supervise"

    def as_overrides(self) -> Iterator[str]:
        """All that changes the sweep, as `key=value`, but for the study's URL."""
        yield from self.overrides
        if self.address is not None:
            yield f"resources.address={json.dumps(self.address)}"
        if self.inline:
            yield "resources.backend=inline"


class Watcher(Protocol):
    """Shows progress; `LiveProgress` on a terminal, `Lines` elsewhere."""

    @property
    def interrupted(self) -> list[int]: ...
    def stage(self, name: str) -> None: ...
    def prepared(self, spec: SweepSpec, prepared: Prepared) -> None: ...
    def changed(self, driver: Driver) -> None: ...
    def stopping(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def run(path: Path, options: Options) -> int:
    """Run the sweep of the file at `path`; SweepFileError with every mistake of it or its data."""
    overrides = [*options.as_overrides()]
    if options.study_url is not None:
        overrides.append(f"study_url={json.dumps(options.study_url)}")
    spec = load_checked(path, overrides)
    if VARIABLE not in os.environ and not SweepFolder.of(spec).record.exists():
        check_tracking(spec, str(path))  # once: not when a driver is started again, nor to go on
        check_data(spec, str(path))
    command = ["run", str(path), *options.words()]
    if supervises(spec, options):
        return supervise_again(options, command, command)
    return drive(spec, options, _again(spec, path))


def resume(storage: Path, name: str, options: Options, verb: Verb = "resume") -> int:
    """Take up a recorded sweep, with its file or without."""
    spec = recorded_spec(storage, name, [*options.as_overrides()], options.study_url)
    rest = [name, *options.words(), "--storage", SweepFolder(storage, name).location]
    command = [verb, *rest, "--failed"] if verb == "retry" else [verb, *rest]
    if supervises(spec, options):
        return supervise_again(options, command, ["resume" if verb == "retry" else verb, *rest])
    return drive(spec, options, _again(spec, verb=verb), verb)


def supervises(spec: SweepSpec, options: Options) -> bool:
    """Whether the sweep's driver is to be a child process."""
    return options.supervise and spec.resources.backend == "ray"


def supervise_again(options: Options, command: Sequence[str], again: Sequence[str]) -> int:
    """Run `command` as a driver, and `again` each time that it has died; its exit code."""
    if options.study_url is not None:
        os.environ["PEFT_SWEEPS_STUDY_URL"] = options.study_url
    program = [sys.executable, "-m", "sweeps.cli"]
    return supervise([*program, *command], [*program, *again])


def drive(
    spec: SweepSpec, options: Options, again: str, verb: Verb = "resume", shows: bool = True
) -> ExitCode:
    """Drive the sweep in this process, and say what came of it unless `shows` is False.

    `again` is the command that takes it up.
    """
    heartbeat = Heartbeat.of_environment()
    say(f"Sweep {spec.name}", style="bold")
    err.print(pairs(uses(spec)))
    watcher = _watcher(spec, options.plain)
    outcome = _launch(spec, watcher, heartbeat, verb, options.moved)
    heartbeat.ended()
    if outcome is None:
        say("Interrupted.", style="yellow")
        say(f"`{again}` takes the sweep up where the study stands.")
        return ExitCode.INTERRUPTED
    if shows and options.json:
        print_json(record(spec, outcome, watcher.interrupted))
    elif shows:
        tell(spec, outcome)
    return tell_status(spec, again, outcome, watcher.interrupted)


def _again(spec: SweepSpec, path: Path | None = None, verb: Verb = "resume") -> str:
    """The command that takes the sweep up again, of the file at `path` or recorded."""
    folder = SweepFolder.of(spec)
    if verb == "confirm":
        return f"peft-sweep confirm {spec.name}{folder.option}"
    if path is not None and not folder.record.exists():
        return f"peft-sweep run {shlex.quote(str(path))}"
    return f"peft-sweep resume {spec.name}{folder.option}"


def uses(spec: SweepSpec) -> dict[str, str]:
    """What the sweep will use, known before anything is started."""
    resources, tracking = spec.resources, spec.tracking
    if resources.backend == "inline":
        where = f"{device()}; inline, without Ray"
    elif resources.address is not None:
        where = f"the Ray cluster at {resources.address}"
    else:
        where = f"{device()}; Ray on this machine"
        if address := os.environ.get("RAY_ADDRESS"):
            where += f" (`--address auto` joins the cluster of RAY_ADDRESS, {address})"
    if resources.engine != "packed":
        where += f"; {resources.engine} engine"
    folder = SweepFolder.of(spec)
    words = {
        "device": where,
        "base": f"{spec.trial.model.name_or_path}, {spec.trial.quantization.scheme}",
        "storage": folder.location_of(folder.path),
        "tracking": f"MLflow, {redact(tracking.uri or folder.tracking_url)}",
    }
    if not tracking.enabled:
        words["tracking"] = "off"
    names = drawn_at_random(spec.sampler.type, spec.space, flatten(spec.trial))
    if names:
        words["sampler"] = why_at_random(spec.sampler.type, names)
    if spec.study_url is not None:
        words["study"] = redact(spec.study_url)
    return words


def _watcher(spec: SweepSpec, plain: bool) -> Watcher:
    if plain or not err.is_terminal or err.is_dumb_terminal:
        from sweeps.cli.display.plain import Lines

        return Lines(spec)
    from sweeps.cli.display.live import LiveProgress

    return LiveProgress(spec)


def _launch(
    spec: SweepSpec,
    watcher: Watcher,
    heartbeat: Heartbeat,
    verb: Verb,
    moved: bool,
) -> Outcome | None:
    """The outcome; None if the interruption came before the first trial, or a second time."""
    told = False

    def changed(driver: Driver) -> None:
        nonlocal told
        if driver.stop_requested and not told:
            told = True
            watcher.stopping()
        watcher.changed(driver)

    callbacks = LaunchCallbacks(watcher.stage, watcher.prepared, changed, heartbeat)
    with watcher, termination_as_interrupt(), contextlib.redirect_stdout(sys.stderr):
        try:
            return launch(spec, callbacks, verb == "retry", moved, verb == "confirm")
        except KeyboardInterrupt:
            return None
