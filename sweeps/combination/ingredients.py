"""The adapters that are to be combined: trials of one sweep, or of several in its storage."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.storage.object_store import local_copy
from peft_jobs.storage.saved_adapter import SavedAdapter, adapter_digest, read_adapter
from sweeps.results.leaderboard import Row
from sweeps.results.recorded_sweep import RecordedSweep


@dataclass(frozen=True)
class Ingredient:
    """One adapter, on this machine, with what is known of its trial."""

    label: str
    """`0007`, or `other:0007` of another sweep than the one that asks."""
    sweep: str
    number: int
    spec: TrialSpec
    spec_json: str
    """As it was recorded."""
    folder: Path
    saved: SavedAdapter
    sha256: str
    result: dict[str, Any]
    """`result.json`."""

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(self.result.get("provenance", {}))


USUAL = 3
"""Adapters that are combined if nobody says how many, or as many as there are."""


def top(sweep: RecordedSweep, count: int | None) -> list[str]:
    """The labels of the best `count` trials, by the leaderboard; SpecError if there are fewer."""
    ranked = [row for row in sweep.leaderboard().rows if row.rank is not None]
    if count is not None and count > len(ranked):
        raise SpecError(f"--top {count}: the sweep {sweep.name!r} has {len(ranked)} ranked trials")
    return [f"{row.number:04d}" for row in ranked[: count or USUAL]]


def gather(
    sweep: RecordedSweep,
    labels: Sequence[str],
    open_other: Callable[[str], RecordedSweep],
    stack: ExitStack,
) -> list[Ingredient]:
    """The adapters that `labels` name (`7`, `other:7`); copies of a store's last as long as
    `stack`.

    `open_other` opens another sweep of the storage. Raises SpecError for fewer than two, for
    none of the sweep's own, for one that is named twice, and for one that is not there.
    """
    opened = {sweep.name: sweep}
    found: list[Ingredient] = []
    for name, number in (_named(label, sweep.name) for label in labels):
        if name not in opened:
            opened[name] = open_other(name)
        found.append(_ingredient(opened[name], number, sweep.name, stack))
    counts = Counter(part.label for part in found)
    if twice := [label for label, count in counts.items() if count > 1]:
        raise SpecError(f"{', '.join(twice)} is named twice: weights say how much one counts")
    if all(part.sweep != sweep.name for part in found):
        raise SpecError(f"name one adapter of {sweep.name} at least: its rows and objective decide")
    if len(found) < 2:
        raise SpecError(f"at least two adapters are combined, got {len(found)}")
    return found


def _named(label: str, own: str) -> tuple[str, int]:
    name, _, number = label.strip().rpartition(":")
    if not number.isdigit():
        raise SpecError(f"an adapter is named as 7, or SWEEP:7 of another sweep; got {label!r}")
    return name or own, int(number)


def _ingredient(sweep: RecordedSweep, number: int, own: str, stack: ExitStack) -> Ingredient:
    row = next((row for row in sweep.leaderboard().rows if row.number == number), None)
    label = f"{number:04d}" if sweep.name == own else f"{sweep.name}:{number:04d}"
    if row is None:
        raise SpecError(f"the sweep {sweep.name!r} has no trial {number}")
    folder = _folder(sweep, row, stack)
    spec_json = sweep.folder.read(sweep.folder.trial_file(number)) or ""
    return Ingredient(
        label=label,
        sweep=sweep.name,
        number=number,
        spec=TrialSpec.model_validate_json(spec_json),
        spec_json=spec_json,
        folder=folder,
        saved=read_adapter(folder),
        sha256=adapter_digest(folder),
        result=json.loads(sweep.folder.read(sweep.folder.result(number)) or "{}"),
    )


def _folder(sweep: RecordedSweep, row: Row, stack: ExitStack) -> Path:
    if row.adapter is None:
        state = row.state if row.kind is None else f"{row.state} ({row.kind})"
        raise SpecError(f"trial {row.number} of {sweep.name} left no adapter: it is {state}")
    try:
        return stack.enter_context(local_copy(sweep.folder.path / row.adapter))
    except FileNotFoundError:
        keep = sweep.spec.checkpoints.keep
        why = f"it was deleted by checkpoints.keep: {keep}" if keep is not None else "it is gone"
        raise SpecError(
            f"there is no adapter of trial {row.number} of {sweep.name}: {why}; leave it out"
        ) from None
