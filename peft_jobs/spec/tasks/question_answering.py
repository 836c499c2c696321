"""The span of a context that answers a question."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from peft_jobs.spec.fields import Template, Tokens
from peft_jobs.spec.tasks.task import Column, Direction, TaskSection


class QuestionAnsweringSpec(TaskSection):
    """The span of a context that answers a question, as in SQuAD."""

    METRICS: ClassVar[Mapping[str, Direction]] = {
        "validation/loss": "minimize",
        "validation/exact_match": "maximize",
        "validation/f1": "maximize",
    }
    AUTO_CLASS = "AutoModelForQuestionAnswering"
    HAS_HEAD = True
    NUM_LABELS = 2  # the start and the end of the answer
    STARTER = "start-question-answering.yaml"

    type: Literal["question_answering"]
    question: Template = "{question}"
    context: Column = "context"
    """Column with the text that is searched."""
    answers: Column = "answers"
    """Column with {text: [...], answer_start: [...]}, or a list of {text, answer_start}; start is
    a character of the context. No answer at all means that the context has none."""
    stride: Tokens = 128
    """Tokens that two windows of a long context share."""
    max_answer_tokens: Tokens = 30
