"""Methods that train virtual tokens and leave the base as it is."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peft_jobs.spec.adapters.section import Adapter, without
from peft_jobs.spec.fields import Rate, Width

VirtualTokens = Annotated[int, Field(ge=1, le=2**12)]


class _Prompt(Adapter):
    MERGES: ClassVar[bool] = False
    PACKING: ClassVar[bool] = False

    num_virtual_tokens: VirtualTokens = 20


class PromptTuningSpec(_Prompt):
    """Virtual tokens before the input: Lester et al. 2021, arXiv 2104.08691."""

    TASKS: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq", "sequence_classification")
    """Elsewhere every token has an output of its own, and these methods add tokens."""

    method: Literal["prompt_tuning"]
    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = "RANDOM"
    """RANDOM draws small vectors, SAMPLE_VOCAB takes tokens at random, TEXT those of a text."""
    prompt_tuning_init_text: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_of_a_text(cls, value: Any) -> Any:
        text = isinstance(value, dict) and value.get("prompt_tuning_init") == "TEXT"
        return value if text else without(value, {"prompt_tuning_init_text"})

    @model_validator(mode="after")
    def _some_text(self) -> Self:
        if self.prompt_tuning_init == "TEXT" and not self.prompt_tuning_init_text:
            raise ValueError("prompt_tuning_init TEXT needs a prompt_tuning_init_text")
        return self


class PTuningSpec(_Prompt):
    """Virtual tokens from a small network: Liu et al. 2021, arXiv 2103.10385."""

    TASKS: ClassVar[tuple[str, ...]] = PromptTuningSpec.TASKS
    method: Literal["p_tuning"]
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Width = 128
    encoder_num_layers: Annotated[int, Field(ge=1, le=16)] = 2
    """Of an LSTM; an MLP has three."""
    encoder_dropout: Rate = 0.0
    """Between the layers of an LSTM."""

    @model_validator(mode="before")
    @classmethod
    def _only_of_an_lstm(cls, value: Any) -> Any:
        lstm = isinstance(value, dict) and value.get("encoder_reparameterization_type") == "LSTM"
        return value if lstm else without(value, {"encoder_num_layers", "encoder_dropout"})


class PrefixTuningSpec(_Prompt):
    """Keys and values of every layer, from a network: Li and Liang 2021, arXiv 2101.00190."""

    CHECKPOINTING: ClassVar[bool] = False

    method: Literal["prefix_tuning"]
    prefix_projection: bool = True
    """Compute the prefix by a two-layer network (section 4.3), which is dropped afterwards."""
    encoder_hidden_size: Width = 128

    @model_validator(mode="before")
    @classmethod
    def _only_of_a_projection(cls, value: Any) -> Any:
        plain = isinstance(value, dict) and value.get("prefix_projection") is False
        return without(value, {"encoder_hidden_size"}) if plain else value


class PTuningV2Spec(_Prompt):
    """Deep prompts: Liu et al. 2022, arXiv 2110.07602. Prefix tuning whose keys and values are
    trained themselves, without a network that computes them; the task has an ordinary head."""

    CHECKPOINTING: ClassVar[bool] = False

    method: Literal["p_tuning_v2"]
