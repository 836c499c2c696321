"""A recorded sweep, read again from its storage: nothing is started, nothing is changed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from pydantic import ValidationError

from peft_jobs import SpecError
from peft_jobs.spec.mistakes import mistakes, suggest
from peft_jobs.storage import object_store
from sweeps.errors import Unavailable
from sweeps.records.layout import SweepFolder
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.spec.yaml_file import override
from sweeps.study.database import open_storage
from sweeps.study.study import SweepStudy


@dataclass(frozen=True)
class Unreadable:
    """A sweep whose record cannot be read, and why."""

    name: str
    reason: str


def load_recorded(storage: Path, name: str, study_url: str | None = None) -> SweepStudy:
    """The study of the sweep `name` in `storage`, with its resolved spec.

    `study_url` is needed where the sweep's database takes credentials, because the record holds
    none; a sweep that was kept in `<storage>/optuna.db` is read from there, whatever is given.
    Raises SpecError if there is no such sweep, or its study cannot be opened.
    """
    return _load(storage, name, study_url, {})


def recorded_sweep(
    storage: Path, name: str, overrides: Sequence[str] = (), study_url: str | None = None
) -> SweepSpec:
    """The sweep `name` of `storage` as it was recorded, with `key=value` overrides.

    `study_url`: as `load_recorded` takes it. Raises SpecError, also where the credentials of a URL
    are needed, because they are not recorded.
    """
    folder = SweepFolder(storage, name)
    tree = {**read_record(storage, name)["sweep"], "storage": folder.location}
    tree.update(tree.pop("trial"))
    if tree["study_url"] is not None and study_url is not None:
        tree["study_url"] = study_url
    for text in overrides:
        override(tree, text)
    spec = _validated(tree, folder)
    if "***@" in (spec.study_url or ""):
        raise SpecError(_without_credentials(name, str(spec.study_url)))
    if spec.tracking.enabled and "***@" in (spec.tracking.uri or ""):
        raise SpecError(
            f"{name!r} is tracked at {spec.tracking.uri}, whose credentials are not recorded: "
            "give the URL with tracking.uri=URL"
        )
    return spec


def load_all(storage: Path, study_url: str | None = None) -> Iterator[SweepStudy | Unreadable]:
    """Every sweep of `storage`, by name."""
    opened: dict[str, optuna.storages.RDBStorage] = {}
    for name in recorded_names(storage):
        try:
            yield _load(storage, name, study_url, opened)
        except SpecError as error:
            yield Unreadable(name, str(error))


def recorded_names(storage: Path) -> list[str]:
    """The names of the sweeps in `storage`, sorted. Unavailable if a store does not answer."""
    url = object_store.origin(storage)
    if url is not None:
        try:
            return [
                n
                for n in object_store.children(url)
                if object_store.exists(f"{url}/{n}/sweep.json")
            ]
        except OSError as error:
            raise Unavailable(f"{url} cannot be read: {error}") from error
    return sorted(path.parent.name for path in storage.glob("*/sweep.json"))


def read_record(storage: Path, name: str) -> dict[str, Any]:
    """`sweep.json`: the resolved sweep, what was prepared, and the environment."""
    folder = SweepFolder(storage, name)
    path, where = folder.path / "sweep.json", object_store.origin(storage) or storage
    names = recorded_names(storage)
    text = folder.read(path) if name in names else None
    if not names:
        raise SpecError(f"there is no sweep in {where}; give the folder with --storage")
    if text is None:
        raise SpecError(f"there is no sweep {name!r} in {where}{suggest(name, names)}")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{path} is no JSON that can be read: {error}") from None
    if not isinstance(record, dict) or "sweep" not in record:
        raise SpecError(f"{path} is no record of a sweep")
    return record


def _without_credentials(name: str, url: str) -> str:
    return (
        f"the study of {name!r} is in {url}, whose credentials are not recorded: give the URL "
        "in PEFT_SWEEPS_STUDY_URL"
    )


def _validated(tree: dict[str, Any], folder: SweepFolder) -> SweepSpec:
    try:
        return SweepSpec.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes(error, SweepSpec))
        raise SpecError(
            f"{folder.path / 'sweep.json'} holds what this version cannot run:\n{lines}"
        ) from None


def _load(
    storage: Path,
    name: str,
    study_url: str | None,
    opened: dict[str, optuna.storages.RDBStorage],
) -> SweepStudy:
    record = read_record(storage, name)
    folder = SweepFolder(storage.absolute(), name)
    spec = _validated({**record["sweep"], "storage": folder.location}, folder)
    url = folder.study_url if spec.study_url is None else study_url or spec.study_url
    if "***@" in url:
        raise SpecError(_without_credentials(name, url))
    if spec.study_url is None and not (folder.storage / "optuna.db").is_file():
        raise SpecError(f"the study of {name!r} is gone: no {folder.storage / 'optuna.db'}")
    rdb = opened.get(url) or opened.setdefault(url, open_storage(url))
    try:
        rdb.get_study_id_from_name(name)
    except KeyError:
        raise SpecError(f"there is no study {name!r} in {redact(url)}") from None
    return SweepStudy(spec, rdb)
