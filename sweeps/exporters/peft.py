"""The adapter as PEFT reads it: the files that every export starts from, scored again."""

from collections.abc import Mapping
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.references import load
from sweeps.exporters.exporter import Draft


class PeftExporter:
    """Scores the adapter on a fresh base; the test split is read once."""

    def check(self, spec: TrialSpec) -> None:
        """Every trial that completed has an adapter."""

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """Nothing else."""
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        """`validation` and `test`, as far as they are not there; names the classes of a head."""
        known = draft.record
        if known["validation"] is not None and not (draft.test and known["test"] is None):
            return {}
        score = load("peft_jobs.engines.solo.adapter_export:score_adapter")
        validation, test = score(draft.spec_json, draft.path, draft.cache, draft.test)
        return {"validation": validation, "test": test or known["test"]}

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> None:
        """The card is about it."""
        return
