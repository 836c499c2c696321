"""Methods that PEFT does not have: bottleneck adapters, and full fine-tuning."""

from torch import nn

from peft_jobs.methods._base import Method
from peft_jobs.methods._own import OwnModel, bottleneck
from peft_jobs.methods._setting import Setting
from peft_jobs.spec.adapters import BottleneckSpec, FullSpec


def build_bottleneck(setting: Setting) -> nn.Module:
    """The base with a bottleneck after each target (Houlsby et al. 2019; Pfeiffer et al. 2020)."""
    adapter: BottleneckSpec = setting.adapter
    return bottleneck(setting.base.model, adapter, setting.targets, setting.whole)


def build_full(setting: Setting) -> nn.Module:
    """The base itself, in float32; its weights are put back afterwards."""
    adapter: FullSpec = setting.adapter
    model = setting.base.model
    embeddings = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(adapter.train_embeddings or parameter not in embeddings)
    return OwnModel(model, {"peft_type": "FULL", "adapter": adapter.model_dump(mode="json")})


BOTTLENECK = Method(name="bottleneck", build=build_bottleneck)
FULL = Method(name="full", build=build_full)
