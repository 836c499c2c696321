"""A slot's parameters as an ordinary PEFT adapter: what the solo engine would have saved."""

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from peft_jobs.base.loading import Base
from peft_jobs.engines.packed.eligibility import Parts, lora_of
from peft_jobs.engines.packed.pack import Named
from peft_jobs.engines.packed.row import peft_name
from peft_jobs.methods.lora import peft_config
from peft_jobs.randomness import ADAPTER
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.attempt_folder import ADAPTER_FOLDER, write_labels
from peft_jobs.storage.files import whole_folder


def save_adapter(
    values: Named,
    spec: TrialSpec,
    parts: Parts,
    base: Base,
    directory: Path,
    classes: Sequence[int | str],
) -> str:
    """Write `adapter/` into `directory`, whole or not at all; returns the folder's name.

    PEFT leaves the adapter's own name out of the file's.
    """
    tensors = {
        peft_name(module, part).replace(f".{ADAPTER}.", "."): value.cpu().contiguous()
        for (module, part), value in values.items()
    }
    tensors = {name.replace(".modules_to_save.", "."): value for name, value in tensors.items()}
    config = peft_config(lora_of(spec), parts.adapted, spec.task)
    config.modules_to_save = sorted(parts.whole) or None
    config.base_model_name_or_path = base.model.name_or_path
    config.inference_mode = True
    with whole_folder(directory / ADAPTER_FOLDER) as aside:
        config.save_pretrained(str(aside))
        safetensors.torch.save_file(
            tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"}
        )
        write_labels(aside, classes)
    return ADAPTER_FOLDER
