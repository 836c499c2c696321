"""Trains one attempt of a trial alone on a resident base, from where it starts to its adapter.

`train_once` is one pass through a trial. Should GPU memory run out in training, another one follows
with smaller settings, from the attempt's latest checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from datasets import Dataset
from peft import PeftModel
from transformers import set_seed

from peft_jobs.base.positions import check_virtual_tokens
from peft_jobs.device.memory import peak_memory
from peft_jobs.device.precision import use_tf32
from peft_jobs.engines.solo.trainer import train
from peft_jobs.evaluation.row_scores import keep_rows
from peft_jobs.evaluation.scoring import Evaluation, examine
from peft_jobs.methods import METHODS, clock_of, save_adapter
from peft_jobs.spec import TrialSpec
from peft_jobs.training.attempt import Attempt
from peft_jobs.training.checkpoints import Start, restored
from peft_jobs.training.loop import Loop


def run_alone(attempt: Attempt, start: Start | None) -> None:
    """Train, evaluate and save; returns early if the job is cancelled.

    The attempt's draft is filled in as far as it comes. Raises whatever goes wrong; OutOfMemory
    when no smaller settings are left.
    """
    while not train_once(attempt, start):
        start = attempt.latest_start()


def train_once(attempt: Attempt, start: Start | None) -> bool:
    """One pass through a trial, from `start`; returns False if memory ran out in training."""
    draft = attempt.draft
    with _measured(attempt), _attached(attempt) as model:
        start = _restored(attempt, model, start)
        evaluate = partial(_validated, attempt, model)
        loop = attempt.loop(clock_of(model), evaluate, start)
        draft.trainable_parameters = model.get_nb_trainable_parameters()[0]
        if attempt.ladder.tried("train", attempt.counts, partial(_train, model, loop)) is None:
            return False
        if attempt.job.cancelled is None:
            with attempt.phases.phase("evaluate"):
                attempt.counts.evaluated(_test_metrics(attempt, model), "test")
            with attempt.phases.phase("save"):
                draft.adapter = save_adapter(model, attempt.job.directory, attempt.data.classes)
    return True


@contextmanager
def _measured(attempt: Attempt) -> Iterator[None]:
    """Put the block's memory peaks into the draft, also when it raises."""
    with peak_memory(attempt.base.device) as attempt.ladder.peaks:
        try:
            yield
        finally:
            attempt.draft.memory = attempt.ladder.peaks()


@contextmanager
def _attached(attempt: Attempt) -> Iterator[PeftModel]:
    """A fresh adapter on the base for as long as the block lasts."""
    base, spec, data = attempt.base, attempt.spec, attempt.data
    check_virtual_tokens(base, spec, data)
    method = METHODS[spec.adapter.method]
    set_seed(spec.seed)
    use_tf32(spec.training, base.device)
    with attempt.phases.phase("attach"):
        model = method.attach(base, spec, rows=data.train)
    try:
        yield model
    finally:
        with attempt.phases.phase("attach"):
            method.detach(model)


def _restored(attempt: Attempt, model: PeftModel, start: Start | None) -> Start | None:
    """`start`, with model, clock and counts where it was left."""
    with attempt.phases.phase("attach"):
        start = restored(model, start)
    attempt.go_back(None if start is None else start.state)
    accumulation = attempt.spec.training.gradient_accumulation_steps
    clock_of(model).micro_step = attempt.counts.step * accumulation
    return start


def _validated(attempt: Attempt, model: PeftModel) -> dict[str, float]:
    data = attempt.data
    found = _examined(attempt, model, data.validation, "validation")
    return keep_rows(attempt.job.directory, found, data.validation, data.numbers["validation"])


def _examined(attempt: Attempt, model: PeftModel, rows: Dataset, split: str) -> Evaluation:
    return attempt.ladder.measured(
        attempt.counts, lambda spec: examine(model, attempt.base, spec, rows, split)
    )


def _test_metrics(attempt: Attempt, model: PeftModel) -> dict[str, float]:
    if not attempt.score_test or attempt.data.test is None:
        return {}
    return _examined(attempt, model, attempt.data.test, "test").metrics


def _train(model: PeftModel, loop: Loop, _spec: TrialSpec) -> bool:
    train(model, loop)
    return True
