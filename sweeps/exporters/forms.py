"""Writes the forms that were asked for into an export that has begun, as EXPORTERS has them."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec.mistakes import suggest
from sweeps.exporters import EXPORTERS, Draft
from sweeps.exporters.exporter import Form
from sweeps.records.layout import SweepFolder

ALWAYS = "peft"
"""The exporter that every export includes: the others start from its files."""


def form_names(to: str | Sequence[str]) -> set[str]:
    """What is to be written, by name; SpecError for an unknown form."""
    names = {ALWAYS, *([to] if isinstance(to, str) else to)}
    for name in sorted(names - EXPORTERS.keys()):
        raise SpecError(f"unknown exporter {name!r}{suggest(name, EXPORTERS)}")
    return names


def write_forms(
    path: Path,
    spec: TrialSpec,
    record: Mapping[str, Any],
    names: set[str],
    cache: Path,
    test: bool,
) -> tuple[dict[str, Any], list[Form]]:
    """The record of the export in `path` with all that was written and measured, and what the card
    says of its forms. SpecError, before anything is written, for a form that cannot be had."""
    wanted = names | {needed for name in names for needed in EXPORTERS[name].needs(spec)}
    exporters = [exporter for name, exporter in EXPORTERS.items() if name in wanted]
    for exporter in exporters:
        exporter.check(spec)
    known = dict(record)
    for exporter in exporters:
        known |= exporter.write(Draft(path, spec, known, cache, test))
    forms = (exporter.form(spec, known) for exporter in EXPORTERS.values())
    return known, [form for form in forms if form is not None]


@contextmanager
def cache_of(folder: SweepFolder) -> Iterator[Path]:
    """Where data are tokenized: in the storage, or aside if that is not to be written."""
    if os.access(folder.storage, os.W_OK) or folder.in_store:
        yield folder.cache
        return
    with tempfile.TemporaryDirectory(prefix="peft-sweeps-") as aside:
        yield Path(aside)
