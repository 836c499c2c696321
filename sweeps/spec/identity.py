"""What makes two launches the same sweep: the resolved spec without what may change in between."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec.dotted import flatten
from peft_jobs.storage.files import canonical_json, sha256
from sweeps.spec import SweepSpec

_FREE = (
    *("budget.n_trials", "budget.timeout", "budget.trial_timeout", "budget.max_failures"),
    *("budget.gpu_hours", "budget.usd", "budget.usd_per_gpu_hour"),
    *("storage", "study_url", "confirm"),
)
_CONTENT = "the "
"""Begins the names of fingerprints, among those of leaves."""
_SINCE = ("space.points_to_evaluate",)


def identity(spec: SweepSpec) -> dict[str, Any]:
    """The leaves that must stay: all but how much is run, where, and who watches.

    A larger or smaller budget (n_trials, times, costs, max_failures), the resources and the
    tracking may differ. What a file may hold only since a later version counts if the file does.
    """
    free = _FREE if spec.final_of is None else (*_FREE, *_SINCE)  # it may get more seeds
    return {
        name: value
        for name, value in flatten(spec).items()
        if name not in free
        and not name.startswith(("checkpoints.", "confirm.", "resources.", "tracking."))
        and (value != [] or name not in _SINCE)
    }


def planned_key(spec: SweepSpec) -> str:
    """Equal for a sweep before its launch and after: of what decides what its trials take."""
    trial, space = spec.trial.model_dump(mode="json"), spec.space.model_dump(mode="json")
    for section, name in (("training", "max_samples"), ("evaluation", "rungs")):
        trial[section].pop(name)  # a launch finds them out
    return sha256(canonical_json([trial, space]))


def adapter_key(name: str) -> str:
    """The name of a saved adapter's content among what trials see."""
    return f"adapter {name}"


def with_contents(
    leaves: Mapping[str, Any], seen: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """The leaves with the fingerprints of what trials see.

    What was seen `before`, and was not looked at now, is still what the sweep's trials saw.
    """
    kept = {name: value for name, value in before.items() if name.startswith(_CONTENT)}
    return {**kept, **leaves, **{f"{_CONTENT}{name}": value for name, value in seen.items()}}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line per leaf that has changed; a fingerprint that was not known before has not."""
    return "\n".join(
        f"  {name}: was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        if name in before or not name.startswith(_CONTENT)
    )


def _short(value: Any) -> str:
    """The first digits of a hash will do to tell it from another."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}..." if is_hash else repr(value)


def check_adapter(spec: TrialSpec, attributes: Callable[[], Mapping[str, Any]]) -> None:
    """SpecError if a saved adapter is no longer what the study with `attributes` began with."""
    if (source := spec.adapter.source) is None:
        return
    seen = attributes().get("spec", {})
    if seen.get(f"the {adapter_key(source.name_or_path)}", source.sha256) != source.sha256:
        raise SpecError(
            f"adapter.from: {source.name_or_path} has changed since the sweep began: put it back, "
            "or give this sweep another name"
        )
