"""`packing.md` from the measurements in `packing.json`."""

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Measurement = Mapping[str, Any]
BASELINES = ("B0", "B1", "B2", "B3")
ARMS = {
    "B0": "fresh process per trial, HF Trainer + PEFT",
    "B1": "solo engine on a resident base",
    "B2": "B1 with compiled layers on weights that stay dequantized",
    "B3": "pool of two processes, HF Trainer + PEFT",
    "B4": "packed, adapters in a Python loop",
    "B5": "packed, adapters batched, no pruning",
    "B5-auto": "B5 with as many slots in a step as the engine finds best, the search included",
    "B5-inline": "B5 as a whole sweep of the product, inline",
    "B5-ray": "B5 as a whole sweep of the product, on Ray",
    "B6": "the product with the solo engine and pruning, inline",
    "B7": "plain Ray Tune + OptunaSearch + ASHAScheduler + HF Trainer",
    "B9": "the product: packed, pruning, refill; inline",
    "B9-ray": "the same on Ray",
}


def markdown(content: Mapping[str, Any]) -> str:
    """All tables, each with the runs it comes from, and the cells where packing loses."""
    measurements = content["measurements"]
    used = {one["arm"] for one in measurements}
    legend = "; ".join(f"{name} {text}" for name, text in ARMS.items() if name in used)
    lines = ["# What packing gives", "", "`infra/benchmarks/packing.py`; every measurement is in"]
    lines += ["`packing.json`. A gain is the median of ratios within a repeat, with the least and"]
    lines += ["the greatest; losses are compared step by step with the same trials alone (B1)."]
    lines += ["On a machine that others use too, ratios of processor time say more than those of"]
    lines += ["wall time. Peak memory is the device's, or on a CPU that of the whole process.", ""]
    lines += [f"Arms: {legend}.", ""] if legend else []
    titles = {
        "steps": "Trial-steps per second on a CPU",
        "sweep": "Whole sweeps on a CPU",
        "gpu": "Trial-steps per second on a GPU (random weights of true shapes)",
    }
    for table, title in titles.items():
        found = [one for one in measurements if one["table"] == table]
        lines += [f"## {title}", ""]
        if not found:
            reason = ": no GPU was at hand" if table == "gpu" else ""
            lines += [f"Not run{reason}.", ""]
            continue
        numbers = sorted({one["run"] for one in found}, key=int)
        lines += [_run(number, content["runs"][number], found) for number in numbers] + [""]
        lines += (_sweeps if table == "sweep" else _cells)(found)
    return "\n".join(lines).rstrip() + "\n"


def gains(
    measured: Sequence[Measurement], base: Sequence[Measurement], clock: str = "seconds"
) -> list[float]:
    """Ratios of the rates of an arm to those of `base` in the same run and repeat, ascending."""
    rates = {(one["run"], one["repeat"]): _rate(one, clock) for one in base if "failed" not in one}
    pairs = [(_rate(one, clock), rates.get((one["run"], one["repeat"]))) for one in measured]
    return sorted(rate / other for rate, other in pairs if other is not None)


def _rate(one: Measurement, clock: str = "seconds") -> float:
    return float(one["trial_steps"] / one[clock])


def _run(number: str, run: Mapping[str, Any], found: Iterable[Measurement]) -> str:
    versions = run["environment"]["versions"]
    stack = ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers", "peft"))
    loads = [one["load"] for one in found if one["run"] == number]
    device = f", {run['device']}" if "device" in run else ""
    threads = f", {run['threads']} threads" if "threads" in run else ""
    return (
        f"* Run {number}: {run['machine']}{device}{threads}, {stack}, {run['date']}, load "
        f"{min(loads):.1f} to {max(loads):.1f}; `{run['command']}`"
    )


def _by(
    found: Iterable[Measurement], key: Callable[[Measurement], Hashable]
) -> dict[Any, list[Measurement]]:
    groups: dict[Any, list[Measurement]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def _cells(found: Sequence[Measurement]) -> list[str]:
    lines: list[str] = []
    lost: list[str] = []
    for (model, parameters, scheme), cells in _by(
        found, lambda one: (one["model"], one["parameters"], one["quantization"])
    ).items():
        arms = [name for name in ARMS if name in {one["arm"] for one in cells}]
        lines += [f"### {model}, {parameters / 1e6:.3g} M parameters, {scheme}", ""]
        head = ["tokens: nominal / real / padded B1 / padded here", "K"]
        head += ["arm", "trial-steps/s", "gain on B1", "in processor time"]
        head += ["gain on the best of B1, B2"] if "B2" in arms else []
        head += ["supervised tokens/s", "peak MB", "loss difference: max", "mean", "repeats"]
        lines += [_row(head), "|---" * len(head) + "|"]
        keyed = _by(cells, lambda one: (one["tokens"], one["slots"], one["arm"]))
        for tokens, slots in sorted({key[:2] for key in keyed}):
            base = keyed.get((tokens, slots, "B1"), [])
            for arm in arms:
                if arm_cell := keyed.get((tokens, slots, arm)):
                    best = None
                    if "B2" in arms:
                        best = max(base, keyed.get((tokens, slots, "B2"), []), key=_median)
                    lines.append(_cell(tokens, slots, arm, arm_cell, base, best))
                    ratio = gains([o for o in arm_cell if "failed" not in o], base)
                    if arm == "B5" and ratio and statistics.median(ratio) < 1:
                        where = f"{model} {scheme}, {tokens} tokens, K={slots}"
                        lost.append(f"{where}: {statistics.median(ratio):.2f}")
        lines.append("")
    told = "; ".join(lost) if lost else "none of those measured"
    return [*lines, f"Cells where packing (B5) is slower than B1: {told}.", ""]


def _median(measured: Sequence[Measurement]) -> float:
    rates = [_rate(one) for one in measured if "failed" not in one]
    return statistics.median(rates) if rates else 0.0


def _cell(
    tokens: int,
    slots: int,
    arm: str,
    measured: Sequence[Measurement],
    base: Sequence[Measurement],
    best: Sequence[Measurement] | None,
) -> str:
    good = [one for one in measured if "failed" not in one]
    if not good:
        return _row([tokens, slots, arm, f"failed: {measured[0]['failed']}"])
    one, rate = good[-1], _median(good)
    on_best = [] if best is None else ["" if arm in BASELINES else _spread(gains(good, best))]
    alone = f"{base[-1]['padded_tokens']:.0f}" if base else ""
    return _row(
        [
            f"{tokens} / {one['real_tokens']:.0f} / {alone} / {one['padded_tokens']:.0f}",
            slots,
            arm,
            f"{rate:.1f}",
            "" if arm == "B1" else _spread(gains(good, base)),
            "" if arm == "B1" else _spread(gains(good, base, "processor_seconds")),
            *on_best,
            f"{rate * one['supervised_tokens']:.0f}",
            f"{max(m['peak_bytes'] for m in good) / 1e6:.0f}",
            f"{one['loss_difference_max']:.1e}" if "loss_difference_max" in one else "",
            f"{one['loss_difference_mean']:.1e}" if "loss_difference_mean" in one else "",
            len(good),
        ]
    )


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _sweeps(found: Sequence[Measurement]) -> list[str]:
    lines: list[str] = []
    settings = ("model", "quantization", "trials", "steps", "tokens", "slots")
    for values, measured in _by(found, lambda one: tuple(one[name] for name in settings)).items():
        setting = dict(zip(settings, values, strict=True))
        lines += [
            f"### {setting['model']}, {setting['quantization']}: {setting['trials']} trials of "
            f"{setting['steps']} steps of at most {setting['tokens']} tokens, "
            f"{setting['slots']} slots",
            "",
        ]
        arms = {name: _by(measured, lambda one: one["arm"]).get(name, []) for name in ARMS}
        walls = {name: [one["seconds"] for one in arm] for name, arm in arms.items() if arm}
        head = ["arm", "makespan s", "without start-up s", "trials completed", "steps done"]
        head += ["trial-steps/s", "supervised tokens/s", "peak MB", "gain on B1"]
        head += ["gain on the best of B0-B3", "gain on B7", "best validation loss"]
        head += ["final loss against B1: max", "mean", "repeats"]
        lines += [_row(head), "|---" * len(head) + "|"]
        lines += [_sweep(name, arms[name], walls) for name in walls]
        lines += [
            "",
            "Where the time goes (seconds, median of the repeats; trials' phases summed):",
            "",
        ]
        lines += [_where(name, arms[name]) for name in walls]
        slower = _slower(walls)
        lines += ["", f"Where the product loses: {slower or 'nowhere in this table'}.", ""]
    return lines


def _slower(walls: Mapping[str, Sequence[float]]) -> str:
    plain = {name: statistics.median(walls[name]) for name in BASELINES if name in walls}
    found = []
    for name in walls:
        against = {"B7": statistics.median(walls["B7"])} if "B7" in walls else {}
        others = against if name.startswith(("B6", "B9")) else plain
        if name.startswith(("B5", "B9")):
            mine = statistics.median(walls[name])
            found += [f"{name} against {o} ({w / mine:.2f})" for o, w in others.items() if w < mine]
    return ", ".join(found)


def _sweep(name: str, measured: Sequence[Measurement], walls: Mapping[str, Sequence[float]]) -> str:
    wall = statistics.median(walls[name])
    plain = [statistics.median(walls[other]) for other in BASELINES if other in walls]
    started = statistics.median(one["seconds"] - one["startup_seconds"] for one in measured)
    one = measured[-1]

    def gain(other: float | None) -> str:
        return "" if other is None else f"{other / wall:.2f}"

    def median_of(other: str) -> float | None:
        return statistics.median(walls[other]) if other in walls and other != name else None

    return _row(
        [
            name,
            f"{wall:.1f} ({min(walls[name]):.1f} to {max(walls[name]):.1f})",
            f"{started:.1f}",
            one["completed"],
            one["steps_done"],
            f"{one['steps_done'] / started:.1f}",
            f"{one['supervised_tokens'] / started:.0f}" if "supervised_tokens" in one else "",
            f"{one['peak_bytes'] / 1e6:.0f}" if one.get("peak_bytes") else "",
            gain(median_of("B1")),
            gain(min(plain) if plain and name not in BASELINES else None),
            gain(median_of("B7")),
            f"{one['best_loss']:.4f}",
            f"{one['loss_difference_max']:.1e}" if "loss_difference_max" in one else "",
            f"{one['loss_difference_mean']:.1e}" if "loss_difference_mean" in one else "",
            len(measured),
        ]
    )


def _where(name: str, measured: Sequence[Measurement]) -> str:
    parts: dict[str, list[float]] = {}
    for one in measured:
        for part, seconds in one["where"].items():
            parts.setdefault(part, []).append(seconds)
    told = ", ".join(f"{part} {statistics.median(took):.2f}" for part, took in parts.items())
    return f"* {name}: {told}"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
