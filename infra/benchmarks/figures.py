"""What the tables of the packing benchmarks have in common: gains, groups, rows of Markdown."""

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Measurement = Mapping[str, Any]


def gains(
    measured: Sequence[Measurement], base: Sequence[Measurement], clock: str = "seconds"
) -> list[float]:
    """Ratios of the rates of an arm to those of `base` in the same run and repeat, ascending."""
    rates = {(one["run"], one["repeat"]): rate(one, clock) for one in base if "failed" not in one}
    pairs = [
        (rate(one, clock), rates.get((one["run"], one["repeat"])))
        for one in measured
        if "failed" not in one
    ]
    return sorted(mine / other for mine, other in pairs if other is not None)


def rate(one: Measurement, clock: str = "seconds") -> float:
    """Trial-steps per second."""
    return float(one["trial_steps"] / one[clock])


def median_rate(measured: Sequence[Measurement]) -> float:
    rates = [rate(one) for one in measured if "failed" not in one]
    return statistics.median(rates) if rates else 0.0


def by(
    found: Iterable[Measurement], key: Callable[[Measurement], Hashable]
) -> dict[Any, list[Measurement]]:
    """Groups, in the order in which they were found."""
    groups: dict[Any, list[Measurement]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def newest(found: Sequence[Measurement]) -> list[Measurement]:
    """Those of the last run."""
    last = max(int(one["run"]) for one in found)
    return [one for one in found if int(one["run"]) == last]


def spread(ratios: Sequence[float]) -> str:
    """Median, least and greatest."""
    if not ratios:
        return ""
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines, with an empty one at the end."""
    return [row(head), "|---" * len(head) + "|", *map(row, rows), ""]
