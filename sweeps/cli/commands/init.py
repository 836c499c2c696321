"""`init` and `presets`: a commented sweep file to start from, and ranges from the literature."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml

from peft_jobs import SpecError
from peft_jobs.spec import DEMO
from peft_jobs.spec.mistakes import suggest
from search_spaces.presets import PRESETS, QUESTIONS
from sweeps.cli.screen import out, pairs, print_json, say
from sweeps.drafts.first_rows import first_rows
from sweeps.drafts.guesses import guess
from sweeps.drafts.imports.other_tools import imported
from sweeps.drafts.starter import starter, with_data, with_model, with_preset
from sweeps.spec.loading import build_sweep


@dataclass(frozen=True)
class Given:
    """What is put into the starter; None leaves what stands there."""

    task: str | None = None
    """By default what the data are for, or causal_lm."""
    model: str | None = None
    data: str | None = None
    preset: str | None = None
    files: tuple[Path, ...] = ()
    """Of other tools, whose settings are taken over."""


def init(given: Given, path: Path, force: bool) -> None:
    """Write a starter to `path`, and tell what was guessed. SpecError if a file is there and not
    `force`, or if what is given makes no valid sweep."""
    text, said = _draft(given)
    if given.files:
        if given.preset is not None:
            raise SpecError("give either --from, whose file says what is searched, or --preset")
        tree = yaml.safe_load(text)
        text, told = imported(given.files, tree, given.model is None, given.data is None)
        said = [*(said if given.data is not None else []), *told]
    if path.exists() and not force:
        raise SpecError(f"{path} is there already; give another --out, or --force to overwrite it")
    tree = yaml.safe_load(text)
    build_sweep({"name": path.stem, **tree}, str(path))
    path.write_text(text, encoding="utf-8")
    for line in said:
        say(f"  {line}")
    say(f"Wrote {path}. Next:")
    for verb in ("validate", "run"):
        say(f"  {shlex.join(['peft-sweep', verb, str(path)])}")


def _draft(given: Given) -> tuple[str, list[str]]:
    """The text of the file, and what was guessed for it, a line each."""
    if given.task is not None:
        starter(given.task)  # an unknown task is told before the data are read
    found = guess(first_rows(given.data), given.task) if given.data is not None else None
    task = found.task["type"] if found is not None else given.task or "causal_lm"
    text, said = starter(task), []
    model = given.model or str(yaml.safe_load(text)["model"]["name_or_path"])
    if found is not None and given.data is not None:
        text, told = with_data(text, given.data, found, model)
        fields = {**found.task, **{f"data.{name}": value for name, value in found.data.items()}}
        guessed = ", ".join(f"{name} {value!r}" for name, value in fields.items())
        said += [f"guessed from the first rows of {given.data}: {guessed}", *told]
        said += [f"not known: {line}" for line in found.unknown]
        if given.model is None:
            said.append(f"the base is {model}, as no --model is given")
    if given.model is not None:
        text = with_model(text, given.model)
    if given.preset is not None:
        text = with_preset(text, given.preset)
    elif given.model is not None and given.model != DEMO:
        said.append("the learning rates are a small base's; `--preset qlora` has a large one's")
    return text, said


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
