"""`scale.md` from the measurements in `scale.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Measurement = Mapping[str, Any]
COLUMNS = {
    "cpu_ms_per_trial": "driver ms/trial",
    "cpu_ms_per_ask": "ms/ask",
    "cpu_ms_per_report": "ms/report",
    "suggest_ms": "ask, median wall ms",
    "database_bytes_per_trial": "database kB/trial",
    "rss_bytes_per_trial": "memory kB/trial",
}
FLAT = 1.15
"""Last quarter over first; measurements of one cell differ by as much."""


def markdown(content: Mapping[str, Any]) -> str:
    """The tables, each with the runs it comes from."""
    lines = ["# What a sweep costs its driver", "", "`infra/benchmarks/scale.py`; every"]
    lines += ["measurement is in `scale.json`. Trials are simulated. Times of the driver are"]
    lines += ["processor time of its thread; `a -> b` is the first and the last quarter of the"]
    lines += ["sweep's trials. A column is *flat* if the last quarter costs at most"]
    lines += [f"{FLAT} times the first, *logarithmic* if at most as much more as the logarithm of"]
    lines += ["the number of trials has grown meanwhile, otherwise *growing*. TPE draws its first"]
    lines += ["points at random, so its first quarter is cheap where it holds the first wave.", ""]
    for table, title, rows in (
        ("inline", "Inline", _sweeps),
        ("ray", "On Ray", _sweeps),
        ("proxies", "Proxies on Ray, one per slot", _proxies),
        ("storage", "Coming back to what was recorded", _storages),
    ):
        found = [one for one in content["measurements"] if one["table"] == table]
        lines += [f"## {title}", ""]
        if not found:
            lines += ["Not run.", ""]
            continue
        for number in sorted({one["run"] for one in found}, key=int):
            lines += [_run(number, content["runs"][number], found)]
        lines += ["", *rows(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def growth(quarters: Sequence[Mapping[str, Any]], column: str, trials: int) -> str:
    """How the last quarter's cost of a column compares with the first one's."""
    values = [quarter[column] for quarter in quarters]
    if values[0] is None or values[-1] is None:
        return "not asked"
    ratio = values[-1] / values[0] if values[0] > 0 else math.inf
    middle_of_last, middle_of_first = trials * 7 / 8, trials / 8
    if ratio <= FLAT:
        return "flat"
    logarithm = math.log(middle_of_last) / math.log(middle_of_first)
    return "logarithmic" if ratio <= FLAT * logarithm else f"growing {ratio:.1f}x"


def _run(number: str, run: Mapping[str, Any], found: Sequence[Measurement]) -> str:
    versions = run["environment"]["versions"]
    stack = ", ".join(f"{n} {versions[n]}" for n in ("optuna", "ray") if n in versions)
    loads = [one["load"] for one in found if one["run"] == number]
    return (
        f"* Run {number}: {run['machine']}, {stack}, {run['date']}, load {min(loads):.1f} to "
        f"{max(loads):.1f}; `{run['command']}`"
    )


def _sweeps(found: Sequence[Measurement]) -> list[str]:
    head = ["trials", "slots", "sampler", "seconds", *COLUMNS.values()]
    head += ["ask, last tenth", "memory MB: before, after"]
    lines = [_row(head), "|---" * len(head) + "|"]
    for one in found:
        quarters = one["quarters"]
        cells = [f"{one['trials']:,}", one["slots"], one["sampler"], f"{one['seconds']:.0f}"]
        for column in COLUMNS:
            scale = 1000 if "bytes" in column else 1
            first, last = (quarters[at][column] for at in (0, -1))
            ends = " -> ".join("-" if v is None else f"{v / scale:.2f}" for v in (first, last))
            cells.append(f"{ends} {growth(quarters, column, one['trials'])}")
        cells.append(f"{one['suggest_ms_last_tenth']:.2f}")
        cells.append(f"{one['rss_bytes_before'] / 1e6:.0f}, {one['rss_bytes'] / 1e6:.0f}")
        lines.append(_row(cells))
    return lines


def _proxies(found: Sequence[Measurement]) -> list[str]:
    head = ["proxies", "until one reports, s", "until all report, s"]
    head += ["a proxy's PSS, MB", "its USS", "its start, CPU s", "driver ms/trial", "ms/report"]
    head += ["whole sweep, s"]
    lines = [_row(head), "|---" * len(head) + "|"]
    for one in found:
        cells = [one["proxies"]]
        cells += [f"{one[name]:.1f}" for name in ("first_report_seconds", "all_report_seconds")]
        cells += [f"{one[f'{kind}_bytes_per_proxy'] / 1e6:.0f}" for kind in ("pss", "uss")]
        cells += [f"{one['cpu_seconds_per_proxy']:.2f}"]
        cells += [f"{one[name]:.2f}" for name in ("cpu_ms_per_trial", "cpu_ms_per_report")]
        cells.append(f"{one['seconds']:.1f}")
        lines.append(_row(cells))
    return lines


def _storages(found: Sequence[Measurement]) -> list[str]:
    head = ["trials", "database MB", "`leaderboard`, s", "`status`, s"]
    head += ["`resume` until its next trial starts, s"]
    lines = [_row(head), "|---" * len(head) + "|"]
    for one in found:
        cells = [f"{one['trials']:,}", f"{one['database_bytes'] / 1e6:.0f}"]
        names = ("leaderboard_seconds", "status_seconds", "resumed_seconds")
        lines.append(_row([*cells, *(f"{one[name]:.1f}" for name in names)]))
    return lines


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
