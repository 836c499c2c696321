"""`plan`: what a sweep will take, told before anything is started or paid for."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from peft_jobs import SpecError
from sweeps.cli.devices import cores, planned_devices
from sweeps.cli.display.plan_words import plan_words
from sweeps.cli.preflight import load_checked, summary_of
from sweeps.cli.screen import err, out, pairs, print_json
from sweeps.planning.kept_plan import keep_plan
from sweeps.planning.learned import learned
from sweeps.planning.planned_points import How, Rows
from sweeps.planning.processes import processes
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.spec import SweepSpec

UNKNOWN_ROWS = 10_000
"""Assumed where the data cannot be read and the budget is in epochs."""


def plan(
    path: Path,
    overrides: Sequence[str],
    gpu: str | None,
    num_gpus: int | None,
    address: str | None,
    usd_per_gpu_hour: float | None,
    hours: float | None,
    json: bool,
) -> None:
    """Print the plan of a sweep file; SpecError where the base's configuration cannot be read."""
    spec = load_checked(path, overrides)
    device, number, notes = planned_devices(spec.resources.accelerator_type, gpu, num_gpus, address)
    known = learned(Path(spec.storage), device)
    with processes(cores()) as mapped, contextlib.redirect_stdout(sys.stderr):
        with err.status("Looking at the data ..."):
            rows, data, unread = _rows(spec)
        with err.status("Trying steps of its points ..."):
            made = plan_sweep(spec, device, number, rows, usd_per_gpu_hour, known, mapped)
    words = plan_words(spec, made, data, hours)
    keep_plan(spec, words)
    notes += unread
    if json:
        told = {} if hours is None else {"trials_in_hours": made.trials_in(hours)}
        print_json({**made.to_json(), **told, "data": data, "unread": notes})
        return
    out.print(f"[bold]{escape(str(path))}[/] on {number} x {escape(device.name)}\n")
    out.print(pairs(words))
    for line in notes:
        out.print(f"\n{line}", style="yellow", markup=False, soft_wrap=True)


def _rows(spec: SweepSpec) -> tuple[Rows, Mapping[str, Any], list[str]]:
    """What the data hold, their summary without rows, and why something is assumed instead."""
    limit = spec.trial.data.max_length
    found: Mapping[str, Any] = {}
    try:
        found = summary_of(spec)
        unread = [*found["mistakes"], *found["unread"]]
    except SpecError as error:
        unread = str(error).splitlines()
    told = {name: value for name, value in found.items() if name != "examples"}
    train = found.get("splits", {}).get("train", {})
    if not train.get("lengths") or not train.get("num_examples"):
        unread.append(
            f"The rows cannot be counted here: assumed are {UNKNOWN_ROWS:,} of data.max_length."
        )
        return Rows(UNKNOWN_ROWS, UNKNOWN_ROWS // 20, limit, limit, "assumed"), told, unread
    validation = found["splits"].get("validation", {}).get("num_rows", 0)
    longest = min(limit, train["lengths"]["longest"])
    mean = train["num_tokens"] / train["num_examples"]
    how: How = "predicted" if train["sampled"] else "exact"
    return Rows(train["num_rows"], validation, min(mean, longest), longest, how), told, unread
