"""The sections of a TrialSpec that say what is trained on: the task and its data."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from peft_jobs.fields import Section, Seed, Share, ShareOrCount, Template, Tokens, as_mapping

DEMO = "demo"
"""As a model or data path: the base and data that the package carries (`peft_jobs.demo`)."""
LOCAL_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class CausalLMSpec(Section):
    """Next-token prediction on the response; prompt tokens do not count in the loss."""

    METRICS: ClassVar = ("validation/loss", "validation/perplexity", "validation/bits_per_byte")
    type: Literal["causal_lm"] = "causal_lm"
    prompt: Template | None = None
    """Template of the text before the response; None trains on the whole text (`response`)."""
    response: Template | None = None
    messages: str | None = None
    """Column with a list of {role, content}; every assistant turn is supervised."""
    use_chat_template: bool = False
    """Wrap prompt and response as user and assistant turns of the tokenizer's chat template."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.response is None) == (self.messages is None):
            raise ValueError("give either `response` (with or without `prompt`) or `messages`")
        if self.messages is not None and (self.prompt is not None or self.use_chat_template):
            raise ValueError("`messages` always uses the chat template and takes no `prompt`")
        if self.use_chat_template and self.prompt is None:
            raise ValueError("use_chat_template needs a `prompt` for the user turn")
        return self


class SequenceClassificationSpec(Section):
    METRICS: ClassVar = ("validation/loss", "validation/accuracy", "validation/macro_f1")
    type: Literal["sequence_classification"]
    text: Template
    """Template of the (first) text, e.g. `{sentence}`."""
    text_pair: Template | None = None
    label: str = Field(min_length=1)
    """Column with the class: integers or names; the classes are those of the training rows."""


TaskSpec = Annotated[CausalLMSpec | SequenceClassificationSpec, Field(discriminator="type")]


class Source(Section):
    """Rows: a local file, or one split of a Hub data set, or `demo`."""

    path: str = Field(min_length=1)
    """Local .json, .jsonl, .csv or .parquet file; otherwise a Hub id."""
    name: str | None = None
    """Configuration of the Hub data set."""
    revision: str | None = None
    split: str | None = None
    """Split of the Hub data set; by default the one named like the field (train, ...)."""

    @property
    def is_file(self) -> bool:
        return Path(self.path).suffix in LOCAL_SUFFIXES

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


class DataSpec(Section):
    train: AnySource
    validation: Validation = 0.1
    """Source, or the share of the training rows that is held out (before any subset)."""
    test: AnySource | None = None
    """Read once, for the winner, by `export`."""
    max_length: Tokens = 512
    """Tokens; longer examples are cut on the right."""
    subset: ShareOrCount | None = None
    """Share or number of training rows; smaller subsets of one seed lie inside larger ones."""
    validation_subset: ShareOrCount | None = None
    seed: Seed = 0
    """Of the held-out rows and the subsets; apart from the trial's seed, so trials share them."""
