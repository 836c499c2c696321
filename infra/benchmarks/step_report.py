"""The tables of trial-steps per second: one for each base and quantization, tokens by slots."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from figures import Measurement, by, gains, median_rate, newest, spread, table

TOGETHER = ("B5", "B5-auto", "B4", "B3")
SOLO = ("B1", "B2", "B2-compiled", "B1-graphed", "B2-graphed")

Cells = Mapping[tuple[int, str], Mapping[int, Sequence[Measurement]]]
"""(tokens, arm) -> slots -> what was measured of it last."""


def grids(found: Sequence[Measurement]) -> list[str]:
    """All tables, and the cells where packing loses."""
    lines: list[str] = []
    lost: list[str] = []
    for (model, parameters, scheme), measured in by(
        found, lambda one: (one["model"], one["parameters"], one["quantization"])
    ).items():
        title = f"{model}, {parameters / 1e6:.3g} M parameters, {scheme}"
        cells = last(measured)
        bases = by([o for o in measured if o["arm"] == "B1"], lambda one: one["tokens"])
        widths = sorted({slots for key in cells if key[1] in TOGETHER for slots in cells[key]})
        lines += [f"### {title}", ""]
        lines += ["Gain on B1 in trial-steps per second, and the largest difference of a loss:", ""]
        lines += gain_table(cells, bases, widths)
        if any(arm in SOLO[1:] for _, arm in cells):
            lines += ["Gain of B5 on the best of B1 and B2:", ""]
            lines += best_table(cells, widths)
        lines += ["B5 in trial-steps/s, gain in processor time, supervised tokens/s, peak MB:", ""]
        lines += load_table(cells, bases, widths)
        for (tokens, arm), by_slots in cells.items():
            for slots, cell in by_slots.items() if arm in ("B5", "B5-auto") else ():
                ratios = gains(cell, bases.get(tokens, []))
                if ratios and statistics.median(ratios) < 1:
                    where = f"{arm}, {model} {scheme}, {tokens} tokens, K={slots}"
                    lost.append(f"{where}: {statistics.median(ratios):.2f}")
    told = "; ".join(lost) if lost else "none of those measured"
    return [*lines, f"Cells where packing is slower than B1: {told}.", ""]


def last(measured: Sequence[Measurement]) -> Cells:
    """Of each cell what its last run has measured."""
    groups = by(measured, lambda one: (one["tokens"], one["arm"], one["slots"]))
    cells: dict[tuple[int, str], dict[int, Sequence[Measurement]]] = {}
    for tokens, arm, slots in sorted(groups):
        cell = newest(groups[tokens, arm, slots])
        cells.setdefault((tokens, arm), {})[slots] = cell
    return cells


def gain_table(
    cells: Cells, bases: Mapping[int, Sequence[Measurement]], widths: Sequence[int]
) -> list[str]:
    """A row for each number of tokens and arm, a column for each K."""
    rows: list[list[str]] = []
    for tokens in sorted({tokens for tokens, _ in cells}):
        base = bases.get(tokens, [])
        for arm in (*TOGETHER, *SOLO[1:]):
            if (tokens, arm) not in cells:
                continue
            by_slots = cells[tokens, arm]
            texts = [gain(by_slots[k], base) if k in by_slots else "" for k in widths]
            if arm in SOLO:
                texts = [gain(by_slots[1], base), *[""] * (len(widths) - 1)]
            first = not rows or rows[-1][0].split(" ")[0] != str(tokens)
            alone = f"{median_rate(newest(base)):.1f}" if base and first else ""
            rows.append([f"{tokens} {real(by_slots)}", alone, arm, *texts])
    head = ["tokens (real)", "B1 steps/s", "arm", *[f"K={slots}" for slots in widths]]
    return table(head, rows)


def real(by_slots: Mapping[int, Sequence[Measurement]]) -> str:
    found = [one["real_tokens"] for cell in by_slots.values() for one in cell if "seconds" in one]
    return f"({statistics.mean(found):.0f})" if found else ""


def gain(cell: Sequence[Measurement], base: Sequence[Measurement]) -> str:
    """Of one cell: gain with its interval, largest loss difference; or why there is none."""
    good = [one for one in cell if "failed" not in one]
    if not good:
        return str(cell[0]["failed"])
    away = max(one.get("loss_difference_max", 0.0) for one in good)
    few = "" if len(good) >= 3 else f", {len(good)} repeats" if len(good) > 1 else ", once"
    return f"{spread(gains(good, base)) or 'no B1'}, {away:.0e}{few}"


def best_table(cells: Cells, widths: Sequence[int]) -> list[str]:
    """Rows of tokens: B5 against the fastest trial alone."""
    rows = []
    for tokens in sorted({tokens for tokens, arm in cells if arm == "B5"}):
        alone = {arm: cells[tokens, arm][1] for arm in SOLO if 1 in cells.get((tokens, arm), {})}
        if not alone:
            continue
        best = max(alone, key=lambda arm: median_rate(alone[arm]))
        by_slots = cells[tokens, "B5"]
        texts = [spread(gains(by_slots[k], alone[best])) if k in by_slots else "" for k in widths]
        rows.append([f"{tokens}", best, f"{median_rate(alone[best]):.1f}", *texts])
    return table(["tokens", "best", "steps/s", *[f"K={slots}" for slots in widths]], rows)


def load_table(
    cells: Cells, bases: Mapping[int, Sequence[Measurement]], widths: Sequence[int]
) -> list[str]:
    """Rows of tokens: what B5 gets through, and what it takes."""

    def text(cell: Sequence[Measurement], base: Sequence[Measurement]) -> str:
        good = [one for one in cell if "failed" not in one]
        if not good:
            return ""
        processor = gains(good, base, "processor_seconds")
        return "; ".join(
            [
                f"{median_rate(good):.1f}/s",
                f"{statistics.median(processor):.2f}" if processor else "",
                f"{median_rate(good) * good[-1]['supervised_tokens']:.0f} tokens/s",
                f"{max(one['peak_bytes'] for one in good) / 1e6:.0f} MB",
            ]
        )

    def of_row(tokens: int, show: Callable[..., str]) -> list[Any]:
        by_slots, base = cells[tokens, "B5"], bases.get(tokens, [])
        padded = {round(one["padded_tokens"]) for c in by_slots.values() for one in c
                  if "seconds" in one}  # fmt: skip
        told = f"{min(padded)} to {max(padded)}" if len(padded) > 1 else "".join(map(str, padded))
        alone = [one["peak_bytes"] for one in base if "failed" not in one]
        peak = f"{max(alone) / 1e6:.0f}" if alone else ""
        shown = [show(by_slots[k], base) if k in by_slots else "" for k in widths]
        return [tokens, told, peak, *shown]

    rows = [of_row(tokens, text) for tokens, arm in cells if arm == "B5"]
    return table(["tokens", "padded", "B1 MB", *[f"K={slots}" for slots in widths]], rows)
