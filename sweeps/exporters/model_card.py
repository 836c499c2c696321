"""The README.md of an export: what it is, how good, how to load it, how to train it again."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO
from peft_jobs.spec.adapters import OWN
from sweeps.exporters.exporter import Form
from sweeps.exporters.loading_code import GENERATION_FILE, loading
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
) -> str:
    """The card of an export in `folder`, whose figures are in `record`."""
    model, is_stored = spec.model, bool(record.get("quantized_checkpoint"))
    on_hub = model.name_or_path != DEMO and not Path(model.name_or_path).is_absolute()
    revision = f"@{model.revision}" if model.revision else ""
    columns = {
        "recorded in the sweep": record["recorded"],
        "adapter, loaded again": {**record["validation"], **(record["test"] or {})},
        **{form.title: form.metrics for form in forms if form.metrics},
    }
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {model.name_or_path}"] if on_hub else []),
        "---",
        "",
        f"# Trial {row.number:04d} of the sweep {board.sweep}",
        "",
        f"A {spec.adapter.method} adapter for `{model.name_or_path}{revision}`, trained on "
        f"{_base_words(spec, is_stored)}. "
        f"It is rank {row.rank or 'none'} among the sweep's complete trials by {board.metric}.",
        *_continued(spec),
        "",
        "| metric | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in columns["adapter, loaded again"]:
        values = (metrics.get(name) for metrics in columns.values())
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for words, value in board.references.items():
        lines += ["", f"The {words}: {board.metric} {value:.6g}."]
    lines += ["", "## Loading", "", "In this folder:", ""]
    lines += ["```python", *loading(spec, folder, is_stored), "```"]
    if spec.adapter.method in OWN:
        lines += ["", "PEFT has no such method: `peft_jobs` is of the package peft-sweeps."]
    if (folder / GENERATION_FILE).is_file():
        lines += ["", _decoding(spec)]
    for form in forms:
        lines += ["", form.text]
    lines += ["", "## Configuration", "", "| parameter | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in row.params.items()]
    lines += [
        "",
        "The whole trial is in `trial.json`. Train it again, or on all of its data:",
        "",
        "    python -m peft_jobs run trial.json --out again",
        f"    python -m peft_jobs run trial.json {' '.join(ALL_DATA[:3])} \\",
        f"        {' '.join(ALL_DATA[3:])} --out full",
        "",
    ]
    return "\n".join(lines)


def _continued(spec: TrialSpec) -> Iterator[str]:
    """From which adapter the trial went on."""
    if (source := spec.adapter.source) is not None:
        at = f"@{source.revision}" if source.revision else ""
        yield ""
        yield (
            f"Its training went on from the adapter `{source.name_or_path}{at}` (sha256 of its "
            f"files {source.sha256}), whose weights are a part of it: that adapter is not needed."
        )


def _base_words(spec: TrialSpec, is_stored: bool) -> str:
    scheme = spec.quantization.scheme
    if is_stored:
        return f"this checkpoint, which is quantized as it is stored (`{scheme}`)"
    return f"a `{scheme}` base"


def _decoding(spec: TrialSpec) -> str:
    """What the generation settings of an export are."""
    if spec.evaluation.generation is None:
        return (
            f"`{GENERATION_FILE}` is the base's, with the tokens at which the answers of the data "
            "end; no answers were measured."
        )
    return (
        f"`{GENERATION_FILE}` has answers decoded as they were measured: greedily, up to the "
        "tokens at which those of the data end. What else the base's own settings do (sampling, "
        "beams, penalties, lengths at least) is left out."
    )
