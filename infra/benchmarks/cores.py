"""Table `cores`: one host with all cores against several with fewer, solo and packed.

An arm is named by engine, hosts and threads of each: `packed-2x1`. Its hosts are processes with a
base of their own that start together when all are warm; trials and slots are dealt out evenly.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from sweep_table import LENGTH, copied, watched

WARM_STEPS = 3


def run_all(options: argparse.Namespace) -> None:
    """All arms in each repeat."""
    run = options.record.begin("cores", options.command)
    setting = {
        "model": options.model_name,
        "quantization": "nf4",
        "trials": options.trials,
        "steps": options.steps,
        "tokens": options.rows * LENGTH,
        "slots": options.slots,
    }
    for repeat in range(options.repeats):
        for arm in options.arms:
            with tempfile.TemporaryDirectory(prefix="cores-") as folder:
                config = {**copied(options, Path(folder)), "folder": folder}
                measured = {"arm": arm, "repeat": repeat, **one_arm(arm, config)}
            options.record.add(run, setting, measured)
            print(measured, flush=True)


def one_arm(arm: str, config: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the common start to the last end, and what was done in them."""
    engine, _, shape = arm.partition("-")
    hosts, threads = map(int, shape.split("x"))
    spawn = multiprocessing.get_context("spawn")
    start, ends = spawn.Barrier(hosts + 1), spawn.Queue()
    given = {**config, "engine": engine, "threads": threads, "hosts": hosts}
    processes = [
        spawn.Process(target=host, args=(given, number, start, ends)) for number in range(hosts)
    ]
    for process in processes:
        process.start()
    start.wait(timeout=120)
    began = time.perf_counter()
    with watched(*(process.pid or 0 for process in processes)) as peak:
        processor = sum(ends.get(timeout=600) for _ in processes)
        seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "trial_steps": config["trials"] * config["steps"],
        "peak_bytes": peak[0],
    }


def host(config: dict[str, Any], number: int, start: Barrier, ends: Any) -> None:
    """One host's trials, each to its end; puts its processor time into `ends`."""
    import arms
    from runs import Until, run
    from sweep_arms import trial_tree

    from peft_jobs.engines.solo.solo_engine import SoloEngine
    from peft_jobs.spec import TrialSpec

    spec = TrialSpec.model_validate(trial_tree(config))
    solo = SoloEngine(f"{config['folder']}/{number}", threads=config["threads"])
    solo.check(spec)
    slots = max(1, config["slots"] // config["hosts"])
    engine = arms.auto(solo, slots) if config["engine"] == "packed" else solo
    seeds = range(number, config["trials"], config["hosts"])
    specs = [spec.with_params({"seed": seed}) for seed in seeds]
    every = {"training.logging_steps": 1}
    run(engine, [one.with_params(every) for one in specs[:slots]], Until(WARM_STEPS))
    start.wait()
    began = time.process_time()
    run(engine, specs)
    ends.put(time.process_time() - began)
