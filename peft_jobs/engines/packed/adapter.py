"""A slot's parameters as the solo engine would have saved them: a PEFT adapter, a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from peft_jobs.base.loading import Base
from peft_jobs.device.host_copies import whole
from peft_jobs.engines.packed.eligibility import Parts, lora_of
from peft_jobs.engines.packed.layout import Named, Part
from peft_jobs.engines.packed.row import MOMENTS, Captured, PackRow
from peft_jobs.methods.lora import peft_config
from peft_jobs.randomness import ADAPTER
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.attempt_folder import ADAPTER_FOLDER, write_labels
from peft_jobs.storage.files import whole_folder
from peft_jobs.training.training_state import Tensors


def adapter_to_save(
    row: PackRow,
    parts: Parts,
    base: Base,
    directory: Path,
    classes: Sequence[int | str],
) -> Callable[[], str]:
    """Writes the adapter that the row holds now (`save_adapter`), in any thread and without the
    base."""
    copies, spec, name_or_path = (
        row.copies(partial(adapter_tensors, parts=parts), False),
        row.spec,
        base.model.name_or_path,
    )
    return lambda: save_adapter(copies.read(), spec, parts, name_or_path, directory, classes)


def save_adapter(
    tensors: Tensors,
    spec: TrialSpec,
    parts: Parts,
    name_or_path: str | None,
    directory: Path,
    classes: Sequence[int | str],
) -> str:
    """Write `adapter/` into `directory`, whole or not at all; returns the folder's name.

    `tensors` are `adapter_tensors` for the base `name_or_path`.
    """
    config = peft_config(lora_of(spec), [*parts.adapted], spec.task)
    config.modules_to_save = parts.heads or None
    config.fan_in_fan_out = parts.is_transposed
    config.base_model_name_or_path = name_or_path
    config.inference_mode = True
    with whole_folder(directory / ADAPTER_FOLDER) as aside:
        config.save_pretrained(str(aside))
        safetensors.torch.save_file(
            tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"}
        )
        write_labels(aside, classes)
    return ADAPTER_FOLDER


def adapter_tensors(captured: Captured, parts: Parts) -> Tensors:
    """A trial's values by the names that they have in PEFT's file, which leaves the adapter's own
    out."""
    found: Tensors = {}
    for place, value in captured.values.items():
        name = peft_name(*place, parts).replace(f".{ADAPTER}.", ".")
        found[name.replace(".modules_to_save.", ".")] = whole(value)
    return found


def peft_name(module: str, part: Part, parts: Parts) -> str:
    """The name of a parameter in PEFT's model of the trial."""
    if part in ("lora_A", "lora_B"):
        return f"base_model.model.{module}.{part}.{ADAPTER}.weight"
    head = parts.whole[module]
    inner = module.removeprefix(head)
    return f"base_model.model.{head}.modules_to_save.{ADAPTER}{inner}.{part}"


def checkpoint_tensors(captured: Captured, parts: Parts) -> Tensors:
    """As `training_state.snapshot` of the same trial alone: either engine goes on from it."""
    tensors: Tensors = {}
    for place, value in captured.values.items():
        name = peft_name(*place, parts)
        tensors[f"model/{name}"] = whole(value)
        for key, named in captured.moments.items():
            tensors[f"optimizer/{name}/{key}"] = whole(named[place])
        if captured.moments:
            tensors[f"optimizer/{name}/step"] = torch.tensor(float(captured.steps))
    return tensors


def from_snapshot(
    tensors: Tensors, places: Mapping[tuple[str, Part], Tensor], steps: int, parts: Parts
) -> Captured | None:
    """A trial's snapshot, of either engine; `places` are the parameters that it has now.

    None if it holds other ones.
    """
    names = {peft_name(*place, parts): place for place in places}
    shapes = {f"model/{name}": places[place].shape for name, place in names.items()}
    held = {name: value.shape for name, value in tensors.items() if name.startswith("model/")}
    if shapes != held:
        return None
    values = {place: tensors[f"model/{name}"] for name, place in names.items()}
    moments: dict[str, Named] = {}
    if steps:
        moments = {
            key: {place: tensors[f"optimizer/{name}/{key}"] for name, place in names.items()}
            for key in MOMENTS
        }
    return Captured(values, {}, moments, steps)
