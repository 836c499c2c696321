"""Finds what is wrong with a space, seen from the trial: names, fixed parts, drawn points."""

from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.spec import ADAPTERS
from peft_jobs.spec.dotted import flatten, paths_of
from peft_jobs.spec.mistakes import Mistake, mistakes
from search_spaces import FunctionSpace, GivenSuggest, Params, RandomSuggest, SpaceError
from sweeps.spec import SweepSpec
from sweeps.spec.other_names import parameter_meant
from sweeps.spec.sample_points import (
    MAX_TRIED,
    POINTS_CHECKED,
    draw_points,
    is_incompatible,
    is_listed,
)

_FIXED_PARTS = (
    *("data.validation", "data.test", "data.seed", "data.group_by", "data.max_length"),
    "evaluation.",
    *("model.name_or_path", "model.revision", "task."),
)


_HORIZONS = ("training.max_samples", "training.num_train_epochs", "training.max_steps")


_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")


def space_problems(spec: SweepSpec) -> list[str]:
    """What is wrong with the space, seen from the trial: names, and points drawn from it."""
    try:
        known = {*flatten(spec.trial), *paths_of(TrialSpec)}
        spec.space.check_names(known, lambda name: parameter_meant(name, known))
        points = draw_points(spec)
        given = _bad_given_points(spec)
    except SpaceError as error:
        return [f"space: {line}" for line in str(error).splitlines()]
    except Exception as error:
        if not isinstance(spec.space, FunctionSpace):
            raise
        return [f"space: {spec.space.function} raised {type(error).__name__}: {error}"]
    if not points:
        tried = f"its {spec.space.size():,}" if is_listed(spec) else f"{MAX_TRIED:,} random"
        return [f"space: none of {tried} points satisfies the constraints"]
    found: dict[object, str] = {line: line for line in given}
    num_impossible = 0
    for name in sorted({name for point in points for name in point}):
        if name in _HORIZONS or name.startswith(_FIXED_PARTS):
            found[name] = f"space: {name} must be the same for all trials to compare them"
        if name == "data.train" and isinstance(spec.trial.data.validation, float):
            found[name] = (
                "space: data.train is sampled, and a share of each would be held out: give "
                "data.validation a file of its own, the same for all trials"
            )
        if name in _BATCH and spec.budget.max_steps is not None:
            found[name] = f"budget.max_steps: {name} is sampled, so give budget.max_samples"
    impossible: dict[object, str] = {}
    for point in points:
        try:
            spec.trial.with_params(point)
        except ValidationError as error:
            if is_incompatible(error):  # the sweep turns such points away, as long as others are
                impossible.update({each: f"space: {each}" for each in mistakes(error, TrialSpec)})
                num_impossible += 1
                continue
            foreign = _foreign(point, spec, points)
            for each in mistakes(error, TrialSpec):  # one value of each mistake is enough
                each = foreign.get(each.path, each)
                found.setdefault((each.path, each.must), f"space: {each}")
        except ValueError as error:
            found[str(error)] = f"space: {error}"
    if num_impossible == len(points):
        found |= impossible
    return list(found.values())


def _bad_given_points(spec: SweepSpec) -> list[str]:
    """What is wrong with the given points that shows only where the rest of a trial is known."""
    base, found = flatten(spec.trial), []
    for index in range(len(spec.space.points_to_evaluate)):
        given, place = spec.space.given(index), f"space.points_to_evaluate.{index}"
        drawn = [
            spec.space.draw(GivenSuggest(given, RandomSuggest(seed)), base)
            for seed in range(POINTS_CHECKED)
        ]
        idle = [name for name in given if not any(name in params for params in drawn)]
        if idle:
            found.append(f"{place}: {', '.join(idle)}: has no value here, as its `when` is false")
        violated = [spec.space.violated(params, base) for params in drawn]
        if None not in violated:
            found.append(f"{place}: must satisfy the constraint {violated[0]}")
    return found


def _foreign(
    point: Params, spec: SweepSpec, points: list[Params]
) -> dict[tuple[str, ...], Mistake]:
    """The mistake at the path of each field that the point gives to a method that has no such."""
    method = str(point.get("adapter.method", spec.trial.adapter.method))
    drawn = {str(other["adapter.method"]) for other in points if "adapter.method" in other}
    told: dict[tuple[str, ...], Mistake] = {}
    for section, field in {tuple(name.split(".")[:2]) for name in point if "." in name}:
        if section != "adapter" or method not in ADAPTERS or _has(method, field):
            continue
        having = [repr(other) for other in sorted(drawn) if _has(other, field)]
        where = f"in [{', '.join(having)}]" if len(having) > 1 else f"== {''.join(having)}"
        advice = f'give it `when: "adapter.method {where}"`' if having else "leave it out"
        path = (section, field)
        told[path] = Mistake(path, f"the method {method} has no {field}; {advice}")
    return told


def _has(method: str, field: str) -> bool:
    return method in ADAPTERS and field in ADAPTERS[method].model_fields
