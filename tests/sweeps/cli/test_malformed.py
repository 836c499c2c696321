"""Malformed sweep files: each is answered at once, in clear lines, before any trial starts.

The mistakes stand in `malformed.yaml`; those of base and data are in `test_malformed_inputs.py`.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

Cli = Callable[..., Result]

TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("malformed.yaml").read_text(encoding="utf-8")
)
MAX_SECONDS = 10.0
REMOVED = "~DELETE"
seconds: dict[str, float] = {}


@pytest.fixture(scope="module", autouse=True)
def _slowest() -> Iterator[None]:
    yield
    name = max(seconds, key=seconds.__getitem__)
    print(f"\nthe slowest of {len(seconds)} mistakes: {name}, {seconds[name]:.2f} s")


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_is_answered_before_any_trial(cli: Cli, folder: Path, name: str) -> None:
    case = TABLE[name]
    good = (folder / "waves.yaml").read_text()
    if "in" in case:
        text = re.sub(r"@(.+)\*(\d+)@", lambda m: m[1] * int(m[2]), case["in"])
    else:
        text = yaml.safe_dump(changed(yaml.safe_load(good), case["with"]))
    (folder / "waves.yaml").write_text(text)
    started = time.perf_counter()
    result = cli("run", "waves.yaml")
    seconds[name] = time.perf_counter() - started
    says = [case["says"]] if isinstance(case["says"], str) else case["says"]
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    heads = [index for index, line in enumerate(lines) if re.search(r": \d+ mistakes?$", line)]
    told = lines[heads[0] + 1 :] if heads else lines[-len(says) :]
    for wanted in says:
        assert wanted in "\n".join(told), told
    if name != "a huge list":  # which lacks all the rest, too
        assert len(told) == len(says), told
    assert seconds[name] < MAX_SECONDS
    assert_nothing_ran(folder)


def test_the_table_covers_the_rules() -> None:
    assert len(TABLE) > 100
    assert all(
        case.keys() == {"says", "in"} or case.keys() == {"says", "with"} for case in TABLE.values()
    )


def changed(old: dict[str, Any], new: dict[str, Any], depth: int = 2) -> dict[str, Any]:
    """`old` with the entries of `new`, which reach into sections and the space's parameters."""
    whole = dict(old)
    for key, value in new.items():
        inner = whole.get(key)
        if value == REMOVED:
            del whole[key]
        elif depth and value and isinstance(value, dict) and isinstance(inner, dict):
            whole[key] = changed(inner, value, depth - 1)
        else:
            whole[key] = value
    return whole


def assert_nothing_ran(folder: Path) -> None:
    """No trial in any study below `folder`, no folder of trials, no file that planted code wrote."""
    assert list(folder.rglob("trials")) == []
    assert list(folder.rglob("pwned")) == []
    for database in folder.rglob("optuna.db"):
        assert sqlite3.connect(database).execute("select count(*) from trials").fetchone() == (0,)
