"""`leaderboard`, `show` and `list`: what a study says, in every form."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import Result

from sweeps.cli.display.table import print_board
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.recorded_sweep import open_sweep

Cli = Callable[..., Result]


def board(folder: Path) -> Leaderboard:
    return open_sweep(folder / "runs", "waves").leaderboard()


def test_the_leaderboard_is_that_of_the_study(ended: Cli, folder: Path) -> None:
    result = json.loads(ended("leaderboard", "waves", "--json").stdout)
    assert [row["number"] for row in result["rows"]] == [r.number for r in board(folder).rows]
    assert {row["state"] for row in result["rows"]} == {"COMPLETE", "PRUNED", "FAIL"}


def test_the_table_shows_what_counts(ended: Cli, folder: Path) -> None:
    text = ended("leaderboard", "waves").stdout
    best = board(folder).best
    assert best is not None
    assert text.startswith(f"Sweep waves: Trial {best.number:04d} is best")
    for title in ("rank", "validation/", "memory", "trainable", "minutes", "learning_"):
        assert title in text
    assert "failed (bug)" in text


def test_csv_has_a_line_per_trial(ended: Cli) -> None:
    lines = list(csv.DictReader(io.StringIO(ended("leaderboard", "waves", "--csv").stdout)))
    assert [line["note"] for line in lines if not line["number"]] == ["base without adapter"]
    lines = [line for line in lines if line["number"]]
    assert len(lines) == 9
    assert float(lines[0]["value"]) < float(lines[1]["value"])


def test_html_is_written_once(ended: Cli, folder: Path) -> None:
    assert ended("leaderboard", "waves", "--html", "a.html").exit_code == 0
    assert (folder / "a.html").read_text().startswith("<!doctype html>")
    assert ended("leaderboard", "waves", "--html", "a.html").exit_code == 2


def test_a_limit_cuts_the_rows(ended: Cli) -> None:
    assert (
        len(json.loads(ended("leaderboard", "waves", "--json", "--limit", 2).stdout)["rows"]) == 2
    )
    assert "7 more rows: --limit 0" in ended("leaderboard", "waves", "--limit", 2).stdout
    assert "more rows" not in ended("leaderboard", "waves", "--limit", 0).stdout


def test_the_best_of_each_value_and_the_front_are_parts_of_the_board(
    ended: Cli, folder: Path
) -> None:
    by = json.loads(ended("leaderboard", "waves", "--json", "--by", "adapter.r").stdout)["rows"]
    whole = [row for row in board(folder).rows if "adapter.r" in row.params]
    for row in by:
        same = [r for r in whole if r.params["adapter.r"] == row["params"]["adapter.r"]]
        assert row["number"] == same[0].number
    assert len(by) == len({row.params["adapter.r"] for row in whole})
    axes = "validation/loss,trainable_parameters"
    front = json.loads(ended("leaderboard", "waves", "--json", "--pareto", axes).stdout)["rows"]
    assert front[0]["rank"] == 1


def test_a_misspelled_name_is_answered_with_the_nearest(ended: Cli) -> None:
    refused = ended("leaderboard", "waves", "--by", "adapter.rr")
    assert refused.exit_code == 2
    assert "did you mean 'adapter.r' or 'adapter.lora_alpha'?" in refused.stderr
    refused = ended("leaderboard", "waves", "--pareto", "validation/los,minutes")
    assert refused.exit_code == 2
    assert "did you mean 'validation/loss'?" in refused.stderr


def test_one_form_at_a_time(ended: Cli) -> None:
    assert ended("leaderboard", "waves", "--json", "--csv").exit_code == 2


@pytest.mark.parametrize("width", [70, 80, 100, 140])
def test_the_table_fits_the_terminal(width: int) -> None:
    params = {
        "adapter.r": 128,
        "adapter.lora_alpha": 256,
        "adapter.target_modules": "attention+mlp",
        "training.learning_rate": 0.0002345,
    }
    rows = [
        Row(
            n + 1,
            n,
            "COMPLETE",
            None,
            1.2345,
            2**30 * 21,
            12_345_678,
            123.4,
            {**params},
            {},
            "a",
            None,
        )
        for n in range(3)
    ]
    rows[1] = Row(**{**rows[1].__dict__, "params": dict.fromkeys(params, 1)})
    console = Console(width=width, file=io.StringIO(), emoji=False)
    print_board(Leaderboard("s", "validation/loss", "minimize", tuple(rows), 4.0), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "attention+mlp" in text
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert ("a wider terminal also shows" in text) == (width < 110)


def test_show_tells_all_of_a_complete_trial(ended: Cli, folder: Path) -> None:
    best = board(folder).best
    assert best is not None
    record = json.loads(ended("show", "waves", best.number, "--json").stdout)
    assert record["state"] == "COMPLETE"
    assert record["params"] == best.params
    assert record["metrics"]["validation/loss"] == best.value
    assert list(record["rungs"]) == ["100", "300"]
    assert Path(record["files"]["trial"]).is_file()
    text = ended("show", "waves", best.number).stdout
    assert f"Trial {best.number:04d} of waves: complete, 904 of 900 samples" in text
    assert "python -m peft_jobs run runs/waves/trials/" in text


def test_show_tells_why_a_trial_failed(ended: Cli) -> None:
    record = json.loads(ended("show", "waves", 3, "--json").stdout)
    assert (record["state"], record["kind"]) == ("FAIL", "bug")
    assert record["error"] == "simulated bug"
    assert "RuntimeError" in record["traceback"]
    text = ended("show", "waves", 3).stdout
    assert "failed (bug)" in text
    assert "RuntimeError" in text


def test_list_counts_states_and_names_the_best(ended: Cli, folder: Path) -> None:
    ended("run", "waves.yaml", "name=ripples", "budget.n_trials=2")
    listed = json.loads(ended("list", "--json").stdout)
    assert [item["name"] for item in listed] == ["ripples", "waves"]
    best = board(folder).best
    assert best is not None
    assert (listed[1]["best_trial"], listed[1]["best_value"]) == (best.number, best.value)
    assert sum(listed[1]["trials"].values()) == 9
    assert listed[1]["trials"]["FAIL"] == 1
    assert "ripples" in ended("list").stdout


def test_an_empty_storage_is_no_mistake(cli: Cli, folder: Path) -> None:
    (folder / "runs").mkdir()
    assert cli("list").exit_code == 0
    assert cli("list", "--json").stdout.strip() == "[]"


def test_reading_changes_nothing(ended: Cli, folder: Path) -> None:
    before = json.loads(ended("leaderboard", "waves", "--json").stdout)
    files = {path: path.stat().st_mtime_ns for path in (folder / "runs" / "waves").rglob("*.json")}
    for words in (["list"], ["show", "waves", "1"], ["leaderboard", "waves"]):
        ended(*words)
    after = json.loads(ended("leaderboard", "waves", "--json").stdout)
    assert after == before
    assert files == {path: path.stat().st_mtime_ns for path in files}
