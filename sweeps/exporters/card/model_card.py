"""The README.md of an export: what it is, how good, how to load it, how to train it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from sweeps.exporters.card import card_sections as section
from sweeps.exporters.card.front_matter import front_matter
from sweeps.exporters.exporter import Form
from sweeps.exporters.names import base_title
from sweeps.results.leaderboard import Leaderboard, Row

ALL_DATA = (
    *("data.subset=null", "training.max_samples=null", "training.max_steps=null"),
    *("training.num_train_epochs=1", "'evaluation.rungs=[]'"),
)
"""Overrides of a trial that train it for an epoch on all of its data."""


def model_card(
    board: Leaderboard,
    row: Row,
    spec: TrialSpec,
    record: Mapping[str, Any],
    folder: Path,
    forms: Sequence[Form] = (),
    said: Sequence[str] = (),
) -> str:
    """The card of an export in `folder`, whose figures are in `record`; `said` is the sweep's
    verdict in sentences."""
    is_stored = bool(record.get("quantized_checkpoint"))
    title = f"{base_title(spec.model.name_or_path)}, {spec.adapter.method} of {board.sweep}"
    lines = [
        *section.opening(front_matter(spec, record, title).to_yaml(), title),
        section.what_it_is(board, row, spec, is_stored),
        *section.continued(spec),
        "",
        *section.results(record, forms),
        *section.references(board),
        *section.prompt_format(spec, record),
        *section.how_to_load(spec, record, folder, forms),
        *section.sample_answers(record),
        *section.training(spec, record),
        *section.selection(board, row, said),
        *section.limits(spec, record, row.unbeaten),
        *("", "## Configuration", "", "| parameter | value |", "|---|---|"),
        *(f"| `{name}` | {value} |" for name, value in row.params.items()),
        "",
        "The whole trial is in `trial.json`. Train it again, or on all of its data:",
        "",
        "    python -m peft_jobs run trial.json --out again",
        f"    python -m peft_jobs run trial.json {' '.join(ALL_DATA[:3])} \\",
        f"        {' '.join(ALL_DATA[3:])} --out full",
        "",
    ]
    return "\n".join(lines)
