"""A checkpoint that is quantized already: what its configuration says, against what is asked.

transformers takes the checkpoint's own configuration and passes over the one that it is given, so
another scheme can only be refused. How a layer computes (`bnb_4bit_compute_dtype`,
`llm_int8_threshold`) is no part of what is stored, and is as asked.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb8bitDeserialize
from transformers.quantizers.base import HfQuantizer

from peft_jobs.base.architecture import head_modules, read_config
from peft_jobs.errors import SpecError
from peft_jobs.spec import ModelSpec, QuantizationSpec, TaskSpec

_DESERIALIZE = (Bnb4bitDeserialize, Bnb8bitDeserialize)
_FIELD = "quantization_config"
_BITSANDBYTES = "bitsandbytes"
_REMEDY = "or give the checkpoint before quantization"


def stored_quantization(config: PretrainedConfig) -> dict[str, Any] | None:
    """The quantization that config.json states for the weights, as it stands there; None if none.

    Looked for where transformers does: in the configuration, then in that of its text model.
    """
    for part in (config, config.get_text_config(decoder=True)):
        if found := getattr(part, _FIELD, None):
            stored = dict(found if isinstance(found, dict) else found.to_dict())
            idle = stored.get("quant_method") == _BITSANDBYTES and _scheme(stored) is None
            return None if idle else stored
    return None


def check_stored(
    model: ModelSpec, config: PretrainedConfig, quantization: QuantizationSpec
) -> None:
    """Raise SpecError if the checkpoint is quantized, and not as `quantization` says."""
    stored = stored_quantization(config)
    if stored is None:
        return
    scheme = _scheme(stored)
    if scheme is None:
        method = str(getattr(stored.get("quant_method"), "value", stored.get("quant_method")))
        raise SpecError(
            f"model.name_or_path: {model.name_or_path} is quantized already, by {method}, and only "
            "checkpoints of bitsandbytes (int8, nf4, fp4) can be trained on as they are; give the "
            "checkpoint before quantization"
        )
    double = scheme != "int8" and bool(stored.get("bnb_4bit_use_double_quant", False))
    written = f"{{scheme: {scheme}, bnb_4bit_use_double_quant: true}}" if double else scheme
    name = f"{model.name_or_path} is quantized already ({_BITSANDBYTES} {scheme}"
    name += ", double quantization)" if double else ")"
    if quantization.scheme != scheme:
        raise SpecError(
            f"quantization.scheme must be {scheme}, got {quantization.scheme}: {name}; write "
            f"`quantization: {written}`, {_REMEDY}"
        )
    if quantization.bnb_4bit_use_double_quant != double:
        raise SpecError(
            f"quantization.bnb_4bit_use_double_quant must be {str(double).lower()}, got "
            f"{str(not double).lower()}: {name}; write `quantization: {written}`, {_REMEDY}"
        )


def check_quantization(model: ModelSpec, quantization: QuantizationSpec, task: TaskSpec) -> None:
    """`check_stored` from config.json alone: no weights are read. Raises like `read_config` too."""
    check_stored(model, read_config(model, task), quantization)


def _scheme(stored: dict[str, Any]) -> str | None:
    """The stored scheme, as a sweep file names it; None if it is none of bitsandbytes'."""
    if stored.get("load_in_8bit"):
        return "int8"
    if stored.get("load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "fp4"))  # BitsAndBytesConfig's default
    return None


def prepare_stored(
    config: PretrainedConfig,
    outline: PreTrainedModel,
    asked: BitsAndBytesConfig | None,
    fresh: Sequence[str] = (),
) -> None:
    """Set in `config`, in place, how the stored weights compute: as `asked`.

    What is quantized stays the checkpoint's affair, but for the modules `fresh`, which it lacks.
    """
    stored = stored_quantization(config)
    assert stored is not None
    assert asked is not None
    skipped = stored.get("llm_int8_skip_modules")
    if fresh:  # given a list, transformers leaves out nothing by itself
        skipped = HfQuantizer.get_modules_to_not_convert(
            outline, [*(skipped or ()), *fresh], add_default_skips=skipped is None
        )
    drop_stored(config)
    config.quantization_config = {
        **stored,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": asked.llm_int8_threshold,
        "bnb_4bit_compute_dtype": str(asked.bnb_4bit_compute_dtype).removeprefix("torch."),
    }


def forget_stored(model: PreTrainedModel) -> None:
    """Let `model`, which is quantized no more, be saved so: whatever says otherwise is dropped.

    transformers (5.23) saves by the conversions that a model was loaded by, backwards, and those
    of quantized weights have no way back.
    """
    drop_stored(model.config)
    conversions: Any = getattr(model, "_weight_conversions", None) or []
    conversions[:] = [
        each
        for each in conversions
        if not any(isinstance(op, _DESERIALIZE) for op in getattr(each, "operations", ()))
    ]


def drop_stored(config: PretrainedConfig) -> None:
    """Take the quantization out of `config`, in place: of weights that are quantized no more."""
    for part in (config, config.get_text_config(decoder=True)):
        if hasattr(part, _FIELD):
            delattr(part, _FIELD)


def check_unused(model: PreTrainedModel, name: str, unexpected: Iterable[str]) -> None:
    """Raise SpecError for a tensor of a layer that the model has, and for which it has no use.

    The scales of a quantized weight are such, where config.json says nothing of a quantization:
    their weight would be read as plain numbers.
    """
    layers = {full for full, part in model.named_modules() if hasattr(part, "weight")}
    heads = head_modules(model)
    for tensor in sorted(unexpected):
        parents = {tensor.rpartition(".")[0], tensor.rpartition(".weight.")[0]} & layers
        of_another_head = tensor.endswith(".bias") and tensor.startswith(heads)
        if parents and not of_another_head:
            raise SpecError(
                f"model.name_or_path: {name} holds {tensor}, for which {type(model).__name__} has "
                "no use as its config.json describes it (quantized weights need their "
                "quantization_config there); give the checkpoint with its own config.json"
            )
