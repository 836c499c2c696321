"""A sweep that gets broken, and what must be true of it afterwards."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.engines.simulated import loss_at
from tests.support.left_behind import (
    TrialRecord,
    differences,
    disagreements,
    parent_runs,
    read,
    wait_for_change,
)
from tests.support.ray_nodes import HANG_SECONDS, HOST, PROXY, Launched, Node, wait_for

LOG = "PEFT_SWEEPS_CHAOS_LOG"
"""Names the file to which every fault adds a line of JSON; see infra/chaos.sh."""
_BATCH = 8


def sweep_tree(storage: Path, address: str | None = None, **sections: Any) -> dict[str, Any]:
    """The mapping of a sweep file: simulated trials, one at a time; sections are updated."""
    whole: dict[str, Any] = {
        "name": "broken",
        "model": "demo",
        "quantization": "nf4",
        "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
        "data": {"train": "demo", "validation": "demo"},
        "space": {
            "parameters": {
                "adapter.r": {"choices": [4, 8, 16, 32]},
                "adapter.lora_alpha": "2 * adapter.r",
                "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
                "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            }
        },
        "budget": {"n_trials": 8, "max_samples": 600},
        "resources": {
            "backend": "ray",
            "address": address,
            "engine": "simulated",
            "engine_options": {"num_slots": 1, "step_seconds": 0.002},
            "cpus_per_trial": 1,
            "gpus_per_trial": 0,
            "max_concurrent": 1,
        },
        "storage": str(storage),
        "seed": 1,
    }
    for name, given in sections.items():
        old = whole.get(name)
        merge = isinstance(given, dict) and isinstance(old, dict)
        whole[name] = {**old, **given} if merge else given
    return whole


def in_parallel(storage: Path, address: str | None = None, **sections: Any) -> dict[str, Any]:
    """Four trials of 75 steps, two at a time, none pruned; a checkpoint at steps 9 and 25."""
    resources = {"max_concurrent": 2, **sections.pop("resources", {})}
    resources["engine_options"] = {
        "num_slots": 2,
        "step_seconds": 0.02,
        "hold": str(_hold_of(storage)),
        **resources.get("engine_options", {}),
    }
    budget = {"n_trials": 4, "max_samples": 600}
    return sweep_tree(
        storage,
        address,
        **{"resources": resources, "budget": budget, "pruner": "none", **sections},
    )


def _hold_of(storage: Path) -> Path:
    return storage.parent / f"{storage.name}-hold"


@dataclass
class Broken:
    """One sweep under test: launches its driver, breaks it, reads what it left."""

    tree: dict[str, Any]
    drive: Callable[..., Launched]
    mlflow: Path | None = None
    """Database of its MLflow server; by default `mlflow.db` of the storage."""
    label: str = ""
    """Before the names of its faults in the log."""
    nodes: tuple[Node, ...] = ()
    """Where no host and no proxy may be left at the end."""
    _markers: int = 0
    _fault: tuple[str, float] | None = None
    _notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return Path(self.tree["storage"])

    @property
    def folder(self) -> Path:
        return self.storage / str(self.tree["name"])

    def launch(
        self, point: str | None = None, nth: int = 1, action: str = "kill", **options: Any
    ) -> Launched:
        """Start a driver, in which a fault is planned at a named point."""
        if point is None:
            return self.drive(self.tree, **options)
        self._markers += 1
        fault = {"point": point, "nth": nth, "action": action, "marker": str(self.marker)}
        return self.drive(self.tree, fault, **options)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No trial of `in_parallel` goes far from a checkpoint; so two run at once, however late
        the second one comes."""
        _hold_of(self.storage).touch()
        try:
            yield
        finally:
            _hold_of(self.storage).unlink()

    @property
    def marker(self) -> Path:
        """There once the planned fault has happened."""
        return self._marker(self._markers)

    @property
    def next_marker(self) -> Path:
        """That of the next fault; it does not happen for as long as this is there."""
        return self._marker(self._markers + 1)

    def _marker(self, number: int) -> Path:
        return self.storage.parent / f"{self.storage.name}-fault-{number}"

    def die(self, point: str, nth: int = 1) -> None:
        """Run a driver until the fault at `point` kills it."""
        driver = self.launch(point, nth, flush_seconds=180)
        self.goes_on(driver)
        output = driver.finish()
        told = f"{point}, {nth} times; exit code {driver.process.returncode}:\n{output}"
        assert self.marker.exists(), f"nothing passed {told}"
        assert driver.process.returncode == -9, told
        self.died(f"driver, kill -9 at {point}")

    def died(self, fault: str, at: float | None = None) -> None:
        """A fault has happened, now or at a time of `time.monotonic`; `goes_on` comes next."""
        self._fault = (fault, at or time.monotonic())

    def goes_on(self, driver: Launched) -> None:
        """Wait until the study shows that trials go on, or `driver` is dead; note the seconds."""
        if self._fault is None:
            return
        (fault, died), self._fault = self._fault, None
        database = self.storage / "optuna.db"
        went_on = wait_for_change(database, HANG_SECONDS, lambda: driver.process.poll() is not None)
        self.note(fault, time.monotonic() - died if went_on else None)

    def complete(self) -> str:
        """Run a driver to the sweep's end; what it printed."""
        driver = self.launch()
        self.goes_on(driver)
        return self.finish(driver)

    def finish(self, driver: Launched) -> str:
        """Wait until `driver` has completed the sweep and left no process; what it printed."""
        output = driver.finish()
        assert driver.process.returncode == 0, output
        assert "interrupted" not in output, output
        wait_for(lambda: not self._left(driver), 45)
        return output

    def _left(self, driver: Launched) -> list[str]:
        """What a driver that has ended left running.

        Two agents of Ray's own (2.60) may wait 60 s for a dead cluster before they leave as well.
        """
        workers = [w for node in self.nodes for title in (HOST, PROXY) for w in node.workers(title)]
        own = [name for name in driver.alive() if not name.endswith("Agent")]
        return own + [str(worker) for worker in workers]

    def read(self) -> dict[int, TrialRecord]:
        return read(self.storage, self.tree["name"], self.mlflow)

    def note(self, fault: str, seconds: float | None) -> None:
        """For the log, if one is wanted: how long a recovery took, None if it was cut off."""
        fault = self.label + fault
        self._notes.append({"fault": fault, "recovery_seconds": seconds and round(seconds, 2)})

    def check_same(self, reference: dict[int, TrialRecord], tolerance: float = 0.0) -> None:
        """The final records are those of an unbroken run, everywhere."""
        found = self.read()
        self._log(found)
        different = differences(found, reference, tolerance)
        assert not different, "\n".join(different)
        self._check(found)

    def check_whole(self) -> None:
        """No trial was lost, duplicated or stuck, and each saw what it would have seen unbroken."""
        found = self.read()
        self._log(found)
        launched = {n: record for n, record in found.items() if record.counts}
        assert len(launched) == self.tree["budget"]["n_trials"], sorted(launched)
        prints = [record.attributes["fingerprint"] for record in launched.values()]
        assert len(set(prints)) == len(prints), "a configuration was trained twice"
        self._check(found)
        for number, record in launched.items():
            spec = TrialSpec.model_validate_json(
                (self.folder / "trials" / f"{number:04d}" / "trial.json").read_text()
            )
            for rung, value in record.rungs.items():
                assert value == loss_at(spec, -(-rung // _BATCH) * _BATCH), (number, rung)
            if record.state == "COMPLETE":
                assert record.value == loss_at(spec, self.tree["budget"]["max_samples"]), number

    def _check(self, found: dict[int, TrialRecord]) -> None:
        disagreeing = disagreements(found)
        assert not disagreeing, "\n".join(disagreeing)
        parents = parent_runs(self.mlflow or self.storage / "mlflow.db", self.tree["name"])
        assert parents == ["FINISHED"], parents
        with closing(sqlite3.connect(self.folder / "tracking.db")) as outbox:
            left = outbox.execute("SELECT * FROM op").fetchall()
            left += outbox.execute("SELECT * FROM dead_letter").fetchall()
        assert not left, left

    def _log(self, found: dict[int, TrialRecord]) -> None:
        """Write the faults of this sweep down with the number of trials that they have cost."""
        if LOG not in os.environ:
            return
        launched = [record for record in found.values() if record.counts]
        ended = [r for r in launched if r.state in ("COMPLETE", "PRUNED", "FAIL") and r.file]
        lost = self.tree["budget"]["n_trials"] - len(ended)
        with Path(os.environ[LOG]).open("a") as log:
            for line in self._notes:
                log.write(json.dumps({**line, "lost": lost}) + "\n")
