"""Sweeps of Weights & Biases, by their documentation (docs.wandb.ai, "Sweep configuration")."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from peft_jobs.spec import TASK_SPECS
from sweeps.drafts.imports.carried import Carried
from sweeps.spec.metrics import default_direction

_SAMPLERS = {"grid": "grid", "random": "random", "bayes": "tpe"}
_SCRIPT = "trials are trained by the product, not by a script"
_LEFT = {
    **dict.fromkeys(("program", "command", "entity", "job", "imageuri"), _SCRIPT),
    "description": "a sweep file has comments",
    "name": "a sweep has the name of its file, or the key `name`",
    "project": "the experiment in MLflow is `tracking: {experiment: ...}`",
}
_NORMAL = ("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta")


def is_wandb(tree: Mapping[str, Any]) -> bool:
    """Whether the mapping of a file is a sweep of W&B."""
    return isinstance(tree.get("parameters"), dict) and ("method" in tree or "metric" in tree)


def carry(tree: Mapping[str, Any], carried: Carried) -> None:
    """Take over what a sweep file can hold."""
    for name, why in _LEFT.items():
        if name in tree:
            carried.leave(name, why)
    known = {*_LEFT, "method", "parameters", "metric", "early_terminate", "run_cap"}
    for name in tree.keys() - known:
        carried.leave(name)
    for name, parameter in _leaves(tree["parameters"]):
        _parameter(name, parameter, carried)
    _method(str(tree.get("method", "bayes")), carried)
    _metric(tree.get("metric") or {}, carried)
    _early_terminate(tree.get("early_terminate"), carried)
    _num_trials(tree, carried)


def _leaves(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters by dotted name; W&B nests them with the key `parameters`."""
    for name, given in parameters.items():
        inner = given.get("parameters") if isinstance(given, Mapping) else None
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", given


def _parameter(name: str, given: Any, carried: Carried) -> None:
    if not isinstance(given, Mapping):
        carried.leave(name, "it has neither `value` nor `values` nor bounds")
    elif "value" in given:
        carried.fix(name, given["value"])
    elif "values" in given:
        values = given["values"]
        if "probabilities" in given:
            carried.leave(f"{name}.probabilities", "all choices are equally likely at first")
        if len(values) == 1:
            carried.fix(name, values[0])
        else:
            carried.sample(name, {"choices": list(values)})
    else:
        _range(name, given, carried)


def _range(name: str, given: Mapping[str, Any], carried: Carried) -> None:
    low, high = given.get("min"), given.get("max")
    kind = given.get("distribution") or _default(low, high)
    if kind in _NORMAL:
        why = f"{kind} has no ends, and a range here has: give `low` and `high`"
        carried.leave(name, why)
        return
    if not all(isinstance(end, int | float) for end in (low, high)):
        carried.leave(name, "it has neither `value` nor `values` nor `min` and `max`")
        return
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    step = given.get("q")
    if kind in ("log_uniform", "q_log_uniform"):  # the bounds are exponents of e
        low, high = math.exp(low), math.exp(high)
    elif kind == "inv_log_uniform":
        low, high = math.exp(-high), math.exp(-low)
    if "log" in kind:
        if kind.startswith("q_"):
            carried.leave(f"{name}.q", "a range on a logarithmic scale has no steps")
        carried.sample(name, {"low": low, "high": high, "log": True})
    elif kind == "int_uniform":
        carried.sample(name, {"low": low, "high": high})
    elif kind == "q_uniform":
        step = 1 if step is None else step
        ends = {"low": round(low / step) * step, "high": round(high / step) * step}
        carried.sample(name, {**ends, "step": step})
    elif kind == "uniform":
        carried.sample(name, {"low": float(low), "high": float(high)})
    else:
        carried.leave(name, f"the distribution {kind!r} is not known")


def _default(low: Any, high: Any) -> str:
    """W&B's distribution of a parameter that names none."""
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in (low, high))
    return "int_uniform" if whole else "uniform"


def _method(method: str, carried: Carried) -> None:
    if method not in _SAMPLERS:
        carried.leave("method", f"{method!r} is not known; the sampler is tpe")
    elif method == "bayes":
        carried.said.append(
            "method bayes is W&B's Gaussian process; the sampler is tpe, which takes choices and "
            "conditions (`sampler: gp` is a Gaussian process)"
        )
    carried.tree["sampler"] = _SAMPLERS.get(method, "tpe")


def _metric(metric: Mapping[str, Any], carried: Carried) -> None:
    """The objective: of the validation rows, by its last word."""
    name = str(metric.get("name", ""))
    words = name.replace("/", "_").replace(".", "_").lower().split("_")
    if not name:
        return
    ours = f"validation/{words[-1]}"
    direction = default_direction(ours)
    measured = TASK_SPECS[carried.tree["task"]["type"]].METRICS
    if "train" in words or direction is None or ours not in measured:
        carried.leave(
            "metric",
            f"{name!r} is none of the validation rows; the objective is "
            f"{carried.tree['objective']['metric']}",
        )
        return
    if metric.get("goal", direction) != direction:
        carried.leave("metric.goal", f"{ours} is better the other way: {direction}")
    carried.tree["objective"] = {"metric": ours, "direction": direction}


def _early_terminate(given: Any, carried: Carried) -> None:
    """W&B's Hyperband stops all but one of `eta` at each of its brackets: successive halving."""
    if not isinstance(given, Mapping):
        carried.tree["pruner"] = "none"
        carried.said.append("without early_terminate no trial is stopped: pruner none")
        return
    if given.get("type") != "hyperband":
        carried.leave("early_terminate", f"the type {given.get('type')!r} is not known")
        return
    pruner = {"type": "successive_halving", "reduction_factor": int(given.get("eta", 3))}
    carried.tree["pruner"] = pruner
    for name in ("min_iter", "max_iter", "s", "strict"):
        if name in given:
            why = "it counts what a script logs; rungs here are in samples (`budget.num_rungs`)"
            carried.leave(f"early_terminate.{name}", why)


def _num_trials(tree: Mapping[str, Any], carried: Carried) -> None:
    if (cap := tree.get("run_cap")) is not None:
        carried.tree["budget"]["n_trials"] = cap
        return
    count = carried.tree["budget"]["n_trials"]
    if tree.get("method") == "grid":
        sizes = [len(each["choices"]) for each in carried.parameters.values() if "choices" in each]
        count = math.prod(sizes)
        carried.tree["budget"]["n_trials"] = count
    carried.said.append(f"without run_cap a sweep of W&B has no end; budget.n_trials is {count}")
