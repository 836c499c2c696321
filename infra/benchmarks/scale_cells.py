"""The cells of `scale.py`: one sweep of simulated trials, taken apart by what the driver does.

Processor time is that of the driver's thread; the simulated engine's own runs beside it.
"""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from peft_jobs import Progress, State, TrialResult
from sweeps import SweepSpec, build_sweep
from sweeps.backends.backend import make_backend
from sweeps.driver.driver import Driver
from sweeps.records.layout import SweepFolder
from sweeps.run import launch
from sweeps.spec.plan import resolve, variants
from sweeps.study.database import open_storage
from sweeps.study.point import Point
from sweeps.study.study import SweepStudy
from sweeps.tracking import NoTracker

QUARTERS = 4
_STEP_SECONDS = 0.1
_PROXY_TITLES = ("ray::TrialProxy",)
"""Of a proxy's process; Tune 2.60 derives the second one to note the resources."""
_SPACE = {
    "parameters": {
        "adapter.r": {"choices": [4, 8, 16, 32, 64]},
        "adapter.lora_alpha": {"low": 4.0, "high": 128.0, "log": True},
        "adapter.lora_dropout": {"low": 0.0, "high": 0.2},
        "adapter.target_modules": {"choices": ["attention-qv", "attention", "all-linear"]},
        "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "training.weight_decay": {"low": 0.0, "high": 0.1},
    }
}


@dataclass
class Clock:
    """What has been measured so far; `marks` are copies of it at each quarter's end."""

    ask_seconds: list[float] = field(default_factory=list)
    """Wall time of every ask of the study."""
    cpu: dict[str, float] = field(default_factory=lambda: {"ask": 0.0, "report": 0.0, "end": 0.0})
    """Seconds of processor time by what the driver does."""
    reports: int = 0
    marks: list[dict[str, Any]] = field(default_factory=list)

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        began = time.thread_time()
        try:
            return call()
        finally:
            self.cpu[what] += time.thread_time() - began

    def mark(self, storage: Path) -> None:
        self.marks.append(
            {
                "cpu": time.thread_time(),
                "wall": time.perf_counter(),
                **{f"cpu_{what}": seconds for what, seconds in self.cpu.items()},
                "asked": len(self.ask_seconds),
                "reports": self.reports,
                "rss_bytes": psutil.Process().memory_info().rss,
                "database_bytes": _database_bytes(storage / "optuna.db"),
            }
        )


@dataclass
class TimedDriver(Driver):
    """A driver that measures itself."""

    timings: Clock = field(default_factory=Clock)
    due: list[int] = field(default_factory=list)
    """Numbers of ended trials at which a quarter ends."""
    seen: set[int] = field(default_factory=set)
    """Trials that have reported."""
    on_seen: Callable[[int], None] = lambda _: None

    def next_point(self) -> Point | None:
        began = time.perf_counter()
        point: Point | None = self.timings.timed("ask", super().next_point)
        if point is not None:
            self.timings.ask_seconds.append(time.perf_counter() - began)
        return point

    def report(self, number: int, progress: Progress) -> bool:
        self.timings.reports += 1
        go_on: bool = self.timings.timed("report", lambda: Driver.report(self, number, progress))
        if number not in self.seen:
            self.seen.add(number)
            self.on_seen(len(self.seen))
        return go_on

    def end(self, number: int, result: TrialResult) -> None:
        self.timings.timed("end", lambda: Driver.end(self, number, result))
        while self.due and len(self.ended) >= self.due[0]:
            self.due.pop(0)
            self.timings.mark(self.folder.storage)


def sweep_cell(storage: str, backend: str, trials: int, slots: int, sampler: str) -> dict[str, Any]:
    """One sweep, inline or on a Ray cluster of this machine alone, by quarters of its trials."""
    spec = _sweep(storage, trials, _slots(backend, slots), sampler, {"max_samples": 900})
    clock = Clock()
    due = [trials * (quarter + 1) // QUARTERS for quarter in range(QUARTERS)]

    def start(driver: TimedDriver) -> None:
        driver.timings, driver.due = clock, due
        clock.mark(driver.folder.storage)

    driver = _run(spec, start)
    quarters = [_between(*pair) for pair in zip(clock.marks, clock.marks[1:], strict=False)]
    for mark, quarter in zip(clock.marks[1:], quarters, strict=True):
        for name in ("cpu_ms_per_trial", "database_bytes_per_trial", "rss_bytes_per_trial"):
            quarter[name] /= trials / QUARTERS
        asked = clock.ask_seconds[mark["asked"] - quarter.pop("asked") : mark["asked"]]
        quarter["suggest_ms"] = 1000 * median(asked) if asked else None
    last = clock.ask_seconds[-max(1, len(clock.ask_seconds) // 10) :]
    return {
        "quarters": quarters,
        "seconds": clock.marks[-1]["wall"] - clock.marks[0]["wall"],
        "complete": driver.counts[State.COMPLETE],
        "reports": clock.reports,
        "suggest_ms_last_tenth": 1000 * median(last),
        "rss_bytes_before": clock.marks[0]["rss_bytes"],
        "rss_bytes": clock.marks[-1]["rss_bytes"],
        "database_bytes": clock.marks[-1]["database_bytes"],
    }


def proxies_cell(storage: str, proxies: int, seconds: float) -> dict[str, Any]:
    """One sweep on a Ray cluster of this machine alone: as many trials as proxies.

    A trial reports after two steps and lasts `seconds`, or proxies that are up early would take the
    trials of those that are not.
    """
    engine = {"num_slots": proxies, "step_seconds": _STEP_SECONDS}
    resources = {"backend": "ray", "slots_per_gpu": proxies, "engine_options": engine}
    budget = {"max_samples": max(3, round(seconds / _STEP_SECONDS)), "rungs": [1, 2]}
    found: dict[str, Any] = {}

    def start(driver: TimedDriver) -> None:
        began, cpu = time.perf_counter(), time.thread_time()

        def seen(count: int) -> None:
            if count == 1:
                found["first_report_seconds"] = time.perf_counter() - began
            if count == proxies:
                found["all_report_seconds"] = time.perf_counter() - began
                found.update(_proxies_memory())
                found["cpu_until_all"] = time.thread_time() - cpu

        driver.on_seen = seen

    before = time.perf_counter()
    sections = {"pruner": "none", "training": {"per_device_train_batch_size": 1}}
    driver = _run(_sweep(storage, proxies, resources, "random", budget, **sections), start)
    spent = driver.timings.cpu
    return {
        **found,
        "seconds": time.perf_counter() - before,
        "cpu_ms_per_trial": 1000 * sum(spent.values()) / proxies,
        "cpu_ms_per_report": 1000 * spent["report"] / driver.timings.reports,
        "complete": driver.counts[State.COMPLETE],
    }


def storage_cell(storage: str, trials: int) -> dict[str, Any]:
    """What a finished sweep's record costs those that come back to it: its commands, in processes
    of their own, and the seconds until a resumed sweep starts its next trial."""
    launch(_sweep(storage, trials, _slots("inline", 512), "random", {"max_samples": 900}))
    found: dict[str, Any] = {"database_bytes": _database_bytes(Path(storage) / "optuna.db")}
    for command in ("leaderboard", "status"):
        found[f"{command}_seconds"] = median(_timed(command, storage) for _ in range(3))
    began, known = time.perf_counter(), _launched(storage)
    more = [f"budget.n_trials={known + 8}", "--inline", "--plain"]
    with subprocess.Popen(_command("resume", storage, *more), stdout=subprocess.DEVNULL) as resumed:
        while _launched(storage) == known and resumed.poll() is None:
            time.sleep(0.02)
        found["resumed_seconds"] = time.perf_counter() - began
    return {**found, "resumed_rc": resumed.returncode}


def _timed(command: str, storage: str) -> float:
    began = time.perf_counter()
    subprocess.run(_command(command, storage), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _command(name: str, storage: str, *options: str) -> list[str]:
    script = str(Path(sys.executable).with_name("peft-sweep"))
    return [script, name, "scale", "--storage", storage, *options]


def _launched(storage: str) -> int:
    with contextlib.closing(sqlite3.connect(Path(storage) / "optuna.db")) as database:
        [(number,)] = database.execute("SELECT COUNT(*) FROM trials")
    return int(number)


def _slots(backend: str, slots: int) -> dict[str, Any]:
    """Resources of a sweep with so many trials at a time."""
    numbers = {"max_concurrent": slots, "slots_per_gpu": slots}
    return {"backend": backend, "engine_options": {"num_slots": slots}, **numbers}


def _sweep(
    storage: str,
    trials: int,
    resources: Mapping[str, Any],
    sampler: str,
    budget: Mapping[str, Any],
    **sections: Any,
) -> SweepSpec:
    return build_sweep(
        {
            "name": "scale",
            "model": "demo",
            "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
            "data": {"train": "demo", "validation": "demo"},
            "space": _SPACE,
            "sampler": sampler,
            "budget": {"n_trials": trials, **budget},
            "resources": {"engine": "simulated", **resources},
            "tracking": "none",
            "storage": storage,
            "seed": 1,
            **sections,
        }
    )


def _run(spec: SweepSpec, start: Callable[[TimedDriver], None]) -> TimedDriver:
    """A launch without lease, tracking and reports."""
    folder = SweepFolder.of(spec)
    folder.path.mkdir(parents=True)
    backend = make_backend(spec, folder)
    try:
        spec = resolve(spec, backend.prepare(spec.trial, variants(spec)))
        study = SweepStudy(spec, open_storage(folder.study_url))
        study.take_over()
        driver = TimedDriver(spec, study, NoTracker(), folder)
        start(driver)
        backend.run(driver)
    finally:
        backend.close()
    return driver


def _between(begin: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    asked, reports = end["asked"] - begin["asked"], end["reports"] - begin["reports"]

    def per(name: str, count: int) -> float:
        return float(1000 * (end[name] - begin[name]) / max(1, count))

    return {
        "asked": asked,
        "cpu_ms_per_trial": 1000 * (end["cpu"] - begin["cpu"]),
        "cpu_ms_per_ask": per("cpu_ask", asked),
        "cpu_ms_per_report": per("cpu_report", reports),
        "database_bytes_per_trial": end["database_bytes"] - begin["database_bytes"],
        "rss_bytes_per_trial": end["rss_bytes"] - begin["rss_bytes"],
    }


def _database_bytes(file: Path) -> int:
    """What the database holds, its log included."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        ((pages,), (size,)) = map(
            next, (database.execute("PRAGMA page_count"), database.execute("PRAGMA page_size"))
        )
    return int(pages * size)


def _proxies_memory() -> dict[str, float]:
    """Proportional and unique set sizes of the proxies of this process's cluster, and their CPU."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith(_PROXY_TITLES) and _is_ours(process):
            times = process.cpu_times()
            found.append((process.memory_full_info(), times.user + times.system))
    return {
        "proxy_processes": len(found),
        "pss_bytes_per_proxy": sum(memory.pss for memory, _ in found) / len(found),
        "uss_bytes_per_proxy": sum(memory.uss for memory, _ in found) / len(found),
        "cpu_seconds_per_proxy": sum(cpu for _, cpu in found) / len(found),
    }


def _is_ours(process: psutil.Process) -> bool:
    return any(parent.pid == os.getpid() for parent in process.parents())
