"""(IA)3 (Liu et al. 2022, arXiv 2205.05638) and LN-tuning (Zhao et al. 2023, arXiv 2312.11420)."""

from collections.abc import Sequence

from peft import IA3Config, LNTuningConfig

from peft_jobs.errors import SpecError
from peft_jobs.methods.method import Method
from peft_jobs.methods.placement import feedforward_outputs
from peft_jobs.methods.setting import Setting
from peft_jobs.methods.targets import ends_with
from peft_jobs.spec.adapters import Ia3Spec


def ia3(setting: Setting) -> IA3Config:
    options = setting.options("feedforward_modules")
    inputs = scaled_inputs(setting.adapter, setting.targets)
    return IA3Config(**options, feedforward_modules=list(inputs))


def scaled_inputs(adapter: Ia3Spec, targets: Sequence[str]) -> tuple[str, ...]:
    """Those of the modules `targets` whose inputs are scaled; of the others the outputs are.

    SpecError for a name that matches none.
    """
    if adapter.feedforward_modules is None:
        return feedforward_outputs(targets)
    for given in adapter.feedforward_modules:
        if not any(ends_with(name, given) for name in targets):
            raise SpecError(
                f"adapter.feedforward_modules: {given!r} matches none of the target modules"
            )
    return tuple(
        name
        for name in targets
        if any(ends_with(name, given) for given in adapter.feedforward_modules)
    )


def ln_tuning(setting: Setting) -> LNTuningConfig:
    return LNTuningConfig(**setting.options())


IA3 = Method(name="ia3", config=ia3)
LN_TUNING = Method(name="ln_tuning", config=ln_tuning)
