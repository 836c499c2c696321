"""The solo engine's training loop: transformers.Trainer with our order, loss, clock and reports.

Every optimizer step sees exactly batch size times accumulation samples, taken from the epochs'
orders laid end to end, so a batch may cross the border of two epochs. The loss of a step is the
mean over the supervised tokens of its whole effective batch, however it is cut into micro-batches.
Precision is our own autocast, the same in training and evaluation, not the Trainer's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from bitsandbytes.optim.optimizer import GlobalOptimManager
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from peft_jobs.activity import moved
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.data.sample_packing import check_apart, pack
from peft_jobs.device.precision import autocast
from peft_jobs.engines.solo import paged_states
from peft_jobs.methods import METHODS
from peft_jobs.methods.lora import learning_rates
from peft_jobs.tasks import Batch
from peft_jobs.training.loop import Loop, measure
from peft_jobs.training.reporter import Reporter, StepEnd
from peft_jobs.training.training_state import restore_optimizer, restore_scaler, snapshot


def train(model: nn.Module, loop: Loop) -> None:
    """Train `model` in place to the spec's horizon; stops at a step's end once it is cancelled.

    Reports go out after the first step, every `logging_steps` and at every rung; at a rung it waits
    for the decision. A run that has a `loop.start` goes on from there as if it had not stopped. In
    the end `loop.counts` holds the final evaluation's metrics. Raises Diverged at the first loss
    that is not finite, or too large.
    """
    with loop.phases.phase("train"), _own_overrides(), paged_states.reused():
        trainer = TrialTrainer(model, loop)
        try:
            trainer.reporter.resume()
            pause(trainer.reporter)
            if loop.job.cancelled is None and len(trainer.batches) > 0:
                trainer.train()
                pause(trainer.reporter)  # an interruption may have come since the last step's end
        finally:
            trainer.reporter.finish()
        if loop.job.cancelled is None and loop.counts.evaluated_at != loop.counts.step:
            measure(loop)


def pause(reporter: Reporter) -> None:
    """Wait, if the trial is at a rung, for its checkpoint and for the pruner's answer."""
    reporter.settle()
    while reporter.waits:
        with reporter.loop.phases.phase("checkpoint" if reporter.is_writing else "wait"):
            reporter.loop.job.wait_until(lambda: reporter.has_news)
        reporter.settle()


@contextmanager
def _own_overrides() -> Iterator[None]:
    """A block whose 8-bit optimizer leaves nothing to the next one.

    The Trainer has embeddings' state kept in 32 bits, by a registry of the process that holds the
    modules and applies what it says, by position, to every later optimizer.
    """
    registry = cast(Any, GlobalOptimManager).get_instance()
    registry.initialize()
    try:
        yield
    finally:
        registry.initialize()


class TrialTrainer(Trainer):
    """A Trainer whose single `epoch` is the whole trial."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the count of the effective batch

    def __init__(self, model: nn.Module, loop: Loop) -> None:
        self.loop = loop
        self.method = METHODS[loop.spec.adapter.method]
        self.step_loss = torch.zeros((), device=loop.device)
        training = loop.spec.training
        num_steps = training.total_steps(len(loop.train_dataset))
        order = SampleOrder(
            loop.spec.seed,
            len(loop.train_dataset),
            num_steps * training.samples_per_step,
            first=loop.counts.samples,
        )
        self.batches = DataLoader(
            loop.train_dataset,
            batch_size=training.per_device_train_batch_size,
            sampler=order,
            collate_fn=partial(_collate(loop, model), pad_token_id=loop.pad_token_id),
        )
        self.reporter = Reporter(loop)
        super().__init__(
            model,
            _arguments(loop, num_steps),
            train_dataset=loop.train_dataset,
            callbacks=[_AfterSteps(self)],
        )
        self.remove_callback(PrinterCallback)

    def take_step(self) -> float:
        """The loss of the optimizer step just made; waits for the device."""
        loss = self.step_loss.item()
        self.step_loss = torch.zeros_like(self.step_loss)
        return loss

    def get_train_dataloader(self) -> DataLoader[Batch]:
        return self.batches

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> int:
        counted = sum(self.loop.task.count(batch) for batch in batch_samples)
        self.loop.counts.tokens += counted
        return counted

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        moved()
        self.loop.clock.micro_step += 1
        loss: Tensor = super().training_step(*args, **kwargs)
        self.step_loss += loss
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        with autocast(self.loop.device, self.loop.spec.training):
            loss: Tensor = self.loop.task.losses(model, inputs).sum() / num_items_in_batch
            if self.method.penalty is not None:
                steps = self.loop.spec.training.gradient_accumulation_steps
                loss = loss + self.method.penalty(model) / steps
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        ratio = getattr(self.loop.spec.adapter, "loraplus_lr_ratio", 1.0)
        learning_rates(cast(nn.Module, self.model), optimizer, ratio)
        return optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's own walks over all parameters at every micro-step


def _collate(loop: Loop, model: nn.Module) -> Callable[..., Batch]:
    """How samples become a batch; SpecError if they are to share rows and the model cannot."""
    data = loop.spec.data
    if not data.packing:
        return loop.task.collate
    check_apart(model)
    return partial(pack, collate=loop.task.collate, max_length=data.max_length)


class _AfterSteps(TrainerCallback):
    """Restores a run that goes on, tells the reporter of every step, stops a cancelled trial."""

    def __init__(self, trainer: TrialTrainer) -> None:
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = self.trainer.loop.start
        if start is not None:
            state.global_step = start.state.step
            parts = (kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"])
            restore_optimizer(*parts, start.tensors, start.state.scheduler)
            restore_scaler(self.trainer.accelerator.scaler, start.tensors)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after_step = self.trainer.method.after_step
        if after_step is not None:
            after_step(kwargs["model"], state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loop, reporter = self.trainer.loop, self.trainer.reporter
        parts = (kwargs["model"], kwargs["optimizer"], self.trainer.accelerator.scaler)
        end = StepEnd(
            loss=self.trainer.take_step(),
            learning_rate=self.learning_rate,
            schedule=kwargs["lr_scheduler"].state_dict(),
            tensors=lambda: snapshot(*parts),
            is_last=loop.counts.step + 1 == state.max_steps,
        )
        reporter.step_ended(end)
        pause(reporter)
        if loop.job.cancelled is not None:
            control.should_training_stop = True


def _arguments(loop: Loop, num_steps: int) -> TrainingArguments:
    training = loop.spec.training
    same = (
        *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
        *("adam_epsilon", "max_grad_norm", "optim", "fp16"),
    )
    arguments = TrainingArguments(
        output_dir=str(loop.job.directory),
        max_steps=num_steps,
        seed=loop.spec.seed,
        use_cpu=loop.device.type == "cpu",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **{name: getattr(training, name) for name in same},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a second visible GPU is another host's
    return arguments
