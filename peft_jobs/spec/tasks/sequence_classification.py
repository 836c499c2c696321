"""One class, or any number of classes, for each text or pair of texts."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from peft_jobs.spec.fields import Template
from peft_jobs.spec.tasks.task import Column, Direction, TaskSection


class SequenceClassificationSpec(TaskSection):
    """One class (`label`) or any number of classes (`labels`) per text or pair of texts."""

    METRICS: ClassVar[Mapping[str, Direction]] = {
        "validation/loss": "minimize",
        "validation/accuracy": "maximize",
        "validation/macro_f1": "maximize",
        "validation/micro_f1": "maximize",
    }
    AUTO_CLASS = "AutoModelForSequenceClassification"
    HAS_HEAD = True
    STARTER = "start-sequence-classification.yaml"
    PACKS = True

    type: Literal["sequence_classification"]
    text: Template
    """Template of the (first) text, e.g. `{sentence}`."""
    text_pair: Template | None = None
    label: Column | None = None
    """Column with the class: integers or names; the classes are those of the training rows."""
    labels: Column | tuple[Column, ...] | None = None
    """Several classes may hold at once: a column with a list of them, or a column of 0 and 1 (or
    true and false) for each."""

    @property
    def metrics(self) -> tuple[str, ...]:
        several = self.labels is not None
        return tuple(name for name in self.METRICS if several or name != "validation/micro_f1")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give either `label` (one class) or `labels` (any number of them)")
        if isinstance(self.labels, tuple) and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("labels must name at least two columns, each once")
        return self
