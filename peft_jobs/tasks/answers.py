"""Answers in a context: as a row gives them, and as tokens of a window of the context."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jobs.spec.cells import text_of
from peft_jobs.tasks.task import Example

NOWHERE = -1
"""First and last character of a token that is not of the context."""


def answers_of(cell: Any) -> list[tuple[str, int]] | None:
    """(text, first character) of each answer of a row; None if the cell holds no answers."""
    if isinstance(cell, Mapping):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return None
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(cell, list) and all(isinstance(answer, Mapping) for answer in cell):
        pairs = [(answer.get("text"), answer.get("answer_start")) for answer in cell]
    else:
        return None
    pairs = [(text_of(text) if _is_number(text) else text, start) for text, start in pairs]
    good = all(isinstance(t, str) and t and isinstance(s, int) and s >= 0 for t, s in pairs)
    return pairs if good else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def example_of(
    found: Any, window: int, context: str, answers: Sequence[tuple[str, int]]
) -> Example:
    offsets, sides = found["offset_mapping"][window], found.sequence_ids(window)
    inside = [number for number, side in enumerate(sides) if side == 1]
    shift = offsets[inside[0]][0] if inside else 0
    reached = offsets[inside[-1]][1] if inside else 0
    start = end = 0
    if answers:
        text, first = answers[0]
        last = first + len(text)
        touched = [n for n in inside if offsets[n][1] > first and offsets[n][0] < last]
        if touched and shift <= first and last <= reached:
            start, end = touched[0], touched[-1]
    chars = [offsets[n] if side == 1 else None for n, side in enumerate(sides)]
    example = {
        "input_ids": found["input_ids"][window],
        "start": start,
        "end": end,
        "begins": [NOWHERE if char is None else char[0] - shift for char in chars],
        "ends": [NOWHERE if char is None else char[1] - shift for char in chars],
        "texts": json.dumps([context[shift:reached], [text for text, _ in answers]]),
    }
    if "token_type_ids" in found:
        example["token_type_ids"] = found["token_type_ids"][window]
    return example
