"""TASKS: what a trial can learn, by the spec's `task.type`."""

from typing import Any

from peft_jobs.tasks._base import IGNORED, Batch, Encoder, Example, Row, Score, Task
from peft_jobs.tasks.causal_lm import CausalLM
from peft_jobs.tasks.sequence_classification import SequenceClassification

TASKS: dict[str, Task[Any]] = {
    "causal_lm": CausalLM(),
    "sequence_classification": SequenceClassification(),
}

__all__ = ["IGNORED", "TASKS", "Batch", "Encoder", "Example", "Row", "Score", "Task"]
