"""The names that the three packages offer: listed, importable, completed, documented."""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import peft_jobs
import search_spaces
import sweeps

PACKAGES = (search_spaces, peft_jobs, sweeps)
LAZY = (peft_jobs, sweeps)

each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda module: module.__name__)
each_lazy_package = pytest.mark.parametrize("package", LAZY, ids=lambda module: module.__name__)


def tree_of(module: str) -> ast.Module:
    source = inspect.getsourcefile(importlib.import_module(module))
    assert source is not None
    return ast.parse(Path(source).read_text(encoding="utf-8"))


def imported(tree: ast.AST, package: str) -> dict[str, str]:
    """Name -> the module of `package` that the source imports it from, TYPE_CHECKING included."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.partition(".")[0] == package
        for alias in node.names
    }


def documentation(module: str, name: str) -> str | None:
    """The docstring of a class or function, or the line beneath an assignment, as written."""
    tree = tree_of(module)
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in [target.id for target in targets if isinstance(target, ast.Name)]:
            constant = below.value if isinstance(below, ast.Expr) else None
            return constant.value if isinstance(constant, ast.Constant) else None
    home = imported(tree, module.partition(".")[0])[name]  # passed on by this module
    return documentation(home, name)


@each_package
def test_every_listed_name_is_there_and_completed(package: ModuleType) -> None:
    assert len(set(package.__all__)) == len(package.__all__) > 3
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


@each_package
def test_every_name_that_is_offered_is_listed(package: ModuleType) -> None:
    tree = tree_of(package.__name__)
    assert set(imported(tree, package.__name__)) == set(package.__all__)
    offered = {name for name in dir(package) if not name.startswith("_")}
    modules = {name for name in offered if isinstance(getattr(package, name), ModuleType)}
    assert offered - modules == set(package.__all__)


@each_lazy_package
def test_names_come_from_where_the_types_say(package: ModuleType) -> None:
    told = imported(tree_of(package.__name__), package.__name__)
    eager = {name for name in package.__all__ if name in vars(package)}
    assert {*package._HOMES} == {*package.__all__} - eager
    for name, home in package._HOMES.items():
        assert f"{package.__name__}.{home}" == told[name]


@each_package
def test_every_public_name_has_a_docstring(package: ModuleType) -> None:
    homes = imported(tree_of(package.__name__), package.__name__)
    assert [name for name in package.__all__ if not documentation(homes[name], name)] == []


@each_lazy_package
def test_an_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'x'"):
        package.x  # noqa: B018
