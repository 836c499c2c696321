"""Table `gpu`: random weights of true shapes, made and quantized on the device.

Valid for speed, memory and the distance to solo, never for quality. The engines are the product's;
only what they find resident is made here, so no files and no network are needed. Of each shape and
number of tokens the arms get an even share of the time: what is cut off is noted in its cell.
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from arms import Arm
from cells import Cells, measure
from dequantized import dequantized, holding
from gpu_trial import trial
from pool import measure as measure_pool
from random_base import SHAPES, let_go, make_base, make_data, shape_sizes

from peft_jobs.base.loading import Base
from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.device.this_device import this_device
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.methods import lora
from peft_jobs.randomness import initial_lora_A

WARM_STEPS, MIN_STEPS = 4, 6
COMPARED = 2


def run_all(options: argparse.Namespace) -> None:
    """The cells of all shapes until the time is spent."""
    device = this_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    run = options.record.begin("gpu", options.command, device=name)
    draw_once()
    deadline = time.monotonic() + options.seconds
    for number, shape in enumerate(options.shape):
        left = deadline - time.monotonic()
        until = time.monotonic() + left / (len(options.shape) - number)
        with tempfile.TemporaryDirectory() as cache:
            for setting, measured in one_shape(options, shape, cache, until):
                options.record.add(run, setting, measured)
                print(setting, measured, flush=True)
        let_go()


def one_shape(
    options: argparse.Namespace, shape: str, cache: str, until: float
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """All measurements of one shape, each with its setting."""
    base = make_base(shape, this_device())
    setting = {
        "model": f"{shape} (random)",
        "parameters": sum(shape_sizes(shape)),
        "quantization": "nf4",
    }
    fast, failed = fast_bases(base, options.arms)
    for name, tokens in itertools.product(failed, options.tokens):
        yield {**setting, "tokens": tokens}, {"arm": name, "slots": 1, "failed": "out of memory"}
    pools = [int(name.partition("@")[2]) for name in options.arms if name.startswith("B3")]
    full = until
    if pools:  # they come last, with half the time
        until -= 0.5 * (until - time.monotonic())
    for number, tokens in enumerate(options.tokens):
        left = until - time.monotonic()
        cells = Cells(
            trial(options, tokens),
            options.slots,
            options.repeats,
            options.arm_seconds,
            warm_steps=WARM_STEPS,
            compared=COMPARED,
            min_steps=MIN_STEPS,
            longest=options.run_seconds,
            deadline=time.monotonic() + left / (len(options.tokens) - number),
        )

        def engine(its_base: Base, tokens: int = tokens) -> SoloEngine:
            data = make_data(tokens, SHAPES[shape]["vocab_size"])
            return holding(its_base, data, cache, options.threads)

        arms = [
            Arm.named(name, engine(fast.get(name, base)))
            for name in options.arms
            if not name.startswith("B3") and name not in failed
        ]
        for measured in measure(cells, arms):
            yield {**setting, "tokens": tokens}, measured
    del base, fast, engine, arms
    let_go()
    for number, pool in enumerate(pools):
        left = full - time.monotonic()
        share = time.monotonic() + left / (len(pools) - number)
        for tokens, measured in measure_pool(options, shape, pool, share):
            yield {**setting, "tokens": tokens}, measured


def fast_bases(base: Base, arms: Sequence[str]) -> tuple[dict[str, Base], list[str]]:
    """The bases of the arms B2, by arm; and those arms whose base memory is too small for."""
    made: dict[bool, Base | None] = {}
    wanted = {name: name == "B2-compiled" for name in arms if name.startswith("B2")}
    for compiled in set(wanted.values()):
        one = tried(functools.partial(dequantized, base, compiled))
        made[compiled] = None if isinstance(one, RanOut) else one
        if isinstance(one, RanOut):
            release(base.device)
    bases = {name: made[compiled] for name, compiled in wanted.items()}
    found = {name: fast for name, fast in bases.items() if fast is not None}
    return found, [name for name in wanted if name not in found]


def draw_once() -> None:
    """Keep each trial's first weights: drawing billions of them again is not what is measured."""
    lora.__dict__["initial_lora_A"] = functools.cache(initial_lora_A)
