"""How many trials at a time a sweep has use for on this device: some packed steps, before the first
trial, on the sweep's own base and data.

A device has no more to give where a step of twice the slots takes nearly twice the time. More
trials at a time also cost: the sampler knows less when it draws, and memory, which is predicted
for the longest rows before any step.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.device.precision import use_tf32
from peft_jobs.engines.packed.layout import make_layout
from peft_jobs.engines.packed.micro_batches import Feed
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.parts import dtype_of, initial_values, parts_of
from peft_jobs.engines.packed.row import Captured, PackRow, step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import Lengths
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.references import load
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.training.schedule import Schedule

log = logging.getLogger(__name__)

MAX_CPU_SLOTS, MAX_GPU_SLOTS = 8, 32
"""Of a device; each slot also costs a process on Ray."""
PREDICTED_SLOTS = (2, 4)
"""Numbers of slots whose steps are predicted; a line through them tells of the others."""
OF_BASE, OF_ROWS = ("weights", "quantization"), ("adapter", "gradients", "optimizer")
"""Categories of memory that the base takes, and that the rows of a pack take."""
MIN_GAIN_OF_DOUBLING = 1.15
"""What twice the slots must give in trial-steps per second to be taken."""
STEPS_PER_NUMBER = 8
"""Of each number of slots; the first one warms up."""
ENOUGH_SECONDS = 1.0
"""After which one number has no third step: long ones differ less."""
MAX_SECONDS = 10.0
"""After which no larger number is tried."""


def max_slots(device: torch.device) -> int:
    """Slots of a device at most."""
    return MAX_CPU_SLOTS if device.type == "cpu" else MAX_GPU_SLOTS


@dataclass(frozen=True)
class PredictedSlots:
    """What packed steps of the longest rows take, as predicted."""

    beside: Mapping[int, int]
    """Bytes beside the base and all rows of the pack, by PREDICTED_SLOTS."""
    state_bytes: int
    """Of a slot's row."""


def predicted_slots(
    spec: TrialSpec, device: Device | None, lengths: Lengths
) -> PredictedSlots | None:
    """What slots of trials like `spec` take of a GPU; None where that cannot be told, which is
    logged, or memory is the host's. Without it the first trial begins alone, and is measured."""
    if device is None or device.kind == "cpu":
        return None
    predict = load("peft_jobs.prediction.predict:predict")
    beside, state = {}, 0
    try:
        for number in PREDICTED_SLOTS:
            [found] = predict([spec], device, lengths, slots=number)
            rows = sum(found.memory.get(name, 0) for name in OF_ROWS)
            base = sum(found.memory.get(name, 0) for name in OF_BASE)
            beside[number] = found.peak_bytes - base - rows
            state = rows // number
    except Exception as error:  # of torch, PEFT, the Hub
        log.warning("what slots take cannot be predicted: %s", error)
        return None
    return PredictedSlots(beside, state)


def useful_slots(spec: TrialSpec, base: Base, data: TokenizedData, most: int) -> int:
    """A power of two up to `most`: as many slots as are worth it for trials like `spec`, one at
    least.

    The base is left as it was.
    """
    found = largest_worthwhile(
        lambda number: number / seconds_per_step(spec, base, data, number), most
    )
    release(base.device)
    return found


def largest_worthwhile(rate: Callable[[int], float], most: int) -> int:
    """The last of 1, 2, 4 ... `most` slots before doubling gives less than MIN_GAIN_OF_DOUBLING.

    `rate` gives trial-steps per second. What fails in it for another reason than memory is logged
    and ends the search too: trials find out for themselves, and their results tell.
    """
    begun, best, best_rate = time.perf_counter(), 1, 0.0
    number = 1
    while number <= most and time.perf_counter() - begun < MAX_SECONDS:
        try:
            found = tried(partial(rate, number))
        except Exception as error:
            log.warning("could not try steps of %d slots", number, exc_info=error)
            break
        if isinstance(found, RanOut) or found < MIN_GAIN_OF_DOUBLING * best_rate:
            break
        best, best_rate = number, found
        number *= 2
    return best


def seconds_per_step(spec: TrialSpec, base: Base, data: TokenizedData, number: int) -> float:
    """The fastest of some steps of so many slots. The base is left as it was."""
    task, pad_token_id = TASKS[spec.task.type], base.tokenizer.pad_token_id
    parts = parts_of(spec, base.model)
    values = Captured(initial_values(spec, parts, base.model))
    layout = make_layout([parts.shapes])
    schedule = Schedule(spec.training, STEPS_PER_NUMBER)
    snapshot = Snapshot.of(base.model)
    try:
        pack = Pack(base.model, layout, number, dtype_of(base))
        pack.put_on()
        if spec.training.gradient_checkpointing:
            checkpoint_activations(base.model, pack.again)
        use_tf32(spec.training, base.device)
        base.model.train()
        rows = [PackRow(pack, slot, spec, parts, schedule, values) for slot in range(number)]
        feeds = []
        for slot in range(number):
            order = iter(SampleOrder(spec.seed + slot, len(data.train), 1 << 30))
            feeds.append(Feed(task, data.train, order, spec.training, pad_token_id, 0))
        seconds: list[float] = []
        while len(seconds) < 2 or (
            len(seconds) < STEPS_PER_NUMBER and sum(seconds) < ENOUGH_SECONDS
        ):
            begun = time.perf_counter()
            packed_step(
                pack,
                base.model,
                task,
                [Work(slot, spec, feed.take(feed.rows_left)) for slot, feed in enumerate(feeds)],
                pad_token_id=pad_token_id,
                device=base.device,
                training=spec.training,
            )
            step_rows(rows)
            if base.device.type == "cuda":
                torch.cuda.synchronize(base.device)
            seconds.append(time.perf_counter() - begun)
    finally:
        snapshot.restore()
    return min(seconds[1:])
