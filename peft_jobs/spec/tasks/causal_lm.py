"""Next-token prediction: on a response to a prompt, on conversations, or on plain text."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from peft_jobs.spec.fields import Instruction, Template
from peft_jobs.spec.tasks.task import TEXT_METRICS, TaskSection


def _read_file(given: str) -> str:
    """The text of a .jinja file; any other value as it is."""
    if not given.endswith((".jinja", ".jinja2")):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{given} cannot be read: {error}") from error


ChatTemplate = Annotated[str, AfterValidator(_read_file)]


class CausalLMSpec(TaskSection):
    """Next-token prediction on the response; prompt tokens do not count in the loss."""

    METRICS = TEXT_METRICS
    AUTO_CLASS = "AutoModelForCausalLM"
    HAS_HEAD = False
    STARTER = "start-causal-lm.yaml"
    LATER = ("chat_template",)

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
    chat_template: ChatTemplate | None = None
    """In place of the tokenizer's chat template, and saved with the adapter: a name (one of the
    tokenizer's own, or chatml, zephyr), a .jinja file, or the text of a template."""
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
        if self.chat_template is not None and self.messages is None and not self.use_chat_template:
            raise ValueError("`chat_template` goes with `messages` or `use_chat_template`")
        if self.tools is not None and self.messages is None:
            raise ValueError("`tools` go with `messages`")
        return self
