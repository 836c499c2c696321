"""Drives packs by hand, and trials through hosts; and trains trials with plain PEFT and torch."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from peft_jobs import Progress, TrialResult, TrialSpec
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.engines.packed.layout import make_layout
from peft_jobs.engines.packed.micro_batches import Feed
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.parts import Parts, dtype_of, initial_values, parts_of
from peft_jobs.engines.packed.row import Captured, PackRow, step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.evaluation.scoring import examples_of, to_device
from peft_jobs.host.messages import Assignment, End, Report
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.methods import METHODS, clock_of
from peft_jobs.methods.lora import learning_rates
from peft_jobs.tasks import TASKS
from peft_jobs.training.schedule import Schedule


def plain_losses(base: Any, rows: Any, spec: TrialSpec, num_steps: int) -> list[float]:
    """The losses of a loop of PEFT, torch.optim.AdamW and a transformers schedule."""
    task, training, pad = TASKS[spec.task.type], spec.training, base.tokenizer.pad_token_id
    method = METHODS[spec.adapter.method]
    model = method.attach(base, spec)
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n]
    biases = [p for n, p in model.named_parameters() if p.requires_grad and "bias" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )
    learning_rates(model, optimizer, getattr(spec.adapter, "loraplus_lr_ratio", 1.0))
    warmup = training.warmup_steps
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=int(warmup) if warmup >= 1 else math.ceil(num_steps * warmup),
        num_training_steps=num_steps,
    )
    order = iter(SampleOrder(spec.seed, len(rows), 10**9))
    losses = []
    model.train()
    for _ in range(num_steps):
        batches = []
        for _ in range(training.gradient_accumulation_steps):
            numbers = [next(order) for _ in range(training.per_device_train_batch_size)]
            batch = task.collate(examples_of(rows[numbers]), pad)
            batches.append(to_device(batch, base.device))
        count = sum(task.count(batch) for batch in batches)
        total = 0.0
        for batch in batches:
            clock_of(model).micro_step += 1
            loss = task.losses(model, batch).sum() / count
            loss.backward()
            total += loss.item()
        if training.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_([*decayed, *biases], training.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    method.detach(model)
    return losses


class Driven:
    """A pack of trials, stepped by hand."""

    def __init__(self, base: Any, rows: Any, specs: Sequence[TrialSpec], num_steps: int) -> None:
        self.base, self.rows, self.specs, self.num_steps = base, rows, list(specs), num_steps
        self.parts = [parts_of(spec, base.model) for spec in specs]
        values = [
            initial_values(spec, parts, base.model)
            for spec, parts in zip(specs, self.parts, strict=True)
        ]
        layout = make_layout(parts.shapes for parts in self.parts)
        self._snapshot = Snapshot.of(base.model)
        self.pack = Pack(base.model, layout, len(specs), dtype_of(base))
        self.pack.put_on()
        base.model.train()
        self.pack_rows = [self._pack_row(slot, Captured(v)) for slot, v in enumerate(values)]
        self.feeds = [self._feed(slot) for slot in range(len(specs))]
        self.losses: list[list[float]] = [[] for _ in specs]
        self._loss = [0.0] * len(specs)

    def __enter__(self) -> "Driven":
        return self

    def __exit__(self, *error: object) -> None:
        self._snapshot.restore()

    def refill(self, slot: int, spec: TrialSpec, parts: Parts, values: Any) -> None:
        """A new trial in a slot; its modules and rank must fit the pack."""
        self.specs[slot], self.parts[slot] = spec, parts
        self.pack_rows[slot] = self._pack_row(slot, Captured(values))
        self.feeds[slot], self.losses[slot], self._loss[slot] = self._feed(slot), [], 0.0

    def step(self, slots: Sequence[int]) -> None:
        """A chunk of each of `slots`, in one step."""
        rows = math.gcd(*(self.feeds[slot].rows_left for slot in slots))
        works = [Work(slot, self.specs[slot], self.feeds[slot].take(rows)) for slot in slots]
        found = packed_step(
            self.pack,
            self.base.model,
            TASKS[self.specs[0].task.type],
            works,
            pad_token_id=self.base.tokenizer.pad_token_id,
            device=self.base.device,
            training=self.specs[0].training,
        )
        step_rows([self.pack_rows[work.slot] for work in works if work.chunk.ends_step])
        for slot, work, loss in zip(slots, works, found.tolist(), strict=True):
            self._loss[slot] += loss
            if work.chunk.ends_step:
                self.losses[slot].append(self._loss[slot])
                self._loss[slot] = 0.0

    def to_end(self) -> list[list[float]]:
        """All steps of all slots."""
        while live := [s for s, found in enumerate(self.losses) if len(found) < self.num_steps]:
            self.step(live)
        return self.losses

    def _pack_row(self, slot: int, captured: Captured) -> PackRow:
        spec, parts = self.specs[slot], self.parts[slot]
        schedule = Schedule(spec.training, self.num_steps)
        return PackRow(self.pack, slot, spec, parts, schedule, captured)

    def _feed(self, slot: int) -> Feed:
        spec, pad = self.specs[slot], self.base.tokenizer.pad_token_id
        order: Iterator[int] = iter(SampleOrder(spec.seed, len(self.rows), 10**9))
        return Feed(TASKS[spec.task.type], self.rows, order, spec.training, pad, 0)


Reports = dict[int, list[Progress]]


def run_all(
    engine: Any,
    specs: Sequence[TrialSpec],
    folder: Path,
    on_report: Callable[[TrialHost, int, Progress], bool | None] = lambda host, trial, report: None,
    checkpoints: dict[int, str] | None = None,
    attempt: int = 1,
) -> tuple[Reports, dict[int, TrialResult | None]]:
    """All trials through one host: what they reported, and how they ended (None: interrupted).

    `on_report` sees each report before it is acknowledged; a report for which it gives False stays
    unanswered for now.
    """
    host = TrialHost(engine)
    reports: Reports = {trial: [] for trial in range(len(specs))}
    ends: dict[int, TrialResult | None] = {}
    seq = dict.fromkeys(reports, 0)
    for trial, spec in enumerate(specs):
        directory = folder / str(trial) / "attempts" / str(attempt)
        start = (checkpoints or {}).get(trial)
        host.submit(Assignment(trial, attempt, spec.to_json(), str(directory), start))
    while len(ends) < len(specs):
        for trial in reports.keys() - ends.keys():
            message = host.next_report(trial, attempt, seq[trial], 0.005)
            if message is None:
                continue
            if not isinstance(message, Report):
                ends[trial] = message.result if isinstance(message, End) else None
                continue
            progress = message.progress
            if on_report(host, trial, progress) is not False:
                reports[trial].append(progress)
                seq[trial] = message.seq
    assert host.close()
    return reports, ends


def told(reports: Sequence[Progress]) -> list[tuple[Any, ...]]:
    """What reports say, but for their metrics and checkpoints."""
    return [(p.step, p.samples, p.tokens, p.rung, sorted(p.metrics)) for p in reports if p.metrics]


def furthest(one: Sequence[Progress], other: Sequence[Progress]) -> float:
    """The largest relative difference of a metric in two curves."""
    return max(
        abs(a.metrics[name] - b.metrics[name]) / max(1.0, abs(a.metrics[name]))
        for a, b in zip(one, other, strict=True)
        for name in a.metrics
    )
