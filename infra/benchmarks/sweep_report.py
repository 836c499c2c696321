"""The tables of whole sweeps: makespans, what was reached, where the time goes, the ladder."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from figures import Measurement, by, table

PLAIN = ("B0", "B1", "B2", "B2-compiled", "B3-2", "B3-4", "B3-8")
"""Without packing and pruning."""
PRUNED = ("B6", "B7", "B9", "B9-ray")
ORDER = (*PLAIN, "B4", "B5", "B5-inline", "B5-ray", *PRUNED)
LADDER = ("B0", "B1", "B4", "B5", "B9")
SETTINGS = ("model", "quantization", "trials", "steps", "tokens", "slots")

Arms = Mapping[str, Sequence[Measurement]]


def sweeps(found: Sequence[Measurement]) -> list[str]:
    """One section for each kind of sweep; arms may come from several runs."""
    lines: list[str] = []
    for values, measured in by(found, lambda one: tuple(one[name] for name in SETTINGS)).items():
        setting = dict(zip(SETTINGS, values, strict=True))
        lines += [
            f"### {setting['model']}, {setting['quantization']}: {setting['trials']} trials of "
            f"{setting['steps']} steps of at most {setting['tokens']} tokens, "
            f"{setting['slots']} slots",
            "",
        ]
        groups = by([one for one in measured if "failed" not in one], lambda one: one["arm"])
        arms = {name: groups[name] for name in ORDER if name in groups}
        lines += makespans(arms)
        lines += reached(arms)
        lines += ["Where the time goes (seconds, median of the repeats; trials' phases summed):"]
        lines += ["", *(where(name, arms[name]) for name in arms), ""]
        wrong = [f"{one['arm']}: {one['failed'][-200:]!r}" for one in measured if "failed" in one]
        lines += [f"* Failed: {text}" for text in wrong] + ([""] if wrong else [])
        lines += [f"Each factor once: {ladder(arms)}.", ""]
        lines += [f"Where the product loses: {slower(arms) or 'nowhere in this table'}.", ""]
    return lines


def makespan(measured: Sequence[Measurement]) -> float:
    return float(statistics.median(one["seconds"] for one in measured))


def without_startup(measured: Sequence[Measurement]) -> float:
    return float(statistics.median(one["seconds"] - one["startup_seconds"] for one in measured))


def best_plain(arms: Arms) -> str | None:
    plain = {name: makespan(arms[name]) for name in PLAIN if name in arms}
    return min(plain, key=plain.__getitem__) if plain else None


def makespans(arms: Arms) -> list[str]:
    """Time and its ratios, and how good what was found is."""
    best = best_plain(arms)
    rows = []
    for name, measured in arms.items():
        walls = [one["seconds"] for one in measured]
        losses = [one["best_loss"] for one in measured]
        mark = " (extrapolated)" if any(one.get("extrapolated") for one in measured) else ""

        def gain(other: str | None, name: str = name) -> str:
            if other is None or other == name or other not in arms:
                return ""
            return f"{makespan(arms[other]) / makespan(arms[name]):.2f}"

        rows.append(
            [
                name,
                f"{makespan(measured):.1f} ({min(walls):.1f} to {max(walls):.1f}){mark}",
                f"{without_startup(measured):.1f}",
                gain("B0"),
                gain("B1"),
                "" if name in PLAIN else gain(best),
                gain("B7") if name in PRUNED else "",
                f"{statistics.median(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})",
                away(measured, arms.get("B1", [])),
                lost(measured),
                ", ".join(str(one["repeat"]) for one in measured),
            ]
        )
    head = ["arm", "makespan s", "without start-up", "gain on B0", "on B1"]
    head += [f"on the best of B0-B3 ({best})" if best else "on the best of B0-B3", "on B7"]
    head += ["best validation loss", "losses against B1: max, mean", "winner pruned", "seeds"]
    return table(head, rows)


def away(measured: Sequence[Measurement], alone: Sequence[Measurement]) -> str:
    """Distance of the final losses to those of the same trials in B1."""
    single = alone[-1].get("losses", []) if alone else []
    distances = [
        abs(loss - expected)
        for one in measured
        if single and one not in alone and len(one.get("losses", [])) == len(single)
        for loss, expected in zip(one["losses"], single, strict=True)
    ]
    return f"{max(distances):.0e}, {statistics.mean(distances):.0e}" if distances else ""


def lost(measured: Sequence[Measurement]) -> str:
    """How often a trial that was stopped would have won, and by how much at most."""
    known = [one for one in measured if "pruned" in one]
    regrets = [one["best_loss"] - one.get("pruned_best_loss", one["best_loss"]) for one in known]
    bad = [regret for regret in regrets if regret > 0]
    if not known:
        return ""
    return f"{len(bad)} of {len(known)}" + (f", by {max(bad):.3f} at most" if bad else "")


def reached(arms: Arms) -> list[str]:
    """What was done, and what it took."""
    rows = []
    for name, measured in arms.items():
        seconds, steps = without_startup(measured), middle(measured, "steps_done")
        tokens = middle(measured, "supervised_tokens")
        rows.append(
            [
                name,
                f"{middle(measured, 'completed'):.0f}",
                f"{steps:.0f}",
                f"{steps / seconds:.1f}",
                f"{tokens / seconds:.0f}" if tokens else "",
                f"{max(one.get('peak_bytes', 0) for one in measured) / 1e6:.0f}",
            ]
        )
    head = ["arm", "trials completed", "steps", "trial-steps/s", "supervised tokens/s", "peak MB"]
    return table(head, rows)


def middle(measured: Sequence[Measurement], name: str) -> float:
    return float(statistics.median(one.get(name, 0) for one in measured))


def where(name: str, measured: Sequence[Measurement]) -> str:
    parts: dict[str, list[float]] = {}
    for one in measured:
        for part, seconds in one["where"].items():
            parts.setdefault(part, []).append(seconds)
    told = ", ".join(f"{part} {statistics.median(took):.2f}" for part, took in parts.items())
    return f"* {name}: {told}"


def ladder(arms: Arms) -> str:
    """From rung to rung: how many times faster."""
    rungs = [name for name in LADDER if name in arms]
    steps = [
        f"{one} to {other} {makespan(arms[one]) / makespan(arms[other]):.2f}"
        for one, other in pairwise(rungs)
    ]
    return ", ".join(steps) if steps else "too few arms"


def slower(arms: Arms) -> str:
    """Arms of the product that others beat, with the ratio."""
    found = []
    for name in arms:
        if not name.startswith(("B5", "B9")):
            continue
        others = ["B7"] if name in PRUNED else list(PLAIN)
        for other in others:
            ratio = makespan(arms[other]) / makespan(arms[name]) if other in arms else 1.0
            found += [f"{name} against {other} ({ratio:.2f})"] if ratio < 1 else []
    return ", ".join(found)
