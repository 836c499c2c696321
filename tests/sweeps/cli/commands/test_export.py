"""`export`: the table of what was measured where."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from peft_jobs import SpecError
from sweeps.cli.commands.export import Push, scores
from sweeps.exporters.export import Exported


def drawn(exported: Exported) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=120)
    console.print(scores(exported))
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_every_place_is_a_column() -> None:
    exported = Exported(
        path=Path("out"),
        number=4,
        recorded={"validation/loss": 1.25},
        validation={"validation/loss": 1.2500001},
        test={"test/loss": 1.5},
        merged={"validation/loss": 1.26},
        merged_path=Path("out/merged"),
    )
    assert drawn(exported) == [
        ["metric", "recorded", "re-scored", "merged", "test"],
        ["validation/loss", "1.25", "1.25", "1.26", "1.5"],
    ]


def test_what_was_not_measured_is_no_column() -> None:
    loss = {"validation/loss": 2.0}
    exported = Exported(Path("out"), 4, loss, loss, None, None, None)
    assert drawn(exported)[0] == ["metric", "recorded", "re-scored"]


@pytest.mark.parametrize(
    ("push", "top", "reason"),
    [
        (Push(private=True), None, "go with --push-to-hub"),
        (Push(dry_run=True), None, "go with --push-to-hub"),
        (Push("me/mine", dry_run=True, register="mine"), None, "give it without --register"),
        (Push("me/mine"), 2, "take one trial"),
        (Push(register="mine"), 2, "take one trial"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    push: Push, top: int | None, reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        push.check(top)


@pytest.mark.parametrize(
    ("push", "top"), [(Push(), 3), (Push("me/mine", private=True, dry_run=True), None)]
)
def test_options_that_go_together_are_taken(push: Push, top: int | None) -> None:
    push.check(top)
