"""The trial of the table `gpu`, in one process or in a pool's."""

import argparse

import torch
from random_base import LENGTH

from peft_jobs.spec import TrialSpec


def trial(options: argparse.Namespace, tokens: int) -> TrialSpec:
    """A trial of steps of so many tokens; model and data are what is resident."""
    return TrialSpec.model_validate(
        {
            "model": "random",
            "quantization": "nf4",
            "adapter": {"r": options.r, "lora_alpha": options.r, "target_modules": "all-linear"},
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": "random.jsonl"},
            "training": {
                "per_device_train_batch_size": max(1, tokens // LENGTH),
                "learning_rate": 1e-3,
                "bf16": torch.cuda.is_available(),
                "gradient_checkpointing": tokens >= options.checkpointing,
            },
        }
    )
