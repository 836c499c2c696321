"""How many threads a host should have on a node without GPUs, and so how many hosts."""

from collections.abc import Mapping

MIN_GAIN = 1.25
"""What several hosts must give in steps per second: each holds a base, and they get into each
other's way, which is not measured (two of one thread: 1.79 times where twice was expected,
`infra/benchmarks/packing.md`)."""


def worthwhile_threads(seconds: Mapping[int, float], most: int) -> int | None:
    """The threads of a host that let all cores together make the most steps per second.

    `seconds` are those of a step by threads, of which the largest number is all of a node's. None,
    for one host with all of them, where `most` hosts or fewer gain less than MIN_GAIN.
    """
    if not seconds:
        return None
    all_threads = max(seconds)
    rates = {
        threads: (all_threads // threads) / each
        for threads, each in seconds.items()
        if all_threads // threads <= most
    }
    best = max(rates, key=lambda threads: (rates[threads], threads), default=all_threads)
    return best if rates and rates[best] >= MIN_GAIN * rates[all_threads] else None
