"""Exact match and F1 of answers in windows, normalised as SQuAD's evaluation script does it.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, evaluate-v1.1.py and v2.0: lower case, no
punctuation, no articles, single spaces; the best of several true answers counts; no answer at all
is right where there is none.
The answer of a row is the best over all of its windows.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from peft_jobs.tasks.task import Score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class WindowScore(Score):
    """The best answer of one window."""

    row: int = 0
    """Equal for the windows of a row, and for rows that are equal."""
    text: str = ""
    logit: float = 0.0
    """Of the answer's start and end, together."""
    none_logit: float = 0.0
    """Of no answer."""
    answers: tuple[str, ...] = ()


def compared(scores: Sequence[Score]) -> dict[int, tuple[float, float]]:
    """Exact match and F1 of each row, by `WindowScore.row`."""
    rows: dict[int, list[WindowScore]] = {}
    for score in scores:
        if isinstance(score, WindowScore):
            rows.setdefault(score.row, []).append(score)
    may_have_none = any(not windows[0].answers for windows in rows.values())
    return {
        row: exact_match_and_f1(_answer(windows, may_have_none), windows[0].answers)
        for row, windows in rows.items()
    }


def words(text: str) -> list[str]:
    """The words of `text` that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match_and_f1(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Both between 0 and 1, each the best over `answers`; none means that "" is right."""
    pairs = [_compared(words(predicted), words(answer)) for answer in answers or [""]]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def _answer(windows: Sequence[WindowScore], may_have_none: bool) -> str:
    best = max(windows, key=lambda score: score.logit)
    none = min(score.none_logit for score in windows)
    return "" if may_have_none and none >= best.logit else best.text


def _compared(predicted: list[str], answer: list[str]) -> tuple[float, float]:
    exact = float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    if not predicted or not answer or not common:
        return exact, exact
    precision, recall = common / len(predicted), common / len(answer)
    return exact, 2 * precision * recall / (precision + recall)
