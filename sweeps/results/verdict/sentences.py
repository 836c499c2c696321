"""A verdict in plain words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft_jobs import State
from sweeps.confirmation.confirmed import Confirmation
from sweeps.results.importances import Importances
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.verdict.bounds import Bound
from sweeps.results.verdict.rivals import Comparison
from sweeps.results.verdict.spending import Spending
from sweeps.results.words import numbered, shown, size

if TYPE_CHECKING:
    from sweeps.results.verdict.conclusion import Choice, Verdict

_THESE = "on other rows of this kind"
_BASIS = {
    "rows": f"{_THESE}; other seeds may differ more",
    "seeds": "in the mean over seeds, on these rows",
    "seeds and rows": "in the mean over seeds, on other rows too",
}


def headline(board: Leaderboard) -> str:
    """One sentence: who won, against what, among how many, and how sure that is."""
    best, complete = board.best, sum(row.state == State.COMPLETE for row in board.rows)
    changed = sum(row.changed is not None for row in board.rows)
    what = "trials are" if changed > 1 else "trial is"
    ends = [f"{changed} complete {what} not ranked, see its note"] if changed else []
    if best is None:
        none = "No complete trial can be ranked" if complete else "No trial has completed yet"
        return "; ".join([none, *ends]) + "."
    others = "; ".join(f"{words}: {value:.4f}" for words, value in board.references.items())
    against = f" ({others})" if others else ""
    if board.confirmation is not None:
        return f"{_confirmed(board.confirmation)}{against}."
    if board.final is not None:
        return " ".join([*board.final.words(), *ends])
    told = [f"Trial {best.number:04d} is best, {board.metric} {best.value:.4f}{against}"]
    if best.unbeaten:
        told.append(f"it is no better than the {' and the '.join(best.unbeaten)}")
    told.append(f"{complete} of {len(board.rows)} ran to the end")
    if ties := sum(row.is_told_apart is False for row in board.rows):
        are = "are" if ties > 1 else "is"
        told.append(f"{ties} {are} not told apart from it (at least: one seed each)")
    return "; ".join([*told, *ends]) + "."


def told(verdict: "Verdict") -> Iterator[str]:
    """All but what to do next, the headline first."""
    yield verdict.headline
    chosen = verdict.chosen
    if chosen is not None:
        if chosen.params:
            values = (f"{name}={shown(value)}" for name, value in chosen.params.items())
            yield f"Its configuration: {', '.join(values)}."
        yield _cost(chosen)
        if (test := chosen.test) is not None:
            known = test.low < test.high
            between = f" ({test.low:.4f} to {test.high:.4f} {_THESE})" if known else ""
            yield f"On the test rows, read once, its adapter has {test.value:.4f}{between}."
        if chosen.expected is not None:
            yield from _ties(verdict, chosen)
        for comparison in verdict.comparisons:
            yield _compared(comparison)
        yield from mattered(verdict.importances)
        for bound in verdict.bounds:
            yield _bound(bound, verdict.tied)
    if verdict.failed_repeats:
        numbers = numbered(verdict.failed_repeats)
        yield f"Under fresh seeds {numbers} did not run to the end: not to be relied on."
    yield spending(verdict.spent)
    if verdict.trained:
        yield f"Trained on all the data: {', '.join(verdict.trained)}."


def next_steps(verdict: "Verdict") -> Iterator[str]:
    """What to do next, a sentence each."""
    for step in verdict.steps:
        yield f"Next: {step.why if step.command is None else f'`{step.command}` ({step.why})'}."


def spending(spent: Spending) -> str:
    """`20 trials in 0.8 GPU-hours: 12 ran to the end; 8 were pruned, which saved 61 % ...`."""
    trials = f"{spent.num_trials} trial{'' if spent.num_trials == 1 else 's'}"
    trials += f" and {spent.num_repeats} repeats" if spent.num_repeats else ""
    hours = spent.hours if spent.gpu_hours is None else spent.gpu_hours
    unit = "GPU-hours" if spent.gpu_hours is not None else "hours"
    took = f" in {hours:.1f} {unit}" if hours >= 0.1 else ""
    parts = [f"{spent.num_complete} ran to the end"]
    if spent.num_pruned:
        saved = "" if spent.share_saved is None else f"; pruning saved {spent.share_saved:.0%}"
        saved = saved.replace("%", " %") + (" of their samples" if saved else "")
        parts.append(f"{spent.num_pruned} {_were(spent.num_pruned)} pruned{saved}")
    if spent.num_failed:
        parts.append(f"{spent.num_failed} ended otherwise")
    return f"{trials}{took}: {', '.join(parts)}."


def intervals_hold(found: Confirmation) -> str:
    """For what the intervals of a confirmation hold."""
    if found.holds_for_rows:
        return "Intervals of 95 % hold for fresh seeds and other rows together."
    return "Intervals of 95 % hold for fresh seeds on these validation rows."


def mattered(found: Importances) -> Iterator[str]:
    """What decided how trials did, what did not, and of what nothing can be said."""
    trials = f"{found.num_trials} trials"
    if not found.rows:
        few = "one trial is" if found.num_trials == 1 else f"{trials} are"
        yield f"What mattered cannot be said yet: {few} too few."
        return
    if not found.says_something:
        yield f"What mattered cannot be said yet: shuffled results of these {trials} say as much."
        return
    parts: dict[str | None, list[str]] = {"matters": [], "little": [], None: []}
    for row in found.rows:
        between = f"{row.share:.0%} ({row.low:.0%} to {row.high:.0%})"
        words = {"matters": between, "little": f"(at most {row.high:.0%})", None: ""}[row.says]
        parts[row.says].append(f"{row.name} {words}".replace("%", " %").strip())
    yield f"What mattered, of the order of {trials}: {', '.join(parts['matters'])}."
    if parts["little"]:
        yield f"What did not matter: {', '.join(parts['little'])}."
    if parts[None]:
        yield f"Nothing can be said yet of {', '.join(parts[None])}."


def _confirmed(found: Confirmation) -> str:
    best, value = found.winner, found.winner.expected
    return (
        f"Train the configuration of trial {best.number:04d}: expected {found.metric} "
        f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f}, {best.num_seeds} seeds); "
        f"recorded {best.recorded:.4f}"
    )


def _cost(chosen: "Choice") -> str:
    parts = []
    if chosen.trainable_parameters is not None:
        parts.append(f"trains {chosen.trainable_parameters:,} parameters")
    memory = size(chosen.peak_memory_bytes)
    needed = f" and {memory} of memory" if memory else ""
    minutes = f"{chosen.minutes:.1f}" if chosen.minutes >= 0.1 else "less than 0.1"
    parts.append(f"took {minutes} minutes{needed}")
    return f"It {', and '.join(parts)}."


def _ties(verdict: "Verdict", chosen: "Choice") -> Iterator[str]:
    if not verdict.tied:
        return
    count = chosen.trainable_parameters
    fewest = "" if count is None else f" ({count:,})"
    yield (
        f"{numbered(verdict.tied)} {'is' if len(verdict.tied) == 1 else 'are'} not told apart from "
        f"the first; of those that are hardly behind it in the mean {chosen.number:04d} trains the "
        f"fewest parameters{fewest}."
    )
    if (gap := chosen.behind_first) is not None:
        yield (
            f"Being smaller costs {gap.value:.4f} ({gap.low:.4f} to {gap.high:.4f}) against the "
            "first, in the mean over seeds."
        )


def _compared(one: Comparison) -> str:
    by, name = one.better_by, f"{one.other} ({one.value:.4f})"
    than = f"{name}," if one.number is not None else name
    if one.low is None or one.high is None or one.basis is None:
        if by <= 0:
            return f"It is no better than {name}."
        return f"It is better than {than} by {by:.4f}, with one seed."
    between = f"({one.low:.4f} to {one.high:.4f} {_BASIS[one.basis]})"
    if one.is_sure:
        return f"It is better than {than} by {by:.4f} {between}."
    if one.high < 0:
        return f"It is worse than {than} by {-by:.4f} {between}."
    return f"It is not told apart from {name}: better by {by:.4f} {between}."


def _bound(bound: Bound, tied: tuple[int, ...]) -> str:
    at = "at" if bound.is_exact else f"with {shown(bound.value)} near"
    where = f"{bound.name} is {at} its {bound.side} bound {shown(bound.bound)}"
    if bound.is_shared or not tied:
        return f"{where}: widen it."
    return f"{where}; not all that are not told apart are, so what lies beyond may be no better."


def _were(count: int) -> str:
    return "were" if count > 1 else "was"
