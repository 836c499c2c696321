"""How this process joins a Ray cluster, or starts one on this machine."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import ray
from ray._private import ray_constants

from sweeps.driver.interrupts import keeping_signals
from sweeps.errors import Unavailable

log = logging.getLogger(__name__)

NODE_STARTS = 3
"""Tries to start a node here that Ray may take too long for."""
_KNOCK_SECONDS = 5.0


def connect(address: str | None, modules: Sequence[Path]) -> None:
    """Join the cluster at `address`; by default start one here, whatever else runs here.

    Another cluster's nodes are sent the `modules`.
    """
    code = {"py_modules": [str(module) for module in modules]}
    try:
        if address is not None and ":" in address:  # Ray itself would try for a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        alone = _on_loopback() if address is None else contextlib.nullcontext()
        with keeping_signals(), alone:  # Ray 2.60 takes SIGTERM over (`ray._private.node`)
            start_ray(
                partial(
                    ray.init,
                    address=address or "local",
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=code if address is not None and modules else None,
                )
            )
    except Exception as error:  # Ray 2.60 raises that very class if a node takes over 30 s to start
        where = "can be started" if address is None else f"at {address!r}"
        hint = "" if address is None else " (a cluster with a token needs RAY_AUTH_MODE=token here)"
        if "AF_UNIX" in str(error):
            hint = " (set RAY_TMPDIR to a short folder, such as /tmp/ray)"
        raise Unavailable(f"no Ray cluster {where}: {error}{hint}") from error


def start_ray(init: Callable[[], object]) -> None:
    """`init()`, again if a node was too slow to start: on a busy machine the next try does it.

    Raises what the last of NODE_STARTS tries raises, and all other errors at once.
    """
    for left in reversed(range(NODE_STARTS)):
        try:
            init()
            return
        except Exception as error:
            if type(error) is not Exception or not left:
                raise
            log.warning("Ray could not be started, trying again: %s", error)
            ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray 2.60 listens on 127.0.0.1 only, if other machines cannot join; by default they can."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[name] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if given is not None:
            os.environ[name] = given
