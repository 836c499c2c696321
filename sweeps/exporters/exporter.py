"""What an exporter is: it writes one form of a trial into a folder, and measures what it wrote."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft_jobs import TrialSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE


@dataclass(frozen=True)
class Form:
    """What an export holds beside the adapter."""

    title: str
    """Heads its figures in the card's table."""
    metrics: Mapping[str, float]
    """Empty if nothing was measured on it."""
    text: str
    """What it is, and how it is loaded."""


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
    def title(self) -> str:
        """What is exported, in words."""
        parts, sweep = self.record.get("parts"), self.record["sweep"]
        if parts is not None:
            return f"{len(parts)} adapters of the sweep {sweep}, combined"
        return f"trial {self.record['trial']:04d} of the sweep {sweep}"

    @property
    def slug(self) -> str:
        """A name for what is served or run: small letters, digits and dashes."""
        name = re.sub(r"[^a-z0-9]+", "-", self.record["sweep"].lower()).strip("-")
        last = "combined" if "parts" in self.record else f"{self.record['trial']:04d}"
        return f"{name[:40] or 'sweep'}-{last}"

    @property
    def spec_json(self) -> str:
        """The trial as it was recorded."""
        return (self.path / TRIAL_FILE).read_text(encoding="utf-8")


class Exporter(Protocol):
    """One entry of EXPORTERS."""

    def check(self, spec: TrialSpec) -> None:
        """SpecError if a trial has no such form; asked before anything is loaded."""

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """Names of the forms, earlier in EXPORTERS, that this one is made of."""

    def write(self, draft: Draft) -> dict[str, Any]:
        """Write what the record does not tell of yet; the entries to add to the record.

        A form that broke off before is written anew. What is measured is measured on the files.
        """

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """What the model card says of it; None if it is not there, or the card's own subject."""


_DIFFERENCES = "differences"


def differences_of(record: Mapping[str, Any], name: str) -> list[str] | None:
    """What the form `name` does otherwise than the trial; None if it is not written."""
    found: list[str] | None = record.get(_DIFFERENCES, {}).get(name)
    return found


def with_differences(
    record: Mapping[str, Any], name: str, lines: Sequence[str]
) -> dict[str, dict[str, list[str]]]:
    """The entry of a record that tells what its forms do otherwise, with those of `name`."""
    return {_DIFFERENCES: {**record.get(_DIFFERENCES, {}), name: list(lines)}}


def intervals_of(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Of `export.json`, the 95 % intervals over rows by metric, those of the test split too."""
    return {**record.get("intervals", {}), **record.get("test_intervals", {})}
