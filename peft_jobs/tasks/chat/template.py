"""A chat template: the tokenizer's own, one of its several, or one that the task brings.

A template that prints today's date prints that of one fixed day: tokens do not depend on when they
are made.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peft_jobs.errors import SpecError
from peft_jobs.spec.mistakes import suggest
from peft_jobs.tasks.chat.conversation import Message
from peft_jobs.tasks.chat.written_numbers import WrittenNumbers

OF_TEMPLATES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    RecursionError,
)
"""What a template may run into: its own errors, and Python's in its expressions."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NAMED = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "zephyr": (
        "{{ bos_token | default('') }}{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
}
"""Templates for bases without one: `chatml` for those that know its tokens, `zephyr` closes a turn
with the eos that every base has."""
TODAY = datetime(2024, 7, 26)
"""The day of all conversations: the one that Llama's templates print where there is no clock."""
_CLOCK = "strftime_now"
_CODES = ("-d", "-m", "-j", "-H", "-I", "-M", "-S", *"aAbBcdDeFfGHhIjklmMpPrRSTuUVwWxXyYzZ%")
_REPLACE = [f"replace('%{code}', '{TODAY:%{code}}')" for code in _CODES]
_FIXED_CLOCK = (
    f"{{% macro {_CLOCK}(format) %}}{{{{ format | {' | '.join(_REPLACE)} }}}}{{% endmacro %}}\n"
)
"""Written before a template, hides the clock that transformers gives it; prints nothing itself."""


def template_of(tokenizer: PreTrainedTokenizerBase, given: str | None) -> Any:
    """The template that `task.chat_template` means, as a tokenizer holds it: a text, or several by
    name; None if the tokenizer has none and none is given. Raises SpecError for an unknown name."""
    own: Any = tokenizer.chat_template
    if given is None:
        return own
    named = {**NAMED, **(own if isinstance(own, dict) else {})}
    if "{" not in given and given not in named:
        raise SpecError(
            f"task.chat_template must be a name, a .jinja file or the text of a template, got "
            f"{given!r}{suggest(given, named)}"
        )
    return named.get(given, given)


@dataclass(frozen=True)
class ChatTemplate:
    """A template, with the tools of one row."""

    tokenizer: PreTrainedTokenizerBase
    source: str
    tools: Sequence[Message] | None = None
    as_parts: bool = False
    """Whether content is given as a list of parts: templates of vision models drop plain text."""
    knows_developer: bool = True
    """Whether the role developer comes through; it is OpenAI's newer word for system."""
    always_prompts: bool = False
    """Whether the prompt to answer is written unasked, or never: both are the same to it."""

    @classmethod
    def find(
        cls, tokenizer: PreTrainedTokenizerBase, own: Any, tools: Sequence[Message] | None = None
    ) -> "ChatTemplate":
        """The template, of those that `template_of` gives, for a conversation with these tools."""
        if isinstance(own, dict):
            own = own.get("tool_use" if tools is not None and "tool_use" in own else "default")
        if not isinstance(own, str):
            raise SpecError("task.chat_template: the tokenizer has several, name one of them")
        found = cls(tokenizer, own, tools)
        found = replace(found, as_parts=not found._prints_text())
        return replace(
            found,
            knows_developer=found._prints_developer(),
            always_prompts=found._prompts_alike(),
        )

    @property
    def is_marked(self) -> bool:
        """Whether it says itself what the assistant wrote."""
        return _GENERATION.search(self.source) is not None

    def mentions(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    @cached_property
    def _text(self) -> str:
        return _FIXED_CLOCK + self.source if _CLOCK in self.source else self.source

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation, as `apply_chat_template` renders it."""
        return self.marked(messages, add_generation_prompt)[0]

    def marked(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the first and last + 1 character of each part between generation marks."""
        numbers = WrittenNumbers(among=(messages, self.tools))
        given = [self._in_form(numbers.stand_ins(message)) for message in messages]
        special: Any = self.tokenizer.special_tokens_map
        found: Any = render_jinja_template(
            [given],
            tools=numbers.stand_ins(self.tools) if self.tools else None,
            chat_template=self._text,
            return_assistant_tokens_mask=self.is_marked,
            add_generation_prompt=add_generation_prompt,
            **special,
        )
        texts, marks = found
        return numbers.written(str(texts[0]), [(a, b) for a, b in (marks[0] if marks else [])])

    def _in_form(self, message: Message) -> Message:
        developer = message["role"] == "developer" and not self.knows_developer
        found = {**message, "role": "system"} if developer else message
        if not self.as_parts:
            return found
        return {**found, "content": [{"type": "text", "text": message["content"]}]}

    def _prints_text(self) -> bool:
        """Whether content that is a text comes through, or would not in parts either."""
        return self._prints("user") or not replace(self, as_parts=True)._prints("user")

    def _prints_developer(self) -> bool:
        return self.mentions("developer") and self._prints("developer")

    def _prompts_alike(self) -> bool:
        question = [{"role": "user", "content": "first"}]
        try:
            return self.render(question) == self.render(question, add_generation_prompt=True)
        except OF_TEMPLATES:
            return False

    def _prints(self, role: str) -> bool:
        asked = {"role": role, "content": "first"}
        others = [] if role == "user" else [{"role": "user", "content": "second"}]
        try:
            printed = self.render([asked, *others])
            return "first" in printed.lower() and "'type'" not in printed
        except TemplateSyntaxError as error:
            text = f"task.chat_template: line {error.lineno} of the template: {error.message}"
            raise SpecError(text) from error
        except OF_TEMPLATES:
            return False
