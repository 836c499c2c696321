"""One class, any number of classes, or a number, for each text or pair of texts."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from peft_jobs.spec.fields import Template
from peft_jobs.spec.tasks.task import Column, Direction, TaskSection

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_OF_CLASSES = ("validation/loss", "validation/accuracy", "validation/macro_f1")
_OF_SETS = (*_OF_CLASSES, "validation/micro_f1")
_OF_NUMBERS = ("validation/loss", "validation/mse", "validation/pearson", "validation/spearman")


class SequenceClassificationSpec(TaskSection):
    """One class (`label`), any number of classes (`labels`), or a number (`label`, in a regression)
    per text or pair of texts."""

    METRICS: ClassVar[Mapping[str, Direction]] = {
        "validation/loss": "minimize",
        "validation/accuracy": "maximize",
        "validation/macro_f1": "maximize",
        "validation/micro_f1": "maximize",
        "validation/mse": "minimize",
        "validation/pearson": "maximize",
        "validation/spearman": "maximize",
    }
    AUTO_CLASS = "AutoModelForSequenceClassification"
    HAS_HEAD = True
    STARTER = "start-sequence-classification.yaml"
    LATER = ("label_names", "multi_hot", "problem_type")

    type: Literal["sequence_classification"]
    text: Template
    """Template of the (first) text, e.g. `{sentence}`."""
    text_pair: Template | None = None
    label: Column | None = None
    """Column with the class: integers, true and false, or names; the classes are those of the
    training rows. A row without one (null, or -1 as in GLUE's test splits) is refused. With
    `problem_type: regression`, the number that is to be predicted."""
    labels: Column | tuple[Column, ...] | None = None
    """Several classes may hold at once: a column with a list of them, or with a vector of 0 and 1,
    or a column of 0 and 1 (or true and false) for each."""
    label_names: tuple[Column, ...] = ()
    """Names of the classes 0, 1, ... of a column of numbers, of lists of them, or of vectors."""
    multi_hot: bool | None = None
    """Whether the lists in the column `labels` are vectors with a 0 or 1 for each class, and not
    lists of the classes that hold; by default the column tells, or is refused if it cannot."""
    problem_type: ProblemType | None = None
    """As in transformers. `regression` predicts a number: the loss is the mean squared error.
    `single_label_classification` takes numbers with decimals for names of classes."""

    @property
    def metrics(self) -> tuple[str, ...]:
        if self.number_column is not None:
            return _OF_NUMBERS
        return _OF_CLASSES if self.labels is None else _OF_SETS

    @property
    def number_column(self) -> str | None:
        """The column with the number to predict; None where classes are."""
        return self.label if self.problem_type == "regression" else None

    @property
    def num_labels(self) -> int | None:
        return 1 if self.problem_type == "regression" else None

    @property
    def head_problem(self) -> str | None:
        return self.problem_type or (None if self.labels is None else "multi_label_classification")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give either `label` (one class) or `labels` (any number of them)")
        if isinstance(self.labels, tuple) and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("labels must name at least two columns, each once")
        several = self.problem_type == "multi_label_classification"
        if self.problem_type is not None and several != (self.labels is not None):
            raise ValueError(f"problem_type {self.problem_type} needs `label{'s' * several}`")
        if self.multi_hot is not None and not isinstance(self.labels, str):
            raise ValueError("multi_hot is of the lists in a column: give its name as `labels`")
        if not self.label_names:
            return self
        if isinstance(self.labels, tuple) or self.problem_type == "regression":
            raise ValueError("label_names are of classes that a column of the data has as numbers")
        if len(set(self.label_names)) < max(2, len(self.label_names)):
            raise ValueError("label_names must name at least two classes, each once")
        return self
