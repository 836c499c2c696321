"""What the threads of this process do, 100 times a second, by the innermost function that has a
name here.

Started by a `sitecustomize` module in every process of a sweep (`where.py`), so it imports nothing
but the standard library. Each process writes its sums twice a second.
"""

import atexit
import json
import os
import sys
import threading
import time
from types import FrameType

PERIOD, WRITING = 0.01, 0.5
NAMES = (
    ("<frozen importlib._bootstrap>", "_find_and_load", "import modules"),
    ("packed/step.py", "packed_step", "train: forward and backward"),
    ("packed/row.py", "step", "train: clip and AdamW"),
    ("packed/micro_batches.py", None, "train: take batches"),
    ("peft_jobs/evaluation/scoring.py", None, "evaluate"),
    ("packed/trial_metrics.py", None, "evaluate"),
    ("packed/evaluations.py", None, "evaluate"),
    ("peft_jobs/device/memory.py", None, "memory: collect garbage, give back"),
    ("packed/adapter.py", None, "save adapters"),
    ("peft_jobs/training/checkpoints.py", None, "checkpoints"),
    ("peft_jobs/host/checkpoint.py", None, "checkpoints"),
    ("packed/composition.py", None, "compose packs"),
    ("packed/packed_trial.py", "__init__", "begin a trial"),
    ("peft_jobs/engines/solo/solo_engine.py", "verify", "check the base's hash"),
    ("peft_jobs/training/attempt_files.py", None, "write the trial's log and metrics"),
    ("peft_jobs/provenance.py", None, "provenance (git, versions)"),
    ("peft_jobs/host/job.py", "wait_until", "the pruner's answer"),
    ("peft_jobs/host/trial_host.py", "take", "no job"),
    ("packed/slot_count.py", None, "try numbers of slots"),
    ("peft_jobs/base/loading.py", None, "load and quantize the base"),
    ("peft_jobs/base/content_hash.py", None, "check the base's hash"),
    ("peft_jobs/data/tokenized.py", None, "tokenise"),
    ("peft_jobs/data/selection.py", None, "tokenise"),
    ("peft_jobs/methods/targets.py", None, "check the trials of the space"),
    ("peft_jobs/host/trial_host.py", "prepare", "prepare: the rest"),
    ("peft_jobs/host/trial_host.py", "close", "wait for the host to close"),
    ("peft_jobs/engines/__init__.py", None, "make the engine"),
    ("backends/ray/ray_backend.py", "_connect", "start Ray"),
    ("backends/ray/ray_backend.py", "prepare", "wait for the host: start and prepare"),
    ("backends/ray/ray_backend.py", "close", "take Ray down"),
    ("backends/ray/fleet.py", "__init__", "create hosts"),
    ("backends/ray/bridge.py", None, "bridge to Tune"),
    ("sweeps/study/study.py", "ask", "suggest"),
    ("sweeps/study/study.py", "report", "report to the study"),
    ("sweeps/study/study.py", "tell", "tell the study"),
    ("sweeps/study/study.py", None, "the study's rest"),
    ("sweeps/study/asker.py", None, "suggest"),
    ("sweeps/study/pruning.py", None, "decide to prune"),
    ("sweeps/study/database.py", None, "open the database"),
    ("sweeps/study/lease.py", None, "lease"),
    ("sweeps/driver/trial_record.py", None, "record ends"),
    ("sweeps/report/pictures.py", None, "plots"),
    ("sweeps/results/reports.py", None, "leaderboard"),
    ("sweeps/results/leaderboard.py", None, "leaderboard"),
    ("sweeps/tracking/", None, "tracking"),
    ("sweeps/driver/tracked_runs.py", None, "tracking"),
    ("sweeps/backends/inline.py", "run", "the driver's loop"),
    ("sweeps/driver/driver.py", None, "the driver's rest"),
    ("ray/tune/", None, "Tune's own loop, waiting included"),
)
"""(end or part of a file's path, function, what it is), looked for from the innermost frame out."""


def watch() -> None:
    """Sample this process until it ends, if `STACKS_FOLDER` says where to write."""
    if "STACKS_FOLDER" in os.environ:
        threading.Thread(target=_sample, name="stacks", daemon=True).start()


def _sample() -> None:
    sums: dict[str, dict[str, float]] = {}
    path = os.path.join(os.environ["STACKS_FOLDER"], f"{os.getpid()}.json")

    def write() -> None:
        if sums:
            with open(f"{path}.part", "w") as file:
                json.dump(sums, file)
            os.replace(f"{path}.part", path)

    atexit.register(write)
    last = written = time.perf_counter()
    while True:
        time.sleep(PERIOD)
        now = time.perf_counter()
        for ident, frame in sys._current_frames().items():
            found = _thread(ident, frame)
            if found is not None:
                parts = sums.setdefault(found, {})
                waits = frame.f_code.co_filename.endswith("threading.py")
                name = _named(frame) + (" (waiting)" if waits else "")
                parts[name] = parts.get(name, 0.0) + now - last
        last = now
        if now - written > WRITING:
            write()
            written = now


def _thread(ident: int, frame: FrameType) -> str | None:
    """Which of the threads that matter this is."""
    is_main = ident == threading.main_thread().ident
    if is_main and sys.argv and sys.argv[0].endswith("sweep_arms.py"):
        return "driver's thread"
    for path, function in _frames(frame):
        if path.endswith("peft_jobs/host/trial_host.py") and function == "_serve":
            return "the host's thread, which trains"
        if path.endswith("tracking/drain.py"):
            return "thread that delivers to the tracking server"
        if path.endswith("backends/ray/host_actor.py") and function in ("__init__", "prepare"):
            return "host's start, in the host's process"
        if path.endswith("peft_jobs/host/trial_host.py") and function == "prepare":
            return "host's start, in the host's process"
    return None


def _named(frame: FrameType) -> str:
    for path, function in _frames(frame):
        for part, name, label in NAMES:
            if part in path and name in (None, function):
                return label
    for path, function in _frames(frame):
        if "/peft_jobs/" in path or "/sweeps/" in path:
            return f"rest: {os.path.basename(path)} {function}"
    return "Python's start and end"


def _frames(frame: FrameType | None) -> list[tuple[str, str]]:
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return found
