"""Combines adapters of one base: measured, judged on the validation rows, and exported as one."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.references import load
from peft_jobs.spec.adapters import ADAPTERS, REFUSED
from peft_jobs.spec.adapters.continuation import saved_section
from peft_jobs.spec.combination import CombinationSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE
from peft_jobs.storage.files import whole_folder, write_json, write_whole
from peft_jobs.storage.saved_adapter import read_adapter
from sweeps.combination.agreement import check_agreement
from sweeps.combination.combination_card import combination_card
from sweeps.combination.ingredients import Ingredient, gather, top
from sweeps.combination.on_test_rows import OnTestRows, measure_on_test_rows
from sweeps.combination.soups import Contest, hold_contest
from sweeps.exporters import EXPORTERS
from sweeps.exporters.export import Exported, trained_facts
from sweeps.exporters.forms import cache_of, form_names, write_forms
from sweeps.exporters.merged import MERGED_FOLDER
from sweeps.file_names import EXPORT_FILE, EXPORTS_FOLDER
from sweeps.results.recorded_sweep import RecordedSweep, open_sweep

_FORMS = ("peft", "merged", "vllm", "ollama")
"""Those of an adapter that nobody trained as it is."""
_MAX_NAME = 120
"""Characters of the folder's name."""


@dataclass(frozen=True)
class Asked:
    """What is to be combined, and how."""

    top: int | None = None
    """How many of the sweep's best, unless adapters are named: by default three, or as many as
    there are."""
    adapters: tuple[str, ...] = ()
    """`7`, or `SWEEP:7` of another sweep of the storage."""
    hows: tuple[CombinationSpec, ...] = (CombinationSpec(),)
    weights: tuple[float, ...] | None = None
    """By adapter, in the order in which they are named; without, soups are tried."""
    anyway: bool = False
    """Whether the best combination is written although it is not accepted."""


@dataclass(frozen=True)
class Composed:
    """What was tried, and what was written of it."""

    contest: Contest
    test: OnTestRows | None
    """Of the best combination and the best adapter alone; None without a test split."""
    exported: Exported | None
    """None if no combination is better than the best adapter alone, and none was to be written."""


def compose(
    sweep: RecordedSweep,
    asked: Asked,
    out: Path | None = None,
    to: Sequence[str] = (),
    test: bool = True,
    study_url: str | None = None,
) -> Composed:
    """Measure the adapters that are asked for and their combinations; export the accepted one.

    Rows, objective and test split are those of `sweep`. What was written before is completed, not
    measured again. Raises SpecError for adapters that cannot be combined, before a model is loaded.
    """
    names = _forms(to)
    with ExitStack() as stack, cache_of(sweep.folder) as cache:
        parts = gather(
            sweep,
            asked.adapters or top(sweep, asked.top),
            lambda name: open_sweep(sweep.folder.location, name, study_url),
            stack,
        )
        _check(parts, asked, names)
        out = out or _place(sweep, parts)
        identity = _identity(sweep, parts, asked)
        record = _written(out, identity)
        if record is None:
            composed = _measured(sweep, parts, asked, cache, out, identity, test)
            if composed.exported is None:
                return composed
            record = json.loads((out / EXPORT_FILE).read_text(encoding="utf-8"))
        return _finished(out, record, names, cache)


def _forms(to: Sequence[str]) -> set[str]:
    names = form_names(to)
    if unfit := sorted(names - set(_FORMS)):
        raise SpecError(
            f"{', '.join(unfit)} trains a trial again, and a combination was never trained; there "
            f"are {', '.join(_FORMS)}"
        )
    return names


def _check(parts: Sequence[Ingredient], asked: Asked, names: set[str]) -> None:
    if asked.weights is not None and len(asked.weights) != len(parts):
        raise SpecError(
            f"{len(parts)} adapters ({', '.join(part.label for part in parts)}) need as many "
            f"weights, got {len(asked.weights)}"
        )
    check_agreement(parts, asked.hows, asked.weights)
    for name in names:
        EXPORTERS[name].check(parts[0].spec)


def _place(sweep: RecordedSweep, parts: Sequence[Ingredient]) -> Path:
    exports = sweep.folder.exports
    if sweep.folder.in_store:
        exports = Path(EXPORTS_FOLDER) / sweep.name
    labels = "-".join(part.label.replace(":", "-") for part in parts)
    return exports / f"combined-{labels}"[:_MAX_NAME]


def _identity(sweep: RecordedSweep, parts: Sequence[Ingredient], asked: Asked) -> dict[str, Any]:
    """What makes an export the one that is asked for."""
    return {
        "sweep": sweep.name,
        "parts": [
            {"label": p.label, "sweep": p.sweep, "trial": p.number, "sha256": p.sha256}
            for p in parts
        ],
        "tried": [how.model_dump(mode="json") for how in asked.hows],
        "weights": None if asked.weights is None else list(asked.weights),
    }


def _written(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of this combination, if it lies in `out`; SpecError if something else does."""
    if (out / EXPORT_FILE).is_file():
        record: dict[str, Any] = json.loads((out / EXPORT_FILE).read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in identity.items()):
            return record
    if out.exists() and any(out.iterdir()):
        raise SpecError(f"{out} holds something else; give another --out, or remove it")
    return None


def _measured(
    sweep: RecordedSweep,
    parts: Sequence[Ingredient],
    asked: Asked,
    cache: Path,
    out: Path,
    identity: Mapping[str, Any],
    test: bool,
) -> Composed:
    """The contest, and the combination begun in `out` if it is to be written."""
    own = next(part for part in parts if part.sweep == sweep.name)
    test = test and own.spec.data.test is not None
    open_bench = load("peft_jobs.engines.solo.loaded_adapters:LoadedAdapters")
    bench = open_bench(own.spec_json, {p.label: p.folder for p in parts}, cache, test)
    goal = sweep.spec.objective
    labels = [part.label for part in parts]
    contest = hold_contest(bench, labels, asked.hows, asked.weights, goal.metric, goal.direction)
    best = contest.best
    assert best.how is not None
    bench.combine("best", best.weights, best.how.model_dump_json())
    figures = measure_on_test_rows(bench, "best", contest) if test else None
    if contest.accepted is None and not asked.anyway:
        return Composed(contest, figures, None)
    trained = trained_facts(own.result)
    record = {
        **identity,
        "recorded": best.metrics,
        "validation": None,
        "test": None if figures is None else figures.combined,
        "intervals": contest.intervals,
        "test_intervals": {} if figures is None else figures.intervals,
        "merged": None,
        "quantized_checkpoint": bool(trained["quantization"].get("from_checkpoint")),
        "trained": {name: trained[name] for name in ("device", "precision", "versions")},
        "contest": contest.model_dump(mode="json"),
        "on_test_rows": None if figures is None else figures.model_dump(mode="json"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as begun:
        bench.save("best", begun)
        write_whole(begun / TRIAL_FILE, _spec_of(own.spec, begun).to_json())
        write_json(begun / EXPORT_FILE, record)
    return Composed(contest, figures, _exported(out, record))


def _spec_of(spec: TrialSpec, folder: Path) -> TrialSpec:
    """A trial's base, task and data, with the adapter that lies in `folder`."""
    adapter = saved_section(read_adapter(folder), ADAPTERS, REFUSED)
    return TrialSpec.model_validate({**spec.model_dump(mode="json"), "adapter": adapter})


def _finished(out: Path, record: dict[str, Any], names: set[str], cache: Path) -> Composed:
    """The forms and the card."""
    spec = TrialSpec.model_validate_json((out / TRIAL_FILE).read_text(encoding="utf-8"))
    record, forms = write_forms(out, spec, record, names, cache, test=False)
    contest = Contest.model_validate(record["contest"])
    test = record["on_test_rows"]
    figures = None if test is None else OnTestRows.model_validate(test)
    card = combination_card(spec, record, contest, figures, out, forms)
    write_whole(out / "README.md", card)
    write_json(out / EXPORT_FILE, record)
    return Composed(contest, figures, _exported(out, record))


def _exported(out: Path, record: Mapping[str, Any]) -> Exported:
    merged = record["merged"]
    return Exported(
        path=out,
        number=None,
        recorded=record["recorded"],
        validation=record["validation"] or {},
        test=record["test"],
        merged=merged,
        merged_path=None if merged is None else out / MERGED_FOLDER,
        differences=record.get("differences", {}),
    )
