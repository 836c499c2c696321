"""The optimizer that transformers' Trainer makes of a trial, for fake parameters."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from peft_jobs.methods.lora import learning_rates
from peft_jobs.prediction.fake_base import Kind
from peft_jobs.spec import TrialSpec

_RESIDENT = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_8bit"}
"""Paged optimizers need a GPU's driver to be made; their state is the same."""


def make_optimizer(spec: TrialSpec, model: nn.Module, kind: Kind) -> Any:
    """AdamW of torch or of bitsandbytes, with the Trainer's groups."""
    training = spec.training
    name = _RESIDENT.get(training.optim, training.optim)
    arguments = TrainingArguments(output_dir=".", optim=name, use_cpu=True, report_to="none")
    kind_of, options = Trainer.get_optimizer_cls_and_kwargs(arguments, cast(Any, model))
    if training.optim == "paged_adamw_32bit":
        options["optim_bits"] = 32
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if (n in decayed) == is_decayed], "weight_decay": decay}
        for is_decayed, decay in ((True, training.weight_decay), (False, 0.0))
    ]
    optimizer = kind_of(groups, **options)
    learning_rates(model, optimizer, getattr(spec.adapter, "loraplus_lr_ratio", 1.0))
    if training.optim == "adamw_torch":
        for group in optimizer.param_groups:
            group["foreach"] = kind == "cuda"
    return optimizer


def clip(parameters: Sequence[nn.Parameter], most: float, kind: Kind) -> None:
    """As `torch.nn.utils.clip_grad_norm_`, which takes all tensors at once on a GPU alone."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if kind == "cpu":
        nn.utils.clip_grad_norm_(parameters, most)
        return
    norms = torch._foreach_norm(gradients, 2.0)
    norm = torch.linalg.vector_norm(torch.stack(norms), 2.0)
    torch._foreach_mul_(gradients, torch.clamp(most / (norm + 1e-6), max=1.0))
