"""Malformed sweep files: each is answered at once, in clear lines, before any trial starts.

The mistakes stand in `files.yaml`; those of base and data in the modules beside.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("files.yaml").read_text(encoding="utf-8")
)
REMOVED = "~DELETE"


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_is_answered(refused: Callable[[], list[str]], folder: Path, name: str) -> None:
    case, path = TABLE[name], folder / "waves.yaml"
    if "in" in case:
        text = re.sub(r"@(.+)\*(\d+)@", lambda match: match[1] * int(match[2]), case["in"])
    else:
        whole = changed(yaml.safe_load(path.read_text()), case["with"])
        text = yaml.safe_dump(whole, sort_keys=False)
    path.write_text(text)
    lines = refused()
    says = [case["says"]] if isinstance(case["says"], str) else case["says"]
    heads = [index for index, line in enumerate(lines) if re.search(r": \d+ mistakes?$", line)]
    told = lines[heads[0] + 1 :] if heads else lines[-1:]
    assert len(told) == len(says), told
    for wanted in says:
        assert wanted in "\n".join(told)


def test_more_rungs_than_anyone_compares(refused: Callable[[], list[str]], folder: Path) -> None:
    path = folder / "waves.yaml"
    whole = changed(yaml.safe_load(path.read_text()), {"budget": {"rungs": [*range(1, 899)]}})
    path.write_text(yaml.safe_dump(whole))
    assert "budget.rungs: must be at most 100, got 898" in refused()[-1]


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
