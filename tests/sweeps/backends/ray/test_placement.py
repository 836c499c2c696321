"""Where trials run: two pretend GPUs, two nodes, and the same records as inline."""

import contextlib
import ipaddress
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from sweeps import SweepSpec
from sweeps.backends.ray.ray_backend import RayBackend
from sweeps.cli.exit_codes import ExitCode
from sweeps.run import LaunchCallbacks, launch
from sweeps.spec.resources import ResourcesSpec
from sweeps.study.database import open_storage
from tests.support.ray_nodes import HOST, Launched, ray_node
from tests.support.watching import watching

Sweep = Callable[..., SweepSpec]


def trials_of(spec: SweepSpec) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(f"sqlite:///{spec.storage}/optuna.db")
    return optuna.load_study(study_name=spec.name, storage=storage).get_trials()


def records(spec: SweepSpec) -> list[Any]:
    """What the study holds of each trial, without times, processes and machines."""
    found = []
    for trial in trials_of(spec):
        result = dict(trial.user_attrs.get("result", {}))
        result.pop("provenance", None)
        found.append(
            (
                trial.number,
                trial.state.name,
                trial.user_attrs.get("kind"),
                trial.params,
                trial.value,
                trial.intermediate_values,
                trial.constraints,
                result,
            )
        )
    return found


class Watch:
    """Looks, while a sweep runs, which shared libraries its proxies have mapped, and how nice the
    threads of its hosts are."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.maps: dict[int, str] = {}
        self.niceness: dict[int, set[int]] = {}

    def look(self) -> None:
        for process in self._cluster.workers("ray::TrialProxy"):
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self.maps[process.pid] = maps or self.maps.get(process.pid, "")
        for process in self._cluster.workers(HOST):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                threads = [thread.id for thread in process.threads()]
                found = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
                self.niceness[process.pid] = found or self.niceness.get(process.pid, found)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def test_a_cluster_of_this_machine_is_reached_from_this_machine_only() -> None:
    """First: this process, in token mode from now on, must still reach the clusters below."""
    resources, mine = ResourcesSpec(engine="simulated"), psutil.Process()
    before = set(mine.children(recursive=True))
    with contextlib.closing(RayBackend(resources, {"num_slots": 1})) as backend:
        backend.fleet.wait_for_host(lambda: None)
        listening = {
            (process.name(), _is_loopback(connection.laddr.ip))
            for process in {mine, *mine.children(recursive=True)} - before
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [name for name, is_loopback in listening if not is_loopback] == []


def test_each_trial_runs_on_the_host_of_its_gpu_and_no_proxy_imports_torch(
    sweep: Sweep, two_gpus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    resources = {
        "backend": "ray",
        "address": two_gpus.address,
        "gpus_per_trial": 0.5,
        "cpus_per_trial": 0.5,
        "engine_options": {"num_slots": 2, "step_seconds": 0.03},
    }
    budget = {"n_trials": 12, "max_samples": 600}
    spec = sweep(resources=resources, budget=budget, pruner="none", sampler="random")
    watch = Watch(two_gpus)
    with caplog.at_level(logging.INFO, "sweeps.backends.ray.bridge"), watching(watch.look):
        outcome = launch(spec)
    assert outcome.status == "complete"

    told = re.findall(r"trial (\d+): attempt 1 is on \S+-(\d)\b", caplog.text)
    gpu_of_proxy = {int(number): gpu for number, gpu in told}
    ran = {t.number: t.user_attrs["result"]["provenance"] for t in trials_of(spec)}
    assert len(gpu_of_proxy) == len(ran) == 12
    assert {n: p["visible_devices"] for n, p in ran.items()} == gpu_of_proxy
    pids = {gpu: {p["pid"] for p in ran.values() if p["visible_devices"] == gpu} for gpu in "01"}
    assert [len(found) for found in pids.values()] == [1, 1], "one host per GPU"
    assert pids["0"] != pids["1"]
    assert max(Counter(p["pid"] for p in ran.values()).values()) >= 3

    assert set(map(frozenset, watch.niceness.values())) == {frozenset({os.nice(0)})}, (
        "hosts do not yield, though Ray starts its workers at 15"
    )
    assert len(watch.maps) >= 2
    for maps in watch.maps.values():
        assert "_raylet" in maps, "these are the maps of a Ray worker"
        assert "torch" not in maps
        assert "bitsandbytes" not in maps


def test_inline_equals_ray(sweep: Sweep, two_gpus: Any) -> None:
    """A confirmation too."""
    confirm = {"seeds": 2, "candidates": 3, "max_trials": 6}
    options = {"faults": {"2": "bug", "4": "oom", "5": "diverged"}}
    shared = {"engine_options": options, "max_concurrent": 1}
    inline = sweep(name="inline", resources=shared, confirm=confirm)
    resources = {"backend": "ray", "address": two_gpus.address, **shared}
    on_ray = sweep(name="ray", resources=resources, confirm=confirm)
    assert launch(inline).status == launch(on_ray).status == "complete"
    assert records(on_ray) == records(inline)
    repeated = [trial.user_attrs for trial in trials_of(on_ray) if "confirm_of" in trial.user_attrs]
    told = [(known["confirm_of"], known["confirm_seed"]) for known in repeated]
    assert len(told) == len({*told}) == 6
    states = Counter(record[1] for record in records(inline))
    assert states["COMPLETE"] >= 1
    assert states["PRUNED"] >= 3
    assert states["FAIL"] == 1


def test_short_trials_do_not_stall_when_the_cluster_is_full(sweep: Sweep, two_gpus: Any) -> None:
    resources = {
        "backend": "ray",
        "address": two_gpus.address,
        "gpus_per_trial": 0.5,
        "cpus_per_trial": 0.5,
        "engine_options": {"num_slots": 2},
    }
    spec = sweep(resources=resources, budget={"n_trials": 24}, sampler="random", pruner="none")
    ends: list[float] = []
    outcome = launch(
        spec, callbacks=LaunchCallbacks(on_change=lambda _: ends.append(time.monotonic()))
    )
    assert outcome.status == "complete"
    assert [row.state for row in outcome.leaderboard.rows] == ["COMPLETE"] * 24
    pauses = [later - earlier for earlier, later in pairwise(ends)]
    assert max(pauses[8:]) < 5, "Tune blocks for seconds where its searcher has nothing to give"


@pytest.mark.timeout(600)
def test_a_cluster_that_cannot_call_its_driver(
    tree: Callable[..., dict[str, Any]],
    drive: Callable[..., Launched],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    with ray_node(tmp_path, "--num-cpus=1", RAY_AUTH_MODE="disabled") as head:
        resources = {"backend": "ray", "address": head.address}
        driver = drive(tree(resources=resources), supervised=True)
        printed = driver.finish(500)  # it is started again some times
    assert driver.process.returncode == ExitCode.BAD_INPUT
    assert "RAY_AUTH_MODE is 'token' here" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_two_nodes_are_joined_by_address(sweep: Sweep, two_nodes: str) -> None:
    resources = {
        "backend": "ray",
        "address": two_nodes,
        "engine_options": {"num_slots": 1, "step_seconds": 0.03},
    }
    budget = {"n_trials": 6, "max_samples": 600}
    spec = sweep(resources=resources, budget=budget, pruner="none", sampler="random")
    assert launch(spec).status == "complete"
    ran = [t.user_attrs["result"]["provenance"] for t in trials_of(spec)]
    assert len(ran) == 6
    assert len({provenance["pid"] for provenance in ran}) == 2
    assert {provenance["visible_devices"] for provenance in ran} <= {None, ""}
