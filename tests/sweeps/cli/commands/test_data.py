"""`data`: what would be trained, in words and as JSON, and every mistake in one list."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

Cli = Callable[..., Result]


@pytest.fixture
def write(folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Write a sweep on the demo's base and on some rows; the name of its file."""

    def written(rows: list[dict[str, Any]], **data: Any) -> str:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
        sweep = {
            "name": "looked-at",
            "model": "demo",
            "task": {"type": "causal_lm", "prompt": "{q}\n", "response": "{a}"},
            "data": {"train": str(tmp_path / "rows.jsonl"), "validation": 0.25, **data},
            "space": {"parameters": {"adapter.r": {"choices": [2, 4]}}},
            "budget": {"n_trials": 2, "max_samples": 8},
        }
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
        return "sweep.yaml"

    return written


ROWS = [{"q": f"q {n}", "a": f"0{n}.50"} for n in range(20)]


def test_it_tells_rows_lengths_and_leaks(cli: Cli, write: Callable[..., str]) -> None:
    leaky = [*ROWS, *ROWS[:4]]
    result = cli("data", write(leaky, max_length=6), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    train, validation = found["splits"]["train"], found["splits"]["validation"]
    assert train["num_rows"] + validation["num_rows"] == len(leaky)
    assert validation["num_rows"] == 6
    assert (
        train["lengths"]["num_longer"]
        == train["lengths"]["num_cut"] + train["lengths"]["num_left_out"]
    )
    held = {row["q"] for row in leaky}
    assert sum(leak["num_rows"] for leak in found["leaks"]) <= 4 < len(held)
    assert not found["mistakes"]


def test_people_see_what_is_supervised(cli: Cli, write: Callable[..., str]) -> None:
    result = cli("data", write(ROWS))
    assert result.exit_code == 0
    text = "".join(result.stdout.split())
    assert "⟦0" in text
    assert ".50" in text


def test_all_mistakes_come_in_one_list(cli: Cli, write: Callable[..., str]) -> None:
    bad = [*ROWS, {"q": "q", "a": ""}, {"q": "q", "a": None}]
    for command in ("data", "validate", "run"):
        result = cli(command, write(bad))
        assert result.exit_code == 2, command
        assert "rows 21, 22: the response is empty" in " ".join(result.output.split()), command
    result = cli("data", write(bad, on_bad_row="drop"), "--json")
    assert result.exit_code == 0
    splits = json.loads(result.stdout)["splits"].values()
    assert sorted(n for s in splits for rows in s["left_out"].values() for n in rows) == [21, 22]
    result = cli("data", write([{"question": "q", "a": "b"}] * 4))
    assert result.exit_code == 2
    assert "uses column 'q', which" in result.output
