"""A final training as a sweep: one configuration, on all the data, under several seeds."""

from collections.abc import Sequence
from typing import Any

from peft_jobs import SpecError
from peft_jobs.spec import DataSpec, Source
from search_spaces import Params
from sweeps.spec.loading import build_sweep
from sweeps.spec.sweep import FinalOf, SweepSpec
from sweeps.spec.yaml_file import override

MAX_SEED = 2**32 - 1


def final_name(sweep: str, number: int) -> str:
    """What the final training of a trial's configuration is called."""
    return f"{sweep}-final-{number:04d}"


def epochs_of_search(spec: SweepSpec, train_rows: int) -> float:
    """As many passes as the sweep's longest trials made over their `train_rows`, one at least.

    `spec` is resolved: its horizon is in samples.
    """
    return max(1.0, (spec.trial.training.max_samples or 0) / train_rows)


def final_sweep(
    spec: SweepSpec,
    number: int,
    params: Params,
    seeds: Sequence[int],
    epochs: float,
    with_validation: bool = False,
    overrides: Sequence[str] = (),
) -> SweepSpec:
    """The sweep that trains trial `number` of `spec`, whose parameters are `params`, to the end.

    No subset, no comparisons, no bounds: each of the `seeds` trains `epochs` passes over all
    training rows. `with_validation` trains on the validation rows too, and measures on the test
    rows instead; SpecError if there are none. `overrides` (`key=value`) are taken last, and
    SweepFileError names every mistake.
    """
    trial = spec.trial.with_params(params)
    if with_validation:
        trial = trial.model_copy(update={"data": _with_validation(trial.data)})
    tree: dict[str, Any] = {
        **trial.model_dump(mode="json"),
        "name": final_name(spec.name, number),
        "final_of": FinalOf(sweep=spec.name, trial=number).model_dump(),
        "space": {
            "parameters": {"seed": {"type": "int", "low": 0, "high": MAX_SEED}},
            "points_to_evaluate": [{"seed": seed} for seed in seeds],
        },
        "objective": spec.objective.model_dump(mode="json"),
        "sampler": "random",
        "pruner": "none",
        "budget": {"n_trials": len(seeds), "num_train_epochs": epochs, "num_rungs": 0},
    }
    tree["data"] |= {"subset": None, "validation_subset": None}
    tree["training"] |= {"max_samples": None, "num_train_epochs": None, "max_steps": None}
    tree["evaluation"]["rungs"] = []
    for name in ("resources", "checkpoints", "tracking", "storage", "study_url"):
        tree[name] = spec.model_dump(mode="json")[name]
    for text in overrides:
        override(tree, text)
    return build_sweep(tree, tree["name"])


def _with_validation(data: DataSpec) -> DataSpec:
    """Its validation rows among those that are trained on, the test rows in their place."""
    if data.test is None:
        raise SpecError(
            "--with-validation: the sweep has no data.test, and nothing else is left to measure by"
        )
    update: dict[str, Any] = {"validation": _split(data.test, "test"), "test": None}
    if isinstance(data.validation, Source):
        if data.train_also is not None:
            raise SpecError("--with-validation: data.train_also is taken already; join the files")
        update["train_also"] = _split(data.validation, "validation")
    return data.model_copy(update={**update, "group_by": None})


def _split(source: Source, name: str) -> Source:
    """The source with the split that it stands for where it is now."""
    if source.is_file or source.split is not None:
        return source
    return source.model_copy(update={"split": name})
