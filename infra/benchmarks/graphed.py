"""Arms B1-graphed and B2-graphed: a trial alone whose whole step is one CUDA graph.

The fastest that a trial alone can be where launching kernels takes longer than running them: a loop
written for the random bases alone (rows of one length, the last of them supervised, no dropout, no
checkpointing), with the rows, first weights and optimizer of the solo engine, so its losses are the
solo engine's. On a CPU, which has no graphs, the same step runs as it is.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.device.memory import peak_memory
from peft_jobs.device.precision import autocast, use_tf32
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Inbox, Job
from peft_jobs.host.result import Progress
from peft_jobs.methods import METHODS
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec

WARM_STEPS = 3
"""Before a graph is taken, as torch.cuda.graph's documentation asks."""
IGNORED = -100


class GraphedEngine:
    """Trials one at a time, each until its job is cancelled, on the base of `engine`."""

    def __init__(self, engine: SoloEngine) -> None:
        self._engine = engine

    def serve(self, inbox: Inbox) -> None:
        """Run jobs until none is left. Raises RuntimeError where a step cannot be a graph."""
        while (job := inbox.take(block=False)) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        spec = job.spec
        base, data = self._engine._resident.get(spec, Phases())
        if spec.training.gradient_checkpointing:
            raise RuntimeError("a step with gradient checkpointing is not made a graph here")
        use_tf32(spec.training, base.device)
        with peak_memory(base.device) as peaks:
            model = METHODS["lora"].attach(base, spec)
            try:
                num_steps, tokens = _trained(job, model, base.device, data.train)
            finally:
                METHODS["lora"].detach(model)
            job.end(job.stopped(step=num_steps, tokens=tokens, memory=peaks()))


def _trained(job: Job, model: Any, device: torch.device, data: Any) -> tuple[int, int]:
    """Train until the job is cancelled; steps and supervised tokens."""
    training = job.spec.training
    batches = _batches(job.spec, data)
    ids_BS, labels_BS = next(batches)
    supervised = int((labels_BS[0] != IGNORED).sum())
    step = Step(model, job.spec, device, ids_BS.shape, supervised)
    step.prepare(ids_BS)
    number = 0
    while job.cancelled is None:
        number += 1
        step.run(ids_BS)
        if number == 1 or number % training.logging_steps == 0:
            loss = step.loss.item()
            tokens = number * ids_BS.shape[0] * supervised
            samples = number * ids_BS.shape[0]
            metrics = {"train/loss": loss}
            job.report(Progress(step=number, samples=samples, tokens=tokens, metrics=metrics))
        ids_BS, _ = next(batches)
    return number, number * ids_BS.shape[0] * supervised


def _batches(spec: TrialSpec, data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, labels) [B, S] of each step, in pinned memory where there is a GPU."""
    order = iter(SampleOrder(spec.seed, len(data), 10**9))
    ids, labels = (torch.tensor(data[name][:]) for name in ("input_ids", "labels"))
    if torch.cuda.is_available():
        ids, labels = ids.pin_memory(), labels.pin_memory()
    while True:
        rows = list(islice(order, spec.training.per_device_train_batch_size))
        yield ids[rows], labels[rows]


class Step:
    """Forward, backward, clipping and AdamW on tensors that stay where they are."""

    def __init__(
        self, model: Any, spec: TrialSpec, device: torch.device, shape: Any, supervised: int
    ) -> None:
        """Batches have this `shape` (B, S), and the last `supervised` tokens of each row count."""
        training = spec.training
        self._model, self._training, self._device = model, training, device
        self._supervised = supervised
        self._ids_BS = torch.zeros(shape, dtype=torch.long, device=device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            weight_decay=training.weight_decay,
            fused=device.type == "cuda",
            capturable=device.type == "cuda",
        )
        self._replay: Callable[[], None] = self._eager
        self.loss = torch.full((), math.nan, device=device)
        """Of the step that ran last."""

    def prepare(self, ids_BS: Tensor) -> None:
        """Take the graph of a step, on a GPU; parameters and moments are as before."""
        self._model.train()
        if self._device.type != "cuda":
            return
        first = [parameter.detach().clone() for parameter in self._parameters]
        self._ids_BS.copy_(ids_BS)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_STEPS):
                self._eager()
        torch.cuda.current_stream().wait_stream(beside)
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._once()
        with torch.no_grad():
            for parameter, value in zip(self._parameters, first, strict=True):
                parameter.copy_(value)
            for state in self._optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        self._replay = graph.replay

    def run(self, ids_BS: Tensor) -> None:
        """One step; it may still be running."""
        self._ids_BS.copy_(ids_BS, non_blocking=True)
        self._replay()

    def _eager(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._once()

    def _once(self) -> None:
        kept = self._supervised
        with autocast(self._device, self._training):
            logits_BkV = self._model(
                input_ids=self._ids_BS,
                # Causal and nothing else, which no test of the batch's values has to find out.
                attention_mask={"full_attention": None},
                logits_to_keep=kept + 1,
                use_cache=False,
            ).logits[:, :-1]
        targets_Bk = self._ids_BS[:, -kept:]
        self.loss = cross_entropy(logits_BkV.flatten(0, 1).float(), targets_Bk.flatten())
        self.loss.backward()
        self.loss = self.loss.detach()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._training.max_grad_norm)
        self._optimizer.step()
