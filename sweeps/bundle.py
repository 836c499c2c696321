"""What a submitted sweep takes along: its file, its local data, the Python files it names.

All of it lies in one folder, which Ray carries to the cluster; nothing else travels, so no secret
does. Data get a place in the sweep's storage that is named by their content: the same data are the
same sweep on the next cluster too, and other data are another one.
"""

import hashlib
import importlib.util
import re
import shlex
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import SpecError
from peft_jobs.spec import DEMO, LOCAL_SUFFIXES
from peft_jobs.store import is_url
from search_spaces import FunctionSpace
from sweeps.loading import build_sweep
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.sweep_file import SweepFileError, override, read_yaml

MAX_BYTES = 100 * 2**20
"""Of all data together; Ray keeps what it carries in the memory of the cluster's head."""
INPUTS = "inputs"
_SPLITS = ("train", "validation", "test")
_OURS = ("peft_jobs", "search_spaces", "sweeps")


@dataclass(frozen=True)
class Bundle:
    """A packed sweep."""

    name: str
    storage: str
    entrypoint: str
    """The command that runs it in the packed folder, wherever that is."""
    left: tuple[str, ...]
    """Files that were too large to take along; they must be at these paths on the cluster."""


def pack(path: Path, overrides: Sequence[str], folder: Path) -> Bundle:
    """Copy into `folder`, which is empty, what the sweep at `path` needs on the cluster.

    Raises SweepFileError with every mistake of the file, and SpecError for what cannot travel.
    """
    tree = read_yaml(path)
    for text in overrides:
        override(tree, text)
    tree.setdefault("name", path.stem)
    _refuse_credentials(path, overrides)
    storage = _shared(tree, path)
    spec = build_sweep(_without_data_of_the_cluster(tree), str(path))
    if spec.resources.backend != "ray":
        raise SpecError("a submitted sweep runs on Ray: leave resources.backend out")
    shutil.copyfile(path, folder / path.name)
    for source, target in _modules(spec):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / target)
    inputs = f"{storage.rstrip('/')}/{spec.name}/{INPUTS}"
    places, left = _data(tree, folder / INPUTS, inputs)
    words = [path.name, *overrides, *(f"data.{split}='{place}'" for split, place in places.items())]
    run = shlex.join(["peft-sweep", "run", *words, "--address", "auto", "--plain"])
    entrypoint = f"exec {run}"
    if places:
        stage = shlex.join(["python", "-m", "sweeps.staging", INPUTS, inputs])
        entrypoint = f"{stage} && {entrypoint}"
    return Bundle(spec.name, storage, entrypoint, left)


def _refuse_credentials(path: Path, overrides: Sequence[str]) -> None:
    for text in (path.read_text(encoding="utf-8"), *overrides):
        for line in text.splitlines():
            if redact(line) != line:
                raise SpecError(
                    f"a URL holds a password or token: {redact(line).strip()}\n"
                    "leave it out: a job's command and files can be read by all who reach the "
                    "cluster. Its nodes' environment is the place: PGUSER and PGPASSWORD for "
                    "postgresql+psycopg://HOST/NAME, MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, AWS_*, HF_TOKEN"
                )


def _shared(tree: dict[str, Any], path: Path) -> str:
    """The storage and the base, where they are for all nodes; a folder of this machine is not."""
    storage, model = tree.get("storage", "runs"), tree.get("model")
    if not isinstance(storage, str) or not (storage.startswith("/") or is_url(storage)):
        told = "must be a path that all nodes of the cluster share, or an object store's URL"
        raise SweepFileError(str(path), [f"storage: {told}, got {storage!r}"])
    name = model.get("name_or_path") if isinstance(model, dict) else model
    is_relative = isinstance(name, str) and name != DEMO and not name.startswith("/")
    if is_relative and Path(str(name)).expanduser().is_dir():
        told = "is a folder of this machine, and bases are not uploaded"
        hint = "give a Hub id, or the absolute path of a folder that all nodes share"
        raise SweepFileError(str(path), [f"model: {name!r} {told}: {hint}"])
    return storage


def _data_files(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Split and path, as written, of the data that are files; of a tree that may be wrong."""
    data = tree.get("data")
    given = data if isinstance(data, dict) else {}
    for split in _SPLITS:
        source = given.get(split)
        path = source.get("path") if isinstance(source, dict) else source
        if isinstance(path, str) and Path(path).suffix in LOCAL_SUFFIXES:
            yield split, path


def _without_data_of_the_cluster(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree for checks on this machine, where such files cannot be seen."""
    there = {s: "a/data-set" for s, path in _data_files(tree) if _is_of_the_cluster(path)}
    return {**tree, "data": {**tree["data"], **there}} if there else tree


def _is_of_the_cluster(path: str) -> bool:
    return path.startswith("/") and not Path(path).is_file()


def _data(
    tree: dict[str, Any], folder: Path, inputs: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Copies the data files that are here; their places on the cluster by split, and the rest."""
    places, left, room = {}, [], MAX_BYTES
    for split, path in _data_files(tree):
        if _is_of_the_cluster(path):
            continue
        file = Path(path).expanduser()
        if file.stat().st_size > room:
            if not path.startswith("/"):
                raise SpecError(
                    f"data.{split}: at most {MAX_BYTES / 2**20:g} MiB of data are uploaded; give "
                    "a Hub id, or the absolute path of a file that all nodes share"
                )
            left.append(path)
            continue
        if is_url(inputs):
            raise SpecError(
                f"data.{split}: with a storage at a URL, data must be a Hub id or a file that all "
                f"nodes share; {path} is on this machine"
            )
        room -= file.stat().st_size
        name = _named_by_content(file)
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
        places[split] = f"{inputs}/{name}"
    return places, tuple(left)


def _named_by_content(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', file.stem)[:60]}-{digest[:16]}{file.suffix}"


def _modules(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    """The Python files behind the functions that the sweep names, and their places.

    Of a package, all; installed ones must be installed on the cluster too.
    """
    functions = [*spec.trial.evaluation.metrics]
    if isinstance(spec.space, FunctionSpace):
        functions.append(spec.space.function)
    for top in sorted({re.split("[.:]", function)[0] for function in functions} - {*_OURS}):
        found = importlib.util.find_spec(top)
        if found is None:
            raise SpecError(f"there is no Python module {top!r} here; PYTHONPATH says where it is")
        folders = [Path(folder) for folder in found.submodule_search_locations or ()]
        if folders:
            files = [(file, folder) for folder in folders for file in sorted(folder.rglob("*.py"))]
            pairs = [(file, f"{top}/{file.relative_to(folder)}") for file, folder in files]
        else:
            pairs = [(Path(found.origin or ""), f"{top}.py")]
        yield from ((file, target) for file, target in pairs if not _is_installed(file))


def _is_installed(file: Path) -> bool:
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    return file.suffix != ".py" or any(file.resolve().is_relative_to(root) for root in roots)
