"""Where in the text of a conversation the header of an answer is, as the template prompts it."""

import re

from peft_jobs.tasks.chat.signs import MARKER


class Headers:
    """The headers in a text; `special` matches special tokens."""

    def __init__(self, text: str, special: re.Pattern[str]) -> None:
        self.text, self.special = text, special
        self.atom = re.compile(f"{special.pattern}|{MARKER}")

    def behind(self, prompt: str, place: int, first: int) -> int | None:
        """Behind the part of `prompt` that stands last in the text from `place` to `first`, the
        first word: all of it, or else its longest part; None if nothing of it is there.

        Where the rest of a line is another one (a number) the header ends with the line.
        """
        if (found := self.text.rfind(prompt, place, first)) >= 0:
            return found + len(prompt)
        opening = self.text[place:first]
        count, start = max(
            (self.common(opening[start:], prompt[begin:]), start)
            for start in self._units(opening)
            for begin in self._units(prompt)
        )
        end = start + count
        if not opening[start:end].strip():
            return None
        lines = re.compile(rf"{self.special.pattern}|\n")
        ends = [match.end() for match in lines.finditer(opening, start, end)]
        if any(match.end() == end for match in self.atom.finditer(opening, start, end)):
            return place + (ends[-1] if ends else end)  # thoughts, not a header, go on otherwise
        rest = opening.find("\n", end - 1) + 1
        return place + rest if rest else first

    def length_at(self, start: int, prompt: str) -> int:
        """Characters of a header of the assistant's that stands where the prompt has none, as
        Gemma 4 has it behind what a tool says; `prompt` is the one behind a question."""
        if not self.atom.match(self.text, start):
            return 0
        headers = (prompt[match.start() :] for match in self.atom.finditer(prompt))
        return max((len(h) for h in headers if self.text.startswith(h, start)), default=0)

    def without_prompt(self, closing: str, followed: str, opening: str) -> str:
        """What closes a turn, without the prompt to answer that a template writes unasked: it is
        not there where a question follows, and it is the end of what opens an answer."""
        shared = self.common(followed, closing)
        if shared == len(closing):
            return closing
        opening, atoms = opening.rstrip(), {m.start() for m in self.atom.finditer(closing)}
        starts = [
            (closing[:n].strip() != "" and (n in atoms or closing[n - 1] == "\n"), n)
            for n in self._units(closing)
            if n <= shared and opening.endswith(closing[n:].rstrip())
        ]
        return closing[: max(starts)[1]] if starts else closing

    def common(self, text: str, other: str) -> int:
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

    def _units(self, text: str) -> list[int]:
        """Where lines and special tokens begin, and what stands behind those."""
        found = {0, *(match.end() for match in re.finditer("\n", text))}
        for match in self.atom.finditer(text):
            found |= set(match.span())
        return sorted(n for n in found if n < len(text)) or [0]
