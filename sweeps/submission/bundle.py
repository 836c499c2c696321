"""What a submitted sweep takes along: its file, its local data and adapter, the modules it names.

All of it lies in one folder, which Ray carries to the cluster; nothing else travels, so no secret
does. There, `run` puts the data into the sweep's storage (`sweeps.records.inputs`).
"""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import SpecError
from peft_jobs.spec import DEMO, SOURCES, file_format
from peft_jobs.storage.object_store import is_url
from sweeps.records.inputs import (
    MAX_BYTES,
    copy_adapter,
    functions,
    modules,
    size_of,
    space_functions,
)
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.spec.loading import build_sweep
from sweeps.spec.yaml_file import SweepFileError, override, read_yaml

INPUTS = "inputs"


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
    spec = build_sweep(_without_what_the_cluster_has(tree), str(path))
    if spec.resources.backend != "ray":
        raise SpecError("a submitted sweep runs on Ray: leave resources.backend out")
    shutil.copyfile(path, folder / path.name)
    code = list(_code(spec))
    if (size := sum(source.stat().st_size for source, _ in code)) > MAX_BYTES:
        raise SpecError(
            f"the modules that the sweep names have {size / 2**20:.0f} MiB of files, and "
            f"{MAX_BYTES / 2**20:.0f} travel: put them into a package without data beside it"
        )
    for source, target in code:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / target)
    places, left = _data(tree, folder)
    adapter_places, adapter_left = _saved_adapter(tree, folder)
    places, left = places | adapter_places, left + adapter_left
    words = [path.name, *overrides, *(f"{key}='{place}'" for key, place in places.items())]
    run = shlex.join(["peft-sweep", "run", *words, "--address", "auto", "--plain"])
    return Bundle(spec.name, storage, f"exec {run}", left)


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
    """Field and path, as written, of the data that are files; of a tree that may be wrong."""
    data = tree.get("data")
    given = data if isinstance(data, dict) else {}
    for field in SOURCES:
        source = given.get(field)
        path = source.get("path") if isinstance(source, dict) else source
        if isinstance(path, str) and file_format(path) is not None:
            yield field, path


def _without_what_the_cluster_has(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree for checks on this machine, where such files cannot be seen."""
    there = {s: "a/data-set" for s, path in _data_files(tree) if _is_of_the_cluster(path)}
    if there:
        tree = {**tree, "data": {**tree["data"], **there}}
    name = _adapter_name(tree)
    if name is not None and name.startswith("/") and not Path(name).is_dir():
        rest = {key: value for key, value in tree["adapter"].items() if key != "from"}
        tree = {**tree, "adapter": rest}
    return tree


def _adapter_name(tree: dict[str, Any]) -> str | None:
    """What `adapter.from` names, as written; of a tree that may be wrong."""
    adapter = tree.get("adapter")
    source = adapter.get("from") if isinstance(adapter, dict) else None
    name = source.get("name_or_path") if isinstance(source, dict) else source
    return name if isinstance(name, str) else None


def _saved_adapter(tree: dict[str, Any], folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Copies the adapter that trials go on from, if it is a folder here; as `_data`."""
    name = _adapter_name(tree)
    source = Path(name or "").expanduser()
    if name is None or not source.is_dir():
        return {}, ()
    if size_of(source) > MAX_BYTES:
        if name.startswith("/"):
            return {}, (name,)
        raise SpecError(
            f"adapter.from: at most {MAX_BYTES / 2**20:g} MiB of an adapter are uploaded; give a "
            "Hub id, or the absolute path of a folder that all nodes share"
        )
    place = f"{INPUTS}/adapter"
    copy_adapter(source, folder / place)
    written = tree["adapter"]["from"]
    key = "adapter.from.name_or_path" if isinstance(written, dict) else "adapter.from"
    return {key: place}, ()


def _is_of_the_cluster(path: str) -> bool:
    return path.startswith("/") and not Path(path).is_file()


def _data(tree: dict[str, Any], folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Copies the data files that are here; their places in the folder by key, and the rest."""
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
        room -= file.stat().st_size
        place = f"{INPUTS}/{split}/{file.name}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / place)
        key = f"data.{split}.path" if isinstance(tree["data"][split], dict) else f"data.{split}"
        places[key] = place
    return places, tuple(left)


def _code(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    """The files behind the functions that the sweep names, and their places; of a package, all that
    are not hidden."""
    references = functions(spec) | space_functions(spec)
    for top in sorted({re.split("[.:]", reference)[0] for reference in references}):
        if importlib.util.find_spec(top) is None:
            raise SpecError(f"there is no Python module {top!r} here; PYTHONPATH says where it is")
    for path in modules(references):
        if path.is_file():
            yield path, path.name
        else:
            for file in sorted(path.rglob("*")):
                below = file.relative_to(path)
                hidden = any(part.startswith(".") or part == "__pycache__" for part in below.parts)
                if file.is_file() and not hidden:
                    yield file, f"{path.name}/{below}"
