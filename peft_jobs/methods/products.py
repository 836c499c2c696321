"""LoHa, LoKr, VeRA, MiSS and OFT: other forms that the change of a weight may have."""

from peft import LoHaConfig, LoKrConfig, MissConfig, OFTConfig, VeraConfig

from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import Setting
from peft_jobs.spec.adapters import MissSpec


def loha(setting: Setting) -> LoHaConfig:
    return LoHaConfig(**setting.options())


def lokr(setting: Setting) -> LoKrConfig:
    return LoKrConfig(**setting.options())


def oft(setting: Setting) -> OFTConfig:
    return OFTConfig(r=0, **setting.options())


def vera(setting: Setting) -> VeraConfig:
    return VeraConfig(**setting.options())


def miss(setting: Setting) -> MissConfig:
    adapter: MissSpec = setting.adapter
    named = adapter.init_weights
    options = setting.options("init_weights")
    return MissConfig(**options, init_weights=True if named == "default" else named)


LOHA = Method(name="loha", config=loha)
LOKR = Method(name="lokr", config=lokr)
OFT = Method(name="oft", config=oft)
VERA = Method(name="vera", config=vera)
MISS = Method(name="miss", config=miss)
