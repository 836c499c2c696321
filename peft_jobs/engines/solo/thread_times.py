"""How long a step takes with fewer of this machine's threads, measured before the first trial.

Small models gain little from the second thread: two hosts of one thread each then do nearly twice
the work of one host with two. What was measured is kept in the cache, by machine, base and step.
"""

import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from peft_jobs.activity import at_stage
from peft_jobs.base.loading import Base
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.precision import autocast
from peft_jobs.evaluation.scoring import examples_of, to_device
from peft_jobs.host.job import Prepared
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.files import canonical_json, sha256, write_json
from peft_jobs.tasks import TASKS

log = logging.getLogger(__name__)

MAX_SECONDS = 20.0
"""After which no smaller number is tried."""
STEPS_PER_NUMBER = 4
"""Of each number of threads; the first one warms up."""
ENOUGH_SECONDS = 1.5
"""After which one number has no further step."""
MAX_SLOWER = 1.8
"""Half the threads that take so many times as long are the last to be tried."""
MAX_OF_MEMORY = 0.7
"""Of what is free, that hosts with fewer threads may take together."""


@dataclass(frozen=True)
class ThreadTimes:
    """Of a process with so many threads; with None nothing is tried."""

    threads: int | None
    cache_dir: Path

    def added(
        self,
        prepared: Prepared,
        spec: TrialSpec,
        base: Base,
        measure: Callable[[], float],
        slots: int = 1,
    ) -> Prepared:
        """With the seconds of a step by threads; `measure` gives those of a step of the slots."""
        if self.threads is None or self.threads < 2 or base.device.type != "cpu":
            return prepared
        rows = spec.training.per_device_train_batch_size
        step = [base.fingerprint, rows, spec.data.max_length, slots]
        with at_stage("threads"):
            found = thread_seconds(measure, self.threads, step, self.cache_dir)
        return prepared.model_copy(update={"thread_seconds": found})


def thread_seconds(
    measure: Callable[[], float], threads: int, step: object, cache_dir: Path
) -> dict[int, float]:
    """Seconds of a step by number of threads: `threads`, a half of them, a quarter ... one.

    Only numbers at which a host for each share of the threads has room in memory. `step` says what
    is measured, as JSON values: the same on the same machine is measured once. Leaves this thread
    with `threads`.
    """
    machine = [platform.node(), platform.processor(), psutil.cpu_count(), threads]
    name = sha256(canonical_json([machine, torch.__version__, step]))
    entry = cache_dir / "threads" / f"{name[:32]}.json"
    if entry.is_file():
        kept = json.loads(entry.read_text(encoding="utf-8"))
        return {int(number): seconds for number, seconds in kept.items()}
    try:
        found = _tried(measure, threads)
    except Exception as error:  # trials find out for themselves, and their results tell
        log.warning("could not try steps with fewer threads", exc_info=error)
        return {}
    finally:
        torch.set_num_threads(threads)
    write_json(entry, {str(number): seconds for number, seconds in found.items()})
    return found


def base_step_seconds(spec: TrialSpec, base: Base, data: TokenizedData) -> float:
    """Of the fastest of some steps: a batch forward through the base and backward to its
    embeddings, which is nearly all of a trial's step whatever is trained."""
    task, rows = TASKS[spec.task.type], spec.training.per_device_train_batch_size
    examples = examples_of(data.train[: min(rows, len(data.train))])
    batch = to_device(task.collate(examples, base.tokenizer.pad_token_id), base.device)
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    def seconds() -> float:
        begun = time.perf_counter()
        with autocast(base.device, spec.training):
            loss = task.losses(base.model, batch).sum()
        torch.autograd.grad(loss, embedded, allow_unused=True)
        embedded.clear()
        return time.perf_counter() - begun

    inputs: Any = base.model.get_input_embeddings()
    hook = inputs.register_forward_hook(keep)
    found: list[float] = []
    try:
        while len(found) < STEPS_PER_NUMBER and sum(found) < ENOUGH_SECONDS:
            found.append(seconds())
    finally:
        hook.remove()
    return min(found)


def _tried(measure: Callable[[], float], threads: int) -> dict[int, float]:
    begun, found = time.perf_counter(), {threads: measure()}
    resident = psutil.Process().memory_info().rss
    room = MAX_OF_MEMORY * psutil.virtual_memory().available
    last, number = threads, threads // 2
    while number >= 1 and time.perf_counter() - begun < MAX_SECONDS:
        if (threads // number - 1) * resident > room:
            break
        torch.set_num_threads(number)
        found[number] = measure()
        torch.set_num_threads(threads)
        found[threads] = min(found[threads], measure())  # others may have been at work before
        if found[number] > MAX_SLOWER * found[last]:
            break
        last, number = number, number // 2
    return found
