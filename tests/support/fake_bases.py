"""Bases that exist as a config.json alone, and rows of PEFT's method comparison on one of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import Tensor, nn

from peft_jobs.base.loading import Base
from peft_jobs.prediction.solo_steps import Trainee
from peft_jobs.prediction.unvalued import without_values
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS, Example

LLAMA_8B = {  # meta-llama/Llama-3.1-8B
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of a base without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def spec_on(base: Path, **sections: Any) -> TrialSpec:
    """A trial of next-token prediction on a base."""
    return TrialSpec.model_validate(
        {
            "model": {"name_or_path": str(base)},
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": "demo"},
            **sections,
        }
    )


class OwnLoss:
    """The loss that transformers' models compute themselves, of all logits at once; what they gave
    is kept until the next step, as the comparison's loop keeps it."""

    def __init__(self) -> None:
        self.outputs: Any = None

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = TASKS["causal_lm"].collate(examples, 0)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.outputs = model(**batch, num_items_in_batch=batch["labels"].numel())
        loss: Tensor = self.outputs.loss
        return loss


class _Whole(nn.Module):
    """A base that is trained as it is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        return sum(p.numel() for p in self.parameters() if p.requires_grad), 0


def compared(row: dict[str, Any], base: Base) -> Trainee:
    """What the comparison trained in a row: PEFT's own adapter, in PEFT's own dtype."""
    loss, own = OwnLoss(), row["peft_config"]
    if own is None:
        base.model.requires_grad_(True)
        return Trainee(_Whole(base.model), loss.collate, loss.losses)
    fields = {k: v for k, v in own.items() if v is not None and k != "rank_pattern"}
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(fields.pop("peft_type"))]
    with without_values():
        model = get_peft_model(base.model, kind(**fields | {"task_type": "CAUSAL_LM"}))
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # PEFT 0.21.2 makes it trainable where it moves it
            parameter.requires_grad_(False)
    allocate = getattr(model.base_model, "update_and_allocate", None)
    after = None if allocate is None else lambda _model, step: allocate(step)
    return Trainee(model, loss.collate, loss.losses, after_step=after)
