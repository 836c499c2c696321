"""What a method is told when it builds an adapter."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset
from peft import TaskType

from peft_jobs.base.loading import Base
from peft_jobs.errors import SpecError
from peft_jobs.evaluation.scoring import examples_of, to_device
from peft_jobs.randomness import epoch_order
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import LoraSpec
from peft_jobs.storage.saved_adapter import SavedAdapter
from peft_jobs.tasks import IGNORED, TASKS, Batch
from peft_jobs.tasks.seq2seq import decoder_inputs

OURS = (
    *("from", "method", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern"),
)
"""Fields of an adapter that PEFT is not told: it gets a class, and the full names of modules."""
_ALPHAS = {"lora_alpha", "alpha"}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def whole_alphas(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with each alpha that is a whole number as an int, as PEFT declares and others read
    it from `adapter_config.json`."""
    found = dict(fields)
    for name in _ALPHAS & fields.keys():
        found[name] = _whole(fields[name])
    if "alpha_pattern" in fields:
        found["alpha_pattern"] = {key: _whole(v) for key, v in fields["alpha_pattern"].items()}
    return found


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


@dataclass(frozen=True)
class Setting:
    base: Base
    spec: TrialSpec
    targets: tuple[str, ...]
    """Full names of the modules that the adapter changes."""
    whole: tuple[str, ...]
    """Modules that are trained whole."""
    parameters: tuple[str, ...] = ()
    """Full names of the parameters outside of linear modules that the adapter changes."""
    saved: SavedAdapter | None = None
    """The adapter that the trial goes on from."""
    rows: Dataset | None = None
    """The tokenised training rows; None where there are no data."""

    @property
    def adapter(self) -> Any:
        return self.spec.adapter

    @property
    def task_type(self) -> TaskType:
        return TASKS[self.spec.task.type].peft_task_type

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the trial."""
        return self.spec.training.total_steps(0 if self.rows is None else len(self.rows))

    @property
    def may_drop_targets(self) -> bool:
        """Whether the method may decide that a target needs no adapter."""
        return isinstance(self.adapter, LoraSpec) and self.adapter.init_lora_weights == "eva"

    def options(self, *leave_out: str) -> dict[str, Any]:
        """The adapter's fields that are PEFT's own, by name; targets by their full names."""
        fields = self.adapter.model_dump(exclude={*OURS, *leave_out})
        targets = {"target_modules": list(self.targets)} if self.targets else {}
        return {"task_type": self.task_type, **targets, **whole_alphas(fields)}

    def first_batches(self, num_rows: int, batch_size: int) -> Iterator[Batch]:
        """The model's inputs for the first rows in the trial's own order, on its device."""
        if self.rows is None:
            raise SpecError("adapter: this initialisation looks at training rows, and has none")
        task, base = TASKS[self.spec.task.type], self.base
        order = iter(epoch_order(self.spec.seed, 0, len(self.rows)).tolist()[:num_rows])
        while chosen := list(islice(order, batch_size)):
            pad = base.tokenizer.pad_token_id
            batch = task.collate(examples_of(self.rows[chosen]), pad)
            inputs = {name: batch[name] for name in _INPUTS if name in batch}
            if base.model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = decoder_inputs(base.model, batch["labels"])
                inputs["decoder_attention_mask"] = (batch["labels"] != IGNORED).long()
            yield to_device(inputs, base.device)
