"""PEFT's other methods, by its own configuration classes."""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import Setting
from peft_jobs.spec.adapters import OTHERS as NAMES


def config(setting: Setting) -> PeftConfig:
    """The installed class for the method, with the section's fields."""
    chosen = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(setting.adapter.method.upper())]
    built: PeftConfig = chosen(**setting.options())
    return built


OTHERS = {name: Method(name=name, config=config) for name in NAMES}
