"""The compose file, read by Docker Compose itself, which needs no daemon for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import INFRA, found

COMPOSE = Path(sys.executable).parent / "docker-compose"
FOLDER = INFRA / "compose"
SECRETS = [
    line.rstrip("=\n")
    for line in (FOLDER / ".env.example").read_text().splitlines()
    if line.endswith("=") and not line.startswith("#")
]


def read(*files: str, secrets: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    names = [word for file in files for word in ("-f", str(FOLDER / file))]
    return subprocess.run(
        [str(COMPOSE), "--env-file", "/dev/null", *names, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], **secrets},
        capture_output=True,
        text=True,
    )


def services(*files: str) -> dict[str, Any]:
    done = read(*files, secrets={name: f"<{name}>" for name in SECRETS})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_compose_accepts_every_file() -> None:
    assert {path.name for path in found("compose/*.yaml")} == {"compose.yaml", "gpu.yaml"}
    assert services("compose.yaml").keys() == services("compose.yaml", "gpu.yaml").keys()


@pytest.mark.parametrize("missing", SECRETS)
def test_nothing_starts_without_a_secret(missing: str) -> None:
    done = read("compose.yaml", secrets={name: "x" for name in SECRETS if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [
        port for service in services("compose.yaml").values() for port in service.get("ports", [])
    ]
    assert {port["published"] for port in ports} == {"5000", "8265"}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_services_wait_for_what_they_need() -> None:
    read = services("compose.yaml")
    for name, service in read.items():
        for other, needs in service.get("depends_on", {}).items():
            if needs["condition"] == "service_healthy":
                assert "healthcheck" in read[other], f"{name} waits for {other}"
    assert set(read["mlflow"]["depends_on"]) == {"postgres", "buckets"}


def test_no_secret_is_on_a_command_line() -> None:
    for service in services("compose.yaml").values():
        words = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        assert not any("<" in word for word in words)


def test_the_mlflow_server_wants_a_password_and_keeps_artifacts_in_the_store() -> None:
    server = services("compose.yaml")["mlflow"]
    assert "--app-name=basic-auth" in server["entrypoint"]
    assert "--serve-artifacts" in server["entrypoint"]
    assert "--artifacts-destination=s3://mlflow" in server["entrypoint"]
    (hosts,) = [w for w in server["entrypoint"] if w.startswith("--allowed-hosts=")]
    assert "*" not in hosts


def test_workers_are_several_or_have_all_gpus() -> None:
    plain = services("compose.yaml")["ray-worker"]
    assert plain["deploy"]["replicas"] == 2
    gpu = services("compose.yaml", "gpu.yaml")["ray-worker"]["deploy"]
    (device,) = gpu["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert device["count"] == -1
    assert gpu["replicas"] == 1
