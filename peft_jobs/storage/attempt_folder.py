"""The names of the files of one attempt, and the class names beside a classifier's weights."""

import json
from collections.abc import Sequence
from pathlib import Path

from peft_jobs.storage.files import write_json

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
ADAPTER_FOLDER = "adapter"
LABELS = "labels.json"
"""A list of names; the first is that of class 0."""


def write_labels(folder: Path, classes: Sequence[int | str]) -> None:
    """Write the names into an adapter's folder; nothing for a task without classes."""
    if classes:
        write_json(folder / LABELS, [str(name) for name in classes])


def read_labels(folder: Path) -> list[str]:
    """The names in an adapter's folder; [] where there are none."""
    path = folder / LABELS
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
