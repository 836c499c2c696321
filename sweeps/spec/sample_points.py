"""Draws seeded points of a space, so that checks before launch see what trials will be."""

from collections.abc import Iterable, Iterator
from itertools import islice, product

from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.spec import INCOMPATIBLE
from peft_jobs.spec.dotted import flatten
from search_spaces import GivenSuggest, Params, RandomSuggest
from sweeps.spec import SweepSpec

POINTS_CHECKED = 128
MAX_TRIED = 8192
"""Points that are drawn, or listed, to find one at all that the constraints allow."""


def draw_points(spec: SweepSpec) -> list[Params]:
    """Seeded points of the space that its constraints allow; for checks before launch.

    Those of POINTS_CHECKED random points. Where none of them is allowed, up to as many of MAX_TRIED
    that are: of all points, if there are no more than that, otherwise of random ones.
    """
    base = flatten(spec.trial)

    def allowed(points: Iterable[Params]) -> Iterator[Params]:
        return (point for point in points if spec.space.violated(point, base) is None)

    def drawn(seeds: range) -> Iterator[Params]:
        return (spec.space.draw(RandomSuggest(seed), base) for seed in seeds)

    found = [*allowed(drawn(range(POINTS_CHECKED)))]
    if found:
        return found
    if is_listed(spec):
        axes = spec.space.grid()
        listed = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
        more: Iterator[Params] = (
            spec.space.draw(GivenSuggest(p, RandomSuggest(0)), base) for p in listed
        )
    else:
        more = drawn(range(POINTS_CHECKED, MAX_TRIED))
    return [*islice(allowed(more), POINTS_CHECKED)]


def is_listed(spec: SweepSpec) -> bool:
    """Whether `draw_points` looks at every point of the space before it finds none."""
    size = spec.space.size()
    return size is not None and size <= MAX_TRIED


def drawn_trials(spec: SweepSpec) -> list[TrialSpec]:
    """The trials of `draw_points`, without those that a method of the space cannot do."""
    trials = (trial_of(spec, point) for point in draw_points(spec))
    return [trial for trial in trials if trial is not None]


def trial_of(spec: SweepSpec, point: Params) -> TrialSpec | None:
    """A point's trial; None if its method cannot do it. ValidationError for any other mistake."""
    try:
        return spec.trial.with_params(point)
    except ValidationError as error:
        if not is_incompatible(error):
            raise
        return None


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
