"""The part of a rendered conversation that each assistant turn wrote.

A template with `{% generation %}` marks says it itself. For others each message gets a sign at its
end, a text that occurs nowhere else: it tells where in the whole conversation a message ends,
whatever the template does before and after. What the assistant wrote begins behind what the
template adds as the prompt to answer, and ends with what it adds to a turn when nothing follows, as
far as the whole conversation has the same there: a template may write things only at the end (eos),
only between turns, or only in the last turn (thoughts).

A turn ends in a special token, at which generation stops: the one behind it, even if it opens the
next message (GLM); where a template writes none behind the last turn, it is added.
"""

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from peft_jobs.errors import DataError
from peft_jobs.tasks.chat.checks import check_dropped, check_turns
from peft_jobs.tasks.chat.conversation import Conversation, Message
from peft_jobs.tasks.chat.headers import Headers
from peft_jobs.tasks.chat.signs import OPEN, SIGN, Span, sign, sign_ends, signed, talks_of
from peft_jobs.tasks.chat.tails import Tails
from peft_jobs.tasks.chat.template import OF_TEMPLATES, ChatTemplate


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
    try:
        signed_text, signed_marks = template.marked(given)
    except OF_TEMPLATES:
        signed_text, signed_marks = "", []
    if SIGN.sub("", signed_text) != text:  # the template looks at the words: only prefixes tell
        given, signed_text, signed_marks = messages, text, marks
    check_dropped(messages, given, signed_text)
    turns = _Turns(template, given, signed_text, special)
    spans = turns.of_marks(signed_marks) if template.is_marked else turns.of_signs()
    check_turns(conversation, turns.text, spans, special)
    learned = [span for turn in spans if conversation.learned[turn] for span in spans[turn]]
    return _without_signs(turns.text, sorted(learned))


def _without_signs(text: str, spans: Sequence[Span]) -> Written:
    starts, removed = [], [0]
    for match in SIGN.finditer(text):
        starts.append(match.start())
        removed.append(removed[-1] + len(match.group()))

    def plain(position: int) -> int:
        return position - removed[bisect(starts, position - 1)]

    return Written(SIGN.sub("", text), [(plain(start), plain(end)) for start, end in spans])


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
        self.ends = sign_ends(text)
        self.talks = talks_of(messages)
        self.tails = Tails(template, messages, self.ends)
        self.headers = Headers(text, special)

    def of_marks(self, marks: Sequence[Span]) -> dict[int, list[Span]]:
        """The marked spans of each turn: that of the sign in it, or else of the last one before."""
        found: dict[int, list[Span]] = {}
        turns = self._by_signs(marks) if self.ends else self._by_parts(marks)
        for turn, mark in zip(turns, marks, strict=True):
            found.setdefault(turn, []).append(mark)
        return found

    def _by_signs(self, marks: Sequence[Span]) -> list[int]:
        signs = sorted((self.ends[n], n) for n in self.talks if n in self.ends)
        turns, turn = [], self.talks[0]
        for start, end in marks:
            nearest = bisect(signs, (start, len(self.messages)))
            if nearest < len(signs) and signs[nearest][0] <= end:
                turn = signs[nearest][1]
            turns.append(turn)
        return turns

    def _by_parts(self, marks: Sequence[Span]) -> list[int]:
        """The turn of each mark of a template that looks at the words: the first turn that, last
        in a part of the conversation, has it."""
        turns: list[int] = []
        for turn in self.talks[:-1]:
            try:
                _, here = self.template.marked(self.messages[: turn + 1])
            except OF_TEMPLATES:
                continue
            if here != marks[: len(here)]:
                raise DataError(
                    f"which {{% generation %}} marks are those of message {turn + 1} cannot be "
                    "told: the chat template looks at the words, and sets other marks where the "
                    "conversation ends there; give another one as task.chat_template"
                )
            turns += [turn] * (len(here) - len(turns))
        return turns + [self.talks[-1]] * (len(marks) - len(turns))

    def of_signs(self) -> dict[int, list[Span]]:
        found = {turn: self._span(turn) for turn in self.talks}
        return {turn: [self._ended(turn, *span)] for turn, span in found.items()}

    def _span(self, turn: int) -> Span:
        if turn in self.ends:
            start, opening = self._start(turn)
            end = self._stop(turn, opening)
        else:
            start, end = self._by_prefixes(turn)
        if start is None or end is None or end <= start:
            raise DataError(
                f"the chat template rewrites message {turn + 1}, so that its tokens cannot be "
                "found: give task.chat_template one with {% generation %} marks"
            )
        return start, end

    def _by_prefixes(self, turn: int) -> tuple[int | None, int | None]:
        """The span of a turn without a sign, where the conversation begins with its parts."""
        prompt = self.tails.render(self.messages[:turn], prompted=True)
        alone = self.tails.render(self.messages[: turn + 1])
        start, end = (
            len(part) if part and self.text.startswith(part) else None for part in (prompt, alone)
        )
        return start, end

    def _start(self, turn: int) -> tuple[int | None, str]:
        """Behind the prompt to answer, or as much of it as is there before the first word; and what
        is between that word and the message before."""
        anchor = self.tails.anchors[turn]
        place = 0 if anchor is None else self.ends[anchor]
        first = self._first_word(turn)
        opening = self.text[place:first]
        prompt = self.tails.behind(turn, prompted=True)
        if prompt is not None and self.text.startswith(prompt, place):
            place += len(prompt)
            question = self.tails.behind_question(True) or ""
            return place + self.headers.length_at(place, question), opening
        known = None if prompt is None else self.tails.behind(turn)
        if prompt is None:
            prompt = self.tails.behind_question(True)
            known = self.tails.behind_question(False)
        if prompt is None:
            return None, opening
        asked = prompt.removeprefix(known or "")
        found = self.headers.behind(asked if asked.strip() else prompt, place, first)
        if found is None:  # what is before words is no part of them
            found = first if SIGN.sub("", self.messages[turn]["content"]).strip() else place
        return found, opening

    def _first_word(self, turn: int) -> int:
        """Where the words of a turn begin; its sign, where it has none or they are written anew."""
        end = self.ends[turn] - len(sign(turn))
        words = SIGN.sub("", self.messages[turn]["content"]).strip()
        answer = words.rpartition("</think>")[2].strip()
        found = next((w for w in (words, answer) if self.text.endswith(w, 0, end)), "")
        return end - len(found)

    def _stop(self, turn: int, opening: str) -> int | None:
        """Behind what closes the turn, when nothing follows and here."""
        here, closing = self.ends[turn], self.tails.behind(turn + 1)
        if closing is None:
            return None
        if self.template.always_prompts:
            is_last = turn == len(self.messages) - 1
            after = self.tails.followed() if is_last else self.text[here:]
            closing = self.headers.without_prompt(closing, after or "", opening)
        return here + self.headers.common(self.text[here : here + len(closing) + 64], closing)

    def _ended(self, turn: int, start: int, end: int) -> Span:
        """The span, with the special token behind it if there is none at its end."""
        here = self.ends.get(turn, start)
        if self.special.search(self.text, here, end):
            return start, end
        closing = re.compile(rf"\s*(?:{self.special.pattern})")
        if found := closing.match(self.text, end):
            return start, found.end()
        if turn == len(self.messages) - 1 and (found := closing.match(self.tails.followed() or "")):
            self.text = self.text[:end].rstrip("\n") + found.group()
            return start, len(self.text)
        return start, end
