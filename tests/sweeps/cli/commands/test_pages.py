"""`report` and `ui --optuna`: pages of a sweep, written and served."""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.support.ray_nodes import free_port

Cli = Callable[..., Result]
WAIT_SECONDS = 120


def test_a_report_is_written_into_the_sweep_s_folder_or_elsewhere(ended: Cli, folder: Path) -> None:
    page = folder / "runs" / "waves" / "report.html"
    for _ in range(2):  # the second replaces the first
        done = ended("report", "waves")
        assert done.exit_code == 0, done.output
        assert f"Wrote runs/waves/{page.name}" in done.stderr
    assert "<h1>Sweep waves</h1>" in page.read_text(encoding="utf-8")
    assert ended("report", "waves", "--out", "mine.html").exit_code == 0
    assert (folder / "mine.html").stat().st_size > 4_000_000, "plotly.js is in it"
    again = ended("report", "waves", "--out", "mine.html")
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    nowhere = ended("report", "waves", "--out", "mine.html/x.html")
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (2, True)


def test_optuna_s_dashboard_is_named_where_it_is_not_installed(
    ended: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    told = ended("ui", "--optuna")
    assert told.exit_code == 2
    assert "pip install optuna-dashboard" in told.stderr


def test_optuna_s_dashboard_shows_the_study_with_its_metric_s_name(
    ended: Cli, folder: Path, start: Callable[..., Any]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    assert "no studies" in ended("ui", "--optuna", "--storage", "nowhere").stderr
    port = free_port()
    process = start("ui", "--optuna", "--port", str(port))
    try:
        (study,) = _asked(port, "studies")["study_summaries"]
        assert study["study_name"] == "waves"
        detail = _asked(port, f"studies/{study['study_id']}?after=0")
        assert detail["objective_names"] == ["validation/loss"]
        names = {attr["key"] for trial in detail["trials"] for attr in trial["user_attrs"]}
        assert {"minutes", "peak_memory_gib", "trainable_parameters"} <= names
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_SECONDS)


def _asked(port: int, path: str) -> Any:
    """The answer of the dashboard, once it is up."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as told:
                return json.loads(told.read())
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
