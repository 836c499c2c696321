"""`compose`: several adapters of one base become one, and what was measured of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from peft_jobs import SpecError
from peft_jobs.spec.combination import COMBINATION_TYPES, CombinationSpec
from peft_jobs.spec.mistakes import suggest
from sweeps.cli.commands.export import scores, tell_forms
from sweeps.cli.options import listed
from sweeps.cli.screen import err, out, print_json
from sweeps.combination.compose import Asked, Composed
from sweeps.combination.contest_words import judgement, on_test_rows, shown
from sweeps.combination.soups import Contest

if TYPE_CHECKING:
    from sweeps.results.recorded_sweep import RecordedSweep


@dataclass(frozen=True)
class Words:
    """What was typed."""

    top: int | None = None
    adapters: str | None = None
    types: str = "cat"
    weights: str | None = None
    density: float | None = None
    rank: int | None = None
    anyway: bool = False

    def asked(self) -> Asked:
        """What is to be combined; SpecError for words that mean nothing."""
        if self.top is not None and self.adapters is not None:
            raise SpecError("give either --top or --adapters")
        weights = None if self.weights is None else tuple(map(_number, listed(self.weights)))
        hows = tuple(self._how(name) for name in listed(self.types))
        if not hows:
            raise SpecError(f"--type needs one of {', '.join(COMBINATION_TYPES)}")
        if self.density is not None and not any(how.drops for how in hows):
            raise SpecError("--density is for ties, dare and magnitude_prune")
        if self.rank is not None and not any(how.type.endswith("svd") for how in hows):
            raise SpecError("--rank is for svd: the other types have a rank of their own")
        adapters = tuple(listed(self.adapters or ""))
        return Asked(self.top, adapters, hows, weights, self.anyway)

    def _how(self, name: str) -> CombinationSpec:
        """One of the types, with the options that it takes."""
        if name not in COMBINATION_TYPES:
            known = suggest(name, COMBINATION_TYPES)
            raise SpecError(f"--type: unknown {name!r}{known}")
        plain = CombinationSpec.model_construct(type=name)
        given = {"density": self.density if plain.drops else None}
        given |= {"rank": self.rank if name.endswith("svd") else None}
        try:
            return CombinationSpec.model_validate({"type": name, **given})
        except ValidationError as error:
            raise SpecError(f"--type {name}: {error.errors()[0]['msg']}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"--weights must be numbers, got {text!r}") from None


def compose(
    sweep: "RecordedSweep",
    words: Words,
    path: Path | None,
    to: Sequence[str],
    test: bool,
    study_url: str | None,
    json: bool,
) -> None:
    """Combine, and print; SpecError for adapters that cannot be combined."""
    from sweeps.combination.compose import compose

    asked = words.asked()
    with err.status("Measuring the adapters, and what they give together ..."):
        composed = compose(sweep, asked, path, to, test, study_url)
    if json:
        print_json(_record(composed))
        return
    _tell(composed, asked)


def _record(composed: Composed) -> dict[str, object]:
    contest, exported = composed.contest, composed.exported
    return {
        "contest": contest.model_dump(mode="json"),
        "accepted": contest.accepted is not None,
        "on_test_rows": None if composed.test is None else composed.test.model_dump(mode="json"),
        "exported": None if exported is None else asdict(exported),
    }


def _tell(composed: Composed, asked: Asked) -> None:
    contest = composed.contest
    out.print(_table(contest))
    out.print(judgement(contest))
    if composed.test is not None:
        out.print(on_test_rows(contest, composed.test))
    if composed.exported is None:
        (name,) = contest.alone[0].weights
        out.print(
            f"Nothing is written: trial {escape(name)} alone is what to export. `--anyway` writes "
            "the best combination all the same."
        )
        return
    out.print(f"The combination is in [bold]{escape(str(composed.exported.path))}[/]")
    out.print(scores(composed.exported))
    tell_forms(composed.exported)


def _table(contest: Contest) -> Table:
    """One row per adapter and combination, the best first."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("", contest.metric, "difference to the best alone", "adapters"):
        table.add_column(title, justify="right" if title == contest.metric else "left")
    for one in (*contest.alone, *contest.soups):
        parts = ", ".join(f"{name} x {weight:.3g}" for name, weight in one.weights.items())
        names = parts if one.how is not None else ", ".join(one.weights)
        table.add_row(one.title, f"{one.value:.6g}", shown(one.difference), escape(names))
    return table
