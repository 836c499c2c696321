"""TASKS: what a trial can learn, by the spec's `task.type`.

task                      Task, the protocol; padding and masks that tasks share
causal_lm                 next-token prediction on a response or a text
chat                      conversations through a chat template
sequence_classification   one class, any number of classes, or a number, per text or pair of texts
regression                loss and metrics of numbers that are predicted
token_classification      a tag for each word of a sentence
question_answering        the span of a context that answers a question
seq2seq                   a target text from a source text, by an encoder and a decoder
supervised                cross entropy of supervised positions alone, in chunks
answers                   answers in a context, as a row gives them and as tokens of a window
squad                     exact match and F1 of answers, as SQuAD's script computes them
label_values              what a cell of a label column says, typed or as text
spans                     spans in a sequence of tags
tag_schemes               what the names of a tag set mean: BIO, IOBES, BILOU, BMES and others
tokenizer_pieces          what a tokenizer puts before, between and after tokens
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks

from typing import Any

from peft_jobs.tasks.causal_lm import CausalLM
from peft_jobs.tasks.question_answering import QuestionAnswering
from peft_jobs.tasks.seq2seq import Seq2Seq
from peft_jobs.tasks.sequence_classification import SequenceClassification
from peft_jobs.tasks.task import IGNORED, Batch, Encoder, Example, Row, Score, Task
from peft_jobs.tasks.token_classification import TokenClassification

TASKS: dict[str, Task[Any]] = {
    "causal_lm": CausalLM(),
    "sequence_classification": SequenceClassification(),
    "token_classification": TokenClassification(),
    "question_answering": QuestionAnswering(),
    "seq2seq": Seq2Seq(),
}

__all__ = ["IGNORED", "TASKS", "Batch", "Encoder", "Example", "Row", "Score", "Task"]
