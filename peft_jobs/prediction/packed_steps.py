"""Two packed steps of trials alike in K slots, as the packed engine makes them, on fake tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_jobs.base.loading import Base
from peft_jobs.engines.packed.layout import make_layout
from peft_jobs.engines.packed.micro_batches import Chunk, MicroBatch
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.parts import parts_of, trained
from peft_jobs.engines.packed.row import Captured, PackRow, step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.host.prediction import Lengths
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.prediction.attention import attention_of
from peft_jobs.prediction.batches import example_of, shortened
from peft_jobs.prediction.fake_base import CPU, Kind, fake_in_place, hold_model
from peft_jobs.prediction.int8_products import int8_products_of
from peft_jobs.prediction.meter import Meter
from peft_jobs.prediction.solo_steps import Steps
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS, Batch, Example, Task
from peft_jobs.training.schedule import Schedule

_STEPS = 10
"""Of the schedule."""


class _Collated:
    """A task whose batches were made before: where they are asked for, no tensor has values."""

    def __init__(self, task: Task[Any], batches: dict[int, Batch], mode: FakeTensorMode) -> None:
        """`batches` by the length of their rows, on the CPU."""
        self._task, self._batches, self._mode = task, batches, mode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        to_fake = self._mode.fake_tensor_converter.from_meta_and_device
        found = self._batches[len(examples[0]["input_ids"])]
        return {name: to_fake(self._mode, t.to("meta"), CPU) for name, t in found.items()}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._task.losses(model, batch)


def packed_steps(spec: TrialSpec, base: Base, kind: Kind, lengths: Lengths, slots: int) -> Steps:
    """Two steps of `slots` trials like `spec`, which must be one that packs. `base` is on the meta
    device, and of no use afterwards."""
    task, training, model = TASKS[spec.task.type], spec.training, base.model
    parts = parts_of(spec, model)
    layout = make_layout([parts.shapes])
    num_trained = sum(math.prod(shape) for shape in trained(parts.shapes).values())
    number = slots * training.per_device_train_batch_size
    examples = [example_of(spec.task, each) for each in (shortened(lengths), lengths)]
    pad = base.tokenizer.pad_token_id
    batches = {len(e["input_ids"]): task.collate([e] * number, pad) for e in examples}
    meter = Meter(getattr(model.config.get_text_config(), "vocab_size", None))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_in_place(model, mode)
    with mode:
        collated: Any = _Collated(task, batches, mode)
        with attention_of(kind, lengths.pads(number)), int8_products_of(kind), meter:
            hold_model(meter, model)
            pack = Pack(model, layout, slots, torch.float32)
            pack.put_on()
            meter.hold(pack.values_KP, "adapter")
            meter.hold(pack.frozen_KF, "adapter")
            meter.hold(pack.gradients_KP, "gradients")
            for moments_KP in pack.moments_KP:
                meter.hold(moments_KP, "optimizer")
            if training.gradient_checkpointing:
                checkpoint_activations(model, pack.again)
            model.train()
            rows = [
                PackRow(pack, slot, spec, parts, Schedule(training, _STEPS), Captured({}))
                for slot in range(slots)
            ]
            for step in (1, 2):
                meter.is_counting = step == 2
                batch = MicroBatch([examples[step - 1]] * training.per_device_train_batch_size)
                with meter.phase("backward", "activations"):
                    for _ in meter.micro_steps(training.gradient_accumulation_steps):
                        chunk = Chunk(batch, step, 0, len(batch.examples), 1.0, ends_step=True)
                        packed_step(
                            pack,
                            model,
                            collated,
                            [Work(slot, spec, chunk) for slot in range(slots)],
                            pad_token_id=pad,
                            device=CPU,
                            training=training,
                        )
                with meter.phase("update", "workspace"):
                    step_rows(rows)
                if step == 1:
                    meter.allocator.empty_cache()
    size = 4 * num_trained
    sizes = num_trained, size, 2 * size
    return Steps(meter.peaks, meter.allocator.reserved, meter.operations, *sizes)
