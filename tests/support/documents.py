"""The files of infra/, found and read in one place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.repository import REPOSITORY as ROOT

INFRA = ROOT / "infra"


def found(*patterns: str) -> list[Path]:
    """All files below infra/ that match; there is at least one for each pattern."""
    files = []
    for pattern in patterns:
        matching = sorted(INFRA.rglob(pattern))
        assert matching, f"no {pattern} below {INFRA}"
        files += matching
    return files


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a document that holds nothing itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    else:
        yield path, value
