"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): ranks are cut while the trial trains.

The importance of every singular value is followed from step to step; it is part of a checkpoint.
"""

from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from peft_jobs.errors import Diverged, SpecError
from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import Setting
from peft_jobs.spec.adapters import AdaLoraSpec
from peft_jobs.training.training_state import METHOD_STATE, Tensors

_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def config(setting: Setting) -> AdaLoraConfig:
    adapter: AdaLoraSpec = setting.adapter
    if len({parameter.device for parameter in setting.base.model.parameters()}) > 1:
        raise SpecError(
            "adapter.method: adalora compares the importances of all layers on one GPU, and this "
            "base is spread over several; take another method, or a base that fits one GPU"
        )
    steps = setting.num_steps
    first, last = adapter.schedule(steps)
    # The last cut needs a step before it, where it is known how many there are.
    earliest = max(first, 1) if setting.rows is not None or steps > 1 else first
    if earliest >= steps - last:
        raise SpecError(
            f"adapter.tinit: {first} and tfinal {last} leave none of the trial's {steps} steps "
            "to cut ranks in"
        )
    options = setting.options("tinit", "tfinal")
    return AdaLoraConfig(**options, tinit=first, tfinal=last, total_step=steps)


def initialise(model: PeftModel, setting: Setting) -> None:
    setattr(model, METHOD_STATE, Allocation(model))


def penalty(model: nn.Module) -> Tensor:
    """How far the singular vectors are from orthogonal (equation 4), times its weight.

    PEFT adds it to a loss that the model itself computes; ours is computed from the logits.
    """
    terms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            identity = torch.eye(len(product), device=product.device, dtype=product.dtype)
            terms.append((product - identity).norm())
    weight: float = model.peft_config["default"].orth_reg_weight  # type: ignore[index, union-attr]
    return weight * torch.stack(terms).mean()


def after_step(model: nn.Module, step: int) -> None:
    """Cut ranks as the schedule says, by the gradients of the steps that float16 did not skip.

    Raises Diverged if there was none before the last cut.
    """
    tuner: Any = model.base_model
    config = tuner.peft_config["default"]
    last_cut = config.total_step - config.tfinal
    if step < last_cut and not _has_finite_gradients(model):
        return  # the averages would never be finite again
    if step == last_cut and not tuner.rankallocator.exp_avg_ipt:
        raise Diverged(f"no gradient was finite before step {step}, AdaLoRA's last cut of ranks")
    tuner.update_and_allocate(step)


def _has_finite_gradients(model: nn.Module) -> bool:
    found = [
        parameter.grad.isfinite().all()
        for name, parameter in model.named_parameters()
        if "lora_" in name and parameter.grad is not None
    ]
    return bool(torch.stack(found).all())


class Allocation:
    """What the allocation of ranks has seen, as tensors for a checkpoint."""

    def __init__(self, model: PeftModel) -> None:
        self._tuner: Any = model.base_model

    def tensors(self) -> Tensors:
        allocator, config = self._tuner.rankallocator, self._tuner.peft_config["default"]
        found = {
            f"{kind}/{name}": value
            for kind in _IMPORTANCE
            for name, value in getattr(allocator, kind).items()
        }
        for name, kept in (config.rank_pattern or {}).items():
            found[f"rank_pattern/{name}"] = torch.tensor(kept, dtype=torch.bool)
        return found

    def load(self, tensors: Tensors) -> None:
        allocator, config = self._tuner.rankallocator, self._tuner.peft_config["default"]
        allocator.reset_ipt()
        pattern = {}
        for path, value in tensors.items():
            kind, _, name = path.partition("/")
            if kind == "rank_pattern":
                pattern[name] = value.tolist()
            else:
                device = self._tuner.model.get_parameter(name).device
                getattr(allocator, kind)[name] = value.to(device)
        config.rank_pattern = pattern or None


ADALORA = Method(
    name="adalora",
    config=config,
    initialise=initialise,
    penalty=penalty,
    after_step=after_step,
)
