"""The files of one attempt: `metrics.jsonl`, one line per report, and `log.txt`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_jobs.result import Progress

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
        handler.close()


def append(directory: Path, progress: Progress) -> None:
    """Add one report to `metrics.jsonl`."""
    with (directory / METRICS).open("a", encoding="utf-8") as file:
        file.write(progress.model_dump_json() + "\n")


class _OfThisThread(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._thread = logging.threading.get_ident()  # type: ignore[attr-defined]

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == self._thread
