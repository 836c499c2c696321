"""A thing that is away is asked again, and a person is told once."""

import logging
import math
from collections.abc import Callable

import pytest

from peft_jobs.storage import retry as retries
from peft_jobs.storage.retry import GivenUp, retry


def failing(times: int, error: Exception) -> Callable[[], str]:
    """A call that raises so many times, and then answers."""
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "here"

    return call


def test_pauses_double_up_to_the_longest() -> None:
    pauses: list[float] = []
    assert retry(failing(7, OSError("away")), pause=pauses.append) == "here"
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_absence_and_return_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retries, "TOLD_AFTER_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        retry(failing(3, OSError("no route")), "the store", pause=lambda _: None)
    assert caplog.messages == ["the store is away, will retry: no route", "the store is back"]


def test_a_short_absence_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        retry(failing(3, OSError("no route")), pause=lambda _: None, patience_seconds=math.inf)
    assert caplog.messages == []


def test_patience_ends() -> None:
    with pytest.raises(GivenUp, match=r"^the store was away for 0 s: no route$"):
        retry(failing(3, OSError("no route")), pause=lambda _: None, patience_seconds=0)
    with pytest.raises(KeyError):
        retry(failing(3, KeyError()), on=(KeyError,), pause=lambda _: None, patience_seconds=0)


def test_what_says_more_than_absence_is_raised_at_once() -> None:
    pauses: list[float] = []
    with pytest.raises(FileNotFoundError):
        retry(failing(1, FileNotFoundError()), pause=pauses.append)
    with pytest.raises(ValueError, match="wrong"):
        retry(failing(1, ValueError("wrong")), pause=pauses.append)
    assert pauses == []
    assert retry(failing(1, FileNotFoundError()), unless=(), pause=pauses.append) == "here"


def test_an_unwanted_call_gives_none() -> None:
    pauses: list[float] = []
    call = failing(9, OSError("away"))
    assert retry(call, is_wanted=lambda: len(pauses) < 2, pause=pauses.append) is None
    assert len(pauses) == 2
