"""The adapter as PEFT reads it: the files that every export starts from, scored again."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.references import load
from peft_jobs.storage.attempt_folder import ROWS_FILE, SAMPLES_FILE
from sweeps.exporters.exporter import Draft
from sweeps.results.row_intervals import intervals_of_metrics

NUM_SAMPLES = 3
"""Answers that the model card shows."""


class PeftExporter:
    """Scores the adapter on a fresh base; the test split is read once."""

    def check(self, spec: TrialSpec) -> None:
        """Every trial that completed has an adapter."""

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """Nothing else."""
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        """`validation` and `test`, as far as they are not there, with how many examples there were
        and some answers; names the classes of a head."""
        known = draft.record
        if known["validation"] is not None and not (draft.test and known["test"] is None):
            return {}
        score = load("peft_jobs.engines.solo.adapter_export:score_adapter")
        with tempfile.TemporaryDirectory(prefix="peft-sweeps-") as rows:
            place = Path(rows)
            given = (draft.spec_json, draft.path, draft.cache, draft.test, NUM_SAMPLES, place)
            validation, test = score(*given)
            found = {"test": test, "test_intervals": _intervals(place, test)} if test else {}
        samples = json.loads((draft.path / SAMPLES_FILE).read_text(encoding="utf-8"))
        return {"validation": validation, **found, **samples}

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> None:
        """The card is about it."""
        return


def _intervals(folder: Path, test: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """By metric, the 95 % interval of the adapter's value on other rows; none of those that do not
    follow from rows."""
    import pandas

    try:
        frame = pandas.read_parquet(folder / ROWS_FILE)
    except OSError:  # a full disk, which was told
        return {}
    return intervals_of_metrics(test, frame)
