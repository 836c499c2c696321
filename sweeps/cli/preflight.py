"""What a sweep's data hold, looked at before its base is loaded and before Ray is started.

Only the tokenizer of the base is needed. On a cluster that this machine joins, data or base may lie
where only the nodes reach them: then nothing is held against the sweep here.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.references import load
from peft_jobs.storage.object_store import is_url, local_folder
from sweeps.cli.screen import err, say
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.spec.loading import load_data_alone, load_sweep
from sweeps.spec.sample_points import drawn_trials, varying_names
from sweeps.spec.yaml_file import SweepFileError
from sweeps.tracking.schema import schema_mistake

log = logging.getLogger(__name__)

MAX_ROWS = 20_000
"""Rows of a split that are encoded for a summary, unless a person says otherwise."""
MAX_ROWS_OF_RUN = 1_000
"""Rows of a split that are encoded before a sweep runs: its hosts encode all of them anyway."""


def summary_of(spec: SweepSpec, max_rows: int = MAX_ROWS) -> dict[str, Any]:
    """The summary of a sweep's data (`infra/docs/data.md` has its keys); 0 encodes all rows."""
    return _with_place(spec, summary_of_trial(largest_trial(spec), _cache(spec), max_rows))


def load_checked(path: Path, overrides: Sequence[str]) -> SweepSpec:
    """The sweep of a file; SweepFileError with every mistake of it, and then of its data too where
    what is said of them can be used."""
    try:
        return load_sweep(path, overrides)
    except SweepFileError as error:
        problems = list(error.problems)
        try:
            if (part := load_data_alone(path, overrides)) is not None:
                check_data(part, str(path))
        except SweepFileError as more:
            problems += [line for line in more.problems if line not in problems]
        raise SweepFileError(error.source, problems) from None


def check_data(spec: SweepSpec, source: str) -> None:
    """Tell what the summary warns of; SweepFileError with every mistake in the data of the sweep.

    For a sweep on Ray it is found in a process of its own, as its driver never imports torch.
    """
    if spec.resources.engine == "simulated" or not _is_near(spec):
        return
    arguments = (largest_trial(spec), _cache(spec), MAX_ROWS_OF_RUN)
    with err.status("Looking at the data ..."), contextlib.redirect_stdout(sys.stderr):
        alone = spec.resources.backend == "ray"
        found = _in_a_process(*arguments) if alone else summary_of_trial(*arguments)
    if found is None:
        return
    found = _with_place(spec, found)
    if found["mistakes"]:
        raise SweepFileError(source, found["mistakes"])
    for text in (
        *found["unread"],
        *found["warnings"],
        *(leak["message"] for leak in found["leaks"]),
    ):
        say(f"data: {text}", style="yellow")


def check_tracking(spec: SweepSpec, source: str) -> None:
    """SweepFileError if the database of the sweep's runs is another MLflow's."""
    if spec.tracking.enabled:
        uri = spec.tracking.uri or SweepFolder.of(spec).tracking_url
        if (mistake := schema_mistake(uri)) is not None:
            raise SweepFileError(source, [mistake])


def summary_of_trial(trial: TrialSpec, cache_dir: Path, max_rows: int) -> dict[str, Any]:
    """The summary of a trial's data, whose tokenizer is loaded for it."""
    tokenizer, unread = None, []
    try:
        tokenizer = load("peft_jobs.base.tokenizer:load_tokenizer")(trial.model, trial.task)
    except SpecError as error:
        unread = str(error).splitlines()
    survey = load("peft_jobs.data.survey:survey")
    found: dict[str, Any] = survey(trial, tokenizer, cache_dir, max_rows or None).to_dict()
    if found["mistakes"] and tokenizer is not None:
        found["mistakes"] = [*_misfit(trial), *found["mistakes"]]
    return {**found, "unread": [*found["unread"], *unread]}


def _misfit(trial: TrialSpec) -> list[str]:
    """Why the base is none for the task, which rows and tokenizer suffer from: told before them."""
    architecture = "peft_jobs.base.architecture"
    try:
        with load(f"{architecture}:readable")(trial.model):
            load(f"{architecture}:skeleton")(trial.model, trial.task)
    except SpecError as error:
        return str(error).splitlines()
    return []


def largest_trial(spec: SweepSpec) -> TrialSpec:
    """Of the trials that the space draws, the one with the most training rows."""

    def size(trial: TrialSpec) -> float:
        subset = trial.data.subset
        return float("inf") if subset is None else subset

    trials = drawn_trials(spec)
    shares = [trial for trial in trials if size(trial) < 1]
    return max([trial for trial in trials if size(trial) >= 1] or shares or [spec.trial], key=size)


def _with_place(spec: SweepSpec, found: dict[str, Any]) -> dict[str, Any]:
    """With what the space varies, and what cannot be read where that matters."""
    varied = [name for name in varying_names(spec) if name.startswith(("data.", "task."))]
    if spec.resources.address is None:
        found = {**found, "mistakes": [*found["unread"], *found["mistakes"]], "unread": []}
    return {**found, "varied": varied}


def _cache(spec: SweepSpec) -> Path:
    folder = SweepFolder.of(spec)
    given = spec.resources.engine_options.get("cache_dir", folder.location_of(folder.cache))
    return local_folder(str(given))


def _is_near(spec: SweepSpec) -> bool:
    """Whether the data need not come from a store for nothing but this."""
    far = any(is_url(source.path) for source in spec.trial.data.sources.values())
    return spec.resources.address is None or not far


def _in_a_process(trial: TrialSpec, cache_dir: Path, max_rows: int) -> dict[str, Any] | None:
    """`summary_of_trial`; None, with a warning, if the process dies of it."""
    program = f"from {__name__} import main; main()"
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        input=json.dumps([trial.model_dump(mode="json"), str(cache_dir), max_rows]),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        process_group=0,  # an interrupt is ours; it is killed then
    )
    if done.returncode != 0:
        log.warning("the data could not be looked at before the start (code %d)", done.returncode)
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """The process of `_in_a_process`."""
    trial, cache_dir, max_rows = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = summary_of_trial(TrialSpec.model_validate(trial), Path(cache_dir), max_rows)
    print(json.dumps(found, default=str))
