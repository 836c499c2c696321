"""The section `task` of a TrialSpec: what is learned, a union on `type`.

Templates name columns in braces (see `templates`), each at least one, but for a prompt that
all rows share; fields that end in no template are names of columns. METRICS are the names that an
evaluation records, apart from those of `evaluation.generation` and `evaluation.metrics`.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peft_jobs.spec.fields import Instruction, Section, Template, Tokens

Column = Annotated[str, Field(min_length=1)]
_TEXT_METRICS = ("validation/loss", "validation/perplexity", "validation/bits_per_byte")


class CausalLMSpec(Section):
    """Next-token prediction on the response; prompt tokens do not count in the loss."""

    METRICS: ClassVar = _TEXT_METRICS
    type: Literal["causal_lm"] = "causal_lm"
    prompt: Instruction | None = None
    """Template of the text before the response; None trains on the whole text (`response`)."""
    response: Template | None = None
    text: Template | None = None
    """Template of a plain text, e.g. `{text}`: every token counts, and what goes beyond max_length
    goes on in further examples."""
    messages: str | None = None
    """Column with a list of {role, content}; every assistant turn is supervised."""
    tools: str | None = None
    """Column with the tools that the chat template is given: a list, or its JSON text."""
    use_chat_template: bool = False
    """Wrap prompt and response as user and assistant turns of the tokenizer's chat template."""

    @property
    def generates(self) -> bool:
        """Whether there is a prompt to answer."""
        return self.prompt is not None or self.messages is not None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("response", "messages", "text") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give either `response` (with or without `prompt`) or `messages`, or `text`"
            )
        if self.messages is not None and (self.prompt is not None or self.use_chat_template):
            raise ValueError("`messages` always uses the chat template and takes no `prompt`")
        if self.text is not None and self.prompt is not None:
            raise ValueError("`text` is supervised as a whole and takes no `prompt`")
        if self.use_chat_template and self.prompt is None:
            raise ValueError("use_chat_template needs a `prompt` for the user turn")
        if self.tools is not None and self.messages is None:
            raise ValueError("`tools` go with `messages`")
        return self


class SequenceClassificationSpec(Section):
    """One class (`label`) or any number of classes (`labels`) per text or pair of texts."""

    type: Literal["sequence_classification"]
    text: Template
    """Template of the (first) text, e.g. `{sentence}`."""
    text_pair: Template | None = None
    label: Column | None = None
    """Column with the class: integers or names; the classes are those of the training rows."""
    labels: Column | tuple[Column, ...] | None = None
    """Several classes may hold at once: a column with a list of them, or a column of 0 and 1 (or
    true and false) for each."""

    @property
    def METRICS(self) -> tuple[str, ...]:
        found = ("validation/loss", "validation/accuracy", "validation/macro_f1")
        return found if self.labels is None else (*found, "validation/micro_f1")

    @property
    def generates(self) -> bool:
        return False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give either `label` (one class) or `labels` (any number of them)")
        if isinstance(self.labels, tuple) and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("labels must name at least two columns, each once")
        return self


class TokenClassificationSpec(Section):
    """A tag for each word; spans are read from BIO, IOBES or BILOU tags."""

    METRICS: ClassVar = (
        *("validation/loss", "validation/accuracy"),
        *("validation/precision", "validation/recall", "validation/f1"),
    )
    type: Literal["token_classification"]
    tokens: Column = "tokens"
    """Column with a list of words."""
    tags: Column = "tags"
    """Column with a list of as many tags: names, or numbers."""
    tag_names: tuple[Column, ...] = ()
    """Names of the tags 0, 1, ...; without them, tags that are numbers must have names in the data
    set (a Hub id's ClassLabel)."""

    @property
    def generates(self) -> bool:
        return False


class QuestionAnsweringSpec(Section):
    """The span of a context that answers a question, as in SQuAD."""

    METRICS: ClassVar = ("validation/loss", "validation/exact_match", "validation/f1")
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

    @property
    def generates(self) -> bool:
        return False


class Seq2SeqSpec(Section):
    """A target text from a source text, with an encoder and a decoder (the T5 family)."""

    METRICS: ClassVar = _TEXT_METRICS
    type: Literal["seq2seq"]
    source: Template
    target: Template
    max_target_length: Tokens = 128
    """Tokens; longer targets are cut on the right."""

    @property
    def generates(self) -> bool:
        return True


TaskSpec = Annotated[
    CausalLMSpec
    | SequenceClassificationSpec
    | TokenClassificationSpec
    | QuestionAnsweringSpec
    | Seq2SeqSpec,
    Field(discriminator="type"),
]
