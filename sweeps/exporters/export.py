"""Exports a trial: adapter, configuration, model card, and the forms that were asked for.

Everything that is claimed on the card was measured on the exported files, on a fresh base.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE
from peft_jobs.storage.files import follow_umask, whole_folder, write_json, write_whole
from peft_jobs.storage.object_store import local_copy
from sweeps.errors import Unavailable
from sweeps.exporters.card.model_card import model_card
from sweeps.exporters.forms import ALWAYS, cache_of, form_names, write_forms
from sweeps.exporters.merged import MERGED_FOLDER
from sweeps.file_names import EXPORT_FILE, EXPORTS_FOLDER
from sweeps.records.layout import SweepFolder
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.recorded_sweep import RecordedSweep, open_sweep
from sweeps.results.row_intervals import intervals_of_metrics
from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class Exported:
    """What was written to `path`, with the metrics measured on it."""

    path: Path
    number: int | None
    """None of several trials' adapters, combined."""
    recorded: dict[str, float]
    """Validation metrics of the trial, as in the study; of a combination, as it was chosen by."""
    validation: dict[str, float]
    """Of the exported adapter, loaded again on a fresh base."""
    test: dict[str, float] | None
    """Of the winner only, and read once: a later export repeats the first figures."""
    merged: dict[str, float] | None
    merged_path: Path | None
    differences: dict[str, list[str]] = field(default_factory=dict)
    """By form: what it does otherwise than the trial, or cannot express, in sentences."""


def export_trial(
    storage: str | Path,
    name: str,
    number: int | None = None,
    out: Path | None = None,
    to: Sequence[str] = (ALWAYS,),
    test: bool = True,
    study_url: str | None = None,
) -> Exported:
    """Write the adapter of trial `number` (by default the winner) to `out`.

    `to` names entries of EXPORTERS; `peft`, the adapter itself, is always among them. `test` lets
    the winner be scored on the test split, once. `out` defaults to `<sweep>/exports/trial-0007`, of
    a sweep in an object store to that path in the current folder. An export that is there already
    is completed, not repeated. `study_url` is for a study whose database takes credentials. Raises
    SpecError for an unknown exporter, a trial without an adapter or with one that was deleted or
    has no such form, or an `out` that holds something else.
    """
    return write_export(open_sweep(storage, name, study_url), number, out, to, test)


def export_top(
    storage: str | Path,
    name: str,
    top: int,
    out: Path | None = None,
    to: Sequence[str] = (ALWAYS,),
    test: bool = True,
    study_url: str | None = None,
) -> list[Exported]:
    """`export_trial` for each of the best `top` trials, by the leaderboard, into folders named
    `trial-0007` below `out`. SpecError if fewer trials have a rank."""
    return write_top(open_sweep(storage, name, study_url), top, out, to, test)


def write_top(
    sweep: RecordedSweep, top: int, out: Path | None, to: Sequence[str], test: bool
) -> list[Exported]:
    """`export_top`, of a sweep that is open already."""
    board = sweep.leaderboard(intervals=True)
    numbers = [row.number for row in board.rows if row.rank is not None]
    if top > len(numbers):
        raise SpecError(f"--top {top}: the sweep {sweep.name!r} has {len(numbers)} ranked trials")
    folders = [None if out is None else out / f"trial-{n:04d}" for n in numbers[:top]]
    places = zip(numbers, folders, strict=False)
    return [write_export(sweep, number, folder, to, test, board) for number, folder in places]


def write_export(
    sweep: RecordedSweep,
    number: int | None,
    out: Path | None,
    to: Sequence[str],
    test: bool,
    board: Leaderboard | None = None,
) -> Exported:
    """`export_trial`, of a sweep that is open already; `board` is its own, with intervals."""
    names, folder = form_names(to), sweep.folder
    board = board or sweep.leaderboard(intervals=True)
    row = _choose(board, number)
    exports = Path(EXPORTS_FOLDER) / sweep.name if folder.in_store else folder.exports
    out = out or exports / f"trial-{row.number:04d}"
    record = _begin(out, folder, row, sweep.spec)
    record["trained_by"] = _trained_by(sweep, row.number)
    spec = TrialSpec.model_validate_json((out / TRIAL_FILE).read_text(encoding="utf-8"))
    winner = board.chosen is not None and board.chosen.number == row.number
    test = test and winner and spec.data.test is not None
    with cache_of(folder) as cache:
        record, forms = write_forms(out, spec, record, names, cache, test)
    if (intervals := _intervals(sweep, row)) is not None:
        record["intervals"] = intervals
    write_json(out / EXPORT_FILE, record)  # the verdict reads it
    said = sweep.verdict(board).sentences(with_steps=False)
    write_whole(out / "README.md", model_card(board, row, spec, record, out, forms, said))
    return Exported(
        path=out,
        number=row.number,
        recorded=record["recorded"],
        validation=record["validation"],
        test=record["test"],
        merged=record["merged"],
        merged_path=out / MERGED_FOLDER if record["merged"] is not None else None,
        differences=record.get("differences", {}),
    )


def _trained_by(sweep: RecordedSweep, number: int) -> dict[str, Any]:
    """Of which trial `peft-sweep train` trains the configuration: of a final training, the one that
    it is of."""
    final = sweep.spec.final_of
    name, trial = (sweep.name, number) if final is None else (final.sweep, final.trial)
    return {"sweep": name, "trial": trial, "storage": sweep.folder.location}


def _intervals(sweep: RecordedSweep, row: Row) -> dict[str, list[float]] | None:
    """Intervals of 95 % of the metrics that follow from rows, on other validation rows; None where
    there are no scores by row."""
    try:
        frame = sweep.rows(row.number)
    except (SpecError, Unavailable):
        return None
    found = intervals_of_metrics(_validation(row.metrics), frame)
    return {name: list(known) for name, known in found.items()}


def _choose(board: Leaderboard, number: int | None) -> Row:
    row = board.chosen
    if number is not None:
        row = next((row for row in board.rows if row.number == number), None)
    if row is None and number is None:
        raise SpecError(f"the sweep {board.sweep!r} has no winner yet: no trial completed")
    if row is None:
        raise SpecError(f"the sweep {board.sweep!r} has no trial {number}")
    if row.adapter is None:
        state = row.state if row.kind is None else f"{row.state} ({row.kind})"
        raise SpecError(f"trial {row.number} left no adapter: it is {state}")
    return row


def _begin(out: Path, folder: SweepFolder, row: Row, spec: SweepSpec) -> dict[str, Any]:
    """Copy the adapter and the trial to `out`, or take up the export that is there."""
    identity = {"sweep": spec.name, "trial": row.number, "recorded": _validation(row.metrics)}
    trained = trained_facts(json.loads(folder.read(folder.result(row.number)) or "{}"))
    if (out / EXPORT_FILE).is_file():
        record: dict[str, Any] = json.loads((out / EXPORT_FILE).read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in identity.items()):
            record.setdefault("trained", trained)  # an export of 0.1.0
            return record
    if out.exists() and any(out.iterdir()):
        raise SpecError(f"{out} holds something else; give another --out, or remove it")
    assert row.adapter is not None
    record = {
        **identity,
        "validation": None,
        "test": None,
        "merged": None,
        "quantized_checkpoint": bool(trained["quantization"].get("from_checkpoint")),
        "trained": trained,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as begun:
        try:
            with local_copy(folder.path / row.adapter) as adapter:
                shutil.copytree(adapter, begun, dirs_exist_ok=True)
                follow_umask(begun)  # what is copied may be read-only
        except FileNotFoundError:
            raise SpecError(_gone(folder, row.number, row.adapter, spec)) from None
        with local_copy(folder.trial_file(row.number)) as trial:
            shutil.copyfile(trial, begun / TRIAL_FILE)
        write_json(begun / EXPORT_FILE, record)
    return record


def trained_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a trial's result, what an export tells or builds on."""
    known = result.get("provenance", {})
    return {
        **{name: result.get(name) for name in ("step", "samples", "tokens", "seconds", "memory")},
        "trainable_parameters": result.get("trainable_parameters"),
        "device": known.get("device", "cpu"),
        "precision": known.get("precision", dict.fromkeys(("bf16", "fp16", "tf32"), False)),
        "quantization": known.get("quantization", {}),
        "versions": known.get("versions", {}),
    }


def _gone(folder: SweepFolder, number: int, adapter: str, spec: SweepSpec) -> str:
    keep, location = spec.checkpoints.keep, folder.location_of(folder.path / adapter)
    if keep is None:
        return f"the adapter of trial {number} is gone: no {location}"
    deleted = f"the adapter of trial {number} was deleted by checkpoints.keep: {keep}"
    copy = f"; MLflow has a copy, in the trial's run of experiment {spec.tracking.experiment!r}"
    return deleted + (copy if spec.tracking.enabled else "")


def _validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("validation/")}
