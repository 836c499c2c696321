"""PEFT methods. A new one is a file here, a file in `spec/adapters`, and an entry in each table."""

from peft_jobs.methods._base import Method, check_whole_modules, clock_of, setting_of
from peft_jobs.methods._saved import load_adapter, save_adapter, write_adapter
from peft_jobs.methods.adalora import ADALORA
from peft_jobs.methods.lora import LORA
from peft_jobs.methods.others import OTHERS
from peft_jobs.methods.own import BOTTLENECK, FULL
from peft_jobs.methods.products import LOHA, LOKR, MISS, OFT, VERA
from peft_jobs.methods.prompts import P_TUNING, P_TUNING_V2, PREFIX_TUNING, PROMPT_TUNING
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
