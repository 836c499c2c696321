"""The section `data` of a TrialSpec: the rows that are trained on and those that are measured."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from peft_jobs.spec.fields import Section, Seed, Share, ShareOrCount, Tokens, as_mapping

DEMO = "demo"
"""As a model or data path: the base and data that the package carries (`peft_jobs.demo`)."""
FILE_FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
"""How a local file is read, by how its name ends; text files may be compressed (`.jsonl.gz`)."""
COMPRESSED = (".gz", ".bz2", ".xz")


def file_format(path: str) -> str | None:
    """The value of FILE_FORMATS for a path in any case; None if it is no file of data."""
    name = Path(path.lower())
    if name.suffix in COMPRESSED:
        found = FILE_FORMATS.get(name.with_suffix("").suffix)
        return None if found == "parquet" else found
    return FILE_FORMATS.get(name.suffix)


class Source(Section):
    """Rows: a local file, or one split of a Hub data set, or `demo`."""

    path: str = Field(min_length=1)
    """Local .json, .jsonl, .csv, .tsv or .parquet file, or .txt file with a row (column `text`) for
    each line that is not blank, also as .gz, .bz2 or .xz but for .parquet; otherwise a Hub id."""
    name: str | None = None
    """Configuration of the Hub data set."""
    revision: str | None = None
    split: str | None = None
    """Split of the Hub data set; by default the one named like the field (train, ...)."""

    @property
    def is_file(self) -> bool:
        return file_format(self.path) is not None

    @model_validator(mode="after")
    def _files_have_no_splits(self) -> Self:
        if self.is_file and (self.name or self.revision or self.split):
            raise ValueError(f"{self.path} is a file: name, revision and split are for Hub ids")
        return self


AnySource = Annotated[Source, as_mapping("path")]


Validation = Annotated[
    Annotated[AnySource, Tag("source")] | Annotated[Share, Tag("share")],
    Discriminator(lambda value: "share" if isinstance(value, int | float) else "source"),
]


Role = Literal["system", "developer", "user", "assistant", "tool", "tool_call"]
KEYS = {
    "openai": ("role", "content"),
    "sharegpt": ("role", "content", "system"),
    "alpaca": ("instruction", "input", "output", "history", "system"),
}


SOURCES = ("train", "train_also", "validation", "test")
"""The fields of DataSpec that may hold a Source."""


class DataSpec(Section):
    LATER = ("format", "roles", "keys", "on_bad_row", "on_leak", "train_also")

    train: AnySource
    train_also: AnySource | None = None
    """A second source of training rows, with the same columns: they follow those of `train`."""
    validation: Validation = 0.1
    """Source, or the share of the training rows that is held out (before any subset)."""
    group_by: str | None = None
    """Column of which no value lands on both sides of a held-out share, e.g. the context of several
    questions."""
    test: AnySource | None = None
    """Read once, for the winner, by `export`."""
    format: Literal["openai", "sharegpt", "alpaca"] = "openai"
    """Form of the conversations in `task.messages`: openai, a list of {role, content}; sharegpt, a
    list of {from, value}; alpaca, columns instruction, input, output, history and system, of which
    the conversation is made (`messages` may then have any name)."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """What other words for the roles of messages mean, e.g. {bot: assistant}."""
    keys: dict[str, str] = Field(default_factory=dict)
    """What the form's own keys or columns are called here, e.g. {role: speaker, content: text}."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What becomes of a row that cannot be used, such as one with an empty answer: a mistake, or
    left out, with a count."""
    on_leak: Literal["error", "warn"] = "error"
    """What becomes of a sweep where more than a fifth of the held-out rows are trained on, whole: a
    mistake, or told. Fewer, and inputs alone, are told in any case."""
    max_length: Tokens = 512
    """Tokens; longer examples are cut on the right."""
    subset: ShareOrCount = None
    """Share (1.0 is everything) or number of training rows; smaller subsets of one seed lie inside
    larger ones."""
    validation_subset: ShareOrCount = None
    packing: bool = False
    """Lay the samples of a training batch into as few rows of max_length as they need, in place of
    padding; each still sees itself alone, and what is learned is the same. Causal models only."""
    seed: Seed = 0
    """Of the held-out rows and the subsets; apart from the trial's seed, so trials share them."""

    @property
    def sources(self) -> dict[str, Source]:
        """Those that are given, by field."""
        given = {name: getattr(self, name) for name in SOURCES}
        return {name: source for name, source in given.items() if isinstance(source, Source)}

    @model_validator(mode="after")
    def _keys_are_known(self) -> Self:
        known = KEYS[self.format]
        if unknown := [key for key in self.keys if key not in known]:
            raise ValueError(
                f"keys of data.format {self.format} are {', '.join(known)}; got {unknown[0]}"
            )
        return self
