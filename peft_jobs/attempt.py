"""The files of one attempt: `metrics.jsonl` (a line per report), `log.txt`, and `adapter/`."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peft_jobs.files import whole_folder
from peft_jobs.label_names import write_labels
from peft_jobs.methods import write_adapter
from peft_jobs.result import Progress

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
LOG = "log.txt"
ADAPTER = "adapter"


@contextmanager
def logged(directory: Path) -> Iterator[None]:
    """Write what this thread logs, from INFO on, to `log.txt` for as long as the block lasts.

    A host that runs other work in other threads keeps their lines out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_OfThisThread())
    root, ours = logging.getLogger(), logging.getLogger("peft_jobs")
    level = ours.level
    root.addHandler(handler)
    if not ours.isEnabledFor(logging.INFO):
        ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        root.removeHandler(handler)
        with suppress(OSError):  # a full disk refuses the last lines
            handler.close()


def append(directory: Path, progress: Progress) -> None:
    """Add one report to `metrics.jsonl`, a copy for readers; a full disk does not end a trial."""
    try:
        with (directory / METRICS).open("a", encoding="utf-8") as file:
            file.write(progress.model_dump_json() + "\n")
    except OSError as error:
        log.warning("%s lacks the report of step %d: %s", METRICS, progress.step, error)


def save_adapter(model: Any, directory: Path, classes: Sequence[int | str]) -> str:
    """Save the adapter's files (safetensors), and the names of its classes, as `adapter/`, whole
    or not at all.

    Returns the folder's name. Replaces an older one of the same attempt.
    """
    with whole_folder(directory / ADAPTER) as aside:
        write_adapter(model, aside)
        write_labels(aside, classes)
    return ADAPTER


class _OfThisThread(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == self._thread
