"""The rows of a source, as they are: a file's (here or in a store), a Hub data set's, the demo's.

Local files are known by their content, so a moved or touched file is the same data.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from peft_jobs.errors import DataError, GivenUp, SpecError
from peft_jobs.spec import DEMO, LOCAL_SUFFIXES, Source
from peft_jobs.spec.mistakes import suggest
from peft_jobs.storage.files import canonical_json
from peft_jobs.storage.object_store import cached, is_url

_NOT_LOADED = (
    *(DatasetNotFoundError, DatasetGenerationError, OSError, ValueError),
    RuntimeError,  # a data set that is a Python script, which nobody runs any more
)
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# They log, with a traceback, what the DataError says.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Rows:
    """All rows of one source, as they were read."""

    dataset: Dataset
    origin: str
    """What messages call the source: its path, or Hub id and split."""
    fingerprint: str
    """Of the content."""


def read(source: Source, split: str, cache_dir: Path) -> Rows:
    """The rows of `source`, memory-mapped; `split` is the one to take where it names none.

    Raises SpecError if there is no such source, DataError if it cannot be read or has no rows.
    """
    path = _local_path(source, split, cache_dir)
    if path is None:
        return _from_hub(source, source.split or split)
    if not path.is_file():
        raise SpecError(f"data.{split}: no such file: {path}")
    digest = file_digest(path)
    if path.suffix != ".parquet":
        _check_text(path, digest)
    builder = BUILDERS[path.suffix]
    options: dict[str, Any] = {"cache_dir": str(cache_dir / "sources" / digest[:16])}
    if builder == "csv":  # pandas would read the words NA, None and null as missing values
        options |= {"keep_default_na": False, "na_values": [""]}
    if builder == "json":  # columns that look like an agent's trace would be rewritten
        options["parse_agent_traces"] = False
    try:
        dataset = load_dataset(builder, data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError, StopIteration, OSError) as error:
        if path.stat().st_size == 0 or "corresponds to no data" in str(error):
            raise DataError(f"{path} holds no rows") from error
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read as {builder}: {cause}") from error
    if builder == "text":
        written = [number for number, line in enumerate(dataset["text"]) if line.strip()]
        dataset = dataset.select(written)
    return _not_empty(Rows(dataset, str(path), digest))


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hex; read again only when its size or time has changed."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _check_text(path: Path, digest: str) -> None:
    """Raise DataError, with the line, if a file is not UTF-8: Arrow would find out row by row."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: is no UTF-8 text") from error


def _local_path(source: Source, split: str, cache_dir: Path) -> Path | None:
    if source.path == DEMO:
        from peft_jobs.demo import DATA

        name = source.split or split
        if name not in DATA:
            raise SpecError(f"data: the demo has no split {name!r}{suggest(name, DATA)}")
        return DATA[name]
    if is_url(source.path):
        try:
            return cached(source.path, cache_dir / "inputs")
        except (FileNotFoundError, GivenUp) as error:
            raise SpecError(f"data.{split}: {source.path} cannot be fetched: {error}") from error
    if source.is_file:
        return Path(source.path).expanduser()
    if Path(source.path).expanduser().is_dir():
        raise SpecError(f"data.{split}: {source.path} is a folder; give one file of it")
    if Path(source.path).is_file():
        raise SpecError(f"{source.path} must end in one of {', '.join(LOCAL_SUFFIXES)}")
    return None


def _from_hub(source: Source, split: str) -> Rows:
    origin = f"{source.path} ({split})"
    try:
        dataset = load_dataset(source.path, source.name, split=split, revision=source.revision)
    except _NOT_LOADED as error:
        raise SpecError(f"data: {origin} cannot be loaded: {error.__cause__ or error}") from error
    identity = [source.path, source.name, source.revision, split, dataset._fingerprint]
    fingerprint = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    return _not_empty(Rows(dataset, origin, fingerprint))


def _not_empty(rows: Rows) -> Rows:
    if len(rows.dataset) == 0:
        raise DataError(f"{rows.origin} holds no rows")
    return rows
