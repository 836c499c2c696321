"""What a sweep needs from this machine, made reachable for nodes that share no disk with it.

Local data, and the saved adapter that trials go on from, go into the sweep's storage, under a name
that says what is in them: the same data are the same sweep wherever it is launched from. Code goes
the way of Ray (`backends.ray`).
"""

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path

from peft_jobs.spec import DEMO
from peft_jobs.storage import object_store
from peft_jobs.storage.files import write_once
from peft_jobs.storage.saved_adapter import FILES as ADAPTER_FILES
from search_spaces import FunctionSpace
from sweeps.errors import Unavailable
from sweeps.file_names import INPUTS_FOLDER
from sweeps.records.layout import SweepFolder
from sweeps.records.own_code import OURS, is_installed
from sweeps.spec import SweepSpec

MAX_BYTES = 100 * 2**20
"""Of a file, or an adapter, that is copied into a folder that nodes share; a larger one must be
shared itself."""


def with_inputs(spec: SweepSpec, folder: SweepFolder) -> SweepSpec:
    """The sweep with its local data and saved adapter in its storage, put there if they are not.

    One that stays on this machine is left as it is. Raises Unavailable if the storage does not
    answer.
    """
    if not folder.in_store and spec.resources.address is None:
        return spec
    trial = spec.trial
    data, update = trial.data, {}
    for field, source in data.sources.items():
        if source.is_file and _travels(source.path, folder):
            update[field] = source.model_copy(update={"path": _put(Path(source.path), folder)})
    trial = trial.model_copy(update={"data": data.model_copy(update=update)})
    saved = trial.adapter.source
    if saved is not None and saved.is_local and _travels(saved.name_or_path, folder):
        place = _put_adapter(Path(saved.name_or_path), str(saved.sha256), folder)
        saved = saved.model_copy(update={"name_or_path": place})
        trial = trial.model_copy(
            update={"adapter": trial.adapter.model_copy(update={"from": saved})}
        )
    return spec.model_copy(update={"trial": trial})


def functions(spec: SweepSpec) -> set[str]:
    """The person's own functions that trials call, as `module:function`."""
    evaluation = spec.trial.evaluation
    return {
        *evaluation.metrics,
        *(evaluation.generation.functions if evaluation.generation else ()),
    }


def space_functions(spec: SweepSpec) -> set[str]:
    """Those that the driver calls."""
    return {spec.space.function} if isinstance(spec.space, FunctionSpace) else set()


def modules(references: set[str]) -> list[Path]:
    """The modules behind `module:function` that are the person's own: files, folders of packages.

    Installed ones must be installed on the nodes too, and one that is not here may be there.
    """
    locations: list[str] = []
    for top in {re.split("[.:]", name)[0] for name in references} - {*OURS}:
        module = importlib.util.find_spec(top)
        if module is not None:
            folders = module.submodule_search_locations
            locations += [module.origin or ""] if folders is None else folders
    paths = {Path(location).resolve() for location in locations if Path(location).exists()}
    return sorted(path for path in paths if not is_installed(path))


def _travels(path: str, folder: SweepFolder) -> bool:
    if path == DEMO or object_store.is_url(path) or Path(path).is_relative_to(folder.storage):
        return False
    return folder.in_store or size_of(Path(path)) <= MAX_BYTES


def size_of(path: Path) -> int:
    """Bytes of a file, or of what counts of a saved adapter's folder."""
    files = [path] if path.is_file() else [path / name for name in ADAPTER_FILES]
    return sum(file.stat().st_size for file in files if file.is_file())


def _put(file: Path, folder: SweepFolder) -> str:
    """The location of a file's copy."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"{_plain(file.stem)}-{digest[:16]}{file.suffix}"
    target = folder.path / INPUTS_FOLDER / name
    location = folder.location_of(target)
    try:
        if folder.in_store:
            if object_store.size(location) != file.stat().st_size:
                object_store.put(file, location)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{name}.{os.getpid()}")
            shutil.copyfile(file, aside)
            aside.replace(target)
    except OSError as error:
        raise Unavailable(f"{file} cannot be put to {location}: {error}") from error
    return location


def _put_adapter(source: Path, sha256: str, folder: SweepFolder) -> str:
    """The location of a copy of a saved adapter's files."""
    target = folder.path / INPUTS_FOLDER / f"{_plain(source.name)}-{sha256[:16]}"
    location = folder.location_of(target)
    try:
        if folder.in_store:
            if not object_store.exists(location):
                with tempfile.TemporaryDirectory(prefix="peft-sweeps-") as aside:
                    copy_adapter(source, Path(aside))
                    object_store.put(Path(aside), location)
        elif not target.exists():
            write_once(target, lambda aside: copy_adapter(source, aside))
    except OSError as error:
        raise Unavailable(f"{source} cannot be put to {location}: {error}") from error
    return location


def copy_adapter(source: Path, target: Path) -> None:
    """Copy what counts of a saved adapter's folder into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
