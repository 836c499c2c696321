"""The adapter section of a trial: one class per method, told apart by `method`.

A new method is a section here, a file in `peft_jobs.methods`, and an entry in both tables.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from peft_jobs.adapters._base import Adapter, TargetedAdapter
from peft_jobs.adapters.adalora import AdaLoraSpec
from peft_jobs.adapters.lora import LoraSpec
from peft_jobs.adapters.others import OTHERS, REFUSED, SECTIONS
from peft_jobs.adapters.own import OWN, BottleneckSpec, FullSpec
from peft_jobs.adapters.products import LohaSpec, LokrSpec, MissSpec, OftSpec, VeraSpec
from peft_jobs.adapters.prompts import (
    PrefixTuningSpec,
    PromptTuningSpec,
    PTuningSpec,
    PTuningV2Spec,
)
from peft_jobs.adapters.scaling import Ia3Spec, LnTuningSpec

__all__ = [
    "ADAPTERS",
    "OTHERS",
    "OWN",
    "REFUSED",
    "AdaLoraSpec",
    "Adapter",
    "AdapterSpec",
    "BottleneckSpec",
    "FullSpec",
    "Ia3Spec",
    "LnTuningSpec",
    "LohaSpec",
    "LokrSpec",
    "LoraSpec",
    "MissSpec",
    "OftSpec",
    "PTuningSpec",
    "PTuningV2Spec",
    "PrefixTuningSpec",
    "PromptTuningSpec",
    "TargetedAdapter",
    "VeraSpec",
]

ADAPTERS: Mapping[str, type[Adapter]] = {
    "lora": LoraSpec,
    "adalora": AdaLoraSpec,
    "ia3": Ia3Spec,
    "ln_tuning": LnTuningSpec,
    "prompt_tuning": PromptTuningSpec,
    "p_tuning": PTuningSpec,
    "prefix_tuning": PrefixTuningSpec,
    "p_tuning_v2": PTuningV2Spec,
    "bottleneck": BottleneckSpec,
    "loha": LohaSpec,
    "lokr": LokrSpec,
    "oft": OftSpec,
    "vera": VeraSpec,
    "miss": MissSpec,
    "full": FullSpec,
    **SECTIONS,
}


def _known(value: Any) -> Any:
    """`value`; refuses PEFT's methods that are not offered with the reason. LoRA by default."""
    if not isinstance(value, Mapping):
        return value
    method = value.get("method", "lora")
    if isinstance(method, str) and method in REFUSED:
        raise ValueError(f"method {method} is not offered: {REFUSED[method]}")
    return {"method": method, **value}


if TYPE_CHECKING:
    AdapterSpec = Adapter
else:
    AdapterSpec = Annotated[
        reduce(or_, ADAPTERS.values()), Field(discriminator="method"), BeforeValidator(_known)
    ]
