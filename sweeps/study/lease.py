"""One driver per sweep: a row in the study's database that its driver keeps renewing.

It works wherever the database is reached from. A driver that is known to be dead (same machine, no
such process) is succeeded at once, one on another machine when its row has not changed for
TTL_SECONDS by the clock of who waits: two machines' clocks are never compared.
The row also carries the wish, from another terminal, that the driver should stop.
"""

import logging
import os
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy as sa

from peft_jobs import SpecError
from sweeps.errors import LeaseLost
from sweeps.study.database import retry

log = logging.getLogger(__name__)

TTL_SECONDS = 60.0
RENEW_SECONDS = 2.0
SILENT_SECONDS = 10.0
"""After which a driver that is waited for is told of: it may be dead."""

_METADATA = sa.MetaData()
_LEASES = sa.Table(
    "peft_sweeps_lease",
    _METADATA,
    sa.Column("sweep", sa.String(200), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("host", sa.String(300), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process_started", sa.Float(53), nullable=False),
    sa.Column("since", sa.Float(53), nullable=False),
    sa.Column("renewed", sa.Float(53), nullable=False),
    sa.Column("stop", sa.Boolean, nullable=False),
)


@dataclass(frozen=True)
class Holder:
    """Who drives a sweep; times in seconds since the epoch."""

    owner: str
    host: str
    pid: int
    process_started: float
    since: float
    renewed: float
    stop: bool
    """Somebody has asked it to stop."""

    @property
    def is_here(self) -> bool:
        return self.host == this_host()

    @property
    def is_gone(self) -> bool:
        """Certainly dead, or on another machine and silent for longer than a lease lasts.

        The latter is as sure as the two machines' clocks agree: enough to show, not to act upon.
        """
        return self.is_dead or (not self.is_here and time.time() - self.renewed > TTL_SECONDS)

    @property
    def is_dead(self) -> bool:
        """It was a process of this machine, and is none any more."""
        return self.is_here and not _runs(self.pid, self.process_started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


class Lease:
    """The right to drive one sweep. Used by one thread."""

    def __init__(
        self,
        storage: optuna.storages.RDBStorage,
        sweep: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`clock` gives seconds of this machine, which setting its time does not move."""
        self._engine, self._sweep = storage.engine, sweep
        self._clock, self._sleep = clock, sleep
        self._owner = uuid.uuid4().hex
        self._looked = -RENEW_SECONDS

    def take(self, on_wait: Callable[[], object] = lambda: None) -> None:
        """Become the sweep's driver; SpecError if another one is at work.

        One on another machine is watched until its row changes, which it does every RENEW_SECONDS,
        or has not for TTL_SECONDS. `on_wait` is called meanwhile.
        """
        retry(lambda: _METADATA.create_all(self._engine), on_wait)
        first: Holder | None = None
        since, told = self._clock(), False
        while True:
            holder = retry(self._read, on_wait)
            silent = self._clock() - since
            if holder is None or holder.is_dead or (_same(holder, first) and silent > TTL_SECONDS):
                if retry(partial(self._try, holder), on_wait):
                    break
                continue
            if first is None and not holder.is_here:
                first = holder
            elif first is None or not _same(holder, first):
                raise SpecError(
                    f"the sweep {self._sweep!r} is being driven by {holder}; wait for it, stop it "
                    f"with `peft-sweep stop {self._sweep}`, or give this sweep another name"
                )
            if silent > SILENT_SECONDS and not told:
                log.warning("waiting for %s, which is silent, to lose the sweep", holder)
                told = True
            on_wait()
            self._sleep(1.0)
        self._looked = self._clock()

    def renew(self, on_wait: Callable[[], object] = lambda: None) -> bool:
        """Renew now and then; True if somebody has asked this driver to stop.

        LeaseLost if another driver has taken over meanwhile. `on_wait` is called while the database
        is away.
        """
        if self._clock() - self._looked < RENEW_SECONDS:
            return False
        renewed = self._mine(sa.update(_LEASES)).values(renewed=time.time())
        if retry(lambda: self._run(renewed), on_wait).rowcount == 0:
            raise LeaseLost(f"another driver has taken over the sweep {self._sweep!r}")
        self._looked = self._clock()
        holder = retry(self._read, on_wait)
        return holder is not None and holder.stop

    def release(self) -> None:
        """Let the next driver begin at once."""
        retry(lambda: self._run(self._mine(sa.delete(_LEASES))))

    def _read(self) -> Holder | None:
        return _read(self._engine, self._sweep)

    def _try(self, holder: Holder | None) -> bool:
        """Take the lease from nobody, or from `holder`, unless the row has changed meanwhile."""
        now = time.time()
        mine = {
            "owner": self._owner,
            "host": this_host(),
            "pid": os.getpid(),
            "process_started": _started(psutil.Process()),
            "since": now,
            "renewed": now,
            "stop": False,
        }
        try:
            if holder is None:
                self._run(sa.insert(_LEASES).values(sweep=self._sweep, **mine))
                return True
        except sa.exc.IntegrityError:
            return False
        theirs = sa.update(_LEASES).where(
            _LEASES.c.sweep == self._sweep,
            _LEASES.c.owner == holder.owner,
            _LEASES.c.renewed == holder.renewed,
        )
        return bool(self._run(theirs.values(**mine)).rowcount == 1)

    def _mine(self, statement: Any) -> Any:
        return statement.where(_LEASES.c.sweep == self._sweep, _LEASES.c.owner == self._owner)

    def _run(self, statement: Any) -> Any:
        with self._engine.begin() as connection:
            return connection.execute(statement)


def read_lease(engine: sa.Engine, sweep: str) -> Holder | None:
    """Who drives the sweep, dead or alive; None if nobody has since the last one ended."""
    return _read(engine, sweep) if sa.inspect(engine).has_table(_LEASES.name) else None


def _read(engine: sa.Engine, sweep: str) -> Holder | None:
    """`read_lease` where the table is known to be there."""
    with engine.connect() as connection:
        row = connection.execute(sa.select(_LEASES).where(_LEASES.c.sweep == sweep)).first()
    if row is None:
        return None
    return Holder(**{name: value for name, value in row._mapping.items() if name != "sweep"})


def _same(holder: Holder, before: Holder | None) -> bool:
    """Whether nobody has renewed or taken the lease since; a wish to stop is no sign of life."""
    return before is not None and (before.owner, before.renewed) == (holder.owner, holder.renewed)


def request_stop(engine: sa.Engine, holder: Holder) -> None:
    """Ask the driver `holder` to stop; it looks every RENEW_SECONDS."""
    with engine.begin() as connection:
        asked = sa.update(_LEASES).where(_LEASES.c.owner == holder.owner).values(stop=True)
        connection.execute(asked)


def this_host() -> str:
    """This machine since it was booted, or this container: where process ids mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return f"{platform.node()}/{boot}/{space}"


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(_started(process) - started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: the clock may be set in between."""
    return process.create_time() - psutil.boot_time()
