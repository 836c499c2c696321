"""Reads other tools' files, and makes a sweep file of them."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from peft_jobs import SpecError
from peft_jobs.spec import DEMO
from search_spaces.presets import PRESETS
from sweeps.drafts.imports import axolotl_config, llama_factory_config, wandb_sweep
from sweeps.drafts.imports.carried import Carried
from sweeps.spec.loading import build_sweep
from sweeps.spec.yaml_file import SweepFileError, read_yaml

_SECTIONS = (
    *("model", "quantization", "data", "task", "adapter", "training", "evaluation", "space"),
    *("objective", "constraints", "sampler", "pruner", "budget"),
)
_KNOWN = "sweeps of W&B, configurations and sweeps of Axolotl, configurations of LLaMA-Factory"
_WIDTH = 98


def imported(
    files: Sequence[Path], tree: Mapping[str, Any], with_model: bool, with_data: bool
) -> tuple[str, list[str]]:
    """The text of a sweep file that says what other tools' files say, and what is told of it, a
    line each.

    `tree` is the mapping that it begins with; its base, or its data, stay unless they are wanted
    from the files. SpecError for a file that is of no known tool.
    """
    carried = Carried(tree, frozenset() if with_model else frozenset({"model.name_or_path"}))
    carries = [_carry(path, with_data) for path in files]
    for _, carry in sorted(carries, key=lambda pair: pair[0]):
        carried.begin()
        carry(carried)
    _space(carried)
    for section, field, option in (("model", "name_or_path", "model"), ("data", "train", "data")):
        if carried.tree[section][field] == DEMO:
            carried.said.append(f"{section}.{field} is the embedded demo: give --{option}")
    left = [f"{name} is not taken over: {why}" for name, why in carried.left.items()]
    taken = {name: value for name, value in carried.fixed.items() if name not in carried.parameters}
    taken |= {f"{name} is sampled": value for name, value in carried.parameters.items()}
    told = [f"{name}: {_flow(value)}" for name, value in taken.items()]
    return _text(files, carried, [*left, *carried.said]), [*told, *left, *carried.said]


def _carry(path: Path, with_data: bool) -> tuple[int, Callable[[Carried], None]]:
    """What takes over the content of a file; sweeps, which follow configurations, have a 1."""
    if not path.is_file():
        raise SpecError(f"--from: no such file: {path}")
    content = read_yaml(path)
    if wandb_sweep.is_wandb(content):
        return 1, lambda carried: wandb_sweep.carry(content, carried)
    if llama_factory_config.is_llama_factory(content):
        folder = path.parent
        return 0, lambda c: llama_factory_config.carry(content, c, folder, with_data)
    if axolotl_config.is_axolotl(content):
        return 0, lambda carried: axolotl_config.carry(content, carried, with_data)
    if axolotl_config.is_axolotl_sweep(content):
        return 1, lambda carried: axolotl_config.carry_sweep(content, carried)
    raise SpecError(f"--from: {path} is of no known tool; known: {_KNOWN}")


def _space(carried: Carried) -> None:
    """What is sampled; of files that sample nothing a preset, whose first trial is what they
    say."""
    if carried.parameters:
        carried.tree["space"] = {"parameters": carried.parameters}
        return
    scheme = carried.tree.get("quantization", {}).get("scheme", "none")
    is_full = carried.fixed.get("adapter.method") == "full"
    preset = "full" if is_full else "lora" if scheme == "none" else "qlora"
    carried.tree["space"] = {"preset": preset}
    names = yaml.safe_load(PRESETS[preset].read_text(encoding="utf-8"))["parameters"]
    known = {name: value for name, value in carried.fixed.items() if name in names}
    sampled = {name for name in known if isinstance(names[name], dict)}
    space: dict[str, Any] = {"preset": preset}
    fixed = {name: value for name, value in known.items() if name not in sampled}
    if replaced := {n: {"value": v} if isinstance(v, list) else v for n, v in fixed.items()}:
        space["parameters"] = replaced
    told = f"the files sample nothing: the space is the preset {preset}"
    point = {name: known[name] for name in sampled}
    tried = {**space, "points_to_evaluate": [point]}
    try:
        build_sweep({"name": "imported", **carried.tree, "space": tried})
    except SweepFileError as error:
        carried.tree["space"] = space
        why = "; ".join(error.problems)
        carried.said.append(f"{told}; it has no place for what they say ({why})")
        return
    carried.tree["space"] = tried
    carried.said.append(f"{told}, and the first trial is what they say")


def _flow(value: Any) -> str:
    """A value as YAML has it, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def _text(files: Sequence[Path], carried: Carried, told: Sequence[str]) -> str:
    """The sweep file, with what is told in its comments."""
    lines = [f"# From {', '.join(path.name for path in files)}, by `peft-sweep init --from`."]
    for line in told:
        wrapped = textwrap.wrap(line, _WIDTH, initial_indent="# * ", subsequent_indent="#   ")
        lines += wrapped
    tree = {name: carried.tree[name] for name in _SECTIONS if name in carried.tree}
    tree |= {name: value for name, value in carried.tree.items() if name not in tree}
    blocks = (
        yaml.safe_dump({name: value}, sort_keys=False, width=1000, allow_unicode=True)
        for name, value in tree.items()
    )
    return "\n".join(lines) + "\n\n" + "\n".join(blocks)
