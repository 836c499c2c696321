"""The part of a rendered conversation that each assistant turn wrote.

A template with `{% generation %}` marks says it itself. For others each message gets a sign at its
end, a text that occurs nowhere else: it tells where in the whole conversation a message ends,
whatever the template does before and after. What the assistant wrote begins behind what the
template adds as the prompt to answer, and ends with what it adds to a turn when nothing follows, as
far as the whole conversation has the same there: a template may write things only at the end (eos),
or only in the last turn (thoughts).

A turn ends in a special token, at which generation stops: the one behind it, even if it opens the
next message (GLM); where a template writes none behind the last turn, it is added.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft_jobs.errors import DataError
from peft_jobs.tasks.chat.checks import check_dropped, check_turns
from peft_jobs.tasks.chat.conversation import Conversation, Message
from peft_jobs.tasks.chat.signs import MARKER, OPEN, SIGN, Span, end_of, sign, signed, talks_of
from peft_jobs.tasks.chat.template import OF_TEMPLATES, ChatTemplate

_NEXT = {"role": "user", "content": "."}


@dataclass(frozen=True)
class Written:
    """The text of a conversation, and the spans of it that are supervised, in their order."""

    text: str
    spans: list[Span]


def written_turns(
    template: ChatTemplate, conversation: Conversation, special: re.Pattern[str]
) -> Written:
    """What the learned turns of a conversation wrote; `special` matches special tokens.

    Raises DataError, naming the message, for one that the template drops, whose part cannot be
    found, or that ends in no special token.
    """
    messages = conversation.messages
    text, marks = template.marked(messages)
    if OPEN in text:
        raise DataError(f"the conversation has the character U+{ord(OPEN):X}, which is kept free")
    given = [signed(message, number) for number, message in enumerate(messages)]
    signed_text, signed_marks = template.marked(given)
    if SIGN.sub("", signed_text) != text:  # the template looks at the words: only prefixes tell
        given, signed_text, signed_marks = messages, text, marks
    check_dropped(messages, given, signed_text)
    turns = _Turns(template, given, signed_text, special)
    spans = turns.of_marks(signed_marks) if template.is_marked else turns.of_signs()
    check_turns(conversation, turns.text, spans, special)
    learned = [span for turn in spans if conversation.learned[turn] for span in spans[turn]]
    plain = [(_plain(turns.text, start), _plain(turns.text, end)) for start, end in sorted(learned)]
    return Written(SIGN.sub("", turns.text), plain)


def _plain(text: str, position: int) -> int:
    """A position in a text with signs, in the text without."""
    return len(SIGN.sub("", text[:position]))


class _Turns:
    """The signed text of a conversation, and where in it each turn is."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        text: str,
        special: re.Pattern[str],
    ) -> None:
        self.template, self.messages, self.text, self.special = template, messages, text, special
        self.atom = re.compile(f"{special.pattern}|{MARKER}")
        self.ends = re.compile(rf"{special.pattern}|\n")

    def of_marks(self, marks: Sequence[Span]) -> dict[int, list[Span]]:
        """The marked spans of each turn: that of the sign in it, or else of the last one before."""
        found: dict[int, list[Span]] = {}
        ends = {end_of(self.text, number): number for number in range(len(self.messages))}
        talks = talks_of(self.messages)
        turn = talks[0]
        for start, end in marks:
            inside = [n for place, n in ends.items() if place and start < place <= end]
            turn = next((n for n in inside if n in talks), turn)
            found.setdefault(turn, []).append((start, end))
        return found

    def of_signs(self) -> dict[int, list[Span]]:
        found = {turn: self._span(turn) for turn in talks_of(self.messages)}
        return {turn: [self._ended(turn, *span)] for turn, span in found.items()}

    def _span(self, turn: int) -> Span:
        start, end = self._start(turn), self._stop(turn)
        if start is None or end is None or end <= start:
            raise DataError(
                f"the chat template rewrites message {turn + 1}, so that its tokens cannot be "
                "found: give task.chat_template one with {% generation %} marks"
            )
        return start, end

    def _start(self, turn: int) -> int | None:
        """Behind the prompt to answer; never behind the first word, but for what is prompted."""
        end = end_of(self.text, turn)
        before = self.messages[:turn] or [signed(_NEXT, len(self.messages))]
        prompt = self._render(before, prompted=True)
        if prompt is None:
            return None
        if turn and self.text.startswith(prompt):
            return len(prompt) + self._header_at(len(prompt))
        if end is None:
            return None
        end -= len(sign(turn))
        words = SIGN.sub("", self.messages[turn]["content"]).rstrip()
        first = end - len(words) if self.text.endswith(words, 0, end) else end
        if turn == 0:
            return self._behind_header(prompt[end_of(prompt, len(self.messages)) or 0 :], first)
        anchor = next((n for n in reversed(range(turn)) if end_of(self.text, n)), None)
        if anchor is None or (known := end_of(prompt, anchor)) is None:
            return None
        return self._behind(end_of(self.text, anchor) or 0, prompt[known:], first)

    def _behind(self, place: int, prompt: str, first: int) -> int:
        """Behind the part of `prompt` that stands at `place`: all of it, or else its header, where
        it goes on otherwise (with thoughts)."""
        end = place + self._common(self.text[place:], prompt)
        if end == place + len(prompt):
            return end
        lines = [match.end() for match in self.ends.finditer(self.text, place, end)]
        return min(lines[-1] if lines else end, first)

    def _header_at(self, start: int) -> int:
        """Characters of a header of the assistant's that stands where the prompt has none, as
        Gemma 4 has it behind what a tool says."""
        if not self.atom.match(self.text, start):
            return 0
        prompt = self._render([_NEXT], prompted=True) or ""
        headers = (prompt[match.start() :] for match in self.atom.finditer(prompt))
        return max((len(h) for h in headers if self.text.startswith(h, start)), default=0)

    def _behind_header(self, prompt: str, first: int) -> int:
        """Where a conversation that the assistant opens has what else stands behind a question."""
        options = [
            (self._common(self.text[place.start() : first], prompt[match.start() :]), place, match)
            for place in self.atom.finditer(self.text, 0, first)
            for match in self.atom.finditer(prompt)
        ]
        best = max(options, key=lambda option: (option[0], option[1].start()), default=None)
        if best is None or best[0] == 0:
            return first
        _, place, match = best
        return self._behind(place.start(), prompt[match.start() :], first)

    def _stop(self, turn: int) -> int | None:
        """Behind what closes the turn, when nothing follows and here."""
        alone = self._render(self.messages[: turn + 1])
        if alone is not None and self.text.startswith(alone):
            return len(alone)
        if alone is None:  # some templates want a question first
            alone = self._render([_NEXT, *self.messages[: turn + 1]]) or ""
        here, known = end_of(self.text, turn), end_of(alone, turn)
        if here is None or known is None:
            return None
        return here + self._common(self.text[here:], alone[known:])

    def _ended(self, turn: int, start: int, end: int) -> Span:
        """The span, with the special token behind it if there is none at its end."""
        here = end_of(self.text, turn) or start
        if self.special.search(self.text, here, end):
            return start, end
        closing = re.compile(rf"\s*(?:{self.special.pattern})")
        if found := closing.match(self.text, end):
            return start, found.end()
        followed = self._render([*self.messages[: turn + 1], _NEXT])
        known = end_of(followed or "", turn)
        if (
            turn == len(self.messages) - 1
            and followed is not None
            and known is not None
            and (found := closing.match(followed, known))
        ):
            self.text = self.text[:end].rstrip("\n") + found.group()
            return start, len(self.text)
        return start, end

    def _common(self, text: str, other: str) -> int:
        """Characters that both begin with, no special token cut."""
        count = next(
            (n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
            min(len(text), len(other)),
        )
        if count == len(other):
            return count
        for match in self.atom.finditer(text[: count + 64]):
            if match.start() < count < match.end():
                return match.start()
        return count

    def _render(self, messages: Sequence[Message], *, prompted: bool = False) -> str | None:
        """None for a part of the conversation that the template does not take alone."""
        try:
            return self.template.render(messages, add_generation_prompt=prompted)
        except OF_TEMPLATES:
            return None
