"""A target text from a source text, by an encoder and a decoder."""

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from peft_jobs.spec.fields import Template, Tokens
from peft_jobs.spec.tasks.task import TEXT_METRICS, TaskSection


class Seq2SeqSpec(TaskSection):
    """A target text from a source text, with an encoder and a decoder (T5, BART, NLLB, ...)."""

    METRICS = TEXT_METRICS
    AUTO_CLASS = "AutoModelForSeq2SeqLM"
    HAS_HEAD = False
    STARTER = "start-seq2seq.yaml"

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

    @model_serializer(mode="wrap")
    def _languages_if_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without languages a section is what it was before there were any."""
        found: dict[str, Any] = serialize(self)
        languages = ("source_language", "target_language")
        return {name: value for name, value in found.items() if value or name not in languages}
