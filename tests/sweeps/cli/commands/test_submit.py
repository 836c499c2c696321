"""`submit` and its followers, where there is no job server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.support.ray_nodes import free_port

Cli = Callable[..., Result]
SUBMIT = ["submit", "waves.yaml", "storage=/shared", "resources.backend=ray"]


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("ray://head:10001", "http://HOST:8265"),
        ("head:6379", "must look like http://HOST:8265"),
        ("auto", "peft-sweep run --address auto"),
    ],
)
def test_other_addresses_are_refused_with_a_hint(
    cli: Cli, address: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (SUBMIT, ["status", "waves"]):
        done = cli(*words, "--address", address)
        assert done.exit_code == 2
        assert hint in done.stderr


def test_nobody_at_the_address_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    address = f"http://127.0.0.1:{free_port()}"
    for words in (
        SUBMIT,
        ["stop", "waves"],
        ["logs", "waves"],
    ):
        done = cli(*words, "--address", address)
        assert done.exit_code == 69
        assert address in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_bad_file_is_told_before_the_cluster_is_asked(cli: Cli, folder: Path) -> None:
    done = cli("submit", "waves.yaml", "samplr=tpe", "storage=/shared", "--address", "http://x:1")
    assert done.exit_code == 2
    assert "did you mean 'sampler'" in done.stderr


def test_run_sends_a_job_servers_address_to_submit(cli: Cli) -> None:
    done = cli("run", "waves.yaml", "--address", "http://127.0.0.1:8265")
    assert done.exit_code == 2
    assert "peft-sweep submit" in done.stderr
