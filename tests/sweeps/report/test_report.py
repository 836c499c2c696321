"""The report of a sweep: what it says is what the board says, and it asks nobody for anything."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sweeps import SweepSpec, open_sweep, write_report
from sweeps.planning.kept_plan import keep_plan
from sweeps.report.report import keep_report, make_report
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.reports import cells, confirmed_cells, header
from sweeps.run import launch

Sweep = Callable[..., SweepSpec]
VOID = ("meta", "wbr", "br", "link", "img", "input")


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, tables, scripts."""

    source: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.texts["script"][0])
        return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage for the module's one sweep."""
    return tmp_path_factory.mktemp("stored")


@pytest.fixture
def recorded(sweep: Sweep, stored: Path) -> RecordedSweep:
    """A simulated sweep with a confirmation, and complete, pruned and failed trials."""
    spec = sweep(
        storage=str(stored),
        budget={"n_trials": 16},
        confirm={"seeds": 2, "candidates": 3, "max_trials": 6},
        resources={"engine_options": {"faults": {3: "bug"}}},
    )
    if not (stored / "optuna.db").exists():
        launch(spec)
    found = open_sweep(stored, spec.name)
    assert {row.state for row in found.leaderboard().rows} == {"COMPLETE", "PRUNED", "FAIL"}
    return found


@pytest.fixture
def page(recorded: RecordedSweep, tmp_path: Path) -> Page:
    write_report(recorded, tmp_path / "page.html")
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_the_page_has_the_plan_of_this_sweep_and_of_no_other(
    recorded: RecordedSweep, tmp_path: Path
) -> None:
    plan = {"memory": "largest 3 GiB\nall 32 points fit; predicted"}
    try:
        for spec, shown in (
            (recorded.spec, True),
            (
                recorded.spec.model_copy(
                    update={"trial": recorded.spec.trial.with_params({"adapter.r": 3})}
                ),
                False,
            ),
        ):
            keep_plan(spec, plan)
            write_report(recorded, tmp_path / "page.html")
            found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
            assert (["memory", plan["memory"]] in found.rows) == shown
    finally:
        recorded.folder.plan.unlink()


def test_the_page_loads_nothing_and_forbids_itself_to(page: Page) -> None:
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "style"}
    assert [e for e in page.elements if loading & e[1].keys()] == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "video"}
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    own = page.texts["script"][2]
    assert not re.search(r"https?:|fetch|XMLHttpRequest|import\(", own)
    policy = next(e["content"] for tag, e in page.elements if "http-equiv" in e)
    directives = dict(part.split(" ", 1) for part in str(policy).split("; "))
    assert directives["default-src"] == "'none'"
    digests = [hashlib.sha256(text.encode()).digest() for text in page.texts["script"][1:]]
    allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert directives["script-src"] == " ".join(allowed), "only these two run"
    assert len(page.texts["script"]) == 3


def test_the_page_says_what_the_board_says(page: Page, recorded: RecordedSweep) -> None:
    board = recorded.leaderboard(intervals=True)
    found = board.confirmation
    assert found is not None
    for sentence in recorded.verdict(board).sentences(with_steps=False):
        assert sentence in page.texts["p"]
    start = page.rows.index(header(board))
    entries = [cells(entry, board) for entry in board.entries]
    assert page.rows[start + 1 : start + 1 + len(entries)] == entries
    for row in found.rows:
        assert confirmed_cells(row) in page.rows
    assert f"What to train: trial {found.recommended:04d}" in page.texts["h2"]


def test_every_figure_has_its_place_and_only_finite_numbers(page: Page) -> None:
    places = [e["data-figure"] for _, e in page.elements if "data-figure" in e]
    assert places == [str(number) for number in range(len(page.figures))]
    assert len(places) >= 7
    for figure in page.figures:
        assert figure["data"]
        assert figure.keys() == {"data", "layout"}


HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)> "&amp;</script>'


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def test_what_a_person_wrote_is_text_and_never_markup(
    recorded: RecordedSweep,
) -> None:
    board = recorded.leaderboard()
    rows = (
        replace(
            row,
            params={**row.params, HOSTILE: f"{HOSTILE}{row.number}"},
            metrics={HOSTILE: row.value or 0.0},
            changed=HOSTILE,
        )
        for row in board.rows
    )
    hostile = replace(board, sweep=HOSTILE, metric=HOSTILE, rows=tuple(rows))
    record: dict[str, Any] = json.loads(recorded.folder.record.read_text())
    record["prepared"]["leaks"] = [HOSTILE]
    record["prepared"]["class_counts"] = {HOSTILE: 3}
    record["environment"]["platform"] = HOSTILE
    page = Page(make_report(recorded, record, hostile, recorded.verdict(hostile)))
    assert len(page.texts["script"]) == 3
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.texts["h1"] == [f"Sweep {HOSTILE}"]
    assert board.confirmation is not None
    assert [HOSTILE, f"{HOSTILE}{board.confirmation.recommended}"] in page.rows
    drawn = [text for text in _texts(page.figures) if "alert" in text]
    assert drawn
    markup = re.compile("<(?!br>)")
    assert [text for text in drawn if markup.search(text)] == []


def test_a_sweep_without_a_complete_trial_has_a_page(sweep: Sweep, tmp_path: Path) -> None:
    faults = {"engine_options": {"faults": {0: "oom", 1: "oom"}}}
    spec = sweep(budget={"n_trials": 2}, resources=faults)
    assert launch(spec).status == "failed"
    write_report(open_sweep(spec.storage, spec.name), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "No trial has completed yet." in page.texts["p"]


def test_a_page_that_cannot_be_written_is_told_and_fails_nothing(
    recorded: RecordedSweep, caplog: pytest.LogCaptureFixture
) -> None:
    board: Leaderboard = recorded.leaderboard()
    there = recorded.folder.path / "report.html"
    there.mkdir()
    keep_report(recorded, board, recorded.verdict(board))
    assert "peft-sweep report simulated --storage" in caplog.text
    there.rmdir()
    keep_report(recorded, board, recorded.verdict(board))
    assert Page(there.read_text(encoding="utf-8")).texts["h1"] == ["Sweep simulated"]
    there.unlink()
