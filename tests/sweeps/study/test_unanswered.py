"""Servers that stop answering, fail over, or never were there; with PostgreSQL where it matters."""

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from sweeps.errors import Unavailable
from sweeps.study import database, unanswered
from sweeps.study.database import open_storage, retry
from sweeps.study.lease import Lease, read_lease
from sweeps.study.unanswered import ANSWER_SECONDS, Unanswered
from tests.support.postgres import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def test_a_call_that_a_stopped_server_never_answers_is_made_again(
    server: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unanswered, "ANSWER_SECONDS", 0.5)
    engine = open_storage(server.url).engine
    stopped: list[int] = []

    def call() -> int:
        with engine.connect() as connection:
            pid: int = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            if not stopped:
                stopped.append(pid)
                os.kill(pid, signal.SIGSTOP)
            connection.execute(sa.text("SELECT 1"))
            return pid

    waited: list[float] = []
    try:
        assert retry(call, lambda: waited.append(time.monotonic())) != stopped[0]
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    assert waited, "the heart beats between the tries"
    assert "the study's database has not answered for" in caplog.text


def test_a_failover_to_a_server_that_only_reads_is_waited_for(server: Postgres) -> None:
    storage = open_storage(server.url)
    lease = Lease(storage, "waves")
    lease.take()
    other = sa.create_engine(server.url)

    def only_reads(answer: str) -> None:
        with other.begin() as connection:
            connection.execute(sa.text("SET default_transaction_read_only = off"))
            connection.execute(sa.text("COMMIT"))
            connection.execute(
                sa.text(f"ALTER DATABASE postgres SET default_transaction_read_only = {answer}")
            )

    only_reads("on")
    storage.engine.dispose()  # a failover's connections are new ones
    errors: list[sa.exc.StatementError] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None:
            errors.append(context.sqlalchemy_exception)

    sa.event.listen(storage.engine, "handle_error", note)
    lease._looked -= 10
    assert lease.renew(lambda: only_reads("off")) is False
    assert any(isinstance(error, sa.exc.InternalError) for error in errors)
    assert read_lease(storage.engine, "waves") is not None


@pytest.mark.parametrize(
    "kind", [sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.DatabaseError]
)
def test_what_a_torn_connection_raises_is_no_end(kind: type[sa.exc.DBAPIError]) -> None:
    tries: list[int] = []

    def call() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise kind("UPDATE", {}, Exception("the connection is closed"))
        return "done"

    assert retry(call) == "done"
    assert len(tries) == 3


@pytest.mark.parametrize("kind", [sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError])
def test_what_asking_again_does_not_mend_is_raised_at_once(kind: type[sa.exc.DBAPIError]) -> None:
    tries: list[int] = []

    def call() -> None:
        tries.append(1)
        raise kind("UPDATE", {}, Exception("no"))

    with pytest.raises(kind):
        retry(call)
    assert len(tries) == 1


def test_a_database_that_takes_a_connection_and_says_nothing_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "OPEN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"postgresql+psycopg://me:secret@127.0.0.1:{hole.getsockname()[1]}/studies"
        with pytest.raises(Unavailable, match=r"has not answered for 0\.5 s") as caught:
            open_storage(url)
    assert "secret" not in str(caught.value)


def test_only_calls_that_take_too_long_are_cut() -> None:
    now = [0.0]
    watch = Unanswered(clock=lambda: now[0])
    ours, theirs = socket.socketpair()
    with ours, theirs, watch.call():
        watch._connections[0] = ours
        now[0] = ANSWER_SECONDS
        assert not watch.cut()
        now[0] += 1
        assert watch.cut()
        assert not watch.cut(), "once for each time"
        assert theirs.recv(1) == b""
    now[0] += 2 * ANSWER_SECONDS
    assert not watch.cut(), "nobody waits"


@pytest.mark.parametrize(
    ("url", "args"),
    [
        ("sqlite:///x.db", {}),
        (
            "postgresql+psycopg://h/db",
            {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10},
        ),
        (
            "postgresql://h/db?connect_timeout=3&keepalives_idle=5",
            {"keepalives_interval": 10},
        ),
        ("mysql+pymysql://h/db", {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60}),
    ],
)
def test_drivers_get_their_time_outs_unless_the_url_has_them(
    url: str, args: dict[str, int]
) -> None:
    assert database._connect_args(make_url(url)) == args
