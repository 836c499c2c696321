"""Spec fields that mean an upstream library's option carry its name."""

import dataclasses
import inspect

from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainingArguments

from peft_jobs.spec import EvaluationSpec, LoraSpec, ModelSpec, QuantizationSpec, TrainingSpec


def names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def test_lora_fields_are_pefts() -> None:
    assert set(LoraSpec.model_fields) - {"method"} <= names(LoraConfig)


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
