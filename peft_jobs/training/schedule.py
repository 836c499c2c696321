"""The learning rate of each step, where no Trainer keeps count of it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import TrainingArguments, get_scheduler

from peft_jobs.spec import TrainingSpec


class Schedule:
    """The learning rate of each step, by transformers' own schedules."""

    def __init__(
        self, training: TrainingSpec, num_steps: int, further: Sequence[float] = ()
    ) -> None:
        """`num_steps` is the horizon. Groups and state are those of the Trainer's scheduler, which
        has two, and one more for each of the ratios `further`."""
        rates = [training.learning_rate * ratio for ratio in (1.0, 1.0, *further)]
        groups = [{"params": [torch.nn.Parameter(torch.empty(0))], "lr": rate} for rate in rates]
        optimizer = torch.optim.SGD(groups, training.learning_rate)
        # It reads nothing else of its arguments.
        warmup = TrainingArguments.get_warmup_steps(cast(Any, training), num_steps)
        self._scheduler: Any = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=num_steps,
        )

    def rate(self, step: int) -> float:
        """Of the step that follows `step` steps."""
        scheduler = self._scheduler
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step))

    def state(self, step: int) -> dict[str, Any]:
        """The scheduler's state after `step` steps."""
        scheduler = self._scheduler
        scheduler.last_epoch, scheduler._step_count = step, step + 1
        factor = scheduler.lr_lambdas[0](step)
        scheduler._last_lr = [float(rate * factor) for rate in scheduler.base_lrs]
        state: dict[str, Any] = scheduler.state_dict()
        return state
