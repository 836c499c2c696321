"""Ends calls that a server's database does not answer.

A server that is stopped, or a network that swallows packets, keeps an open connection waiting for
ever: no client of PostgreSQL has a time-out for answers, and the server's own is its own. So a
thread looks at the calls that are under way, and cuts the connections under one that takes too
long. The call then fails as if the server had gone away, and is made again.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""How long one call may take: less than a supervisor waits for a driver (`SILENCE_SECONDS`)."""
_LOOK_EVERY_SECONDS = 1.0


class Unanswered:
    """Knows the open connections to servers, and which calls are under way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
        self._connections: dict[int, Any] = {}
        """By id: some drivers' cannot be hashed."""
        self._calls: dict[int, float] = {}
        """When each began."""
        self._lock = threading.Lock()
        self._is_serving = False

    def watch(self, engine: sa.Engine) -> None:
        """Know the connections that `engine` opens from now on."""

        @sqlalchemy.event.listens_for(engine, "connect")
        def opened(connection: Any, _: Any) -> None:
            with self._lock:
                self._connections[id(connection)] = connection

        @sqlalchemy.event.listens_for(engine, "close")
        def closed(connection: Any, _: Any) -> None:
            with self._lock:
                self._connections.pop(id(connection), None)

        self._engines.add(engine)
        if not self._is_serving:
            self._is_serving = True
            threading.Thread(target=self._serve, name="unanswered", daemon=True).start()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """In the block, which is one call, nothing takes longer than ANSWER_SECONDS."""
        key = object()
        with self._lock:
            self._calls[id(key)] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[id(key)]

    def connect_anew(self) -> None:
        """Forget all connections that are idle: the server may be another one by now."""
        for engine in list(self._engines):
            engine.dispose()

    def cut(self) -> bool:
        """Cut the connections if a call takes too long; whether that was so."""
        now = self._clock()
        with self._lock:
            late = [key for key, begun in self._calls.items() if now - begun > ANSWER_SECONDS]
            if not late or not self._connections:
                return False
            self._calls.update(dict.fromkeys(late, now))  # what follows gets its own time
            connections = list(self._connections.values())
        log.warning("the study's database has not answered for %g s", ANSWER_SECONDS)
        for connection in connections:
            with contextlib.suppress(Exception):  # of a driver: closed meanwhile, or none of ours
                _shut(connection.fileno())
        return True

    def _serve(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_SECONDS)
            self.cut()


def _shut(descriptor: int) -> None:
    """End a connection's traffic in both directions; its owner closes it."""
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


unanswered = Unanswered()
"""Of this process."""
