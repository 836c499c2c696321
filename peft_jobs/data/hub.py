"""The rows of a Hub data set: its text files as they stand, all others by their types."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    DatasetInfo,
    DownloadManager,
    Features,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.text.text import Text

from peft_jobs.data.text_files import TextFormat, file_digest, read_text_files
from peft_jobs.spec import Source
from peft_jobs.spec.cells import structure_of
from peft_jobs.storage.files import sha256

log = logging.getLogger(__name__)

_OF_TEXT = frozenset(
    (
        "sep",
        "encoding",
        "encoding_errors",
        "names",
        "header",
        "keep_default_na",
        "na_filter",
        "chunksize",
    )
)
"""Options of CSV that files read as they stand obey, or need not."""


def read_hub(source: Source, split: str, cache_dir: Path) -> tuple[Dataset, list[str | None]]:
    """The rows of a split, and what their content is known by.

    Raises what `datasets` raises where there is no such data set, and DataError for a file.
    """
    builder = load_dataset_builder(source.path, source.name, revision=source.revision)
    form = _text_format(builder)
    if form is not None:
        return _hub_text(builder, form, split, cache_dir)
    if isinstance(builder, Csv | Json | Text):
        log.warning(
            "%s: its card has options or types with which its files are read by their types, not "
            "as they stand: zeros in front, dates and decimals may be written otherwise",
            source.path,
        )
    dataset = load_dataset(source.path, source.name, split=split, revision=source.revision)
    return dataset, [source.path, source.name, source.revision, split, dataset._fingerprint]


def _text_format(builder: DatasetBuilder) -> TextFormat | None:
    """How the text files of a Hub data set are read as they stand; None if its files have types
    (Parquet), or its card asks for what only their reader in `datasets` does."""
    config: Any = builder.config
    if not config.data_files or _is_zipped(config.data_files):
        return None
    if not all(map(_is_plain, (builder.info.features or {}).values())):
        return None
    encoding = getattr(config, "encoding", None) or "utf-8"
    errors = getattr(config, "encoding_errors", None) or "strict"
    if isinstance(builder, Csv):
        return _csv_format(config, encoding, errors)
    if isinstance(builder, Json):
        return TextFormat("jsonl", encoding, errors) if config.field is None else None
    by_line = isinstance(builder, Text) and config.sample_by == "line"
    return TextFormat("text", encoding, errors) if by_line else None


def _csv_format(config: CsvConfig, encoding: str, errors: str) -> TextFormat | None:
    """None for options that are not about what text is: rows left out, quotes, values changed."""
    options = {k: v for k, v in config.pd_read_csv_kwargs.items() if k not in _OF_TEXT}
    usual = {k: v for k, v in CsvConfig().pd_read_csv_kwargs.items() if k not in _OF_TEXT}
    sep, columns = config.sep, tuple(config.names or ())
    if options != usual or not isinstance(sep, str) or len(sep) != 1:
        return None
    if config.header not in ("infer", None if columns else "infer"):
        return None
    if sep == "\t":
        return TextFormat("tsv", encoding, errors, columns=columns)
    return TextFormat("csv", encoding, errors, sep, columns)


def _is_plain(feature: Any) -> bool:
    """Whether a feature is made of values, lists, mappings and names of classes alone."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    item = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(feature, Value | ClassLabel) if item is None else _is_plain(item)


def _with_class_names(dataset: Dataset, features: Mapping[str, Any]) -> Dataset:
    """With the columns of class names as the numbers that they have in `features`."""
    table = dataset.data.table
    for name in (name for name in dataset.column_names if "ClassLabel" in repr(features.get(name))):
        cells = {name: list(map(structure_of, dataset[name]))}
        typed = Dataset.from_dict(cells, features=Features({name: features[name]}))
        place = table.column_names.index(name)
        table = table.set_column(place, name, typed.data.table.column(name))
        dataset = Dataset(
            table, DatasetInfo(features=Features({**dataset.features, **typed.features}))
        )
    return dataset


def _is_zipped(data_files: Mapping[str, Sequence[str]]) -> bool:
    return any(str(file).endswith(".zip") for files in data_files.values() for file in files)


def _hub_text(
    builder: DatasetBuilder, form: TextFormat, split: str, cache_dir: Path
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
        rows = read_text_files(paths, form, cache_dir / "sources" / digests[-1][:16])
        found[name] = _with_class_names(rows, builder.info.features or {})
    sizes = {name: len(dataset) for name, dataset in found.items()}
    parts = [
        found[part.splitname].select(
            range(part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        )
        for part in ReadInstruction.from_spec(split).to_absolute(sizes)
    ]
    options = [] if form == TextFormat(form.kind) else [repr(form)]
    return concatenate_datasets(parts), [split, *options, *digests]
