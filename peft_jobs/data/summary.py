"""What is told of a trial's data before anything is trained; `survey` makes it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, pstdev
from typing import Any

from peft_jobs.data.example_text import ExampleText
from peft_jobs.data.leaks import Leak
from peft_jobs.data.token_lengths import Lengths


@dataclass(frozen=True)
class ClassCount:
    name: str
    count: int
    """Rows, or for tags words, with it."""
    share: float
    """Of the rows or words that have a label; of several classes at once they sum up to another
    number than 1."""


@dataclass(frozen=True)
class Targets:
    """The numbers that a regression predicts."""

    minimum: float
    median: float
    mean: float
    maximum: float
    sd: float
    """Root of the mean squared difference to the mean: its square is the error of who always says
    the mean."""

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Targets | None":
        """None for no numbers."""
        if not numbers:
            return None
        mean, sd = fmean(numbers), pstdev(numbers)
        return cls(min(numbers), median(numbers), mean, max(numbers), sd)


@dataclass(frozen=True)
class SplitSummary:
    """One split; from `num_measured` on, what is said is of the rows that were encoded."""

    source: str
    """File, or Hub id and split."""
    format: str
    """One of FILE_FORMATS' values, or `hub`."""
    num_source_rows: int
    num_rows: int
    """Of this side of a hold-out, in the subset."""
    held_out: float | None
    """The share that is held out, on either side; None if the split has its own source."""
    left_out: dict[str, list[int]]
    """Numbers, from 1, of rows that data.on_bad_row: drop leaves out, by what is wrong."""
    sampled: bool
    """Whether the rows that are encoded are a sample, drawn by `data.seed`, of those that can be
    used."""
    num_measured: int = 0
    """Rows that were encoded."""
    num_examples: int = 0
    num_tokens: int = 0
    """Of examples as they are trained on; of seq2seq with the targets."""
    num_supervised_tokens: int | None = None
    """None for tasks that supervise rows."""
    unsupervised: list[int] = field(default_factory=list)
    """Numbers of rows that have no supervised token within the limit, and are left out."""
    classes: list[ClassCount] = field(default_factory=list)
    """In the order of the head's outputs."""
    targets: Targets | None = None
    """None for tasks that predict no number."""
    lengths: Lengths | None = None
    target_lengths: Lengths | None = None


@dataclass(frozen=True)
class DataSummary:
    """What the rows of a trial come to."""

    splits: dict[str, SplitSummary]
    leaks: list[Leak]
    examples: list[ExampleText]
    """The first training rows, as they are trained on."""
    warnings: list[str]
    mistakes: list[str]
    """For which nothing would be trained."""
    unread: list[str]
    """Why sources cannot be read here: mistakes, unless another machine has them."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; keys are the names of the fields."""
        return asdict(self)
