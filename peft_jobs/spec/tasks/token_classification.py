"""A tag for each word of a sentence."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from peft_jobs.spec.tasks.task import Column, Direction, TaskSection


class TokenClassificationSpec(TaskSection):
    """A tag for each word. `f1` is that of spans, as seqeval's default mode and CoNLL's scorer have
    them, in any common scheme (BIO, IOB1, IOE, IOBES, BILOU, BMES, BMEWO; `B-PER` or `PER-B`).
    `accuracy` and `macro_f1` are of words. Tags without a scheme are a span each."""

    METRICS: ClassVar[Mapping[str, Direction]] = {
        "validation/loss": "minimize",
        "validation/accuracy": "maximize",
        "validation/macro_f1": "maximize",
        "validation/precision": "maximize",
        "validation/recall": "maximize",
        "validation/f1": "maximize",
    }
    AUTO_CLASS = "AutoModelForTokenClassification"
    HAS_HEAD = True
    STARTER = "start-token-classification.yaml"

    type: Literal["token_classification"]
    tokens: Column = "tokens"
    """Column with a list of words."""
    tags: Column = "tags"
    """Column with a list of as many tags: names, or numbers; -100 or -1 where there is none."""
    tag_names: tuple[Column, ...] = ()
    """Names of the tags 0, 1, ...; without them, tags that are numbers must have names in the data
    set (a Hub id's ClassLabel), or in a base that has a tag for each number."""
