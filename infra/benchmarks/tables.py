"""`packing.md` from the measurements in `packing.json`."""

from collections.abc import Iterable, Mapping
from typing import Any

from core_report import cores
from figures import Measurement
from step_report import grids
from sweep_report import sweeps

ARMS = {
    "B0": "fresh process per trial, HF Trainer + PEFT",
    "B1": "solo engine on a resident base",
    "B2": "B1 on weights that are dequantized once",
    "B2-compiled": "B2 with compiled layers",
    "B1-graphed": "a plain loop on B1's base, each step one CUDA graph",
    "B2-graphed": "the same on B2's base",
    "B3": "K processes on one device, each a solo engine with a base of its own",
    "B3-2": "pool of two processes, HF Trainer + PEFT, the cores divided between them",
    "B3-4": "the same with four",
    "B3-8": "the same with eight",
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
TITLES = {
    "steps": "Trial-steps per second on a CPU",
    "sweep": "Whole sweeps on a CPU",
    "cores": "One host with all cores, or several with fewer",
    "gpu": "Trial-steps per second on a GPU (random weights of true shapes)",
}
REPORTS = {"steps": grids, "gpu": grids, "sweep": sweeps, "cores": cores}


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
    for name, title in TITLES.items():
        found = [one for one in measurements if one["table"] == name]
        lines += [f"## {title}", ""]
        if not found:
            reason = ": no GPU was at hand" if name == "gpu" else ""
            lines += [f"Not run{reason}.", ""]
            continue
        lines += REPORTS[name](found)
        numbers = sorted({one["run"] for one in found}, key=int)
        lines += [told(number, content["runs"][number], found) for number in numbers] + [""]
    return "\n".join(lines).rstrip() + "\n"


def told(number: str, run: Mapping[str, Any], found: Iterable[Measurement]) -> str:
    """A run: machine, versions, date, load, command."""
    environment = run["environment"]
    versions = environment["versions"]
    stack = ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers", "peft"))
    commit = f", commit {environment['commit'][:7]}" if environment.get("commit") else ""
    loads = [one["load"] for one in found if one["run"] == number]
    device = f", {run['device']}" if "device" in run else ""
    threads = f", {run['threads']} threads" if "threads" in run else ""
    return (
        f"* Run {number}: {run['machine']}{device}{threads}, {stack}{commit}, {run['date']}, load "
        f"{min(loads):.1f} to {max(loads):.1f}; `{run['command']}`"
    )
