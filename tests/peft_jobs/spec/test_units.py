"""Sizes and durations as people write them, against values worked out by hand."""

import pytest

from peft_jobs.spec.units import duration_in_seconds, size_in_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("22GB", 22_000_000_000),
        ("40GiB", 42_949_672_960),
        ("512 MiB", 536_870_912),
        ("1.5 gb", 1_500_000_000),
        ("10kB", 10_000),
        ("2TiB", 2_199_023_255_552),
        ("7B", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert size_in_bytes(text) == count


@pytest.mark.parametrize("text", ["22", "22G", "GB", "22GB or so", "1GB2MB", "-1GB", "1e9GB", ""])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as 22GB or 40GiB; got"):
        size_in_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("90 min", 5400),
        ("1h30m", 5400),
        ("1d 2h", 93_600),
        ("45s", 45),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration_in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "30m1h", "1h1h", "2 weeks", "1h and 2m", "-2h", ""])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as 45s, 90m, 2h or 1h30m; got"):
        duration_in_seconds(text)
