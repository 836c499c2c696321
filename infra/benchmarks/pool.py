"""Arm B3 on one device: processes with a base of their own, each with a trial alone.

They start each repeat together, and stay for all numbers of tokens. Bases are made one after the
other: a base takes most memory before it is quantized.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from typing import Any

STARTING_SECONDS, STEPPING_SECONDS = 300, 120
WARM_STEPS = 4


def measure(
    options: argparse.Namespace, shape: str, num: int, until: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Measurements of `num` processes by tokens; as many as `until` (`time.monotonic`) allows."""
    spawn = multiprocessing.get_context("spawn")
    ready, turn = spawn.Queue(), spawn.Lock()
    pipes = [spawn.Pipe() for _ in range(num)]
    processes = [
        spawn.Process(target=serve, args=(options_of(options), shape, seed, pipe[1], ready, turn))
        for seed, pipe in enumerate(pipes)
    ]
    ends = [pipe[0] for pipe in pipes]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            ready.get(timeout=STARTING_SECONDS)
        for tokens in options.tokens:
            for repeat in (None, *range(options.repeats)):  # the first one warms up
                if time.monotonic() > until:
                    return
                measured = stepped(ends, tokens, options, warm=repeat is None)
                if repeat is not None or "failed" in measured:
                    yield tokens, {"arm": "B3", "slots": num, "repeat": repeat or 0, **measured}
                if "failed" in measured:
                    break
    finally:
        for end in ends:
            end.send(None)
        for process in processes:
            process.join(timeout=60)


def options_of(options: argparse.Namespace) -> argparse.Namespace:
    """What a process needs of them, and can be sent."""
    names = ("r", "checkpointing", "threads")
    return argparse.Namespace(**{name: getattr(options, name) for name in names})


def stepped(
    ends: list[Any], tokens: int, options: argparse.Namespace, warm: bool
) -> dict[str, Any]:
    """One trial in each process, from the first step of all to the last."""
    for end in ends:
        end.send((tokens, WARM_STEPS if warm else options.pool_steps))
    answers = []
    for end in ends:
        if not end.poll(STEPPING_SECONDS):
            return {"failed": f"took longer than {STEPPING_SECONDS} s"}
        answers.append(end.recv())
    failed = [answer["failed"] for answer in answers if "failed" in answer]
    if failed:
        return {"failed": failed[0]}
    first, last = min(a["first"] for a in answers), max(a["last"] for a in answers)
    return {
        "seconds": last - first,
        "processor_seconds": sum(a["processor_seconds"] for a in answers),
        "trial_steps": sum(a["trial_steps"] for a in answers),
        "peak_bytes": sum(a["peak_bytes"] for a in answers),
        "supervised_tokens": answers[0]["supervised_tokens"],
        "real_tokens": tokens,
        "padded_tokens": tokens,
    }


def serve(
    options: argparse.Namespace, shape: str, seed: int, pipe: Any, ready: Any, turn: Any
) -> None:
    """A process of the pool: a trial for each (tokens, steps) that comes, until None does."""
    from dequantized import holding
    from gpu_trial import trial
    from random_base import SHAPES, let_go, make_base, make_data
    from runs import Until, run

    from peft_jobs.device.this_device import this_device

    with turn:
        base = make_base(shape, this_device())
        let_go()
    ready.put(seed)
    with tempfile.TemporaryDirectory() as cache:
        while (asked := pipe.recv()) is not None:
            tokens, steps = asked
            data = make_data(tokens, SHAPES[shape]["vocab_size"])
            engine = holding(base, data, cache, options.threads)
            endless = {"seed": seed, "training.max_steps": 10**4, "training.logging_steps": steps}
            spec = trial(options, tokens).with_params(endless)
            try:
                ran = run(engine, [spec], Until(steps))
            except (MemoryError, RuntimeError) as error:
                pipe.send({"failed": str(error).strip().splitlines()[0][:200]})
                continue
            stamps = ran.jobs[0].stamps
            pipe.send(
                {
                    "first": stamps[0],
                    "last": stamps[-1],
                    "processor_seconds": ran.processor_seconds,
                    "trial_steps": ran.trial_steps,
                    "peak_bytes": ran.peak_bytes,
                    "supervised_tokens": ran.supervised_tokens,
                }
            )
