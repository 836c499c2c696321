"""TASKS: what a trial can learn, by the spec's `task.type`."""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks

from typing import Any

from peft_jobs.tasks._base import IGNORED, Batch, Encoder, Example, Row, Score, Task
from peft_jobs.tasks.causal_lm import CausalLM
from peft_jobs.tasks.question_answering import QuestionAnswering
from peft_jobs.tasks.seq2seq import Seq2Seq
from peft_jobs.tasks.sequence_classification import SequenceClassification
from peft_jobs.tasks.token_classification import TokenClassification

TASKS: dict[str, Task[Any]] = {
    "causal_lm": CausalLM(),
    "sequence_classification": SequenceClassification(),
    "token_classification": TokenClassification(),
    "question_answering": QuestionAnswering(),
    "seq2seq": Seq2Seq(),
}

__all__ = ["IGNORED", "TASKS", "Batch", "Encoder", "Example", "Row", "Score", "Task"]
