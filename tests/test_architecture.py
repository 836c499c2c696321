"""The house keeps its shape: the size of folders and modules, their names, and maps that are true.

Who may import whom is held by import-linter (`pyproject.toml`).
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

PACKAGES = ("search_spaces", "peft_jobs", "sweeps")
MAX_MODULES = 20
MAX_LINES = 250
LONGER = {
    "sweeps/cli/app.py": "declares every command with its options and help",
    "peft_jobs/engines/simulated.py": "one engine, of which only the loss is made up",
    "peft_jobs/host/trial_host.py": "one state machine",
    "peft_jobs/storage/object_store.py": "one store, put and read",
    "search_spaces/parameters.py": "five kinds of parameter",
    "search_spaces/space.py": "one class, and what it checks",
    "sweeps/backends/ray/fleet.py": "one class: the driver's hosts",
    "sweeps/records/layout.py": "every path of a storage",
    "sweeps/study/cached_storage.py": "one class: a storage",
}
"""Modules above MAX_LINES, and why each is one idea."""
NOT_NOUNS = ("utils", "helpers", "common", "manager", "handler", "misc")
TWICE = {"__init__", "__main__"}
"""No names that say what is in a module."""
FOLDERS = sorted(
    path.parent for package in PACKAGES for path in (REPOSITORY / package).rglob("__init__.py")
)
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_there_are_folders_and_modules() -> None:
    assert len(FOLDERS) > 25
    assert len(MODULES) > 220


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_has_few_modules_and_a_map_of_all(folder: Path) -> None:
    modules = [path.stem for path in folder.glob("*.py") if path.stem not in TWICE]
    assert len(modules) <= MAX_MODULES
    rooms = [inner.parent.name for inner in folder.glob("*/__init__.py")]
    readme = folder / "README.md"
    told = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    told += readme.read_text(encoding="utf-8") if readme.is_file() else ""
    assert [name for name in (*modules, *rooms) if not re.search(rf"\b{name}\b", told)] == []


def test_modules_are_short() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert long.keys() - LONGER.keys() == set(), "cut it, or say in LONGER why it is one idea"
    assert LONGER.keys() - long.keys() == set(), "no longer long: take it out of LONGER"


def test_names_of_modules_say_something_and_once() -> None:
    assert [name_of(path) for path in MODULES if path.stem in NOT_NOUNS] == []
    for package in PACKAGES:
        inside = [path for path in MODULES if name_of(path).startswith(f"{package}/")]
        stems = Counter(path.stem for path in inside)
        twice = {stem for stem, count in stems.items() if count > 1} - TWICE
        assert {stem for stem in twice if not _is_spec_or_one_command(stem, inside)} == set()


def _is_spec_or_one_command(stem: str, paths: list[Path]) -> bool:
    """Whether all but one module of this name are what it takes: a spec, or a command's words."""
    folders = [
        path.parent.relative_to(REPOSITORY).as_posix() for path in paths if path.stem == stem
    ]
    described = ("peft_jobs/spec", "sweeps/cli/commands")
    return len([folder for folder in folders if not folder.startswith(described)]) <= 1


def test_underscore_modules_are_imported_from_their_own_folder_only() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, last = node.module.rpartition(".")
                names = [*(a.name for a in node.names), last]
                ours = node.module.partition(".")[0] in PACKAGES
                if ours and any(re.match(r"_[a-z]", name) for name in names):
                    here = path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".")
                    assert here in (package, node.module), f"{name_of(path)}: {node.module}"


def test_optuna_s_private_modules_are_touched_by_two_rooms_only() -> None:
    private = re.compile(r"optuna\.[\w.]*\._|\._(storage|study|study_id|trial_id)\b")
    users = {
        name_of(path)
        for path in MODULES
        if name_of(path).startswith("sweeps/") and private.search(path.read_text(encoding="utf-8"))
    }
    assert users
    assert {name for name in users if not name.startswith(("sweeps/study/", "sweeps/search/"))} == (
        set()
    )


def test_names_of_files_stand_in_one_place() -> None:
    homes = ("peft_jobs/storage/attempt_folder.py", "sweeps/file_names.py")
    defined = re.compile(r'^[A-Z_]+ = "([^"]+\.[a-z]+)"$', re.MULTILINE)
    names = [name for home in homes for name in defined.findall((REPOSITORY / home).read_text())]
    names.remove("sweep.yaml")  # people call their own files so, and help texts show it
    assert len(names) >= 12
    literal = re.compile("|".join(rf"[\"'/]{re.escape(name)}[\"']" for name in names))
    assert [
        name_of(path)
        for path in MODULES
        if name_of(path) not in homes and literal.search(path.read_text(encoding="utf-8"))
    ] == []


def test_the_stack_profiler_names_modules_that_exist() -> None:
    text = (REPOSITORY / "infra" / "benchmarks" / "stacks.py").read_text(encoding="utf-8")
    suffixes = set(re.findall(r'"([a-z_/]+/[a-z_]+\.py)"', text))
    assert len(suffixes) > 30
    ours = tuple(name_of(path) for path in MODULES)
    assert [suffix for suffix in suffixes if not any(n.endswith(suffix) for n in ours)] == []
