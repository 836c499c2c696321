"""What a named set of targets leaves out without being told to: said before anything is trained."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.text_reach import unreached_modules
from peft_jobs.base.weight_shares import weight_shares
from peft_jobs.methods.placement import parameter_places
from peft_jobs.methods.targets import ALL_LINEAR, SETS, parameters_apart
from peft_jobs.spec.adapters import Adapter, TargetedAdapter

_WORTH_A_WORD = 0.01
"""Of all weights: routers and the like are less."""


def left_out(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """A sentence for each kind of weights that a set of the adapter leaves out; none if it names
    its modules. `model` may be on the meta device."""
    if not isinstance(adapter, TargetedAdapter) or adapter.target_modules not in (
        *SETS,
        ALL_LINEAR,
    ):
        return []
    found = []
    towers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name in unreached_modules(model)
    ]
    if towers:
        outermost = sorted({".".join(name.split(".")[:2]) for name in towers})
        found.append(
            f"{len(towers)} linear modules that no text reaches (in {', '.join(outermost[:4])})"
        )
    if adapter.target_modules in (ALL_LINEAR, "attention+mlp"):
        found += _parameters_left(model, adapter)
    return found


def _parameters_left(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    names = sorted(set(parameters_apart(model)) - set(parameter_places(model, adapter)))
    sizes = {name: model.get_parameter(name).numel() for name in names}
    total = weight_shares(model).num_weights
    if sum(sizes.values()) < _WORTH_A_WORD * total:
        return []
    ends = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in names})
    share = 100 * sum(sizes.values()) / total
    # PEFT's other methods have no such field
    remedy = "; adapter.target_parameters takes them" if adapter.method == "lora" else ""
    return [
        f"{len(names)} parameters in no linear module ({', '.join(ends[:6])}), "
        f"{sum(sizes.values()):,} of {total:,} weights ({share:.1f} %){remedy}"
    ]
