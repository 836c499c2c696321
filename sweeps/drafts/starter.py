"""The commented sweep file of a task, with a person's base, data and preset put in."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from peft_jobs import SpecError
from peft_jobs.spec import DEMO, TASK_SPECS
from peft_jobs.spec.mistakes import suggest
from search_spaces.presets import PRESETS
from sweeps.drafts.guesses import Guess

_CHAT_FILES = ("chat_template.jinja", "additional_chat_templates")
_SPLITS = {"validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}


def starter(task: str) -> str:
    """The text of a sweep file for `task`; SpecError for an unknown task."""
    if task not in TASK_SPECS:
        raise SpecError(f"unknown task {task!r}{suggest(task, TASK_SPECS)}")
    return (files("sweeps") / "examples" / TASK_SPECS[task].STARTER).read_text(encoding="utf-8")


def with_model(text: str, model: str) -> str:
    """The text with another base."""
    return _edited(text, 1, lambda block: re.sub("name_or_path: .*", _line(model), block))


def with_preset(text: str, preset: str) -> str:
    """The text with a preset for its space; SpecError for an unknown one."""
    if preset not in PRESETS:
        raise SpecError(f"unknown preset {preset!r}{suggest(preset, PRESETS)}")
    told = (
        "# 5. What is searched: ranges from the literature. What stands beside `preset` under\n"
        f"# `parameters` replaces or adds; `peft-sweep presets {preset}` prints the ranges.\n"
    )
    return _edited(text, 5, lambda block: f"{told}space:\n  preset: {preset}")


def with_data(text: str, path: str, guess: Guess, model: str) -> tuple[str, list[str]]:
    """The text for the rows of a file, and what was settled beside what the rows tell, a line each.

    A trial passes once over the rows, 512 tokens at a time at most.
    """
    said: list[str] = []
    data: dict[str, Any] = {"train": path, "validation": 0.1, **guess.data, "max_length": 512}
    siblings = _siblings(path)
    for split, file in siblings.items():
        data[split] = file
        said.append(f"data.{split} is {file}, beside the training rows")
    if "validation" not in siblings:
        said.append("data.validation holds a tenth of the rows out")
    task = dict(guess.task)
    chats = task.get("messages") is not None
    if chats and (known := _has_chat_template(model)) is not None:
        if not known:
            task["chat_template"] = "chatml"
            said.append(f"task.chat_template is chatml, as {model} has none")
    elif chats:
        said.append("whether the base has a chat template is not known: see task.chat_template")
    of_task = _section("task", task)
    if chats and "chat_template" not in task:
        of_task += "\n  # chat_template: chatml # where the base has none"
    for unknown in guess.unknown:
        of_task += f"\n  # not known: {unknown}"
    text = re.sub("(; it runs|: fill in).*", ".", text, count=1)
    told = "# 2. The data; `peft-sweep data FILE` tells how many rows max_length cuts.\n"
    text = _edited(text, 2, lambda block: told + _section("data", data))
    told = "# 3. What is learned, by the columns' names and forms. Braces name columns.\n"
    text = _edited(text, 3, lambda block: told + of_task)
    text = re.sub("\n  max_samples: .*", "\n  num_train_epochs: 1 # or max_samples", text, count=1)
    if task.get("problem_type") == "regression":
        loss = "# 6. What is best.\nobjective:\n  metric: validation/loss\n  direction: minimize"
        text = _edited(text, 6, lambda block: loss)
    return text, said


def _edited(text: str, number: int, edit: Callable[[str], str]) -> str:
    """The text with one section edited: from its comment, `# 2. ` say, to a blank line."""
    blocks = text.split("\n\n")
    (index,) = (i for i, block in enumerate(blocks) if block.startswith(f"# {number}. "))
    blocks[index] = edit(blocks[index])
    return "\n\n".join(blocks)


def _line(model: str) -> str:
    line = yaml.safe_dump({"name_or_path": model}, width=1000, allow_unicode=True).rstrip()
    return line.replace("\\", "\\\\")


def _section(name: str, values: dict[str, Any]) -> str:
    dumped = yaml.safe_dump({name: values}, sort_keys=False, width=1000, allow_unicode=True)
    return str(dumped).rstrip()


def _siblings(path: str) -> dict[str, str]:
    """Files beside one named for training that are named like it for the other splits."""
    file = Path(path)
    found: dict[str, str] = {}
    for split, names in _SPLITS.items():
        others = (file.with_name(re.sub("train", name, file.name, count=1)) for name in names)
        there = [o for o in others if o.name != file.name and o.expanduser().is_file()]
        found |= {split: str(there[0])} if there else {}
    return found


def _has_chat_template(model: str) -> bool | None:
    """Whether the tokenizer of a local folder, or of the demo, has a chat template; None for a base
    that is elsewhere."""
    folder = Path(model).expanduser()
    if model == DEMO:
        return False
    if not folder.is_dir():
        return None
    if any((folder / name).exists() for name in _CHAT_FILES):
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return bool(config.get("chat_template"))
