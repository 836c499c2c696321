"""The section `task` of a trial: one class per task, told apart by `type`.

task                      TaskSection: what all sections share, and say about their task
causal_lm                 next-token prediction on a response, a conversation or a text
sequence_classification   one class, any number of classes, or a number, per text or pair of texts
token_classification      a tag for each word of a sentence
question_answering        the span of a context that answers a question
seq2seq                   a target text from a source text, by an encoder and a decoder

Templates name columns in braces (see `templates`), each at least one, but for a prompt that all
rows share; fields that end in no template are names of columns.

A new task is a file here, a file in `peft_jobs/tasks`, and an entry in TASK_SPECS and TASKS; its
`STARTER` is an example that lies in `sweeps/examples`.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from peft_jobs.spec.tasks.causal_lm import CausalLMSpec
from peft_jobs.spec.tasks.question_answering import QuestionAnsweringSpec
from peft_jobs.spec.tasks.seq2seq import Seq2SeqSpec
from peft_jobs.spec.tasks.sequence_classification import SequenceClassificationSpec
from peft_jobs.spec.tasks.task import Direction, TaskSection
from peft_jobs.spec.tasks.token_classification import TokenClassificationSpec

__all__ = [
    "TASK_SPECS",
    "CausalLMSpec",
    "Direction",
    "QuestionAnsweringSpec",
    "Seq2SeqSpec",
    "SequenceClassificationSpec",
    "TaskSection",
    "TaskSpec",
    "TokenClassificationSpec",
]

TASK_SPECS: dict[str, type[TaskSection]] = {
    "causal_lm": CausalLMSpec,
    "sequence_classification": SequenceClassificationSpec,
    "token_classification": TokenClassificationSpec,
    "question_answering": QuestionAnsweringSpec,
    "seq2seq": Seq2SeqSpec,
}

if TYPE_CHECKING:
    TaskSpec = TaskSection
else:
    TaskSpec = Annotated[reduce(or_, TASK_SPECS.values()), Field(discriminator="type")]
