"""FORMS: how trials of a method share a step, by the spec's `adapter.method`.

form              Form: what a trial of one method has, and what that is called in PEFT
low_rank          LoRA and DoRA
vectors           (IA)3, VeRA and MiSS
packed_layer      PackedLayer: a layer in the place of one of the base's
low_rank_layer    LoRA of all slots on one layer
magnitude_layer   DoRA, and LoRA beside it
scaling_layer     (IA)3
projection_layer  VeRA
shard_layer       MiSS
whole_layer       a linear layer that every slot trains whole
accumulation      what layers share: who is at work, gradients added in place

Trials of several forms share a step: the layers of a module lie in one another, and each leaves the
rows of others as they are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from peft_jobs.engines.packed.forms.form import Form, FormParts, file_name, peft_name
from peft_jobs.engines.packed.forms.low_rank import LORA
from peft_jobs.engines.packed.forms.low_rank_layer import PackedLora
from peft_jobs.engines.packed.forms.magnitude_layer import PackedDora
from peft_jobs.engines.packed.forms.projection_layer import PackedVera
from peft_jobs.engines.packed.forms.scaling_layer import PackedScaling
from peft_jobs.engines.packed.forms.shard_layer import PackedMiss
from peft_jobs.engines.packed.forms.vectors import IA3, MISS, VERA
from peft_jobs.engines.packed.forms.whole_layer import PackedWhole
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack

FORMS: Mapping[str, Form] = {"lora": LORA, "ia3": IA3, "vera": VERA, "miss": MISS}

__all__ = ["FORMS", "Form", "FormParts", "file_name", "layer_of_forms", "peft_name"]


def layer_of_forms(
    base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
) -> nn.Module:
    """The layer for the module `name`, of which `places` are in a row of the pack."""
    if "weight" in places:
        return PackedWhole(base_layer, name, pack, places)
    layer = base_layer
    if "magnitude" in places:
        layer = PackedDora(layer, name, pack, places)
    elif "lora_A" in places:
        layer = PackedLora(layer, name, pack, places)
    if "lambda_d" in places:
        layer = PackedVera(layer, name, pack, places)
    if "block" in places:
        layer = PackedMiss(layer, name, pack, places)
    if "scaled_inputs" in places or "scaled_outputs" in places:
        layer = PackedScaling(layer, name, pack, places)
    return layer
