"""Virtual tokens: prompt tuning, P-tuning, prefix tuning, and deep prompts (P-tuning v2)."""

from typing import Any

from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from peft_jobs.base.architecture import location
from peft_jobs.errors import SpecError
from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import Setting
from peft_jobs.spec.adapters import PrefixTuningSpec, PromptTuningSpec


def prompt_tuning(setting: Setting) -> PromptTuningConfig:
    adapter: PromptTuningSpec = setting.adapter
    _fits(setting)
    options = setting.options("prompt_tuning_init_text")
    if adapter.prompt_tuning_init == "TEXT":
        options["prompt_tuning_init_text"] = adapter.prompt_tuning_init_text
        options["tokenizer_name_or_path"] = location(setting.spec.model)
        options["tokenizer_kwargs"] = {"revision": setting.spec.model.revision}
    return PromptTuningConfig(**options)


def p_tuning(setting: Setting) -> PromptEncoderConfig:
    _fits(setting)
    return PromptEncoderConfig(**setting.options())


def prefix_tuning(setting: Setting) -> PrefixTuningConfig:
    adapter: PrefixTuningSpec = setting.adapter
    options = setting.options("encoder_hidden_size")
    if adapter.prefix_projection:
        options["encoder_hidden_size"] = adapter.encoder_hidden_size
    return PrefixTuningConfig(**options)


def p_tuning_v2(setting: Setting) -> PrefixTuningConfig:
    return PrefixTuningConfig(**setting.options(), prefix_projection=False)


def _fits(setting: Setting) -> None:
    """Decoders find the token to classify by from the input's tokens, which are not given then."""
    model: Any = setting.base.model
    decoder = hasattr(model, "score")
    if setting.spec.task.type == "sequence_classification" and decoder:
        raise SpecError(
            f"adapter.method: {setting.adapter.method} cannot classify by the last token of "
            f"{type(model).__name__}; give prefix_tuning or p_tuning_v2"
        )


PROMPT_TUNING = Method(name="prompt_tuning", config=prompt_tuning)
P_TUNING = Method(name="p_tuning", config=p_tuning)
PREFIX_TUNING = Method(name="prefix_tuning", config=prefix_tuning)
P_TUNING_V2 = Method(name="p_tuning_v2", config=p_tuning_v2)
