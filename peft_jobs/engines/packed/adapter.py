"""A slot's parameters as the solo engine would have saved them: a PEFT adapter, a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import PeftConfig
from torch import Tensor

from peft_jobs.base.loading import Base
from peft_jobs.device.host_copies import whole
from peft_jobs.engines.packed.forms import file_name, peft_name
from peft_jobs.engines.packed.layout import Named, Part
from peft_jobs.engines.packed.parts import Parts
from peft_jobs.engines.packed.row import MOMENTS, Captured, PackRow
from peft_jobs.methods import METHODS
from peft_jobs.methods.setting import Setting
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
    """Writes the adapter that the row holds now, in any thread and without the base."""
    copies, config = row.copies(adapter_tensors, False), _config(row.spec, parts, base)
    frozen = parts.form.frozen if getattr(config, "save_projection", False) else dict
    return lambda: _write_adapter(copies.read() | _files(frozen()), config, directory, classes)


def _config(spec: TrialSpec, parts: Parts, base: Base) -> PeftConfig:
    """PEFT's own, as the solo engine's model of the trial has it."""
    made = METHODS[spec.adapter.method].config
    assert made is not None
    config: Any = made(Setting(base, spec, parts.adapted, tuple(parts.heads)))
    config.modules_to_save = parts.heads or None
    config.fan_in_fan_out = parts.is_transposed
    config.base_model_name_or_path = base.model.name_or_path
    config.inference_mode = True
    return cast(PeftConfig, config)


def _write_adapter(
    tensors: Tensors, config: PeftConfig, directory: Path, classes: Sequence[int | str]
) -> str:
    """Write `adapter/` into `directory`, whole or not at all; returns the folder's name."""
    with whole_folder(directory / ADAPTER_FOLDER) as aside:
        config.save_pretrained(str(aside))
        safetensors.torch.save_file(
            tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"}
        )
        write_labels(aside, classes)
    return ADAPTER_FOLDER


def adapter_tensors(captured: Captured) -> Tensors:
    """A trial's values by the names that they have in PEFT's file."""
    return _files(captured.values)


def _files(values: Named) -> Tensors:
    return {file_name(*place): whole(value) for place, value in values.items()}


def _name(place: tuple[str, Part], parts: Parts) -> str:
    """Of a parameter in PEFT's model of the trial."""
    return peft_name(*place, parts.whole.get(place[0], ""))


def checkpoint_tensors(captured: Captured, parts: Parts) -> Tensors:
    """As `training_state.snapshot` of the same trial alone: either engine goes on from it."""
    tensors: Tensors = {}
    for place, value in captured.values.items():
        name = _name(place, parts)
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
    names = {_name(place, parts): place for place in places}
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
