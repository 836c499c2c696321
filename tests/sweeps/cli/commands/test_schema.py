"""`schema`: agrees with what the sweep file's reader takes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

import sweeps
from sweeps.cli.app import app

EXAMPLES = sorted((Path(sweeps.__file__).parent / "examples").rglob("*.yaml"))


class Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 and with it the editors do."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^-?\d+(\.\d+)?e[-+]?\d+$"), list("-0123456789")
)


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader)


@pytest.fixture(scope="module")
def check() -> Callable[[Any], list[str]]:
    """A file's mapping -> the paths of what an editor would underline."""
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda tree: [error.json_path for error in validator.iter_errors(tree)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_takes_every_example(check: Callable[[Any], list[str]], path: Path) -> None:
    assert check(read(path)) == []


def test_it_takes_a_test_file_with_shorthands(
    check: Callable[[Any], list[str]], folder: Path
) -> None:
    assert check(read(folder / "waves.yaml")) == []


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("smpler", "tpe", "$"),
        ("sampler", "tpee", "$.sampler"),
        ("quantization", "nf3", "$.quantization"),
        ("budget", {"n_trials": 0}, "$.budget.n_trials"),
        ("training", {"learning_rat": 1.0}, "$.training"),
    ],
)
def test_it_underlines_mistakes(
    check: Callable[[Any], list[str]], folder: Path, key: str, value: Any, path: str
) -> None:
    tree = read(folder / "waves.yaml")
    assert check({**tree, key: value}) == [path]
