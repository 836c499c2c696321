"""Uploads of one attempt: what it leaves on this machine's disk goes to a store, in a thread.

Training never waits for it. A report goes out at once, without its checkpoint, and is made again,
with the checkpoint's URL, when the store has it; only the newest checkpoint is worth putting. The
attempt's end is told when the store has the adapter. While the store is away nothing is lost: the
disk keeps what was not put. Whatever a store raises, the trial starts and its end is told.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from peft_jobs import faults
from peft_jobs.errors import Damaged
from peft_jobs.host import checkpoint
from peft_jobs.host.result import Progress, TrialResult
from peft_jobs.storage import object_store
from peft_jobs.storage.attempt_folder import (
    CHECKPOINTS_FOLDER,
    LOG_FILE,
    METRICS_FILE,
    ROWS_FILE,
)
from peft_jobs.storage.retry import retry

log = logging.getLogger(__name__)

_COPIES = (METRICS_FILE, ROWS_FILE, LOG_FILE)
"""Files for readers, put with each checkpoint and at the end."""

OnReport = Callable[[Progress], None]
OnEnd = Callable[[TrialResult | None], None]


class Uploads:
    """Puts the files of the attempt in `directory` to `url`; both end in `trials/7/attempts/2`."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._directory = url, directory
        self._news = threading.Condition()
        self._checkpoint: tuple[Path, Progress, OnReport] | None = None
        self._end: tuple[TrialResult | None, OnEnd] | None = None
        self._fetched: list[Path] = []

    def open(self, start: str | None, spec: str, ready: Callable[[], None]) -> Path | None:
        """Bring the checkpoint `start` to this disk, then call `ready`, both in the thread.

        Returns where the checkpoint will be. Should it be damaged or gone, the trial's earlier ones
        are there. `spec` is the trial's fingerprint.
        """
        threading.Thread(
            target=self._serve, args=(start, spec, ready), name="uploads", daemon=True
        ).start()
        return None if start is None else self._local(start)

    def report(self, progress: Progress, report: OnReport) -> Progress:
        """What can be told of a report now; the rest goes to `report` later."""
        if progress.checkpoint is None:
            return progress
        path = Path(progress.checkpoint)
        if not path.is_relative_to(self._directory):  # where the attempt began: the store has it
            return progress.model_copy(update={"checkpoint": self._remote(path)})
        with self._news:
            self._checkpoint = (path, progress, report)
            self._news.notify_all()
        return progress.model_copy(update={"checkpoint": None})

    def end(self, result: TrialResult | None, end: OnEnd) -> None:
        """The attempt is over: `end` is called, in the thread, when the store has all of it."""
        with self._news:
            self._end = (result, end)
            self._news.notify_all()

    def _serve(self, start: str | None, spec: str, ready: Callable[[], None]) -> None:
        if start is not None:
            try:
                self._fetch(start, spec)
            except OSError as error:
                log.warning("no checkpoint can be fetched: %s", error)
            except Exception:
                log.exception("no checkpoint can be fetched, the store fails in a way of its own")
        ready()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._checkpoint or self._end)
                taken, self._checkpoint = self._checkpoint, None
                end = self._end
            if taken is not None and (end is None or end[0] is None):
                self._put_checkpoint(*taken)
            elif end is not None:
                result, tell = end
                tell(self._put_end(result))
                return

    def _put_checkpoint(self, path: Path, progress: Progress, report: OnReport) -> None:
        """Put a checkpoint and say so, unless a newer one or a result has come meanwhile."""

        def is_wanted() -> bool:
            return self._checkpoint is None and not (self._end and self._end[0])

        def put() -> bool:
            object_store.put(path, self._remote(path))
            self._put_copies()
            return True

        try:
            done = retry(put, is_wanted=is_wanted, pause=self._pause)
        except OSError as error:
            log.warning("checkpoint %s stays on this machine: %s", path, error)
            return
        except Exception:
            log.exception("checkpoint %s stays on this machine", path)
            return
        if not done:
            return
        faults.passing("outlet.checkpoint")
        report(progress.model_copy(update={"checkpoint": self._remote(path)}))
        for other in path.parent.iterdir():
            if other.name < path.name and not other.name.startswith("."):  # that is being written
                shutil.rmtree(other, ignore_errors=True)

    def _put_end(self, result: TrialResult | None) -> TrialResult | None:
        """Put what is left, forget the attempt here; the result as it can be told."""

        def put() -> bool:
            if result is not None and result.adapter is not None:
                object_store.put(self._directory / result.adapter, f"{self._url}/{result.adapter}")
            self._put_copies()
            return True

        try:
            retry(put, pause=self._pause)
        except Exception as error:
            unexpected = not isinstance(error, OSError)
            log.error(
                "the attempt's files stay in %s: %s", self._directory, error, exc_info=unexpected
            )
            if result is None or result.adapter is None:
                return result
            told = f"its adapter is only in {self._directory} on its machine: {error}"
            return result.model_copy(update={"adapter": None, "error": told})
        faults.passing("outlet.end")
        for folder in (self._directory, *self._fetched):
            shutil.rmtree(folder, ignore_errors=True)
        return result

    def _put_copies(self) -> None:
        for name in _COPIES:
            if (self._directory / name).is_file():
                object_store.put(self._directory / name, f"{self._url}/{name}")

    def _fetch(self, start: str, spec: str) -> None:
        """Fetch the checkpoint `start`, or the newest whole one before it."""
        if self._is_fetched(start, spec):
            return
        for url in self._earlier(start):
            if self._is_fetched(url, spec):
                return

    def _is_fetched(self, url: str, spec: str) -> bool:
        local = self._local(url)
        self._fetched.append(local)
        try:
            retry(
                lambda: object_store.fetch(url, local), is_wanted=self._goes_on, pause=self._pause
            )
            checkpoint.read(local, spec)
        except (FileNotFoundError, Damaged):  # whoever reads it logs what is wrong
            return False
        return True

    def _earlier(self, start: str) -> list[str]:
        attempts = self._url.rpartition("/")[0]
        listed = (
            retry(lambda: object_store.names(attempts), is_wanted=self._goes_on, pause=self._pause)
            or []
        )
        folders = {name.rpartition("/")[0] for name in listed if f"/{CHECKPOINTS_FOLDER}/" in name}
        found = [f for f in folders if f.rpartition("/")[2] <= start.rpartition("/")[2]]
        order = sorted(found, key=lambda f: f.rpartition("/")[2], reverse=True)
        return [url for f in order if (url := f"{attempts}/{f}") != start]

    def _goes_on(self) -> bool:
        return self._end is None

    def _pause(self, seconds: float) -> None:
        with self._news:
            self._news.wait(seconds)

    def _remote(self, path: Path) -> str:
        attempts = self._url.rpartition("/")[0]
        return f"{attempts}/{path.relative_to(self._directory.parent).as_posix()}"

    def _local(self, url: str) -> Path:
        attempts = self._url.rpartition("/")[0]
        return self._directory.parent / url.removeprefix(f"{attempts}/")
