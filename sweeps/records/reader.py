"""Reads `sweep.json`, the record of a sweep, from its storage; changes nothing."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peft_jobs import SpecError
from peft_jobs.spec.mistakes import mistakes, suggest
from peft_jobs.storage import object_store
from sweeps.errors import Unavailable
from sweeps.file_names import RECORD_FILE
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.spec.yaml_file import override


def recorded_spec(
    storage: Path, name: str, overrides: Sequence[str] = (), study_url: str | None = None
) -> SweepSpec:
    """The sweep `name` of `storage` as it was recorded, with `key=value` overrides.

    `study_url`: as `open_sweep` takes it. Raises SpecError, also where the credentials of a URL
    are needed, because they are not recorded.
    """
    folder = SweepFolder(storage, name)
    tree = {**read_record(storage, name)["sweep"], "storage": folder.location}
    tree.update(tree.pop("trial"))
    if tree["study_url"] is not None and study_url is not None:
        tree["study_url"] = study_url
    for text in overrides:
        override(tree, text)
    spec = validated(tree, folder)
    if "***@" in (spec.study_url or ""):
        raise SpecError(without_credentials(name, str(spec.study_url)))
    if spec.tracking.enabled and "***@" in (spec.tracking.uri or ""):
        raise SpecError(
            f"{name!r} is tracked at {spec.tracking.uri}, whose credentials are not recorded: "
            "give the URL with tracking.uri=URL"
        )
    return spec


def recorded_names(storage: Path, by: str = RECORD_FILE) -> list[str]:
    """The names of the folders in `storage` that hold the file `by`, sorted: sweeps have a record.

    Unavailable if a store does not answer.
    """
    url = object_store.origin(storage)
    if url is not None:
        try:
            return [n for n in object_store.children(url) if object_store.exists(f"{url}/{n}/{by}")]
        except OSError as error:
            raise Unavailable(f"{url} cannot be read: {error}") from error
    return sorted(path.parent.name for path in storage.glob(f"*/{by}"))


def final_trainings(storage: Path, name: str) -> tuple[str, ...]:
    """The names of the final trainings of a sweep in `storage`."""
    found = recorded_names(storage)
    return tuple(other for other in found if re.fullmatch(f"{re.escape(name)}-final-[0-9]+", other))


def read_record(storage: Path, name: str) -> dict[str, Any]:
    """`sweep.json`: the resolved sweep, what was prepared, and the environment."""
    folder = SweepFolder(storage, name)
    path, where = folder.record, object_store.origin(storage) or storage
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


def without_credentials(name: str, url: str) -> str:
    """What to tell a person who must give the URL of a study again."""
    return (
        f"the study of {name!r} is in {url}, whose credentials are not recorded: give the URL "
        "in PEFT_SWEEPS_STUDY_URL"
    )


def validated(tree: dict[str, Any], folder: SweepFolder) -> SweepSpec:
    """The spec of a record's sections; SpecError if this version cannot run them."""
    try:
        return SweepSpec.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes(error, SweepSpec))
        raise SpecError(f"{folder.record} holds what this version cannot run:\n{lines}") from None
