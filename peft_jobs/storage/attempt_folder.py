"""The names of a trial's files, each only here, and the class names beside a classifier's weights.

`<trial>/{trial.json, result.json, adapter/, attempts/<k>/}`, and in an attempt's folder its
metrics, per-row scores, its log, its traceback, its adapter and `checkpoints/step-<step>/`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from peft_jobs.storage.files import write_json

TRIAL_FILE = "trial.json"
RESULT_FILE = "result.json"
ATTEMPTS_FOLDER = "attempts"
METRICS_FILE = "metrics.jsonl"
ROWS_FILE = "rows.parquet"
"""What the attempt's last evaluation found of each validation row."""
LOG_FILE = "log.txt"
TRACEBACK_FILE = "traceback.txt"
ADAPTER_FOLDER = "adapter"
CHECKPOINTS_FOLDER = "checkpoints"
LABELS_FILE = "labels.json"
"""A list of names; the first is that of class 0."""
SAMPLES_FILE = "samples.json"
"""Beside an exported adapter: what it was trained and measured on, and some of its answers."""


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint, in `checkpoints`; names sort by step."""
    return f"step-{step:08d}"


def write_labels(folder: Path, classes: Sequence[int | str]) -> None:
    """Write the names into an adapter's folder; nothing for a task without classes."""
    if classes:
        write_json(folder / LABELS_FILE, [str(name) for name in classes])


def read_labels(folder: Path) -> list[str]:
    """The names in an adapter's folder; [] where there are none."""
    path = folder / LABELS_FILE
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
