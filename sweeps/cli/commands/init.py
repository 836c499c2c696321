"""`init`: a commented sweep file to start from."""

import shlex
from importlib.resources import files
from pathlib import Path

from peft_jobs import SpecError
from peft_jobs.spec import TASK_SPECS
from peft_jobs.spec.mistakes import suggest
from sweeps.cli.screen import say


def init(task: str, path: Path, force: bool) -> None:
    """Write the starter of `task` to `path`; SpecError if a file is there and not `force`."""
    text = starter(task)
    if path.exists() and not force:
        raise SpecError(f"{path} is there already; give another --out, or --force to overwrite it")
    path.write_text(text, encoding="utf-8")
    say(f"Wrote {path}. Next:")
    for verb in ("validate", "run"):
        say(f"  {shlex.join(['peft-sweep', verb, str(path)])}")


def starter(task: str) -> str:
    """The text of a sweep file for `task`; SpecError for an unknown task."""
    if task not in TASK_SPECS:
        raise SpecError(f"unknown task {task!r}{suggest(task, TASK_SPECS)}")
    return (files("sweeps") / "examples" / TASK_SPECS[task].STARTER).read_text(encoding="utf-8")
