"""PEFT methods. A new one is a file beside `lora.py`, a spec, and an entry here."""

from peft_jobs.methods._base import Method, check_whole_modules, clock_of
from peft_jobs.methods.lora import LORA

METHODS: dict[str, Method] = {
    "lora": LORA,
}

__all__ = ["METHODS", "Method", "check_whole_modules", "clock_of"]
