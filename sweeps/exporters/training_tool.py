"""An exporter for a tool that trains: its files, and what it does otherwise than the trial."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.storage.files import write_whole
from sweeps.exporters.exporter import Draft, Form, differences_of, with_differences
from sweeps.exporters.recipe import Recipe, check_recipe, recipe_of

_WIDTH = 98


@dataclass(frozen=True)
class TrainingTool:
    """See `sweeps.exporters.exporter.Exporter`; writes to the folder `name`."""

    name: str
    files: Callable[[Draft, Recipe, list[str]], Mapping[str, str]]
    """The texts by file, given what is told in them."""
    differences: Callable[[Recipe], Iterable[str]]
    """What the tool does otherwise, or not at all, in sentences."""
    text: str
    """For the card."""

    def check(self, spec: TrialSpec) -> None:
        check_recipe(spec, self.name)

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        if differences_of(draft.record, self.name) is not None:
            return {}
        recipe, found = recipe_of(draft)
        lines = list(self.differences(recipe))
        folder = draft.path / self.name
        folder.mkdir(exist_ok=True)
        for name, text in self.files(draft, recipe, lines).items():
            write_whole(folder / name, text)
        return {**found, **with_differences(draft.record, self.name, lines)}

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        if differences_of(record, self.name) is None:
            return None
        return Form(self.name, {}, f"{self.text} What is different there stands in its comments.")


def comment(lines: Sequence[str], intro: str, prefix: str = "# ") -> str:
    """`intro`, and under it what is different, as the lines of a comment."""
    wrapped = textwrap.wrap(intro, _WIDTH - len(prefix))
    for line in lines:
        wrapped += textwrap.wrap(
            line, _WIDTH - len(prefix), initial_indent="* ", subsequent_indent="  "
        )
    return "".join(f"{prefix}{line}".rstrip() + "\n" for line in wrapped)
