"""Streams and environments as job systems have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cli.app import _set_to_nothing
from tests.support.repository import REPOSITORY


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_cannot_say_is_written_as_an_escape(tmp_path: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "leaderboard", "Läufe-λ", "--storage", "täg/λ"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode(encoding)
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert ("t\\xe4g/\\u03bb" if encoding == "ascii" else "t\xe4g/") in said


def test_variables_that_are_set_to_nothing_are_not_set() -> None:
    given = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "", "RAY_ADDRESS": "", "HF_HOME": "/hf"}
    given |= {"CUDA_VISIBLE_DEVICES": "", "HOME": ""}
    assert _set_to_nothing(given) == ["MLFLOW_HTTP_REQUEST_TIMEOUT", "RAY_ADDRESS"]
