"""Run a sweep on a Ray cluster: this machine alone, or the one at `resources.address`."""

import contextlib
import gc
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.execution import class_cache

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.job import Prepared
from sweeps.backends.ray.bridge import (
    PROXY_RETRIES,
    Bridge,
    Interruption,
    ReportScheduler,
    StudySearcher,
    Watch,
)
from sweeps.backends.ray.fleet import MAX_STARTS, Fleet
from sweeps.backends.ray.proxy import TrialProxy
from sweeps.driver.driver import Driver
from sweeps.driver.interrupts import keeping_signals
from sweeps.errors import Unavailable
from sweeps.spec.resources import ResourcesSpec

log = logging.getLogger(__name__)

_KNOCK_SECONDS = 5.0
NODE_STARTS = 3
"""Tries to start a node here that Ray may take too long for."""
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30",  # a dead head ends the driver after so long
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the study is the record; Ray's state is disposable
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
}
_SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"),
)
"""A trial's proxy needs none of them; its host has its node's environment."""


class RayBackend:
    """Connects on construction; `close` takes down what it started."""

    def __init__(
        self,
        resources: ResourcesSpec,
        options: dict[str, Any],
        modules: Sequence[Path] = (),
        marker: tuple[str, str] | None = None,
    ) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Tune 2.60 hands these to its actors on their command lines, and into Ray's logs.
        class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
        # Tune prints a traceback for each proxy that dies and is replaced; the bridge says so too.
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
        _connect(resources.address, modules)
        self._kind = resources.accelerator_type
        try:
            self.fleet = Fleet(resources, options, marker)
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

        SpecError if no node fits a trial, and none that fits is added; or if host after host dies
        of it.
        """
        texts = [variant.to_json() for variant in variants]
        died: Exception | None = None
        for _ in range(MAX_STARTS):
            if not self.fleet.wait_for_room(on_tick):
                raise SpecError(self._no_room())
            host = self.fleet.wait_for_host(on_tick)
            call, asked = host.prepare.remote(spec.to_json(), texts), host.stage.remote()
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
            except ray.exceptions.RayActorError as error:
                log.warning("a host died while it loaded base and data: %s", error)
                died = error
        raise SpecError(
            f"{MAX_STARTS} hosts died while they loaded base and data: {died}"
        ) from died

    def run(self, driver: Driver) -> None:
        """Run the sweep until the driver has nothing more to start, or is asked to stop."""
        self.fleet.divide(driver.spec.resources)
        self.fleet.wanted = lambda: driver.wanted
        self.fleet.running = lambda: list(driver.running)
        bridge = Bridge(driver, self.fleet)
        scratch = driver.folder.path / ".ray"
        share = self.fleet.share
        tuner = tune.Tuner(
            tune.with_resources(TrialProxy, share.resources),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(bridge),
                scheduler=ReportScheduler(bridge),
                num_samples=-1,
                max_concurrent_trials=10**6,  # `suggest` holds back at the cluster's capacity
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=driver.spec.name,
                storage_path=str(scratch),
                callbacks=[Watch(bridge)],
                stop=Interruption(bridge),
                failure_config=tune.FailureConfig(max_failures=PROXY_RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if driver.running or not bridge.finished:
            driver.leave_running()

    def _no_room(self) -> str:
        share = self.fleet.share
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


def _connect(address: str | None, modules: Sequence[Path]) -> None:
    """Join the cluster at `address`; by default start one here, whatever else runs here.

    Another cluster's nodes are sent the `modules`.
    """
    code = {"py_modules": [str(module) for module in modules]}
    try:
        if address is not None and ":" in address:  # Ray itself would try for a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        alone = _on_loopback() if address is None else contextlib.nullcontext()
        with keeping_signals(), alone:  # Ray 2.60 takes SIGTERM over (`ray._private.node`)
            start_ray(
                partial(
                    ray.init,
                    address=address or "local",
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=code if address is not None and modules else None,
                )
            )
    except Exception as error:  # Ray 2.60 raises that very class if a node takes over 30 s to start
        where = "can be started" if address is None else f"at {address!r}"
        hint = "" if address is None else " (a cluster with a token needs RAY_AUTH_MODE=token here)"
        if "AF_UNIX" in str(error):
            hint = " (set RAY_TMPDIR to a short folder, such as /tmp/ray)"
        raise Unavailable(f"no Ray cluster {where}: {error}{hint}") from error


def start_ray(init: Callable[[], object]) -> None:
    """`init()`, again if a node was too slow to start: on a busy machine the next try does it.

    Raises what the last of NODE_STARTS tries raises, and all other errors at once.
    """
    for left in reversed(range(NODE_STARTS)):
        try:
            init()
            return
        except Exception as error:
            if type(error) is not Exception or not left:
                raise
            log.warning("Ray could not be started, trying again: %s", error)
            ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray 2.60 listens on 127.0.0.1 only, if other machines cannot join; by default they can."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[name] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if given is not None:
            os.environ[name] = given
