"""The commands of `peft-sweep`: names, arguments, help. What they do lies in the modules beside."""

import importlib.metadata
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.exit_codes import Commands
from sweeps.cli.options import (
    RUNS,
    Address,
    JobServer,
    Json,
    Name,
    NamesEntries,
    OfJob,
    Overrides,
    Storage,
    StudyUrl,
    SweepFile,
    launching,
    listed,
)
from sweeps.cli.screen import out, set_up_logging

if TYPE_CHECKING:
    from sweeps.cli.commands.run import Options

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console entry point; exits with 0 done, 1 failed, 2 bad input, 130 interrupted.

    A person's own functions are found in the current folder, as with `python -m`, but behind what
    is installed: a file of theirs named `datasets.py` stands in nobody's way.
    """
    if not sys.flags.safe_path:
        sys.path.append("")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is written as an escape
            stream.reconfigure(errors="backslashreplace")
    for name in _set_to_nothing(os.environ):
        del os.environ[name]
    app(prog_name="peft-sweep")


def _set_to_nothing(environment: Mapping[str, str]) -> list[str]:
    """Variables that job systems and compose files set to an empty text where they mean none, and
    that MLflow, Ray and others would read as a number or a path."""
    prefixes = ("MLFLOW_", "RAY_", "HF_", "PEFT_SWEEPS_", "AWS_")
    return [name for name, value in environment.items() if not value and name.startswith(prefixes)]


def _example(*lines: str) -> dict[str, Any]:
    """The epilog of a command's help."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return {"epilog": "\n\n".join([title, *(f"[cyan]{line}[/]" for line in lines)])}


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"peft-sweep {importlib.metadata.version('peft-sweeps')}", highlight=False)
        raise typer.Exit


@app.callback(**_example("peft-sweep init", "peft-sweep run sweep.yaml", "peft-sweep ui"))
def peft_sweep(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Which adapter configuration should I train? Sweeps over PEFT configurations."""
    set_up_logging()


@app.command(
    cls=NamesEntries,
    **_example(
        "peft-sweep init --task sequence_classification --out topics.yaml",
        "peft-sweep init --model Qwen/Qwen2.5-0.5B --data train.jsonl --preset qlora",
        "peft-sweep init --from axolotl.yaml --from axolotl-sweep.yaml",
    ),
)
def init(
    task: Annotated[
        str | None,
        typer.Option(
            help="What is learned: {peft_jobs.spec:TASK_SPECS}; by default what the data are for, "
            "or causal_lm."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="The base: a Hub id, or a folder.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Training rows, whose columns and form are guessed."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="P", help="The space: one of `peft-sweep presets`.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A sweep of W&B, a configuration or sweep of Axolotl, or a configuration of "
            "LLaMA-Factory, whose settings are taken over; more than once for several.",
        ),
    ] = None,
    path: Annotated[Path, typer.Option("--out", help="File to write.", metavar="FILE")] = Path(
        "sweep.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented sweep file to start from."""
    from sweeps.cli.commands.init import Given, init

    init(Given(task, model, data, preset, tuple(files or ())), path, force)


@app.command(**_example("peft-sweep presets", "peft-sweep presets qlora > qlora.yaml"))
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Preset to print, with its sources.")
    ] = None,
    json: Json = False,
) -> None:
    """List the spaces that a sweep file may name, or print one."""
    from sweeps.cli.commands.init import presets

    presets(name, json)


@app.command(**_example("peft-sweep validate sweep.yaml", "peft-sweep validate --fast sweep.yaml"))
def validate(
    path: SweepFile,
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Read the file only; load no base and no data.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a sweep file, its base, data and targets."""
    from sweeps.cli.commands.validate import validate

    validate(path, overrides or [], fast, json)


@app.command(**_example("peft-sweep data sweep.yaml", "peft-sweep data sweep.yaml --json"))
def data(
    path: SweepFile,
    overrides: Overrides = None,
    rows: Annotated[
        int, typer.Option(min=0, metavar="N", help="Rows of a split to tokenize; 0 for all.")
    ] = 20_000,
    json: Json = False,
) -> None:
    """Tell what would be trained: rows, classes, lengths, leaks."""
    from sweeps.cli.commands.data import data

    data(path, overrides or [], rows, json)


@app.command(
    **_example(
        'peft-sweep plan sweep.yaml --gpu "RTX 4090"',
        "peft-sweep plan sweep.yaml --gpu 24GB --gpus 4 --usd-per-hour 0.7",
    )
)
def plan(
    path: SweepFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="Its name, or its memory; by default this machine's."),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="How many of them; one, or the cluster's.")
    ] = None,
    address: Address = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="What an hour of one of them costs.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.01, help="Tell how many trials so many are enough for.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell what a sweep will take: memory, time, money, disk."""
    from sweeps.cli.commands.plan import plan

    plan(path, overrides or [], gpu, num_gpus, address, usd_per_hour, hours, json)


@app.command(
    **_example(
        "peft-sweep run sweep.yaml",
        "peft-sweep run sweep.yaml budget.n_trials=64 training.bf16=true --address auto",
    )
)
@launching
def run(path: SweepFile, *, options: "Options") -> int:
    """Run a sweep, or take it up again where it was left."""
    from sweeps.cli.commands.run import run

    return run(path, options)


@app.command(**_example("peft-sweep submit sweep.yaml --address http://127.0.0.1:8265"))
def submit(address: JobServer, path: SweepFile, overrides: Overrides = None) -> None:
    """Hand a sweep to a Ray cluster, where it runs without this machine."""
    from sweeps.cli.commands.submit import submit

    submit(path, overrides or [], address)


@app.command(**_example("peft-sweep logs demo --address http://127.0.0.1:8265 --follow"))
def logs(
    name: Name,
    address: JobServer,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the sweep ends.")
    ] = False,
) -> None:
    """Print what a submitted sweep prints."""
    from sweeps.cli.commands.submit import logs

    logs(name, address, follow)


@app.command(**_example("peft-sweep resume demo", "peft-sweep resume demo budget.n_trials=64"))
@launching
def resume(name: Name, storage: Storage = RUNS, *, options: "Options") -> int:
    """Take up a sweep where it was left, without its file."""
    from sweeps.cli.commands.run import resume

    return resume(storage, name, options)


@app.command(**_example("peft-sweep retry demo --failed"))
@launching
def retry(
    name: Name,
    failed: Annotated[
        bool, typer.Option("--failed", help="Run every failed trial again, under a new number.")
    ] = False,
    storage: Storage = RUNS,
    *,
    options: "Options",
) -> int:
    """Run the trials of a sweep that failed again."""
    from sweeps.cli.commands.run import resume

    if not failed:
        raise typer.BadParameter("say which trials: --failed")
    return resume(storage, name, options, "retry")


@app.command(**_example("peft-sweep confirm demo", "peft-sweep confirm demo confirm.seeds=3"))
@launching
def confirm(name: Name, storage: Storage = RUNS, *, options: "Options") -> int:
    """Prove the winner: train the best configurations again under fresh seeds."""
    from sweeps.cli.commands.run import resume

    return resume(storage, name, options, "confirm")


@app.command(
    cls=NamesEntries,
    **_example("peft-sweep train demo", "peft-sweep train demo --trial 4 --epochs 3 --seeds 5"),
)
@launching
def train(
    name: Name,
    trial: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Trial; by default the one that is recommended."),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Passes over all rows; by default as in the sweep, one at least."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Fresh seeds.")] = 3,
    with_validation: Annotated[
        bool,
        typer.Option(
            "--with-validation", help="Train on the validation rows too; measure on the test rows."
        ),
    ] = False,
    to: Annotated[
        str, typer.Option(metavar="A,B", help="Forms to write ({sweeps.exporters:EXPORTERS}).")
    ] = "peft",
    storage: Storage = RUNS,
    *,
    options: "Options",
) -> int:
    """Train the winner's configuration on all the data; export it."""
    from sweeps.cli.commands.train import Wanted, train

    wanted = Wanted(trial, epochs, seeds, with_validation, tuple(listed(to)))
    return train(storage, name, wanted, options)


@app.command(
    **_example("peft-sweep status demo", "peft-sweep status demo --address http://127.0.0.1:8265")
)
def status(
    name: Name,
    storage: Storage = RUNS,
    address: OfJob = None,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Say what a sweep is at, and who drives it."""
    if address is not None:
        from sweeps.cli.commands import submit

        return submit.status(name, address, json)
    from sweeps.cli.commands.starting import status_of_start
    from sweeps.cli.commands.status import status
    from sweeps.results.recorded_sweep import Starting, open_sweep

    try:
        sweep = open_sweep(storage, name, study_url)
    except Starting as start:
        return status_of_start(start, json)
    return status(sweep, json)


@app.command(**_example("peft-sweep watch demo"))
def watch(name: Name, storage: Storage = RUNS, study_url: StudyUrl = None) -> None:
    """Watch a sweep that another terminal or machine drives."""
    from sweeps.cli.commands.starting import started
    from sweeps.cli.commands.status import watch
    from sweeps.results.recorded_sweep import open_sweep

    watch(started(lambda: open_sweep(storage, name, study_url)))


@app.command(**_example("peft-sweep stop demo"))
def stop(
    name: Name, storage: Storage = RUNS, address: OfJob = None, study_url: StudyUrl = None
) -> None:
    """Stop a sweep in good order; `resume` takes it up again."""
    if address is not None:
        from sweeps.cli.commands import submit

        raise typer.Exit(submit.stop(name, address))
    from sweeps.cli.commands.starting import stop_start
    from sweeps.cli.commands.status import stop
    from sweeps.results.recorded_sweep import Starting, open_sweep

    try:
        sweep = open_sweep(storage, name, study_url)
    except Starting as start:
        raise typer.Exit(stop_start(start)) from None
    raise typer.Exit(stop(sweep))


@app.command(
    **_example(
        "peft-sweep leaderboard demo --csv > a.csv",
        "peft-sweep leaderboard demo --by adapter.method",
        "peft-sweep leaderboard demo --pareto validation/loss,memory/peak_allocated_bytes",
    )
)
def leaderboard(
    name: Name,
    storage: Storage = RUNS,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Rows to show; 0 for all. A table shows 20.")
    ] = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every parameter.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that stands alone.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="PARAMETER", help="Only the best of each value: `adapter.method`."),
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Only complete trials that no other beats in all of these: metrics, memory/..., "
            "trainable_parameters, minutes. Less is better, but more of accuracy, F1 and the "
            "like, of an objective to maximize, and of NAME:max.",
        ),
    ] = None,
    study_url: StudyUrl = None,
) -> None:
    """Rank the trials of a sweep, also while it runs."""
    from sweeps.cli.commands.leaderboard import leaderboard
    from sweeps.results.recorded_sweep import open_sweep

    leaderboard(open_sweep(storage, name, study_url), limit, json, csv, html, by, pareto)


@app.command(**_example("peft-sweep show demo 7"))
def show(
    name: Name,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="The trial's number.")],
    storage: Storage = RUNS,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Show all that is known of one trial."""
    from sweeps.cli.commands.show import show
    from sweeps.results.recorded_sweep import open_sweep

    show(open_sweep(storage, name, study_url), number, json)


@app.command(**_example("peft-sweep report demo", "peft-sweep report demo --out demo.html"))
def report(
    name: Name,
    path: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Page to write; by default in the sweep's folder."
        ),
    ] = None,
    storage: Storage = RUNS,
    study_url: StudyUrl = None,
) -> None:
    """Write a sweep as one HTML page, with figures."""
    from sweeps.cli.commands.report import report
    from sweeps.results.recorded_sweep import open_sweep

    report(open_sweep(storage, name, study_url), path)


@app.command("list", **_example("peft-sweep list --storage /shared/runs"))
def list_sweeps(storage: Storage = RUNS, study_url: StudyUrl = None, json: Json = False) -> None:
    """List the sweeps of a storage."""
    from sweeps.cli.commands.leaderboard import list_sweeps

    list_sweeps(storage, study_url, json)


@app.command(
    cls=NamesEntries,
    **_example("peft-sweep export demo", "peft-sweep export demo --trial 4 --to peft,trl,vllm"),
)
def export(
    name: Name,
    trial: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Trial; by default the winner.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The best K trials, each in a folder.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write the merged model too.")] = False,
    to: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="Forms to write ({sweeps.exporters:EXPORTERS}); `peft` always is."
        ),
    ] = "peft",
    test: Annotated[bool, typer.Option(help="Score the winner once on the test split.")] = True,
    hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="ID", help="Put it into this repository of the Hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A private repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what --push-to-hub would send; send nothing.")
    ] = False,
    register: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Make it the champion of this model in MLflow."),
    ] = None,
    storage: Storage = RUNS,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Write the winner's adapter, scored again as written."""
    forms = listed(to) + ["merged"] * merge
    from sweeps.cli.commands.export import Push, export
    from sweeps.results.recorded_sweep import open_sweep

    push = Push(hub, private, dry_run, register)
    export(open_sweep(storage, name, study_url), trial, top, path, forms, test, push, json)


@app.command(
    cls=NamesEntries,
    **_example(
        "peft-sweep compose demo",
        "peft-sweep compose demo --top 4 --type cat,svd --rank 16",
        "peft-sweep compose demo --adapters 3,other:7 --weights 0.7,0.3 --anyway",
    ),
)
def compose(
    name: Name,
    top: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="The best K trials; by default 3.")
    ] = None,
    adapters: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Trials instead: 3, or SWEEP:3 of another sweep."),
    ] = None,
    types: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="A,B",
            help="PEFT's ways to combine: {peft_jobs.spec.combination:COMBINATION_TYPES}.",
        ),
    ] = "cat",
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W", help="By adapter; without, uniform and greedy soups."),
    ] = None,
    density: Annotated[
        float | None, typer.Option(metavar="D", help="Share of weights that ties and dare keep.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Of svd's result.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write the best one even if it is no better.")
    ] = False,
    path: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="A,B", help="Forms to write: peft, merged, vllm or ollama.")
    ] = "peft",
    test: Annotated[bool, typer.Option(help="Tell the values on the test split, too.")] = True,
    storage: Storage = RUNS,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Combine the best adapters into one, if that is better."""
    from sweeps.cli.commands.compose import Words, compose
    from sweeps.results.recorded_sweep import open_sweep

    words = Words(top, adapters, types, weights, density, rank, anyway)
    compose(open_sweep(storage, name, study_url), words, path, listed(to), test, study_url, json)


@app.command(**_example("peft-sweep delete demo", "peft-sweep delete demo --keep-best --yes"))
def delete(
    name: Name,
    storage: Storage = RUNS,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Copy the winner's adapter to NAME-best first.")
    ] = False,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Leave the runs in MLflow as they are.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Delete a sweep: study, MLflow runs, files."""
    from sweeps.cli.commands.delete import delete

    delete(storage, name, study_url, keep_best, keep_runs, yes, json)


@app.command(**_example("peft-sweep gc --dry-run"))
def gc(
    storage: Storage = RUNS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Remove what no sweep needs: caches, unfinished files."""
    from sweeps.cli.commands.delete import collect

    collect(storage, study_url, dry_run, json)


@app.command(**_example("peft-sweep archive demo --out demo.tar"))
def archive(
    name: Name,
    storage: Storage = RUNS,
    path: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; NAME.tar.")
    ] = None,
    study_url: StudyUrl = None,
    json: Json = False,
) -> None:
    """Put a sweep into one file, which opens elsewhere."""
    from sweeps.cli.commands.archive import archive

    archive(storage, name, study_url, path, json)


@app.command(**_example("peft-sweep restore demo.tar --storage /data/runs"))
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `archive` has written.")],
    storage: Storage = RUNS,
) -> None:
    """Put an archived sweep into a storage."""
    from sweeps.cli.commands.archive import restore

    restore(file, storage)


@app.command(**_example("peft-sweep ui --port 5001", "peft-sweep ui --optuna"))
def ui(
    storage: Storage = RUNS,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    optuna: Annotated[
        bool, typer.Option("--optuna", help="Optuna's dashboard instead, where it is installed.")
    ] = False,
    study_url: StudyUrl = None,
) -> None:
    """Browse the sweeps in MLflow, on this machine only."""
    from sweeps.cli.commands.ui import optuna_ui, ui

    optuna_ui(storage, study_url, port) if optuna else ui(storage, port)


@app.command(**_example("peft-sweep doctor"))
def doctor(storage: Storage = RUNS, json: Json = False) -> None:
    """Check this machine: packages, GPU, Ray, disk ..."""
    from sweeps.cli.commands.doctor.doctor import doctor

    raise typer.Exit(doctor(storage, json))


@app.command(**_example("peft-sweep schema > sweep.schema.json"))
def schema() -> None:
    """Print the JSON schema of the sweep file, for editors."""
    from sweeps.cli.commands.schema import sweep_file_schema
    from sweeps.cli.screen import print_json

    print_json(sweep_file_schema())
