"""Table `sweep`: the arms of `sweep_arms.py` one after the other, each in processes of its own.

All of them see the same rows, in files written here; the best adapter of an arm that is not the
product's is measured by the product's own evaluation, after the clock has stopped.
"""

import argparse
import json
import statistics
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


def sweep(options: argparse.Namespace) -> None:
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
    for repeat in range(options.repeats):
        alone: list[float] = []
        for arm in options.arms:
            with tempfile.TemporaryDirectory(prefix="packing-") as folder:
                measured = one_arm(options, arm, Path(folder), repeat)
            losses = measured.pop("losses", [])
            if arm == "B1":
                alone = losses
            if arm == "B5" and len(losses) == len(alone):
                away = [abs(loss - other) for loss, other in zip(losses, alone, strict=True)]
                measured["loss_difference_max"] = max(away)
                measured["loss_difference_mean"] = statistics.mean(away)
            measured = {"arm": arm, "repeat": repeat, **measured}
            options.record.add(run, setting, measured)
            print(measured, flush=True)


def one_arm(options: argparse.Namespace, arm: str, folder: Path, repeat: int) -> dict[str, Any]:
    """What one arm took, from the start of its first process to the end of its last."""
    config = {
        "model": str(Path(options.model).resolve()),
        "train": copy_rows(options.train, folder / "train.jsonl", TRAIN_ROWS),
        "validation": copy_rows(options.validation, folder / "validation.jsonl", VALIDATION_ROWS),
        "prompt": options.prompt,
        "response": options.response,
        "quantization": "nf4",
        "trials": options.trials,
        "steps": options.steps,
        "rows": options.rows,
        "length": LENGTH,
        "slots": options.slots,
        "threads": options.threads,
        "seed": repeat,
        "spawned": time.time(),
    }
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
    # What starts the arm's processes is this script's, not the arm's.
    found["seconds"] = found.pop("wall", seconds)
    return found | {"peak_bytes": peak[0]}


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

    from peft_jobs.evaluation import score
    from peft_jobs.solo import SoloEngine
    from peft_jobs.spec import TrialSpec

    spec = TrialSpec.model_validate(trial_tree(dict(config)))
    with tempfile.TemporaryDirectory() as cache:
        base, data = SoloEngine(cache, threads=1).check(spec)
        model = PeftModel.from_pretrained(base.model, adapter)
        return score(model, base, spec, data.validation)["validation/loss"]


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Gives a list whose one element becomes the peak memory of a process and its descendants.

    Proportional set size, so that shared pages count once; sampled.
    """
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], tree_bytes(pid))

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
