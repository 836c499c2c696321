"""The rows of a source, as they are: a file's (here or in a store), a Hub data set's, the demo's.

Local files are known by their content, so a moved or touched file is the same data.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from peft_jobs.data.hub import read_hub
from peft_jobs.data.text_files import READERS, TextFormat, file_digest, read_text_files
from peft_jobs.errors import DataError, GivenUp, SpecError
from peft_jobs.spec import COMPRESSED, DEMO, FILE_FORMATS, DataSpec, Source, file_format
from peft_jobs.spec.mistakes import suggest
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.storage.object_store import cached, is_url

_NOT_LOADED = (
    *(DatasetNotFoundError, DatasetGenerationError, OSError, ValueError),
    RuntimeError,  # a data set that is a Python script, which nobody runs any more
)
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
        return _from_hub(source, source.split or split, cache_dir)
    if not path.is_file():
        raise SpecError(f"data.{split}: no such file: {path}")
    digest = file_digest(path)
    entry = cache_dir / "sources" / digest[:16]
    kind = file_format(str(path))
    if kind in READERS:
        dataset = read_text_files([path], TextFormat(kind), entry)
    else:
        dataset = _read_parquet(path, entry)
    return _not_empty(Rows(dataset, str(path), digest))


def training_rows(data: DataSpec, cache_dir: Path) -> Rows:
    """The rows of `data.train`, then those of `data.train_also`.

    Raises what `read` does, and DataError if the columns of the two are not the same.
    """
    rows = read(data.train, "train", cache_dir)
    if data.train_also is None:
        return rows
    also = read(data.train_also, "train", cache_dir)
    names, others = sorted(rows.dataset.column_names), sorted(also.dataset.column_names)
    if names != others:
        raise DataError(
            f"data.train_also: {also.origin} has the columns {', '.join(others)}, and "
            f"{rows.origin} has {', '.join(names)}; they must be the same"
        )
    types, other_types = rows.dataset.features, also.dataset.features
    if differing := [name for name in names if types[name] != other_types[name]]:
        name = differing[0]  # joined by force, numbers and lists would become texts
        raise DataError(
            f"data.train_also: column {name!r} of {also.origin} holds {other_types[name]}, and of "
            f"{rows.origin} {types[name]}; they must be the same"
        )
    joined = concatenate_datasets([rows.dataset, also.dataset])
    both = f"{rows.origin} and then {also.origin}"
    return Rows(joined, both, sha256(canonical_json([rows.fingerprint, also.fingerprint])))


def _read_parquet(path: Path, cache: Path) -> Dataset:
    try:
        return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))
    except (DatasetGenerationError, ValueError, StopIteration, OSError) as error:
        if path.stat().st_size == 0 or "corresponds to no data" in str(error):
            raise DataError(f"{path} holds no rows") from error
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read as parquet: {cause}") from error


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
        raise SpecError(
            f"{source.path} must end in one of {', '.join(FILE_FORMATS)}; files of text may be "
            f"compressed ({', '.join(COMPRESSED)} after one of them)"
        )
    return None


def _from_hub(source: Source, split: str, cache_dir: Path) -> Rows:
    origin = f"{source.path} ({split})"
    try:
        dataset, content = read_hub(source, split, cache_dir)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error
    except _NOT_LOADED as error:
        raise SpecError(f"data: {origin} cannot be loaded: {error.__cause__ or error}") from error
    return _not_empty(Rows(dataset, origin, sha256(canonical_json(content))))


def _not_empty(rows: Rows) -> Rows:
    if len(rows.dataset) == 0:
        raise DataError(f"{rows.origin} holds no rows")
    return rows
