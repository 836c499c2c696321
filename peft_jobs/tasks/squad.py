"""Exact match and F1 of answers, normalised as SQuAD's evaluation script does it.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, evaluate-v1.1.py and v2.0: lower case, no
punctuation, no articles, single spaces; the best of several true answers counts; no answer at all
is right where there is none.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """The words of `text` that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match_and_f1(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Both between 0 and 1, each the best over `answers`; none means that "" is right."""
    pairs = [_compared(words(predicted), words(answer)) for answer in answers or [""]]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def _compared(predicted: list[str], answer: list[str]) -> tuple[float, float]:
    exact = float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    if not predicted or not answer or not common:
        return exact, exact
    precision, recall = common / len(predicted), common / len(answer)
    return exact, 2 * precision * recall / (precision + recall)
