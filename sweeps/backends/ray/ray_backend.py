"""Run a sweep on a Ray cluster: this machine alone, or the one at `resources.address`."""

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import ray

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.job import Prepared
from sweeps.backends.ray.connection import connect
from sweeps.backends.ray.cores import worthwhile_threads
from sweeps.backends.ray.fleet import MAX_STARTS, Fleet
from sweeps.backends.ray.nodes import alive_nodes, shared_with_others
from sweeps.backends.ray.proxies import Proxies
from sweeps.backends.ray.shares import Shares, dealt_out
from sweeps.driver.confirming import most_at_once
from sweeps.driver.driver import Driver
from sweeps.spec import SweepSpec
from sweeps.spec.resources import ResourcesSpec

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30",  # a dead head ends the driver after so long
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # of the nodes started here; 15 by default, and a host trains
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the study is the record; Ray's state is disposable
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
}


_TOO_NICE = (
    "hosts train at a niceness of %d above their node's, and yield to all that runs beside them: "
    "start Ray's nodes with RAY_worker_niceness=0 in their environment"
)


class RayBackend:
    """Connects on construction; `close` takes down what it started."""

    def __init__(
        self,
        resources: ResourcesSpec,
        options: dict[str, Any],
        modules: Sequence[Path] = (),
        marker: tuple[str, str] | None = None,
        at_once: int = 1,
    ) -> None:
        """`at_once` are the trials that are expected to run at a time: so many proxies are started
        while the hosts load."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Tune prints a traceback for each proxy that dies and is replaced; the bridge says so too.
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
        connect(resources.address, modules)
        self._kind = resources.accelerator_type
        self._is_auto = resources.slots_per_gpu == "auto"
        self._useful: dict[str, int] = {}
        """Trials that a host has use for, by kind of its GPUs."""
        self._thread_seconds: dict[int, float] = {}
        self.proxies = Proxies()
        try:
            self.fleet = Fleet(resources, options, marker)
            self.proxies.start(self.fleet.expected(at_once))
        except BaseException:
            ray.shutdown()
            raise

    def prepare(
        self,
        spec: TrialSpec,
        variants: Sequence[TrialSpec],
        on_tick: Callable[[], object] = lambda: None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Prepared:
        """See `Engine.prepare`; `on_tick` is called about once a second meanwhile,
        and `on_stage` is told what the work is at (`peft_jobs.activity`).

        On a host of each kind of GPU: what a device lacks is told before any trial trains on it.
        SpecError if no node fits a trial, and none that fits is added; or if host after host dies
        of it.
        """
        texts = [variant.to_json() for variant in variants]
        died: Exception | None = None
        for _ in range(MAX_STARTS):
            if not self.fleet.wait_for_room(on_tick):
                raise SpecError(self._no_room())
            kind, host = self.fleet.wait_for_host(on_tick)
            try:
                if nicer_by := ray.get(host.nicer_by.remote()):
                    log.warning(_TOO_NICE, nicer_by)
                prepared = self._prepare_on(host, spec.to_json(), texts, on_tick, on_stage)
            except ray.exceptions.RayActorError as error:
                log.warning("a host died while it loaded base and data: %s", error)
                died = error
                continue
            self._useful = {kind: prepared.slots}
            self._thread_seconds = prepared.thread_seconds
            for other, host in self.fleet.one_of_each_kind().items():
                if other not in self._useful:
                    with contextlib.suppress(ray.exceptions.RayActorError):  # its node has gone
                        found = self._prepare_on(host, spec.to_json(), texts, on_tick, on_stage)
                        self._useful[other] = found.slots
                        prepared = _with_larger(prepared, found)
            return prepared
        raise SpecError(
            f"{MAX_STARTS} hosts died while they loaded base and data: {died}"
        ) from died

    def _prepare_on(
        self,
        host: Any,
        spec_json: str,
        texts: list[str],
        on_tick: Callable[[], object],
        on_stage: Callable[[str], object],
    ) -> Prepared:
        call, asked = host.prepare.remote(spec_json, texts), host.stage.remote()
        import_module("ray.tune")  # takes a second, in which the host loads
        try:
            while not ray.wait([call], timeout=1.0)[0]:
                if ray.wait([asked], timeout=0)[0]:
                    on_stage(ray.get(asked))
                    asked = host.stage.remote()
                on_tick()
                self.fleet.ensure_now_and_then()
            return Prepared.model_validate(ray.get(call))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def run(self, driver: Driver) -> None:
        """Run the sweep until the driver has nothing more to start, or is asked to stop."""
        resources, nodes = driver.spec.resources, alive_nodes()
        at_once = most_at_once(driver)
        self._divide(driver.spec)
        threads = self.fleet.shares.threads
        if self._is_auto:
            shares = Shares.among(resources, nodes, at_once, self._useful, threads)
        else:
            shares = Shares(dealt_out(resources, nodes, threads), nodes, threads)
        self.fleet.shares = shares
        self._warn_of_others(nodes)
        self.fleet.wanted = lambda: driver.wanted
        self.fleet.running = lambda: list(driver.running)
        driver.budget.num_gpus = self.fleet.num_gpus
        own_gpus = self.fleet.shares.default.gpus >= 1
        self.proxies.keep(0 if own_gpus else self.fleet.capacity())
        from sweeps.backends.ray.experiment import run_experiment

        run_experiment(driver, self.fleet, self.proxies)

    def _divide(self, spec: SweepSpec) -> None:
        """Have several hosts share a node's cores, where that was found to be faster."""
        resources = spec.resources
        most = min(resources.max_concurrent or spec.budget.n_trials, spec.budget.n_trials)
        if not self._is_auto:
            most = min(most, resources.slots)
        threads = worthwhile_threads(self._thread_seconds, most)
        if threads is not None:
            log.info("hosts of %d threads each share the cores of a node", threads)
            self.fleet.divide(threads)

    def _warn_of_others(self, nodes: list[dict[str, Any]]) -> None:
        """Of shares of a GPU, Ray's books hold on which node they are, and not on which GPU."""
        if 0 < self.fleet.shares.default.gpus < 1:
            for node in shared_with_others(nodes):
                log.warning(
                    "others hold GPUs of the node %s, and Ray does not say which ones: trials may "
                    "share them; resources.gpus_per_trial: 1 gives each trial one of its own",
                    node,
                )

    def _no_room(self) -> str:
        share = self.fleet.shares.default
        of_kind = "" if self._kind is None else f" of the kind {self._kind!r}"
        return (
            f"no node of the cluster has {share.cpus:g} cores and {share.gpus:g} GPUs"
            f"{of_kind} for a trial: lower resources.cpus_per_trial or resources.gpus_per_trial"
        )

    def close(self) -> None:
        self.fleet.close()
        # An actor's handle that is collected after the shutdown, or in another thread during it,
        # makes Ray 2.60 end this process (`core_worker_process.cc`); Tune leaves some in cycles.
        gc.collect()
        ray.shutdown()


def _with_larger(prepared: Prepared, other: Prepared) -> Prepared:
    """`prepared` with the device of the two that has more memory: a trial that fits one of them can
    be tried."""
    one, two = prepared.device, other.device
    if one is None or two is None or one.memory_bytes >= two.memory_bytes:
        return prepared
    return prepared.model_copy(update={"device": two})
