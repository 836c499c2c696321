"""Batches of a given length, as a task's own `collate` makes them, of rows that nobody has."""

from peft_jobs.host.prediction import Lengths
from peft_jobs.spec import SequenceClassificationSpec, TaskSpec
from peft_jobs.tasks import IGNORED, Example

_TOKEN = 1
SHORT = 8
"""Times as long as a short row is the longest."""


def shortened(lengths: Lengths) -> Lengths:
    """Of a batch of short rows."""
    tokens, supervised = (max(2, n // SHORT) for n in (lengths.tokens, lengths.supervised))
    return lengths.model_copy(update={"tokens": tokens, "supervised": min(tokens, supervised)})


def example_of(task: TaskSpec, lengths: Lengths) -> Example:
    """One row, with as many tokens as it may have."""
    tokens, supervised = lengths.tokens, min(lengths.supervised, lengths.tokens)
    example: Example = {"input_ids": [_TOKEN] * tokens}
    if isinstance(task, SequenceClassificationSpec):
        if task.labels is not None:
            return example | {"label": [0] * lengths.num_labels}
        return example | {"label": 0 if task.number_column is None else 0.0}
    if task.type == "question_answering":
        places = {name: [0] * tokens for name in ("begins", "ends")}
        numbers = dict.fromkeys(("start", "end", "row", "longest"), 0)
        return example | places | numbers | {"texts": "[]"}
    if task.type == "token_classification":
        return example | {"labels": [0] * tokens}
    if task.type == "seq2seq":
        return example | {"labels": [_TOKEN] * lengths.supervised, "num_bytes": 0}
    labels = [IGNORED] * (tokens - supervised) + [_TOKEN] * supervised
    return example | {"labels": labels, "num_bytes": 0}
