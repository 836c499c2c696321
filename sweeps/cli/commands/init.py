"""`init` and `presets`: a commented sweep file to start from, and ranges from the literature."""

import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import typer
import yaml

from peft_jobs import SpecError
from peft_jobs.spec import TASK_SPECS
from peft_jobs.spec.mistakes import suggest
from search_spaces.presets import PRESETS, QUESTIONS
from sweeps.cli.screen import out, pairs, print_json, say


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


def presets(name: str | None, json: bool) -> None:
    """Print what each preset is for, or the file of one with its sources; SpecError for an unknown
    one."""
    if name is None:
        listed = [_listed(preset) for preset in PRESETS]
        if json:
            return print_json(listed)
        for by in ("question", "method"):
            out.print(f"[bold]By {by}[/]")
            purposes = {str(each["name"]): _words(each) for each in listed if each["by"] == by}
            out.print(pairs(purposes))
        return say("`peft-sweep presets NAME` prints one; `space: {preset: NAME}` takes it.")
    if name not in PRESETS:
        raise SpecError(f"unknown preset {name!r}{suggest(name, PRESETS)}")
    text = PRESETS[name].read_text(encoding="utf-8")
    if json:
        return print_json({**_listed(name), "space": yaml.safe_load(text)})
    return typer.echo(text, nl=False)


def _listed(name: str) -> dict[str, str | int]:
    """What is told of a preset in a list."""
    text = PRESETS[name].read_text(encoding="utf-8")
    return {
        "name": name,
        "by": "question" if name in QUESTIONS else "method",
        "use_for": text.partition("\n")[0].removeprefix("# Use this for ").removesuffix("."),
        "num_parameters": len(yaml.safe_load(text)["parameters"]),
    }


def _words(listed: Mapping[str, str | int]) -> str:
    return f"{listed['use_for']} ({listed['num_parameters']} parameters)"
