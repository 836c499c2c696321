"""The README.md of a combination: what it is made of, and how it compares with its best part."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from sweeps.combination.contest_words import judgement, on_test_rows, shown
from sweeps.combination.on_test_rows import OnTestRows
from sweeps.combination.soups import Contest
from sweeps.exporters.card import card_sections as section
from sweeps.exporters.card.front_matter import front_matter
from sweeps.exporters.exporter import Form
from sweeps.exporters.names import base_title


def combination_card(
    spec: TrialSpec,
    record: Mapping[str, Any],
    contest: Contest,
    test: OnTestRows | None,
    folder: Path,
    forms: Sequence[Form],
) -> str:
    """The card of a combination in `folder`, whose figures are in `record`."""
    best = contest.best
    base = base_title(spec.model.name_or_path)
    title = f"{base}, {len(best.weights)} adapters of {record['sweep']} combined"
    lines = [
        *section.opening(front_matter(spec, record, title, tags=("merge",)).to_yaml(), title),
        f"A {spec.adapter.method} adapter for `{base}`, made of {len(best.weights)} adapters that "
        "were trained on it one by one. Nobody has trained it as it is.",
        "",
        *section.results(record, forms, "as it was combined"),
        *_made_of(record, contest),
        *_tried(contest, test),
        *section.prompt_format(spec, record),
        *section.how_to_load(spec, record, folder, forms),
        *section.sample_answers(record),
        *section.training(spec, record),
        *section.limits(spec, record),
        "",
        "Base, task and data are in `trial.json`; each part's own training is in its sweep.",
        "",
    ]
    return "\n".join(lines)


def _made_of(record: Mapping[str, Any], contest: Contest) -> Iterator[str]:
    """The parts with their weights, and how they were put together."""
    best = contest.best
    values = {name: one.value for one in contest.alone for name in one.weights}
    assert best.how is not None
    settings = {k: v for k, v in best.how.model_dump().items() if v is not None and k != "type"}
    given = "".join(f", {name} {value:g}" for name, value in settings.items())
    yield from ("", "## Made of", "")
    yield f"| adapter | weight | {contest.metric} alone | sha256 of its files |"
    yield "|---|---|---|---|"
    for part in record["parts"]:
        if (weight := best.weights.get(part["label"])) is not None:
            name = f"trial {part['trial']:04d} of {part['sweep']}"
            value = f"{values[part['label']]:.6g}"
            yield f"| {name} | {weight:.4g} | {value} | `{part['sha256'][:16]}` |"
    yield ""
    yield f"PEFT's `add_weighted_adapter`, `{best.how.type}`{given}."


def _tried(contest: Contest, test: OnTestRows | None) -> Iterator[str]:
    """All that was compared, and what the rows say."""
    yield from ("", "## Selection", "")
    yield f"| | {contest.metric} | difference to the best adapter alone |"
    yield "|---|---|---|"
    for one in (*contest.alone, *contest.soups):
        name = f"{one.title} ({', '.join(one.weights)})"
        yield f"| {name} | {one.value:.6g} | {shown(one.difference)} |"
    yield from ("", judgement(contest))
    if test is not None:
        yield from ("", on_test_rows(contest, test))
