"""Conversations through a chat template; every assistant turn is supervised, and nothing else.

conversation   the messages of a row, in the one form that templates know
template       a chat template: the tokenizer's, or one of the task's own
written_numbers   numbers as a data set writes them, through a template
signs          where in a rendered conversation messages end
tails          what a template writes behind a part of a conversation
headers        where in it the header of an answer is
checks         what a template must not do to a conversation
turns          the part of a rendered conversation that each assistant turn wrote
examples       from a row to tokens and labels
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks

from peft_jobs.tasks.chat.conversation import mistake
from peft_jobs.tasks.chat.examples import encoder
from peft_jobs.tasks.chat.template import template_of

__all__ = ["encoder", "mistake", "template_of"]
