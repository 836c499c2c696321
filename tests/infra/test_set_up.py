"""The commands say in one line what a machine lacks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY as ROOT

NO_VENV = 'case "$2" in *ensurepip*) exit 1;; esac'
SMALL_DISK = "echo header; echo /dev/x 100 90 1048576 90% /"


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "chaos.sh", "numerics.sh"])
@pytest.mark.parametrize(
    ("python", "df", "message"),
    [
        (None, None, "needs Python 3.11 or newer"),
        (NO_VENV, None, "has no venv module"),
        ("", SMALL_DISK, "needs 6 GB of free disk"),
    ],
)
def test_what_is_missing_is_one_line_and_exit_code_2(
    script: str, python: str | None, df: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "infra").mkdir()
    for name in ("environment.sh", script, "constraints.txt"):
        shutil.copy(ROOT / "infra" / name, tmp_path / "infra")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "awk", "df", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    for name, body in (("python3", python), ("df", df)):
        if body is not None:
            (tools / name).unlink(missing_ok=True)
            (tools / name).write_text(f"#!/bin/bash\n{body}\n")
            (tools / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash") or "bash", f"infra/{script}"],
        cwd=tmp_path,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("peft-sweeps: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
