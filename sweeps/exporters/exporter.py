"""What an exporter is: it writes one form of a trial into a folder, and measures what it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft_jobs import TrialSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE
from sweeps.results.model_card import Form


@dataclass(frozen=True)
class Draft:
    """An export that is being written."""

    path: Path
    """Its folder, which holds the trained adapter and `trial.json` from the start."""
    spec: TrialSpec
    record: Mapping[str, Any]
    """`export.json` so far: what earlier exports have written and measured."""
    cache: Path
    """Tokenized data."""
    test: bool
    """Whether the test split is to be read, unless it was."""

    @property
    def spec_json(self) -> str:
        """The trial as it was recorded."""
        return (self.path / TRIAL_FILE).read_text(encoding="utf-8")


class Exporter(Protocol):
    """One entry of EXPORTERS."""

    def check(self, spec: TrialSpec) -> None:
        """SpecError if a trial has no such form; asked before anything is loaded."""

    def write(self, draft: Draft) -> dict[str, Any]:
        """Write what the record does not tell of yet; the entries to add to the record.

        A form that broke off before is written anew. What is measured is measured on the files.
        """

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """What the model card says of it; None if it is not there, or the card's own subject."""
