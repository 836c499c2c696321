"""Which modules each set of targets of a sweep stands for, counted on the base's skeleton."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peft_jobs.base.architecture import skeleton
from peft_jobs.errors import SpecError
from peft_jobs.methods.placement import places
from peft_jobs.spec import TrialSpec

_CHOICE = (
    *("method", "target_modules", "exclude_modules", "target_parameters", "placement"),
    *("layers_to_transform", "layers_pattern", "feedforward_modules", "modules_to_save"),
)
"""Fields of an adapter that choose modules."""


def matched_modules(trials: Sequence[TrialSpec]) -> list[dict[str, Any]]:
    """For each choice of modules among the trials, in their order: `base`, `method`, `targets` as
    they were written, `modules` (their number), `by_name`, their numbers by the last part of their
    names, and `same_as`, the targets of an earlier choice that are the same modules, or None.
    Choices that adapt no module are left out, and those that the base does not take.

    No weights are read. Raises like `skeleton`.
    """
    found: dict[str, dict[str, Any]] = {}
    skeletons: dict[str, Any] = {}
    chosen: dict[tuple[str, str, tuple[str, ...]], Any] = {}
    """Targets by what they stand for."""
    for trial in trials:
        fields = trial.adapter.model_dump(mode="json")
        choice = {name: fields[name] for name in _CHOICE if fields.get(name)}
        base = repr((trial.model, trial.task.type))
        key = repr((base, choice))
        if key in found:
            continue
        if base not in skeletons:
            skeletons[base] = skeleton(trial.model, trial.task)
        try:
            names = places(skeletons[base], trial.adapter)
        except SpecError:  # told by `validate`, and of the trials that choose it
            names = ()
        targets = choice.get("target_modules", choice.get("placement"))
        first = chosen.setdefault((base, trial.adapter.method, tuple(names)), targets)
        counts = Counter(name.rpartition(".")[2] for name in names)
        found[key] = {
            "base": trial.model.name_or_path,
            "method": trial.adapter.method,
            "targets": targets,
            "modules": len(names),
            "by_name": dict(sorted(counts.items())),
            "same_as": first if first != targets else None,
        }
    return [each for each in found.values() if each["modules"]]
