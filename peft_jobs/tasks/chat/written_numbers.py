"""Numbers in what the assistant asks of tools, as a data set writes them: 5.50, 1e5.

Templates print what a number is worth (5.5, 100000.0). Each number that they would print otherwise
than it is written goes through the template as a float right beside it, whose print, of 16 digits
or so, is then replaced.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jobs.spec.cells import WrittenFloat
from peft_jobs.tasks.chat.signs import Span


class WrittenNumbers:
    """The numbers in some values, and the floats that stand for them, which nothing `among` them
    has."""

    def __init__(self, among: object) -> None:
        self.among = among
        self._floats: dict[str, float] = {}

    def stand_ins(self, value: Any) -> Any:
        """`value`, a structure of JSON, with other floats for numbers that are written otherwise
        than Python prints them."""
        if isinstance(value, Mapping):
            return {key: self.stand_ins(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.stand_ins(item) for item in value]
        if not isinstance(value, WrittenFloat) or value.text == json.dumps(float(value)):
            return value
        if value.text not in self._floats:
            taken, found = f"{self.among}{self._floats}", float(value)
            while repr(found) in taken or found == value or math.isinf(found):
                found = math.nextafter(found, _away_from_0(value))
            self._floats[value.text] = found
        return self._floats[value.text]

    def written(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """A rendered text with the numbers as they are written, and the same spans of it."""
        if not self._floats:
            return text, list(spans)
        texts = {repr(number): written for written, number in self._floats.items()}
        prints = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
        pieces, moves, last = [], [], 0
        for match in re.finditer(prints, text):
            pieces += [text[last : match.start()], texts[match.group()]]
            last = match.end()
            moves.append((last, len(texts[match.group()]) - len(match.group())))
        shifted = [(start + _moved(moves, start), end + _moved(moves, end)) for start, end in spans]
        return "".join([*pieces, text[last:]]), shifted


def _away_from_0(number: float) -> float:
    """Infinity of the sign of a number; 0 for infinity itself."""
    return 0.0 if math.isinf(number) else math.copysign(math.inf, number)


def _moved(moves: Sequence[tuple[int, int]], position: int) -> int:
    return sum(move for end, move in moves if end <= position)
