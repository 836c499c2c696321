"""A target text from a source text, by an encoder and a decoder."""

from typing import Literal

from peft_jobs.spec.fields import Template, Tokens
from peft_jobs.spec.tasks.task import TEXT_METRICS, TaskSection


class Seq2SeqSpec(TaskSection):
    """A target text from a source text, with an encoder and a decoder (the T5 family)."""

    METRICS = TEXT_METRICS
    AUTO_CLASS = "AutoModelForSeq2SeqLM"
    HAS_HEAD = False
    STARTER = "start-seq2seq.yaml"

    type: Literal["seq2seq"]
    source: Template
    target: Template
    max_target_length: Tokens = 128
    """Tokens; longer targets are cut on the right."""

    @property
    def generates(self) -> bool:
        return True
