"""`doctor`: a report on this machine that is true, and advice where something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from sweeps.cli.commands.doctor.doctor import _nf4, _ray, _storage, _torch
from sweeps.cli.commands.doctor.doctor_packages import bounds, installed, packages, version_key
from sweeps.cli.commands.doctor.doctor_probes import finish, start

Cli = Callable[..., Result]


def test_this_machine_is_ready(cli: Cli) -> None:
    result = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0, result.stdout
    for name in ("Python", "packages", "torch", "NF4", "Ray", "memory", "storage", "Hub cache"):
        assert checks[name]["status"] in ("ok", "warning"), checks[name]
    assert "relative error 0.09" in checks["NF4"]["found"]


def test_every_bound_of_the_distribution_is_checked() -> None:
    assert {"torch", "ray", "optuna", "mlflow", "peft", "pydantic"} <= bounds().keys()
    assert not {"pytest", "ruff"} & bounds().keys()
    ((name, status, found, _),) = packages()
    assert (name, status) == ("packages", "ok")
    assert f"torch {installed('torch')}" in found


@pytest.mark.parametrize(
    ("low", "high"), [("2.9.1", "2.13"), ("2.12.1+cu126", "2.13.0+cpu"), ("5.0", "5.0.1")]
)
def test_versions_compare_by_number(low: str, high: str) -> None:
    assert version_key(low) < version_key(high)


def test_what_does_not_work_is_a_problem_with_advice() -> None:
    checks = [*_torch("no module"), _nf4("no kernel"), _nf4({"device": "cpu", "relative_error": 1})]
    checks.append(_ray("no port", "no module"))
    assert [check.status for check in checks] == ["problem"] * 4
    assert all(check.advice for check in checks)


def test_a_storage_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert next(_storage(blocked)).status == "problem"
    assert next(_storage(tmp_path / "not" / "yet")).status == "ok"


def test_a_probe_that_dies_or_hangs_says_so() -> None:
    assert finish(start("import nowhere"), 30) == "ModuleNotFoundError: No module named 'nowhere'"
    assert "no answer" in str(finish(start("import time; time.sleep(60)"), 0.2))
    assert finish(start("import os; os._exit(3)"), 30) == "it ended with exit code 3"
    assert finish(start("print('noise'); print('{\"a\": 1}')"), 30) == {"a": 1}
