"""Export the winner: adapter, configuration, model card, and on request the merged model.

Everything that is claimed on the card was measured on the exported files, on a fresh base.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.references import load
from peft_jobs.storage.files import whole_folder, write_json, write_whole
from peft_jobs.storage.object_store import local_copy
from sweeps.records.layout import SweepFolder
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.model_card import model_card
from sweeps.results.recorded_sweep import RecordedSweep, open_sweep
from sweeps.spec import SweepSpec

RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """What was written to `path`, with the metrics measured on it."""

    path: Path
    number: int
    recorded: dict[str, float]
    """Validation metrics of the trial, as in the study."""
    validation: dict[str, float]
    """Of the exported adapter, loaded again on a fresh base."""
    test: dict[str, float] | None
    """Of the winner only, and read once: a later export repeats the first figures."""
    merged: dict[str, float] | None
    merged_path: Path | None


def export_trial(
    storage: str | Path,
    name: str,
    number: int | None = None,
    out: Path | None = None,
    merge: bool = False,
    test: bool = True,
    study_url: str | None = None,
) -> Exported:
    """Write the adapter of trial `number` (by default the winner) to `out`.

    `out` defaults to `<sweep>/exports/trial-0007`, of a sweep in an object store to that path in
    the current folder. An export that is there already is completed,
    not repeated. `study_url` is for a study whose database takes credentials. Raises SpecError for
    a trial without an adapter or with one that was deleted, or an `out` that holds something else.
    """
    return write_export(open_sweep(storage, name, study_url), number, out, merge, test)


def write_export(
    sweep: RecordedSweep, number: int | None, out: Path | None, merge: bool, test: bool
) -> Exported:
    """`export_trial`, of a sweep that is open already."""
    board, folder = sweep.leaderboard(), sweep.folder
    row = _choose(board, number)
    exports = Path("exports") / sweep.name if folder.in_store else folder.exports
    out = out or exports / f"trial-{row.number:04d}"
    record = _begin(out, folder, row, sweep.spec)
    spec_json = (out / "trial.json").read_text(encoding="utf-8")
    spec = TrialSpec.model_validate_json(spec_json)
    if merge:
        spec.adapter.check_merges()
    winner = board.best is not None and board.best.number == row.number
    test = test and winner and spec.data.test is not None
    if record["validation"] is None or (test and record["test"] is None):
        score = load("peft_jobs.engines.solo.adapter_export:score_adapter")
        record["validation"], scored = score(spec_json, out, folder.cache, test)
        record["test"] = scored or record["test"]
    if merge and record["merged"] is None:
        merge_adapter = load("peft_jobs.engines.solo.adapter_export:merge_adapter")
        record["merged"] = merge_adapter(spec_json, out, out / "merged", folder.cache)
    write_whole(out / "README.md", model_card(board, row, spec, record, out))
    write_json(out / RECORD, record)
    return Exported(
        path=out,
        number=row.number,
        recorded=record["recorded"],
        validation=record["validation"],
        test=record["test"],
        merged=record["merged"],
        merged_path=out / "merged" if record["merged"] is not None else None,
    )


def _choose(board: Leaderboard, number: int | None) -> Row:
    if number is None:
        if board.best is None:
            raise SpecError(f"the sweep {board.sweep!r} has no winner yet: no trial completed")
        return board.best
    row = next((row for row in board.rows if row.number == number), None)
    if row is None:
        raise SpecError(f"the sweep {board.sweep!r} has no trial {number}")
    if row.adapter is None:
        raise SpecError(f"trial {number} left no adapter: it is {row.state} ({row.kind})")
    return row


def _begin(out: Path, folder: SweepFolder, row: Row, spec: SweepSpec) -> dict[str, Any]:
    """Copy the adapter and the trial to `out`, or take up the export that is there."""
    identity = {"sweep": spec.name, "trial": row.number, "recorded": _validation(row.metrics)}
    if (out / RECORD).is_file():
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in identity.items()):
            return record
    if out.exists() and any(out.iterdir()):
        raise SpecError(f"{out} holds something else; give another --out, or remove it")
    assert row.adapter is not None
    record = {**identity, "validation": None, "test": None, "merged": None}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as begun:
        try:
            with local_copy(folder.path / row.adapter) as adapter:
                shutil.copytree(adapter, begun, dirs_exist_ok=True)
        except FileNotFoundError:
            raise SpecError(_gone(folder, row.number, row.adapter, spec)) from None
        with local_copy(folder.trial(row.number) / "trial.json") as trial:
            shutil.copyfile(trial, begun / "trial.json")
        write_json(begun / RECORD, record)
    return record


def _gone(folder: SweepFolder, number: int, adapter: str, spec: SweepSpec) -> str:
    keep, location = spec.checkpoints.keep, folder.location_of(folder.path / adapter)
    if keep is None:
        return f"the adapter of trial {number} is gone: no {location}"
    deleted = f"the adapter of trial {number} was deleted by checkpoints.keep: {keep}"
    copy = f"; MLflow has a copy, in the trial's run of experiment {spec.tracking.experiment!r}"
    return deleted + (copy if spec.tracking.enabled else "")


def _validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("validation/")}
