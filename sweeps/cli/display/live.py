"""Progress on a terminal: one calm block that is redrawn in place.

The driver's thread leaves a snapshot; rich's thread draws it, four times a second at most, so that
drawing never waits for training nor training for drawing.
"""

import time
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from peft_jobs.host.job import Prepared
from sweeps.cli.display.plain import STOPPING, ending, plan
from sweeps.cli.display.snapshot import Observer, RunningTrial, Snapshot
from sweeps.cli.display.stages import Stages
from sweeps.cli.screen import between, clock, err, pairs, short_params
from sweeps.driver.driver import Driver
from sweeps.results.states import STATES, word
from sweeps.spec import SweepSpec

_STYLES = dict(zip(STATES, ("green", "yellow", "red", "cyan", "magenta"), strict=True))
_OTHER_LINES = 16
"""Lines of the block beside those of running trials."""
_NARROW = 96
"""Columns below which a running trial's line is shortened."""


class LiveProgress:
    """The block; a context manager, gone from the screen when it ends."""

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._observer = Observer(spec)
        self._snapshot: Snapshot | None = None
        self._stopping = False
        self._stages = Stages()
        self._waiting = Spinner("dots", "Loading the base and the data ...")
        self._live = Live(
            get_renderable=lambda: self, console=err, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def interrupted(self) -> list[int]:
        return self._observer.interrupted

    def stage(self, name: str) -> None:
        self._stages.see(name)
        self._waiting.update(text=self._stages.current)

    def prepared(self, spec: SweepSpec, prepared: Prepared) -> None:
        self._stages.see("")
        err.print(pairs(self._stages.told() | plan(spec, prepared)))
        self._spec, self._observer = spec, Observer(spec)
        self._waiting = Spinner("dots", "Starting the first trial ...")

    def changed(self, driver: Driver) -> None:
        self._snapshot, _ = self._observer.see(driver)

    def stopping(self) -> None:
        self._stopping = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._snapshot is None:
            yield self._waiting
        else:
            room = max(3, console.height - _OTHER_LINES)
            shown = Shown(self._spec, self._observer.total, time.time(), room, console.width)
            yield render(self._snapshot, shown)
        if self._stopping:
            yield Text(STOPPING, style="yellow")


@dataclass(frozen=True)
class Shown:
    """What a drawing depends on beside the snapshot."""

    spec: SweepSpec
    total: int
    """Trials of the whole sweep."""
    now: float
    room: int
    """Lines for running trials."""
    width: int

    @property
    def metric(self) -> str:
        return self.spec.objective.metric

    @property
    def horizon(self) -> int:
        return self.spec.trial.training.max_samples or 1

    def share(self, trial: RunningTrial) -> float:
        """How far a trial has come, 0 to 1."""
        return 0.0 if trial.progress is None else min(1.0, trial.progress.samples / self.horizon)


def render(snapshot: Snapshot, shown: Shown) -> RenderableType:
    """The whole block."""
    blocks: list[RenderableType] = [Text(), _head(snapshot, shown)]
    if snapshot.best is not None:
        blocks.append(_titled("best", _best(snapshot, shown)))
    if snapshot.running:
        blocks.append(_titled("running", _running(snapshot.running, shown)))
    if snapshot.latest:
        blocks.append(_titled("latest", _latest(snapshot, shown)))
    return Group(*blocks)


def _head(snapshot: Snapshot, shown: Shown) -> RenderableType:
    left = snapshot.seconds_left(shown.now)
    times = clock(shown.now - snapshot.started)
    if left is not None:
        times += f", {between(*left)} left"
    counts = Text(f"{snapshot.ended} of {shown.total} trials   ")
    for state, style in _STYLES.items():
        if snapshot.counts.get(state):
            counts.append(f"{snapshot.counts[state]} {word(state)}  ", style=style)
    top = Table.grid(expand=True)
    top.add_column()
    top.add_column(justify="right")
    top.add_row(Text(shown.spec.name, style="bold"), Text(times, style="dim"))
    done = snapshot.ended + sum(map(shown.share, snapshot.running))
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(shown.total, min(done, shown.total)))
    return Group(top, bar, counts)


def _titled(title: str, content: RenderableType) -> RenderableType:
    """A title in the margin; the same margin for every block."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8, style="dim")
    table.add_column()
    table.add_row("", "")
    table.add_row(title, content)
    return table


def _best(snapshot: Snapshot, shown: Shown) -> RenderableType:
    assert snapshot.best is not None
    number, value = snapshot.best
    params = "  ".join(f"{name} {v}" for name, v in short_params(snapshot.best_params).items())
    return Group(
        Text(f"{number:04d}  {shown.metric} {value:.4f}", style="bold green"), Text(params)
    )


def _running(trials: tuple[RunningTrial, ...], shown: Shown) -> RenderableType:
    narrow = shown.width < _NARROW
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for trial in trials[: shown.room]:
        table.add_row(
            f"{trial.number:04d}",
            ProgressBar(1.0, shown.share(trial), width=8 if narrow else 16),
            _position(trial, shown.horizon, "" if narrow else " samples"),
            "" if trial.progress is None else _last_metric(trial.progress.metrics, shown.metric),
            clock(shown.now - trial.started),
        )
    if len(trials) > shown.room:
        table.add_row("", "", Text(f"and {len(trials) - shown.room} more", style="dim"))
    return table


def _position(trial: RunningTrial, horizon: int, unit: str) -> str:
    again = f", attempt {trial.attempt}" if trial.attempt > 1 else ""
    if trial.progress is None:
        return f"starting{again}"
    return f"step {trial.progress.step:,}, {trial.progress.samples:,}/{horizon:,}{unit}{again}"


def _latest(snapshot: Snapshot, shown: Shown) -> RenderableType:
    lines = []
    for trial in snapshot.latest:
        text = f"{trial.number:04d}  {ending(trial, shown.metric)}"
        style = _STYLES[trial.result.state]
        lines.append(Text(text, style=style, no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def _last_metric(metrics: dict[str, float], objective: str) -> str:
    """The objective if it was just measured, otherwise the training loss."""
    for name in (objective, "train/loss"):
        if name in metrics:
            return f"{name} {metrics[name]:.4f}"
    return ""
