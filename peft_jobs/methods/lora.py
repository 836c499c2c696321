"""LoRA (Hu et al. 2021, arXiv 2106.09685), with rank-stabilised scaling as an option."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType

from peft_jobs.keyed import ADAPTER, Clock, initial_lora_A, install_dropout, tuner_layers
from peft_jobs.methods._base import Method
from peft_jobs.spec import CausalLMSpec, LoraSpec, TaskSpec, TrialSpec


def peft_config(adapter: LoraSpec, targets: Sequence[str], task: TaskSpec) -> LoraConfig:
    """PEFT's configuration of the adapter on the modules of the full names `targets`."""
    causal = isinstance(task, CausalLMSpec)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS,
        target_modules=list(targets),
        **adapter.model_dump(exclude={"method", "target_modules", "modules_to_save"}),
    )


def initialise(model: PeftModel, spec: TrialSpec, clock: Clock) -> None:
    """Draw every A by its key, set every B to zero, and key the dropout."""
    with torch.no_grad():
        for name, layer in tuner_layers(model):
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            down.copy_(initial_lora_A(spec.seed, name, *down.shape))
            up.zero_()
    install_dropout(model, spec.seed, spec.adapter.lora_dropout, clock)


LORA = Method(name="lora", peft_config=peft_config, initialise=initialise)
