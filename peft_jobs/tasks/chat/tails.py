"""What a template writes behind a part of a conversation: what closes its last message and,
prompted, the header of an answer.

Behind messages of one kind (roles and keys) a template writes the same, unless it counts them. It
is asked for the first two of a kind and for the last; where those differ it is asked for each.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from peft_jobs.tasks.chat.conversation import Message
from peft_jobs.tasks.chat.signs import sign_ends, signed
from peft_jobs.tasks.chat.template import OF_TEMPLATES, ChatTemplate

NEXT: Message = {"role": "user", "content": "."}


class Tails:
    """The tails of the parts of one conversation, whose messages are signed."""

    def __init__(
        self, template: ChatTemplate, messages: Sequence[Message], ends: Mapping[int, int]
    ) -> None:
        self.template, self.messages = template, messages
        self.anchors: list[int | None] = [None]
        """For each number of messages, the last of them whose sign comes through (in `ends`)."""
        for number in range(len(messages)):
            self.anchors.append(number if number in ends else self.anchors[-1])
        self._counts: dict[object, list[int]] = {}
        for count in range(1, len(messages) + 1):
            self._counts.setdefault(self._kind(count), []).append(count)
        self._rendered = cache(self._rendered_behind)
        self.behind_question = cache(self._behind_question)

    def behind(self, count: int, *, prompted: bool = False) -> str | None:
        """What is written behind the sign of the last of the first `count` messages that has one;
        None if there is none, or the template does not take such a part alone."""
        counts = self._counts.get(self._kind(count), [])
        if len(counts) > 3 and counts[1] < count < counts[-1]:
            second, last = (self._rendered(counts[n], prompted) for n in (1, -1))
            if second == last:
                return second
        return self._rendered(count, prompted)

    def followed(self) -> str | None:
        """What is written behind the last sign where a question follows the conversation."""
        text, anchor = self.render([*self.messages, NEXT]), self.anchors[-1]
        end = None if text is None or anchor is None else sign_ends(text).get(anchor)
        return text[end:] if text is not None and end is not None else None

    def render(self, messages: Sequence[Message], *, prompted: bool = False) -> str | None:
        """None for a part of the conversation that the template does not take alone."""
        try:
            return self.template.render(messages, add_generation_prompt=prompted)
        except OF_TEMPLATES:
            return None

    def _behind_question(self, prompted: bool) -> str | None:
        """What is written behind a question that stands alone."""
        text = self.render([signed(NEXT, 0)], prompted=prompted)
        return None if text is None else text[sign_ends(text).get(0, 0) :]

    def _rendered_behind(self, count: int, prompted: bool) -> str | None:
        part, anchor = self.messages[:count], self.anchors[count]
        if anchor is None:
            return None
        text = self.render(part, prompted=prompted)
        if text is None:  # some templates want a question first
            text = self.render([NEXT, *part], prompted=prompted) or ""
        end = sign_ends(text).get(anchor)
        return None if end is None else text[end:]

    def _kind(self, count: int) -> object:
        first = max(0, (self.anchors[count] or 0) - 1)
        return tuple(
            (message["role"], *sorted(key for key, value in message.items() if value))
            for message in self.messages[first:count]
        )
