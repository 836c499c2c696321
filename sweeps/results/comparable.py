"""Which trials may be ranked together: those that saw the same base and the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from peft_jobs import SpecError, State

COMPARABLE = ("model", "data", "template")
"""Parts of a result's provenance that must agree."""
CONTENTS = {
    "weights": ("model.", "quantization.", "task.", "data."),
    "config": ("model.",),
    "tokenizer": ("model.", "task."),
    "template": ("model.", "task.", "data."),
    "train_data": ("data.",),
    "data": ("data.",),
}
"""Parts of a result's provenance that are the same in all trials with equal parameters of these
sections: where they are not, something was changed in place. Weights also follow the device."""


def changed_contents(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """By trial, what of its base or its rows is not what the first complete trial with equal
    parameters saw: its losses cannot be ranked with those of the others."""
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    found: dict[int, str] = {}
    for trial in trials:
        result: Mapping[str, Any] = trial.user_attrs.get("result", {})
        if result.get("state") != State.COMPLETE:
            continue
        seen, params = result["provenance"], trial.user_attrs.get("params", {})
        for part, sections in CONTENTS.items():
            if seen.get(part) is None:  # of an earlier version, or simulated
                continue
            given = (f"{name} {params[name]!r}" for name in params if name.startswith(sections))
            device = seen.get("device") if part == "weights" else None
            key = (part, str(device), *sorted(given))
            value, number = first.setdefault(key, (seen[part], trial.number))
            if value != seen[part]:
                found[trial.number] = f"other {part} than trial {number}"
                break
    return found


def check_comparable(trials: Sequence[FrozenTrial]) -> None:
    """SpecError unless all complete trials saw the same base, data and template."""
    for part in COMPARABLE:
        seen: dict[Any, int] = {}
        for trial in trials:
            result: Mapping[str, Any] = trial.user_attrs.get("result", {})
            if result.get("state") == State.COMPLETE:
                seen.setdefault(result["provenance"].get(part), trial.number)
        if len(seen) > 1:
            numbers = " and ".join(str(number) for number in seen.values())
            raise SpecError(
                f"trials {numbers} differ in their {part}, so their {part}-dependent losses cannot "
                f"be ranked together: sweep over one {part} at a time"
            )
