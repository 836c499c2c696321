"""`gpu_check.md`: what `gpu_check.py` has found, what must hold first."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from figures import Measurement, gains, newest, spread, table
from step_report import grids

MAX_LOSS_DIFFERENCE = 2e-2
"""Of a loss, relative to the largest one: what bfloat16 and another kernel round differently."""
MAX_SPREAD_OF_LAUNCHES, MAX_DROPOUT_FACTOR = 1.05, 1.25
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A gain on a trial alone (B1) that packing is to have."""

    shape: str
    tokens: int
    slots: int
    gain: float


GOALS = (Goal("7B", 128, 8, 4.72), Goal("0.5B", 256, 16, 8.0))
Verdict = tuple[str, bool | None, str]
"""What must hold, whether it does (None: not measured), and the figure."""


def holds(content: Content) -> bool:
    """Whether all parts ran and nothing that must hold is known not to; goals of speed are goals,
    and are told, not demanded."""
    ran = all(part["outcome"] == "ok" for part in content["parts"])
    return ran and not any(held is False for _, held, _ in must_hold(content))


def must_hold(content: Content) -> list[Verdict]:
    """What is right or wrong, whatever the machine."""
    suite = tests(content)
    verdicts: list[Verdict] = [("the tests marked gpu pass", passed(suite), told(suite))]
    for one in part(content, "parity"):
        relative = one["loss_difference_max"] / max(1.0, one["largest_loss"])
        packed = one["not_packed_because"] is None
        text = f"{relative:.1e}" if packed else one["not_packed_because"]
        name = f"packed is solo, demo, {one['name']}"
        verdicts.append((name, packed and relative < MAX_LOSS_DIFFERENCE, text))
    failed = content.get("probe", {}).get("failed", {})
    verdicts += [(name, False, text.strip().splitlines()[-1]) for name, text in failed.items()]
    return verdicts


def goals(content: Content) -> list[Verdict]:
    """What packing is to reach."""
    measured = measurements(content)
    verdicts: list[Verdict] = []
    for goal in GOALS:
        here = [o for o in measured if (o["model"], o["tokens"]) == model_of(goal)]
        ratios = gain_of(here, "B5", goal.slots)
        held = statistics.median(ratios) > goal.gain if ratios else None
        name = f"{goal.shape}, {goal.tokens} tokens, K={goal.slots}: above {goal.gain:g} x B1"
        verdicts.append((name, held, spread(ratios) or why_not(here, "B5", goal.slots)))
        for arm in ("B2", "B2-graphed"):
            against = gain_of(here, "B5", goal.slots, arm)
            text = spread(against) or why_not(here, arm, 1)
            verdicts.append((f"the same on {arm}, no goal", None, text))
    own = [
        statistics.median(ratios)
        for key in {(o["model"], o["tokens"], o["slots"]) for o in measured}
        if (
            ratios := gain_of(
                [o for o in measured if (o["model"], o["tokens"]) == key[:2]], "B5-auto", key[2]
            )
        )
    ]
    worst = f"{min(own):.2f}, of {len(own)} cells" if own else "not measured"
    verdicts.append(
        ("never below B1 with the engine's own K", min(own) >= 1 if own else None, worst)
    )
    for shape, ratio, dropout in launch_ratios(content):
        name = f"launches, {shape}, dropout {dropout:g}: independent of K"
        verdicts.append((name, ratio < MAX_SPREAD_OF_LAUNCHES, f"most / least {ratio:.2f}"))
    for shape, slots, factor in dropout_factors(content):
        name = f"launches, {shape}, K={slots}: with dropout against without"
        verdicts.append((name, factor <= MAX_DROPOUT_FACTOR, f"{factor:.2f}"))
    return verdicts


def model_of(goal: Goal) -> tuple[str, int]:
    return f"{goal.shape} (random)", goal.tokens


def gain_of(found: Sequence[Measurement], arm: str, slots: int, base: str = "B1") -> list[float]:
    """Gains of an arm on a trial alone, in the last run that has the arm."""
    mine = [o for o in found if (o["arm"], o["slots"]) == (arm, slots)]
    return gains(newest(mine), [o for o in found if o["arm"] == base]) if mine else []


def why_not(found: Sequence[Measurement], arm: str, slots: int) -> str:
    reasons = [
        o["failed"] for o in found if o["arm"] == arm and o["slots"] == slots and "failed" in o
    ]
    return reasons[-1] if reasons else "not measured"


def launch_ratios(content: Content) -> list[tuple[str, float, float]]:
    """(shape, most launches of a packed step by fewest, dropout)."""
    groups: dict[tuple[str, float], list[float]] = {}
    for one in part(content, "steps"):
        if one["slots"] > 1:
            groups.setdefault((one["shape"], one["dropout"]), []).append(launches(one))
    return [
        (shape, max(counts) / min(counts), dropout)
        for (shape, dropout), counts in groups.items()
        if len(counts) > 1
    ]


def dropout_factors(content: Content) -> list[tuple[str, int, float]]:
    """(shape, K, launches with dropout by those without)."""
    counts: dict[tuple[str, int], dict[bool, float]] = {}
    for one in part(content, "steps"):
        cell = counts.setdefault((one["shape"], one["slots"]), {})
        cell[one["dropout"] > 0] = launches(one)
    return [
        (shape, slots, cell[True] / cell[False])
        for (shape, slots), cell in counts.items()
        if len(cell) == 2 and slots > 1
    ]


def launches(one: Mapping[str, Any]) -> float:
    """Kernels started in a step; operators where the profiler saw none, as on a CPU."""
    return float(one["launches"] or one["operators"])


def part(content: Content, name: str) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = content.get("probe", {}).get(name, [])
    return found


def measurements(content: Content) -> list[Measurement]:
    found: list[Measurement] = content.get("packing", {}).get("measurements", [])
    return found


def tests(content: Content) -> tuple[int, int, int, list[str]] | None:
    """Of the tests marked gpu: how many there are, failed, were skipped; which failed."""
    if "tests_xml" not in content:
        return None
    try:
        cases = list(ElementTree.fromstring(content["tests_xml"]).iter("testcase"))
    except ElementTree.ParseError:
        return None
    wrong = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases), len(wrong), skipped, [str(case.get("name")) for case in wrong]


def passed(suite: tuple[int, int, int, list[str]] | None) -> bool | None:
    """None where all were skipped."""
    if suite is None or suite[0] == suite[2]:
        return None
    return suite[1] == 0


def told(suite: tuple[int, int, int, list[str]] | None) -> str:
    if suite is None:
        return "not run to the end"
    number, failed, skipped, names = suite
    text = f"{number - failed - skipped} of {number}, {skipped} skipped"
    return text + (f"; failed: {', '.join(names)}" if names else "")


def markdown(content: Content) -> str:
    """The page."""
    title = "# A look at a GPU" + (" (dry run on a CPU)" if content["dry_run"] else "")
    lines = [title, "", "`infra/gpu_check.sh`; every figure is in `gpu_check.json`.", ""]
    versions = content.get("versions", {})
    lines += [*table(["what", "found"], [(n, cell(v)) for n, v in versions.items()])]
    lines += ["## What must hold", "", *verdict_table(must_hold(content))]
    lines += ["## Goals", "", *verdict_table(goals(content))]
    lines += [
        "## A step",
        "",
        "Means of a step. Counts and the GPU's milliseconds are the profiler's,",
    ]
    lines += [
        "the step's are taken without it; idle is their difference. K=1 is the solo engine.",
        "",
    ]
    lines += step_table(part(content, "steps"))
    if any(not one["kernels"] for one in part(content, "steps")):
        lines += ["Where there are no kernels the profiler saw no GPU; operators were counted.", ""]
    lines += ["## Trials that come and go", "", *churn_table(part(content, "churn"))]
    lines += ["## Trial-steps per second", ""]
    lines += grids(measurements(content)) if measurements(content) else ["Not measured.", ""]
    lines += ["## What was run", ""]
    rows = [(p["name"], p["outcome"], f"{p['seconds']:.0f}", p["log"]) for p in content["parts"]]
    lines += table(["part", "outcome", "s", "log"], rows)
    skipped = [*content["skipped"], *content.get("probe", {}).get("skipped", [])]
    lines += [f"* skipped: {text}" for text in skipped]
    return "\n".join(lines).rstrip() + "\n"


def verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    words = {True: "yes", False: "**no**", None: ""}
    return table(["what", "holds", "figure"], [(n, words[held], t) for n, held, t in verdicts])


def step_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["cell", "step ms", "GPU ms", "idle ms", "gap between steps ms", "launches", "copies"]
    head += ["synchronisations", "operators", "peak GB", "reserved GB"]
    rows = []
    for one in found:
        on_gpu = bool(one["kernels"])
        times = (one["gpu_ms"], one["gpu_idle_ms"], one["gap_between_steps_ms"])
        counts = (one["launches"], one["copies"], one["synchronisations"], one["operators"])
        rows.append(
            [
                one["name"] + ("" if one["all_at_once"] else " (did not begin at once)"),
                f"{one['step_ms']:.1f}",
                *[f"{time:.1f}" if on_gpu else "" for time in times],
                *[f"{count:.0f}" for count in counts],
                f"{one['peak_bytes'] / 1e9:.2f}",
                f"{one['peak_reserved_bytes'] / 1e9:.2f}" if on_gpu else "",
            ]
        )
    return table(head, rows)


def churn_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = ("steady", "coming_and_going")
    rows = [
        (one["name"], one["slots"], *[f"{one[f'{kind}_ms_of_a_trial_step']:.1f}" for kind in kinds])
        for one in found
    ]
    return table(["cell", "K", "ms of a trial-step, steady", "coming and going"], rows)


def cell(value: object) -> str:
    return "absent" if value is None else str(value)
