"""The rows of a source, as they are: a file's (here or in a store), a Hub data set's, the demo's.

Local files are known by their content, so a moved or touched file is the same data.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetBuilder,
    DownloadManager,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.text.text import Text

from peft_jobs.data.text_files import READERS, read_text_files
from peft_jobs.errors import DataError, GivenUp, SpecError
from peft_jobs.spec import DEMO, FILE_FORMATS, Source, file_format
from peft_jobs.spec.mistakes import suggest
from peft_jobs.storage.files import canonical_json
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
        dataset = read_text_files([path], kind, entry)
    else:
        dataset = _read_parquet(path, entry)
    return _not_empty(Rows(dataset, str(path), digest))


def _read_parquet(path: Path, cache: Path) -> Dataset:
    try:
        return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))
    except (DatasetGenerationError, ValueError, StopIteration, OSError) as error:
        if path.stat().st_size == 0 or "corresponds to no data" in str(error):
            raise DataError(f"{path} holds no rows") from error
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read as parquet: {cause}") from error


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hex; read again only when its size or time has changed."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            f"{source.path} must end in one of {', '.join(FILE_FORMATS)}, or .gz after one of them"
        )
    return None


def _from_hub(source: Source, split: str, cache_dir: Path) -> Rows:
    origin = f"{source.path} ({split})"
    try:
        builder = load_dataset_builder(source.path, source.name, revision=source.revision)
        kind = _text_kind(builder)
        if kind is None:
            dataset = load_dataset(source.path, source.name, split=split, revision=source.revision)
            content = [source.path, source.name, source.revision, split, dataset._fingerprint]
        else:
            dataset, content = _hub_text(builder, kind, split, cache_dir)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error
    except _NOT_LOADED as error:
        raise SpecError(f"data: {origin} cannot be loaded: {error.__cause__ or error}") from error
    return _not_empty(Rows(dataset, origin, _sha256(canonical_json(content))))


def _text_kind(builder: DatasetBuilder) -> str | None:
    """How the text files of a Hub data set are read as they stand; None if it has types: of its
    files (Parquet), or declared in its card, or a reader with options of its own."""
    config: Any = builder.config
    declared = (builder.info.features or {}).values()
    if not config.data_files or _is_zipped(config.data_files):
        return None
    if any(not isinstance(feature, Value) for feature in declared):  # names of classes, images
        return None
    if isinstance(builder, Csv):
        kinds = {",": "csv", "\t": "tsv"}
        usual = CsvConfig(name=config.name, data_files=config.data_files, sep=config.sep)
        return (
            kinds.get(config.sep) if config.pd_read_csv_kwargs == usual.pd_read_csv_kwargs else None
        )
    if isinstance(builder, Json):
        return "json" if config.field is None else None
    return "text" if isinstance(builder, Text) and config.sample_by == "line" else None


def _is_zipped(data_files: Mapping[str, Sequence[str]]) -> bool:
    return any(str(file).endswith(".zip") for files in data_files.values() for file in files)


def _hub_text(
    builder: DatasetBuilder, kind: str, split: str, cache_dir: Path
) -> tuple[Dataset, list[str]]:
    """Rows of `split`, which may be a part (`train[:10%]`) or a sum, and what they are known by."""
    given: Any = builder.config.data_files
    files = {str(name): list(map(str, urls)) for name, urls in given.items()}
    names = [name for name in files if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", split)]
    if not names:
        raise ValueError(f"no split {split!r}; it has {', '.join(files)}")
    download = DownloadManager(base_path=builder.base_path).download
    found: dict[str, Dataset] = {}
    digests = []
    for name in names:
        paths = [Path(download(file)) for file in files[name]]
        digests.append(_sha256("".join(map(file_digest, paths))))
        found[name] = read_text_files(paths, kind, cache_dir / "sources" / digests[-1][:16])
    sizes = {name: len(dataset) for name, dataset in found.items()}
    parts = [
        found[part.splitname].select(
            range(part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        )
        for part in ReadInstruction.from_spec(split).to_absolute(sizes)
    ]
    return concatenate_datasets(parts), [split, *digests]


def _not_empty(rows: Rows) -> Rows:
    if len(rows.dataset) == 0:
        raise DataError(f"{rows.origin} holds no rows")
    return rows


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
