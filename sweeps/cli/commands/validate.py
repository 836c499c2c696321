"""`validate`: what is wrong with a sweep file, or what the sweep would do."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from peft_jobs.host.job import Prepared
from peft_jobs.references import load
from peft_jobs.spec import QuantizationSpec
from peft_jobs.spec.dotted import flatten
from sweeps.backends.backend import make_backend
from sweeps.cli.display.data_summary import print_summary
from sweeps.cli.display.plain import classes
from sweeps.cli.preflight import check_tracking, load_checked, summary_of
from sweeps.cli.screen import err, out, pairs, print_json
from sweeps.records.layout import SweepFolder
from sweeps.search.at_random import drawn_at_random, why_at_random
from sweeps.spec import SweepSpec
from sweeps.spec.loading import load_sweep
from sweeps.spec.plan import resolve, variants
from sweeps.spec.yaml_file import SweepFileError


def validate(path: Path, overrides: Sequence[str], fast: bool, json: bool) -> None:
    """Print what the data hold, and the plan. Raises SweepFileError with every mistake of the file
    and of the data (`fast`: of the file), SpecError or DataError for what only the base can
    tell."""
    spec = load_sweep(path, overrides) if fast else load_checked(path, overrides)
    check_tracking(spec, str(path))
    plan = _from_file(spec)
    summary: dict[str, Any] = {}
    if not fast and spec.resources.engine != "simulated":
        with err.status("Looking at the data ..."), contextlib.redirect_stdout(sys.stderr):
            summary = summary_of(spec)
        if summary["mistakes"]:
            raise SweepFileError(str(path), summary["mistakes"])
        plan["data"] = summary
    if summary and not json:
        print_summary(summary, out)
    if not fast:
        with (
            err.status("Loading the base and the data ..."),
            contextlib.redirect_stdout(sys.stderr),
        ):
            plan |= _prepared(spec)
    if json:
        print_json(plan)
        return
    out.print(f"[bold]{escape(str(path))}[/] is a valid sweep file.")
    out.print(pairs(_words(spec, plan)))


def _from_file(spec: SweepSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "n_trials": spec.budget.n_trials,
        "distinct_points": spec.space.size(),
        "objective": spec.objective.metric,
        "sampler": spec.sampler.type,
        "drawn_at_random": drawn_at_random(spec.sampler.type, spec.space, flatten(spec.trial)),
        "pruner": spec.pruner.type,
    }


def _prepared(spec: SweepSpec) -> dict[str, Any]:
    """What only base and data can tell, found on a host in this process."""
    resources = spec.resources.model_copy(update={"backend": "inline"})
    local = spec.model_copy(update={"resources": resources})
    with contextlib.closing(make_backend(local, SweepFolder.of(spec))) as backend:
        found: Prepared = backend.prepare(spec.trial, variants(spec))
    trial = resolve(spec, found).trial
    return {
        "train_rows": found.train_rows,
        "baseline": found.baseline,
        "class_counts": found.class_counts,
        "majority": found.majority,
        "max_samples": trial.training.max_samples,
        "rungs": list(trial.evaluation.rungs),
        **({"targets": {}} if spec.resources.engine == "simulated" else _on_outline(spec)),
    }


def _on_outline(spec: SweepSpec) -> dict[str, Any]:
    """What each choice of targets adapts and leaves out, and what each scheme quantizes: found
    without weights."""
    skeleton = load("peft_jobs.base.architecture:skeleton")
    places = load("peft_jobs.methods.placement:places")
    left_out = load("peft_jobs.methods.left_out:left_out")
    shares = load("peft_jobs.base.weight_shares:planned_shares")
    targets: dict[str, list[str]] = {}
    missed: dict[str, list[str]] = {}
    quantized: list[str] = []
    seen: list[QuantizationSpec] = []
    outlines: dict[str, Any] = {}
    for trial in variants(spec):
        scheme = trial.quantization.scheme
        if trial.quantization not in seen:
            seen.append(trial.quantization)
            found = shares(trial.model, trial.quantization, trial.task)
            if found is not None and (sentence := found.words(scheme)) not in quantized:
                quantized.append(sentence)
        chosen = getattr(trial.adapter, "target_modules", None)
        if chosen is None:
            continue
        name = chosen if isinstance(chosen, str) else " ".join(chosen)
        if name not in targets:
            key = repr((trial.model, trial.task))
            if key not in outlines:
                outlines[key] = skeleton(trial.model, trial.task)
            targets[name] = list(places(outlines[key], trial.adapter))
            if sentences := left_out(outlines[key], trial.adapter):
                missed[name] = sentences
    return {"targets": targets, "left_out": missed, "quantized": quantized}


def _words(spec: SweepSpec, plan: dict[str, Any]) -> dict[str, str]:
    words = {
        "base": f"{spec.trial.model.name_or_path}, {spec.trial.quantization.scheme}",
        "objective": f"{spec.objective.direction} {spec.objective.metric}",
        "trials": f"{plan['n_trials']}, chosen by {plan['sampler']}",
    }
    if "max_samples" in plan:
        words["trials"] += f", of at most {plan['max_samples']:,} samples each"
        rungs = " and ".join(f"{rung:,}" for rung in plan["rungs"])
        words["pruned by"] = f"{plan['pruner']} at {rungs} samples" if rungs else "nothing"
        words["data"] = f"{plan['train_rows']:,} training rows"
        begins = "base alone" if spec.trial.adapter.source is None else "adapter given"
        words[begins] = ", ".join(f"{k} {v:.4f}" for k, v in plan["baseline"].items())
        words["classes"] = classes(plan["class_counts"])
        words["majority"] = ", ".join(f"{k} {v:.4f}" for k, v in plan["majority"].items())
    words["sampler"] = why_at_random(plan["sampler"], plan["drawn_at_random"])
    points = plan["distinct_points"]
    words["points"] = "infinitely many" if points is None else f"at most {points:,}"
    words["space"] = spec.space.describe()
    words["targets"] = "\n".join(
        f"{name}: {len(modules)} modules ({', '.join(_leaves(modules))})"
        for name, modules in plan.get("targets", {}).items()
    )
    words["left out"] = "\n".join(
        f"{name}: {'; '.join(sentences)}" for name, sentences in plan.get("left_out", {}).items()
    )
    words["quantized"] = "\n".join(plan.get("quantized", []))
    return {name: text for name, text in words.items() if text}


def _leaves(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
