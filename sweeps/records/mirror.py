"""A driver's files in its sweep's object store: put in a thread, in order, for as long as it takes.

The driver works on its own disk and waits for nothing. While the store is away the wishes pile up;
what is not put when the driver ends, the next one puts again.
"""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from peft_jobs.storage import object_store
from peft_jobs.storage.retry import retry
from sweeps.errors import Unavailable

log = logging.getLogger(__name__)


MAX_TRIES = 5
"""Of a wish that the store answers with an error that is no outage."""
FAILED_PAUSE_SECONDS = 1.0


class Mirror:
    """Puts files into an object store, and removes them from it, in the order asked."""

    def __init__(self) -> None:
        self._wishes: dict[str, Callable[[], object]] = {}
        """By URL: what is put twice before its turn has come is put once."""
        self._news = threading.Condition()
        self._failed: dict[str, int] = {}
        """Tries by URL that the store has answered with an error that is no OSError."""
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="mirror", daemon=True)
        self._thread.start()

    def put(self, path: Path) -> None:
        """Put a staged file or folder, as it then is."""
        url = object_store.origin(path)
        assert url is not None, path
        self._wish(url, lambda: object_store.put(path, url))

    def remove(self, url: str) -> None:
        """Remove a file or a folder."""
        self._wish(url, lambda: object_store.remove(url))

    def remove_below(self, url: str, name: str) -> None:
        """Remove all folders called `name` below `url`."""

        def remove() -> None:
            found = {
                file.partition(f"/{name}/")[0] for file in object_store.names(url) if name in file
            }
            for folder in sorted(found):
                object_store.remove(f"{url}/{folder}/{name}")

        self._wish(f"{url}/*/{name}", remove)

    def close(self, timeout_seconds: float) -> int:
        """Go on for at most so long; the number of wishes that are left."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._thread.join(timeout_seconds)
        with self._news:
            left = len(self._wishes)
            self._wishes.clear()
        if left:
            log.warning("%d files have not reached the store; the next launch puts them", left)
        return left

    def _wish(self, key: str, act: Callable[[], object]) -> None:
        with self._news:
            self._wishes.pop(key, None)
            self._wishes[key] = act
            self._news.notify_all()

    def _serve(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._wishes or self._closed)
                if not self._wishes:
                    return
                key, act = next(iter(self._wishes.items()))
            try:
                retry(
                    partial(_unless_removed, act),
                    patience_seconds=math.inf,
                    is_wanted=partial(self._is_wanted, key, act),
                )
            except Exception:  # a store's client raises what it likes
                if self._put_off(key, act):
                    continue
            with self._news:
                if self._wishes.get(key) is act:
                    del self._wishes[key]

    def _put_off(self, key: str, act: Callable[[], object]) -> bool:
        """Let a wish that fails in a way of its store's own wait; False after MAX_TRIES of them."""
        tries = self._failed[key] = self._failed.get(key, 0) + 1
        if tries == 1:
            log.exception("%s cannot be put or removed, the store fails in a way of its own", key)
        if tries >= MAX_TRIES:
            log.error("%s is given up after %d tries; the next launch puts it", key, tries)
            del self._failed[key]
            return False
        with self._news:
            if self._wishes.get(key) is act:  # behind the others
                self._wishes[key] = self._wishes.pop(key)
            self._news.wait_for(lambda: self._closed, FAILED_PAUSE_SECONDS)
        return True

    def _is_wanted(self, key: str, act: Callable[[], object]) -> bool:
        with self._news:
            return self._wishes.get(key) is act


def _unless_removed(act: Callable[[], object]) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        act()


@contextlib.contextmanager
def mirrored(folder: Path, flush_seconds: float) -> Iterator[Mirror | None]:
    """The mirror of a sweep's folder for the block; None if it belongs to no store.

    Raises Unavailable if nothing can be put there.
    """
    url = object_store.origin(folder)
    if url is None:
        yield None
        return
    try:
        object_store.put_text("", f"{url}/.probe")
        object_store.remove(f"{url}/.probe")
    except OSError as error:
        raise Unavailable(f"nothing can be put to {url}: {error}") from error
    mirror = Mirror()
    try:
        yield mirror
    finally:
        mirror.close(flush_seconds)
