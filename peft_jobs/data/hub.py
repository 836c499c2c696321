"""The rows of a Hub data set: its text files as they stand, all others by their types."""

import re
from collections.abc import Mapping, Sequence
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
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.text.text import Text

from peft_jobs.data.text_files import file_digest, read_text_files
from peft_jobs.spec import Source
from peft_jobs.storage.files import sha256


def read_hub(source: Source, split: str, cache_dir: Path) -> tuple[Dataset, list[str | None]]:
    """The rows of a split, and what their content is known by.

    Raises what `datasets` raises where there is no such data set, and DataError for a file.
    """
    builder = load_dataset_builder(source.path, source.name, revision=source.revision)
    kind = _text_kind(builder)
    if kind is not None:
        return _hub_text(builder, kind, split, cache_dir)
    dataset = load_dataset(source.path, source.name, split=split, revision=source.revision)
    return dataset, [source.path, source.name, source.revision, split, dataset._fingerprint]


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
        return "jsonl" if config.field is None else None
    return "text" if isinstance(builder, Text) and config.sample_by == "line" else None


def _is_zipped(data_files: Mapping[str, Sequence[str]]) -> bool:
    return any(str(file).endswith(".zip") for files in data_files.values() for file in files)


def _hub_text(
    builder: DatasetBuilder, kind: str, split: str, cache_dir: Path
) -> tuple[Dataset, list[str | None]]:
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
        digests.append(sha256("".join(map(file_digest, paths))))
        found[name] = read_text_files(paths, kind, cache_dir / "sources" / digests[-1][:16])
    sizes = {name: len(dataset) for name, dataset in found.items()}
    parts = [
        found[part.splitname].select(
            range(part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        )
        for part in ReadInstruction.from_spec(split).to_absolute(sizes)
    ]
    return concatenate_datasets(parts), [split, *digests]
