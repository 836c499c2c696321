"""How long the rows are that trials train on: what a prediction must know of the data."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.host.prediction import Lengths
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import IGNORED


def lengths_of(spec: TrialSpec, data: TokenizedData) -> Lengths:
    """Of the training rows of `data`, tokenized for `spec`; packed rows are taken to be full."""
    num_labels = max(1, len(data.classes)) if spec.task.HAS_HEAD else 2
    tokens = pc.list_value_length(_column(data.train, "input_ids"))
    longest = pc.max(tokens).as_py()
    if spec.data.packing:
        full = max(longest, spec.data.max_length)
        return Lengths.of(full, num_labels)
    supervised = longest
    if spec.task.type == "seq2seq":
        supervised = pc.max(pc.list_value_length(_column(data.train, "labels"))).as_py()
    elif spec.task.type == "causal_lm":
        supervised = max(map(_most_supervised, _column(data.train, "labels").chunks))
    return Lengths(
        tokens=longest,
        supervised=supervised,
        num_labels=num_labels,
        mean_tokens=pc.mean(tokens).as_py(),
    )


def _column(rows: Dataset, name: str) -> pa.ChunkedArray:
    return rows.with_format("arrow")[name]


def _most_supervised(labels: pa.ListArray) -> int:
    """Labels of a row that are not IGNORED, at most."""
    counted = np.concatenate([[0], np.cumsum(labels.flatten().to_numpy() != IGNORED)])
    ends = np.cumsum(pc.list_value_length(labels).to_numpy())
    return int(np.diff(counted[np.concatenate([[0], ends])]).max(initial=0))
