"""What a contest of soups says, in sentences: the same on the terminal and on the card."""

from sweeps.combination.on_test_rows import OnTestRows
from sweeps.combination.soups import Contest


def shown(interval: tuple[float, float] | None) -> str:
    """An interval of a difference; empty for none."""
    return "" if interval is None else f"{interval[0]:+.4g} to {interval[1]:+.4g}"


def judgement(contest: Contest) -> str:
    """Whether a combination is accepted, and why."""
    best, alone = contest.best, contest.alone[0]
    (name,) = alone.weights
    values = f"{contest.metric} {best.value:.6g}; trial {name} alone {alone.value:.6g}"
    figures = f"{best.title} of {', '.join(best.weights)}: {values}"
    if best.difference is None:
        return (
            f"{figures}. Not accepted: {contest.metric} does not follow from rows, so nothing "
            "tells the combination from the adapter."
        )
    told = f"{figures}; the difference on other rows is {shown(best.difference)}"
    if len(contest.soups) > 1:
        told += f" (95 % for all {len(contest.soups)} combinations together)"
    if contest.accepts(best):
        return f"{told}. Accepted: it is better beyond its rows."
    return f"{told}. Not accepted: it is not better beyond its rows."


def on_test_rows(contest: Contest, test: OnTestRows) -> str:
    """The same two on the test rows, which decided nothing."""
    pair = test.objective(contest.metric)
    if pair is None:
        return "The test rows do not give the objective."
    (name,) = contest.alone[0].weights
    told = f"On the test rows: {pair[0]:.6g}, trial {name} alone {pair[1]:.6g}"
    if test.difference is not None:
        told += f"; the difference on other rows is {shown(test.difference)} (95 %)"
    return f"{told}."
