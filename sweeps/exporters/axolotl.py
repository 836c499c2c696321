"""Axolotl: `axolotl/config.yaml`, on the rows of the trial as tokens."""

from collections.abc import Iterator
from typing import Any

import yaml

from sweeps.exporters.exporter import Draft
from sweeps.exporters.recipe import (
    Recipe,
    beyond,
    common_differences,
    common_settings,
    file_differences,
    whole_alpha,
)
from sweeps.exporters.training_tool import TrainingTool, comment


def files(draft: Draft, recipe: Recipe, told: list[str]) -> dict[str, str]:
    """The file that `axolotl train` takes."""
    intro = f"Trains {recipe.title} with Axolotl; in this folder: axolotl train config.yaml"
    return {"config.yaml": comment(told, intro) + yaml.safe_dump(settings(recipe), sort_keys=False)}


def differences(recipe: Recipe) -> Iterator[str]:
    """What Axolotl does otherwise."""
    quantization, model = recipe.quantization, recipe.spec.model
    yield from common_differences(recipe)
    known = ("rank_pattern", "target_parameters", "init_lora_weights", "loraplus_lr_ratio")
    takes = dict.fromkeys(known, True)
    whole = all(value == int(value) for value in recipe.alpha_pattern.values())
    yield from beyond(recipe, {**takes, "alpha_pattern": whole})
    if quantization.scheme != "none":
        yield (
            "On a quantized base Axolotl casts what is not quantized to float32 "
            "(prepare_model_for_kbit_training); the trial left it as loaded."
        )
    if recipe.is_4bit and recipe.compute_dtype != _dtype(recipe) and recipe.is_stored:
        yield f"4-bit weights are multiplied in what is stored; the trial: {recipe.compute_dtype}."
    if recipe.dtype not in ("auto", _dtype(recipe)):
        yield (
            f"model.dtype {recipe.dtype}: Axolotl loads weights in its training precision, here "
            f"{_dtype(recipe)}."
        )
    if model.attn_implementation is None:
        yield "attn_implementation is Axolotl's own choice: the trial took transformers' default."
    yield from file_differences(recipe)


def settings(recipe: Recipe) -> dict[str, Any]:
    """The content of config.yaml."""
    training, adapter, model = recipe.training, recipe.adapter, recipe.spec.model
    alphas = recipe.alpha_pattern
    is_4bit = recipe.asked in ("nf4", "fp4")
    known = {
        "base_model": recipe.base,
        "revision_of_model": model.revision,
        "tokenizer_config": "..",
        "trust_remote_code": False,
        "attn_implementation": model.attn_implementation,
        "load_in_4bit": is_4bit,
        "load_in_8bit": recipe.asked == "int8",
        "bnb_config_kwargs": _bnb(recipe) if is_4bit else None,
        "adapter": "qlora" if is_4bit else "lora",
        "lora_r": adapter.r,
        "lora_alpha": whole_alpha(recipe)[0],
        "lora_dropout": adapter.lora_dropout,
        "lora_target_modules": list(recipe.targets),
        "lora_target_parameters": list(recipe.parameters) or None,
        "lora_modules_to_save": list(recipe.whole) or None,
        "lora_rank_pattern": adapter.rank_pattern or None,
        "lora_alpha_pattern": {k: v for k, v in alphas.items() if v == int(v)} or None,
        "peft_use_dora": adapter.use_dora or None,
        "peft_use_rslora": adapter.use_rslora or None,
        "peft_init_lora_weights": None if recipe.start is True else recipe.start,
        "loraplus_lr_ratio": adapter.loraplus_lr_ratio if adapter.loraplus_lr_ratio != 1 else None,
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),
        "datasets": [_rows("train")],
        "test_datasets": [_rows("validation")],
        "dataset_prepared_path": "prepared",
        "shuffle_merged_datasets": not recipe.in_order,
        "curriculum_sampling": recipe.in_order,
        "sequence_len": recipe.spec.data.max_length,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        **common_settings(recipe),
        "num_epochs": max(1, -(-recipe.num_steps * training.samples_per_step // recipe.num_train)),
        "micro_batch_size": training.per_device_train_batch_size,
        "eval_batch_size": recipe.spec.evaluation.per_device_eval_batch_size,
        "optimizer": training.optim,
        "lr_scheduler": training.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps,
        "gradient_checkpointing": training.gradient_checkpointing,
        "tf32": recipe.tf32,
        "eval_strategy": "steps",
        "eval_steps": recipe.num_steps,
        "output_dir": "trained",
    }
    return {name: value for name, value in known.items() if value is not None}


def _rows(split: str) -> dict[str, Any]:
    return {"path": f"../rows/{split}.parquet", "ds_type": "parquet", "split": "train"}


def _bnb(recipe: Recipe) -> dict[str, Any]:
    skipped = list(recipe.quantization.llm_int8_skip_modules)
    return {
        "bnb_4bit_quant_type": recipe.quantization.scheme,
        "bnb_4bit_use_double_quant": recipe.double,
        "bnb_4bit_compute_dtype": recipe.compute_dtype,
        **({"llm_int8_skip_modules": [*skipped, "lm_head"]} if skipped else {}),
    }


def _dtype(recipe: Recipe) -> str:
    """The precision in which Axolotl loads weights (its `normalize_config`)."""
    return "bfloat16" if recipe.bf16 else "float16" if recipe.fp16 else "float32"


AXOLOTL = TrainingTool(
    "axolotl", files, differences, "`axolotl/config.yaml` trains this configuration with Axolotl."
)
