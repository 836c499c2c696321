"""Table `sweep`: the arms of `sweep_arms.py` one after the other, each in processes of its own.

All of them see the same rows, in files written here; the best adapter of an arm that is not the
product's is measured by the product's own evaluation, after the clock has stopped.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
LENGTH = 128
TRAIN_ROWS, VALIDATION_ROWS = 256, 48
SAMPLING_SECONDS = 2.0


def run_all(options: argparse.Namespace) -> None:
    """All arms in each repeat; a measurement is recorded as soon as its arm has ended."""
    run = options.record.begin("sweep", options.command, threads=options.threads)
    setting = {
        "model": options.model_name,
        "quantization": "nf4",
        "trials": options.trials,
        "steps": options.steps,
        "tokens": options.rows * LENGTH,
        "slots": options.slots,
    }
    for repeat in range(options.first, options.first + options.repeats):
        for arm in options.arms:
            with tempfile.TemporaryDirectory(prefix="packing-") as folder:
                measured = {"arm": arm, "repeat": repeat}
                try:
                    measured |= one_arm(options, arm, Path(folder), repeat)
                except RuntimeError as error:
                    measured["failed"] = str(error)[-500:]
            options.record.add(run, setting, measured)
            print(measured, flush=True)


def one_arm(options: argparse.Namespace, arm: str, folder: Path, repeat: int) -> dict[str, Any]:
    """What one arm took, from the start of its first process to the end of its last."""
    config = copied(options, folder) | {"seed": repeat, "spawned": time.time()}
    (folder / "config.json").write_text(json.dumps(config))
    began = time.time()
    command = [sys.executable, str(HERE / "sweep_arms.py"), arm, str(folder)]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        with watched(process.pid) as peak:
            code = process.wait()
    seconds = time.time() - began
    if code != 0:
        raise RuntimeError(f"arm {arm} failed:\n{log.read_text()[-3000:]}")
    found: dict[str, Any] = json.loads((folder / f"{arm}.json").read_text())
    adapters: Mapping[str, float] = found.pop("adapters", {})
    if adapters:
        found["best_loss"] = loss_of(min(adapters, key=lambda path: adapters[path]), config)
    else:
        found["best_loss"] = min(found["losses"])
    if arm.startswith(("B6", "B9")):
        found |= pruned_of(folder / arm, config)
        del found["losses"]  # of trials that no other arm has
    # What starts the arm's processes is this script's, not the arm's.
    found["seconds"] = found.pop("wall", seconds)
    return found | {"peak_bytes": peak[0]}


def copied(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What every arm is told, with the rows in files of their own."""
    return {
        "model": str(Path(options.model).resolve()),
        "train": copy_rows(options.train, folder / "train.jsonl", TRAIN_ROWS),
        "validation": copy_rows(options.validation, folder / "validation.jsonl", VALIDATION_ROWS),
        "prompt": options.prompt,
        "response": options.response,
        "quantization": "nf4",
        "trials": options.trials,
        "run_trials": min(options.trials, getattr(options, "run_trials", None) or options.trials),
        "steps": options.steps,
        "rows": options.rows,
        "length": LENGTH,
        "slots": options.slots,
        "threads": options.threads,
    }


def copy_rows(source: str, target: Path, num: int) -> str:
    """The first `num` rows of a .csv or .jsonl file, after a shuffle with a fixed seed."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    kind = "csv" if source.endswith(".csv") else "json"
    rows = load_dataset(
        kind, data_files=source, split="train", cache_dir=str(target.parent / "rows")
    )
    rows = rows.shuffle(seed=0)
    rows.select(range(min(num, len(rows)))).to_json(str(target))
    return str(target)


def loss_of(adapter: str, config: Mapping[str, Any]) -> float:
    """Validation loss of an adapter in a folder."""
    from peft import PeftModel
    from sweep_arms import trial_tree

    from peft_jobs.engines.solo.solo_engine import SoloEngine
    from peft_jobs.evaluation.scoring import score
    from peft_jobs.spec import TrialSpec

    spec = TrialSpec.model_validate(trial_tree(dict(config)))
    with tempfile.TemporaryDirectory() as cache:
        base, data = SoloEngine(cache, threads=1).check(spec)
        model = PeftModel.from_pretrained(base.model, adapter)
        return score(model, base, spec, data.validation)["validation/loss"]


def pruned_of(storage: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The best loss of the trials that a sweep has stopped, each run again to its end."""
    from arms import auto
    from runs import run

    from peft_jobs.engines.solo.solo_engine import SoloEngine
    from peft_jobs.spec import TrialSpec

    results = {path: json.loads(path.read_text()) for path in storage.rglob("trials/*/result.json")}
    stopped = [path for path, result in results.items() if result["kind"] == "weak"]
    found: dict[str, Any] = {"pruned": len(stopped)}
    if stopped:
        specs = [
            TrialSpec.model_validate_json((path.parent / "trial.json").read_text())
            for path in sorted(stopped)
        ]
        engine = SoloEngine(str(storage / "again"), threads=config["threads"])
        ran = run(auto(engine, config["slots"]), specs)
        ends = [job.ended_as.metrics.get("validation/loss", math.inf) for job in ran.jobs]
        found["pruned_best_loss"] = min(ends)
    return found


@contextmanager
def watched(*pids: int) -> Iterator[list[int]]:
    """Gives a list whose one element becomes the peak memory of processes and their descendants.

    Proportional set size, so that shared pages count once; sampled.
    """
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], sum(map(tree_bytes, pids)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def tree_bytes(pid: int) -> int:
    """Of a process and its descendants, now."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total
