"""Writes the files of one attempt: `metrics.jsonl`, a line per report, and `log.txt`."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from peft_jobs.host.result import Progress
from peft_jobs.storage.attempt_folder import LOG_FILE, METRICS_FILE

log = logging.getLogger(__name__)
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"


@contextmanager
def logged(directory: Path) -> Iterator[None]:
    """Write what this thread logs, from INFO on, to `log.txt` for as long as the block lasts.

    A host that runs other work in other threads keeps their lines out. Where the file cannot be
    opened the block goes on without: a full disk, or a folder that is gone, ends no trial.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(directory / LOG_FILE, encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written: %s", directory / LOG_FILE, error)
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(_LINE, _TIME))
    handler.addFilter(_OfThisThread())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with _INFORMED:
            yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # a full disk refuses the last lines
            handler.close()


def append(directory: Path, progress: Progress) -> None:
    """Add one report to `metrics.jsonl` and, in words, to `log.txt`: copies for readers; a full
    disk does not end a trial."""
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in progress.metrics.items())
    words = f"step {progress.step:,}, {progress.samples:,} samples: {metrics or 'a checkpoint'}"
    lines = {
        METRICS_FILE: progress.model_dump_json(),
        LOG_FILE: f"{datetime.now().strftime(_TIME)} INFO {words}",
    }
    try:
        for name, line in lines.items():
            with (directory / name).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
    except OSError as error:
        log.warning("%s lacks the report of step %d: %s", METRICS_FILE, progress.step, error)


class _Informed:
    """Our loggers tell what is of INFO as long as some thread is in the block."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._level = threading.Lock(), 0, logging.NOTSET

    def __enter__(self) -> None:
        ours = logging.getLogger("peft_jobs")
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._level = ours.level
                if not ours.isEnabledFor(logging.INFO):
                    ours.setLevel(logging.INFO)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                logging.getLogger("peft_jobs").setLevel(self._level)


_INFORMED = _Informed()


class _OfThisThread(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == self._thread
