"""The trial proxy: what Ray Tune schedules. It holds the resources and passes messages, no torch.

It finds the host of its own device, hands the trial over, and turns each message into a Tune
result. A host that dies ends no trial: the proxy waits for its successor and submits again, as
the next attempt. A proxy that dies is replaced by Tune and finds its slot still running.
"""

import json
import logging
import time
from typing import Any

import ray
from ray import tune

from peft_jobs import Fenced, Kind, TrialResult
from sweeps.cluster.fleet import host_name

log = logging.getLogger(__name__)

HOST_WAIT_SECONDS = 300.0
"""How long a proxy waits for a host that is starting or being replaced."""
MAX_HOST_DEATHS = 3


class TrialProxy(tune.Trainable):
    """One Tune trial. `config` is an Assignment's fields."""

    _host: Any
    _trial: int
    _attempt: int
    _seq: int

    def setup(self, config: dict[str, Any]) -> None:
        self._failure: Exception | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial. Never False: Tune would then hang; a failure raises in `step`."""
        self._failure = None
        try:
            self._leave()
            self._begin(new_config)
        except Exception as error:  # Tune retries a step that raises, and only that
            self._failure = error
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next message of the trial; `done` with the trial's end."""
        if self._failure is not None:
            raise self._failure
        while True:
            try:
                message: dict[str, Any] | None = ray.get(
                    self._host.next_report.remote(self._trial, self._attempt, self._seq)
                )
            except ray.exceptions.RayActorError as error:
                ended = self._host_died(error)
                if ended is not None:
                    return self._result(ended)
                continue
            if message is None:
                continue
            if "progress" in message:
                self._seq = message["seq"]
                return self._result(message)
            self._over = True
            return self._result(message)

    def cleanup(self) -> None:
        self._leave()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the host's, and the study knows where they lie."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, see `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = config
        self._trial = config["trial"]
        self._attempt = config["attempt"]
        self._seq = 0
        self._over = False
        self._deaths = 0
        gpus = ray.get_gpu_ids()
        node = ray.get_runtime_context().get_node_id()
        self._host_name = host_name(node, str(gpus[0]) if gpus else None)
        self._submit()

    def _submit(self) -> None:
        """Hand the trial to the host of this device, once it is there."""
        deadline = time.monotonic() + HOST_WAIT_SECONDS
        while True:
            try:
                self._host = ray.get_actor(self._host_name)
                ray.get(
                    self._host.submit.remote(
                        self._trial,
                        self._attempt,
                        self._config["spec_json"],
                        self._directory(),
                        self._config["checkpoint"],
                    )
                )
                return
            except Fenced as fenced:  # an earlier proxy of this trial had seen a host die
                self._attempt = fenced.current
            except (ValueError, ray.exceptions.RayActorError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _directory(self) -> str:
        """`attempts/<k>` of the current attempt; the assignment holds that of the first."""
        parent, _, _ = self._config["directory"].rpartition("/")
        return f"{parent}/{self._attempt}"

    def _host_died(self, error: Exception) -> dict[str, Any] | None:
        """Go on elsewhere as the next attempt; the trial's end if hosts die under it each time."""
        self._deaths += 1
        if self._deaths >= MAX_HOST_DEATHS:
            text = f"{self._deaths} hosts died with this trial aboard; the last: {error}"
            self._over = True
            result = TrialResult(state=Kind.LOST.state, kind=Kind.LOST, error=text)
            return {"result": result.model_dump(mode="json")}
        log.warning("trial %d: its host died, going on as attempt %d", self._trial, self._attempt)
        self._attempt += 1
        self._seq = 0
        self._submit()
        return None

    def _leave(self) -> None:
        """Free the slot of a trial that did not end by itself."""
        if self._over:
            return
        self._over = True
        try:
            ray.get(self._host.cancel.remote(self._trial, self._attempt, "interrupted"))
        except (ray.exceptions.RayError, Fenced, KeyError) as error:
            log.info("trial %d: nothing to cancel: %s", self._trial, error)

    def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "message": json.dumps(message),  # Tune would flatten a dictionary
            "attempt": self._attempt,
            "host": self._host_name,
            "done": self._over,
        }
