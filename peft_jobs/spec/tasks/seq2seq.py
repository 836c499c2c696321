"""A target text from a source text, by an encoder and a decoder."""

from typing import Literal

from peft_jobs.spec.fields import Template, Tokens
from peft_jobs.spec.tasks.task import TEXT_METRICS, TaskSection


class Seq2SeqSpec(TaskSection):
    """A target text from a source text, with an encoder and a decoder (T5, BART, NLLB, ...)."""

    METRICS = TEXT_METRICS
    AUTO_CLASS = "AutoModelForSeq2SeqLM"
    HAS_HEAD = False
    STARTER = "start-seq2seq.yaml"
    LATER = ("source_language", "target_language")

    type: Literal["seq2seq"]
    source: Template
    target: Template
    max_target_length: Tokens = 128
    """Tokens, those that the tokenizer puts around a target among them; longer targets are cut on
    the right as the tokenizer cuts them."""
    source_language: str | None = None
    """For models that translate between languages, by the tokenizer's own codes: `eng_Latn` (NLLB),
    `en_XX` (mBART), `en` (M2M100); by default the one that the tokenizer was saved with."""
    target_language: str | None = None
    """Likewise that of the targets."""

    @property
    def generates(self) -> bool:
        return True
