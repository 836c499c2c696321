"""Progress as plain lines, for logs: one for each start, rung and end of a trial."""

from collections.abc import Mapping

from peft_jobs import Progress
from peft_jobs.host.job import Prepared
from sweeps.cli.display.snapshot import EndedTrial, Observer, RunningTrial, Snapshot
from sweeps.cli.display.stages import Stages
from sweeps.cli.screen import clock, err, pairs, say, short_params
from sweeps.driver.driver import Driver
from sweeps.results.states import word
from sweeps.spec import SweepSpec


class Lines:
    """Says what happens, as it happens."""

    def __init__(self, spec: SweepSpec) -> None:
        self._metric = spec.objective.metric
        self._observer = Observer(spec)
        self._stages = Stages()
        self._attempts: dict[int, int] = {}
        self._rungs: dict[int, int] = {}

    def __enter__(self) -> "Lines":
        say("Loading the base and the data ...")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def interrupted(self) -> list[int]:
        return self._observer.interrupted

    def stage(self, name: str) -> None:
        self._stages.see(name)

    def prepared(self, spec: SweepSpec, prepared: Prepared) -> None:
        self._observer = Observer(spec)
        self._stages.see("")
        err.print(pairs(self._stages.told() | plan(spec, prepared)))

    def changed(self, driver: Driver) -> None:
        snapshot, ended = self._observer.see(driver)
        for trial in ended:
            say(self._end(trial, snapshot))
        for running in snapshot.running:
            self._started(running)
            if running.progress is not None:
                self._rung(running.number, running.progress, driver)

    def stopping(self) -> None:
        say(STOPPING)

    def _started(self, trial: RunningTrial) -> None:
        before = self._attempts.get(trial.number)
        if before == trial.attempt:
            return
        self._attempts[trial.number] = trial.attempt
        params = " ".join(f"{name}={value}" for name, value in short_params(trial.params).items())
        again = f" again, attempt {trial.attempt}" if trial.attempt > 1 else ""
        say(f"trial {trial.number:04d} starts{again}: {params}")

    def _rung(self, number: int, progress: Progress, driver: Driver) -> None:
        if progress.rung is None or self._rungs.get(number) == progress.rung:
            return
        self._rungs[number] = progress.rung
        stopped = "pruned_at" in driver.study.trials()[number].user_attrs
        value = progress.metrics.get(self._metric)
        measured = "" if value is None else f"{self._metric} {value:.4f}, "
        decision = "pruned" if stopped else "goes on"
        say(f"trial {number:04d} at {progress.rung:,} samples: {measured}{decision}")

    def _end(self, trial: EndedTrial, snapshot: Snapshot) -> str:
        is_best = snapshot.best is not None and snapshot.best[0] == trial.number
        best = ", the best so far" if is_best else ""
        done = f"{snapshot.ended} of {self._observer.total} trials"
        return f"trial {trial.number:04d} {ending(trial, self._metric)}{best} [{done}]"


STOPPING = "Stopping: the running trials end at their next step. Ctrl-C again leaves them at once."


def plan(spec: SweepSpec, prepared: Prepared) -> dict[str, str]:
    """What the sweep will do, once base and data are known."""
    samples = spec.trial.training.max_samples or 0
    rungs = " and ".join(f"{rung:,}" for rung in spec.trial.evaluation.rungs)
    compared = f", compared at {rungs}" if rungs else ""
    together = f", {spec.resources.slots} at a time on a host" if spec.resources.slots > 1 else ""
    words = {
        "trials": f"{spec.budget.n_trials} of at most {samples:,} samples{compared}{together}",
        "data": f"{prepared.train_rows:,} training rows",
    }
    metric = spec.objective.metric
    if metric in prepared.baseline:
        goes_on = spec.trial.adapter.source is not None
        told = "of the adapter before training" if goes_on else "without an adapter"
        words["baseline"] = f"{metric} {prepared.baseline[metric]:.4f} {told}"
    if prepared.class_counts:
        words["classes"] = classes(prepared.class_counts)
    if metric in prepared.majority:
        words["majority"] = f"{metric} {prepared.majority[metric]:.4f} without looking at a row"
    if prepared.leaks:
        words["leak"] = "; ".join(prepared.leaks)
    return words


def classes(counts: Mapping[str, int]) -> str:
    """The most frequent classes, each with its training rows."""
    order = sorted(counts, key=lambda name: -counts[name])
    rest = f" and {len(order) - 8} more" if len(order) > 8 else ""
    return ", ".join(f"{name} {counts[name]:,}" for name in order[:8]) + rest


def ending(trial: EndedTrial, metric: str) -> str:
    """How a trial ended, with its value or its error."""
    result = trial.result
    words = word(result.state)
    if result.kind is not None and result.kind != "weak":
        words += f" ({result.kind.replace('_', ' ')})"
    parts = [words]
    if trial.value is not None and result.error is None:
        parts.append(f"{metric} {trial.value:.4f}")
    if result.error is not None:
        parts.append(result.error.splitlines()[0])
    return f"{parts[0]} after {clock(trial.seconds)}" + "".join(f", {part}" for part in parts[1:])
