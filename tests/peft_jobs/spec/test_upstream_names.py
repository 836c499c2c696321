"""Spec fields that mean an upstream library's option carry its name."""

import dataclasses
import enum
import inspect

import pytest
from peft import EvaConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.config import CordaConfig
from peft.utils import PeftType
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainingArguments

from peft_jobs.spec import EvaluationSpec, ModelSpec, QuantizationSpec, TrainingSpec
from peft_jobs.spec.adapters import ADAPTERS, OTHERS, OWN, REFUSED
from peft_jobs.spec.adapters.lora import CordaSpec, EvaSpec


def names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


PEFT_TYPES = {**{name: name for name in ADAPTERS}, "p_tuning_v2": "prefix_tuning"}
OURS = {
    "lora": {"loraplus_lr_ratio"},  # an argument of PEFT's optimizer
    "ln_tuning": set(),
}
RESOLVED_HERE = {"exclude_modules", "layers_pattern", "from"}
"""What is offered with every method, and PEFT is not told: it gets the full names of modules, and
the weights."""
RENAMED_DEFAULTS = {  # where ours says more, or follows a paper instead
    *("target_modules", "modules_to_save", "layers_to_transform", "method", "init_lora_weights"),
    *("eva_config", "corda_config", "loraplus_lr_ratio", "lora_alpha", "tinit", "tfinal"),
    *("exclude_modules", "layers_pattern", "target_parameters", "from"),
    *("num_virtual_tokens", "encoder_hidden_size", "prefix_projection", "init_weights"),
}


@pytest.mark.parametrize("method", [name for name in ADAPTERS if name not in OWN])
def test_adapter_fields_and_their_defaults_are_pefts(method: str) -> None:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(PEFT_TYPES[method].upper())]
    section = ADAPTERS[method]
    own = set(section.model_fields) - {"method"} - OURS.get(method, set())
    assert own - RESOLVED_HERE <= names(config)
    theirs = {field.name: field for field in dataclasses.fields(config)}
    for name in own - RENAMED_DEFAULTS:
        default = section.model_fields[name].get_default(call_default_factory=True)
        field = theirs[name]
        factory = field.default_factory
        expected = field.default if factory is dataclasses.MISSING else factory()
        if isinstance(expected, enum.Enum):
            expected = expected.value
        assert default == (0 if method == "oft" and name == "r" else expected), name


def test_every_type_of_the_installed_peft_is_offered_or_refused_with_a_reason() -> None:
    offered = {name for name in ADAPTERS if name not in OWN} - {"p_tuning_v2"}
    assert {kind.value.lower() for kind in PeftType} == offered | set(REFUSED)
    assert offered.isdisjoint(REFUSED)
    assert set(OTHERS) < offered


def test_sections_of_adapters_with_a_config_of_their_own() -> None:
    assert set(EvaSpec.model_fields) <= names(EvaConfig)
    assert set(CordaSpec.model_fields) <= names(CordaConfig)
    assert "loraplus_lr_ratio" in inspect.signature(create_loraplus_optimizer).parameters


def test_quantization_fields_are_bitsandbytes_own() -> None:
    accepted = set(inspect.signature(BitsAndBytesConfig.__init__).parameters)
    assert set(QuantizationSpec.model_fields) - {"scheme"} <= accepted


def test_quantization_schemes_are_bitsandbytes_own() -> None:
    for scheme in ("nf4", "fp4"):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=scheme)
        assert config.quantization_method() == scheme
    assert BitsAndBytesConfig(load_in_8bit=True).quantization_method() == "llm_int8"


def test_training_fields_are_transformers_own() -> None:
    ours = {"max_loss", "max_samples"}
    assert set(TrainingSpec.model_fields) - ours <= names(TrainingArguments)
    assert ours.isdisjoint(names(TrainingArguments))
    assert "per_device_eval_batch_size" in names(TrainingArguments)
    assert "per_device_eval_batch_size" in EvaluationSpec.model_fields


def test_model_fields_are_from_pretraineds() -> None:
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    named = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    popped = {name for name in ModelSpec.model_fields if f'"{name}"' in source}
    assert set(ModelSpec.model_fields) - {"name_or_path"} <= named | popped
