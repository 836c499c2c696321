"""Fingerprints of a person's own functions: of their modules, and of what these import of theirs.

Comments and layout do not count. Installed packages do not either: their versions are recorded.
"""

import ast
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from peft_jobs.storage.files import canonical_json, sha256

OURS = ("peft_jobs", "search_spaces", "sweeps")


def code_fingerprints(references: Iterable[str]) -> dict[str, str]:
    """By `module:function`: of those whose module is found here, and is the person's own."""
    found = {}
    for reference in sorted(references):
        modules = _with_imports(reference.partition(":")[0])
        if modules:
            found[reference] = sha256(canonical_json(modules))
    return found


def _with_imports(name: str) -> dict[str, str]:
    """The own modules that `name` needs, itself included, each with a hash of its code."""
    found: dict[str, str] = {}
    left = [name]
    while left:
        module = left.pop()
        file = None if module in found else _own_file(module)
        if file is None:
            continue
        content = file.read_bytes()
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError):  # compiled, or not for this Python
            found[module] = sha256(content)
            continue
        found[module] = sha256(ast.unparse(tree))
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        left += _imports(tree, package)
    return found


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of what may be modules, in a module of `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level and package else []
            parts = parts[: len(parts) - node.level + 1] if node.level else parts
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            yield from _parents(origin)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: stop + 1]) for stop in range(len(parts)))


def _own_file(name: str) -> Path | None:
    """The file of a module that is the person's own; nothing is imported to find it."""
    top, *inner = name.split(".")
    if not top or top in OURS:
        return None
    try:
        spec = PathFinder.find_spec(top) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    candidates: list[Path] = []
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*inner)
        candidates += [path / "__init__.py", *([path.with_suffix(".py")] if inner else [])]
    if not inner and spec.submodule_search_locations is None and spec.origin is not None:
        candidates = [Path(spec.origin)]
    paths = (candidate.resolve() for candidate in candidates)
    return next((path for path in paths if path.is_file() and not is_installed(path)), None)


def is_installed(path: Path) -> bool:
    """Whether a module's file or folder came with Python or a package."""
    roots = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return any(path.is_relative_to(root) for root in roots)
