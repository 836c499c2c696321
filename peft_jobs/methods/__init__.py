"""METHODS: how each PEFT method puts itself on a base, by the spec's `adapter.method`.

method             Method: put an adapter on the resident base, and take it off again
setting            what a method is told when it builds an adapter
lora               LoRA with its variants and initialisations
loftq              LoftQ's factors on a base that is quantized already
adalora            AdaLoRA: ranks are cut while the trial trains
products           LoHa, LoKr, VeRA, MiSS and OFT
scaling            (IA)3 and LN-tuning
prompts            prompt tuning, P-tuning, prefix tuning, P-tuning v2
beyond_peft        bottleneck adapters and full fine-tuning, which PEFT does not have
bottleneck_layer   the layer of a bottleneck adapter
rest_of_peft       PEFT's other methods, by its own configuration classes
targets            named sets of linear modules
placement          where the other methods put their parameters
continuation       the weights of a saved adapter in the place of fresh ones
matched_modules    how many modules each set of targets stands for
left_out           what a set of targets leaves out, said beforehand
adapter_files      an adapter's files, written and loaded again
combination        several adapters on one base, combined into one
float32_copies     trained copies of the base's modules, in float32

A new one is a file here and one in `peft_jobs/spec/adapters`, and an entry in METHODS and ADAPTERS.
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks

from peft_jobs.methods.adalora import ADALORA
from peft_jobs.methods.adapter_files import load_adapter, save_adapter, write_adapter
from peft_jobs.methods.beyond_peft import BOTTLENECK, FULL
from peft_jobs.methods.lora import LORA
from peft_jobs.methods.method import Method, check_whole_modules, clock_of, setting_of
from peft_jobs.methods.products import LOHA, LOKR, MISS, OFT, VERA
from peft_jobs.methods.prompts import P_TUNING, P_TUNING_V2, PREFIX_TUNING, PROMPT_TUNING
from peft_jobs.methods.rest_of_peft import OTHERS
from peft_jobs.methods.scaling import IA3, LN_TUNING

METHODS: dict[str, Method] = {
    "lora": LORA,
    "adalora": ADALORA,
    "ia3": IA3,
    "ln_tuning": LN_TUNING,
    "prompt_tuning": PROMPT_TUNING,
    "p_tuning": P_TUNING,
    "prefix_tuning": PREFIX_TUNING,
    "p_tuning_v2": P_TUNING_V2,
    "bottleneck": BOTTLENECK,
    "loha": LOHA,
    "lokr": LOKR,
    "oft": OFT,
    "vera": VERA,
    "miss": MISS,
    "full": FULL,
    **OTHERS,
}

__all__ = [
    "METHODS",
    "Method",
    "check_whole_modules",
    "clock_of",
    "load_adapter",
    "save_adapter",
    "setting_of",
    "write_adapter",
]
