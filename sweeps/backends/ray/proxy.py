"""The trial proxy: what Ray Tune schedules. It holds the resources and passes messages, no torch.

It finds the host that the driver chose, or that of its own GPUs, hands the trial over, and turns
each message into a Tune result. A host that dies ends no trial: the proxy waits for its successor
and submits again, as the next attempt. A proxy that dies is replaced by Tune and finds its slot
still running. Proxies stop no trial: hosts belong to the driver.

A proxy does not import Tune, which takes two thirds of what starting its process then costs.
"""

import json
import logging
import os
import sys
import time
from typing import Any

import ray

from peft_jobs import Fenced
from sweeps.backends.ray.nodes import host_name, own_gpus

log = logging.getLogger(__name__)

HOST_WAIT_SECONDS = 300.0
"""How long a proxy waits for a host that is starting or being replaced."""
MAX_HOST_DEATHS = 3
"""Deaths of hosts with a trial aboard, and no new step of it in between, that make it suspect."""
ASK_AGAIN_SECONDS = 0.5
NICENESS = 15
"""Of proxies: a host that trains beside them goes first."""


class TrialProxy:
    """One Tune trial at a time: answers what Tune 2.60 asks a `Trainable`.

    `config` is an Assignment's fields, kept up to date by `ReportScheduler`. `places` are the
    hosts, the best for the trial first; `held` and `node` see `resources_of`. For a trial whose
    proxy died, `config["hosts"]` names the hosts that may hold its slot.
    """

    def __init__(self) -> None:
        """Without a trial, which comes by `reset`."""
        os.nice(NICENESS)
        # Ray 2.60 imports it to serialize tables, of which a proxy sees none: 45 MB.
        sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]

    def reset(self, config: dict[str, Any], storage: object = None) -> bool:
        """Take another trial. Never False: Tune would then hang."""
        self._config = dict(config)
        self._trial: int = config["trial"]
        self._attempt: int = config["attempt"]
        self._checkpoint: str | None = config["checkpoint"]
        self._seq = 0
        self._deaths: int = config.get("deaths", 0)
        self._furthest: int = config.get("furthest", -1)
        self._host: Any = None
        self._is_aboard = False
        """Whether the host may have taken the trial; one that dies before has not died of it."""
        self._host_name = _host_here(config)
        return True

    def stop(self) -> None:
        """Nothing: the process ends, and the trial is its host's."""

    def get_auto_filled_metrics(self, debug_metrics_only: bool) -> dict[str, Any]:
        """Nothing, before the first result."""
        return {}

    def train(self) -> dict[str, Any]:
        """Wait for the next message of the trial; `done` with the trial's end.

        The trial is handed over here, not in `reset`: Tune starts a proxy for a trial and may then
        give the trial to another proxy that has become free, perhaps on another device.
        """
        while True:
            try:
                if self._host is None:
                    self._submit()
                message: dict[str, Any] | None = ray.get(
                    self._host.next_report.remote(self._trial, self._attempt, self._seq)
                )
            except ray.exceptions.RayActorError as error:
                message = self._host_died(error)
            if message is None:
                continue
            if message["type"] == "report":
                self._seq = message["seq"]
                if message["progress"]["step"] > self._furthest:
                    self._furthest, self._deaths = message["progress"]["step"], 0
                self._checkpoint = message["progress"]["checkpoint"] or self._checkpoint
            return {
                "message": json.dumps(message),  # Tune would flatten a dictionary
                "attempt": self._attempt,
                "checkpoint": self._checkpoint,
                "deaths": self._deaths,
                "furthest": self._furthest,
                "host": self._host_name,
                "done": message["type"] != "report",
            }

    def _submit(self) -> None:
        """Hand the trial to the host of this device, once it is there and has a place for it.

        A host that dies while it takes the trial may have died of it, so that counts as a death.
        """
        host = self._reach_host()
        self._find_slot(self._config.pop("hosts", None))
        assignment = {
            "trial": self._trial,
            "attempt": self._attempt,
            "spec_json": self._config["spec_json"],
            "directory": self._directory(),
            "checkpoint": self._checkpoint,
        }
        alone = self._is_suspect
        try:
            while self._host is None:
                while not ray.get(host.may_enter.remote(self._trial, alone)):
                    time.sleep(ASK_AGAIN_SECONDS)
                self._is_aboard = True  # perhaps, if no answer comes
                if ray.get(host.submit.remote(assignment, alone)):
                    self._host = host
                else:
                    self._is_aboard = False
        except Fenced as fenced:  # an earlier proxy of this trial had seen a host die
            self._attempt, self._host = fenced.current, host

    def _reach_host(self) -> Any:
        """The host of this device, which may still be starting."""
        deadline = time.monotonic() + HOST_WAIT_SECONDS
        while True:
            try:
                host = ray.get_actor(self._host_name)
                ray.get(host.current_attempt.remote(self._trial))
                return host
            except (ValueError, ray.exceptions.RayActorError) as error:
                if time.monotonic() > deadline:
                    hint = " (several GPUs per trial want nodes to themselves)"
                    hint = hint if "," in self._host_name else ""
                    raise RuntimeError(f"no host {self._host_name}{hint}: {error}") from error
                time.sleep(0.1)

    def _find_slot(self, hosts: tuple[str, ...] | None) -> None:
        """After a proxy died: keep the trial's slot on this host, or free it on another.

        A trial that this host does not hold goes on as the next attempt: the host that had it may
        be cut off and still be writing. None of a trial whose first proxy this is.
        """
        if hosts is None:
            return
        held = {name: _current_attempt(name, self._trial) for name in hosts}
        here = held.pop(self._host_name, None)
        if here is not None:
            self._attempt, self._is_aboard = here, True
            return
        for name, attempt in held.items():
            if attempt is not None:
                host = ray.get_actor(name)
                ray.get(host.request_cancel.remote(self._trial, attempt, "interrupted"))
                self._attempt = max(self._attempt, attempt)
        self._attempt += 1

    def _directory(self) -> str:
        """`attempts/<k>` of the current attempt; the assignment holds that of the first."""
        parent, _, _ = self._config["directory"].rpartition("/")
        return f"{parent}/{self._attempt}"

    @property
    def _is_suspect(self) -> bool:
        """Whether hosts may have died of this trial; it then runs alone, to be known for sure."""
        return self._deaths >= MAX_HOST_DEATHS

    def _host_died(self, error: Exception) -> dict[str, Any] | None:
        """Go on as the next attempt; the trial's end if it was alone on a host that died.

        As the same attempt if the host cannot have had it: it died of another trial.
        """
        self._host = None
        if not self._is_aboard:
            return None
        self._is_aboard = False
        # The one time that a proxy needs them.
        from peft_jobs import Kind, TrialResult
        from peft_jobs.host.messages import End

        was_alone = self._is_suspect
        self._deaths += 1
        if was_alone:
            text = (
                f"{self._deaths} hosts died with this trial aboard, the last one of them with "
                f"nothing else: {error}"
            )
            result = TrialResult(state=Kind.LOST.state, kind=Kind.LOST, error=text)
            return End(result=result).model_dump(mode="json")
        self._attempt += 1
        log.warning("trial %d: its host died, going on as attempt %d", self._trial, self._attempt)
        self._seq = 0
        return None


def _host_here(config: dict[str, Any]) -> str:
    """The host that a proxy on this node takes its trial to.

    Whole GPUs are the ones that Ray gave it. Shares of GPUs Ray puts on the fullest one, so there
    the driver chooses.
    """
    node, own = ray.get_runtime_context().get_node_id(), own_gpus()
    if config["held"].get("GPU", 0) < 1:
        for name in config["places"]:
            if node in name:
                return str(name)
    return host_name(node, own)


def _current_attempt(host: str, trial: int) -> int | None:
    """The attempt that a host holds of a trial; None also for a host that is gone."""
    try:
        actor: Any = ray.get_actor(host)
        attempt: int | None = ray.get(actor.current_attempt.remote(trial))
    except (ValueError, ray.exceptions.RayActorError):
        return None
    return attempt
