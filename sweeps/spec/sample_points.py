"""Draws seeded points of a space, so that checks before launch see what trials will be."""

from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.spec import INCOMPATIBLE
from peft_jobs.spec.dotted import flatten
from search_spaces import Params, RandomSuggest
from sweeps.spec import SweepSpec

POINTS_CHECKED = 128


def draw_points(spec: SweepSpec) -> list[Params]:
    """Seeded random points of the space that its constraints allow; for checks before launch."""
    base = flatten(spec.trial)
    points = (spec.space.draw(RandomSuggest(seed), base) for seed in range(POINTS_CHECKED))
    return [point for point in points if spec.space.violated(point, base) is None]


def drawn_trials(spec: SweepSpec) -> list[TrialSpec]:
    """The trials of `draw_points`, without those that a method of the space cannot do."""
    trials = []
    for point in draw_points(spec):
        try:
            trials.append(spec.trial.with_params(point))
        except ValidationError as error:
            if not is_incompatible(error):
                raise
    return trials


def varying_names(spec: SweepSpec) -> tuple[str, ...]:
    """The parameters that take more than one value, in the order in which points hold them."""
    values: dict[str, set[str]] = {}
    for point in draw_points(spec):
        for name, value in point.items():
            values.setdefault(name, set()).add(repr(value))
    return tuple(name for name, seen in values.items() if len(seen) > 1)


def is_incompatible(error: ValidationError) -> bool:
    """Whether all that is wrong is that the method cannot do what the rest of the trial asks."""
    return all(item["type"] == INCOMPATIBLE for item in error.errors(include_url=False))
