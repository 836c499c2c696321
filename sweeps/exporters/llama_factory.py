"""LLaMA-Factory: `llama-factory/sft.yaml` with its `dataset_info.json`, on the rows as tokens."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from peft_jobs.references import load
from sweeps.exporters.exporter import Draft
from sweeps.exporters.recipe import (
    ROWS_FOLDER,
    Recipe,
    beyond,
    common_differences,
    common_settings,
    file_differences,
    whole_alpha,
)
from sweeps.exporters.training_tool import TrainingTool, comment

NAME = "llama-factory"
_ATTENTION = {"flash_attention_2": "fa2", "sdpa": "sdpa", "eager": "disabled", None: "auto"}
_TOKENS = "tokens"
_SPLITS = ("train", "validation")


def files(draft: Draft, recipe: Recipe, told: list[str]) -> dict[str, str]:
    """The files that `llamafactory-cli train` takes, beside the rows as it reads them, which are
    written here."""
    write = load("peft_jobs.engines.solo.training_rows:write_arrow")
    write(draft.path / ROWS_FOLDER, draft.path / NAME / _TOKENS)
    intro = (
        f"Trains {recipe.title} with LLaMA-Factory; in this folder: llamafactory-cli train "
        "sft.yaml. The rows are read from tokenized_path; template and cut are done there."
    )
    info = {split: {"file_name": f"../{ROWS_FOLDER}/{split}.parquet"} for split in _SPLITS}
    return {
        "sft.yaml": comment(told, intro) + yaml.safe_dump(settings(recipe), sort_keys=False),
        "dataset_info.json": json.dumps(info, indent=2) + "\n",
    }


def differences(recipe: Recipe) -> Iterator[str]:
    """What LLaMA-Factory does otherwise."""
    adapter = recipe.adapter
    yield from common_differences(recipe)
    takes = adapter.init_lora_weights.startswith("pissa")
    yield from beyond(recipe, {"init_lora_weights": takes, "loraplus_lr_ratio": True})
    compute = "bfloat16" if recipe.bf16 else "float16" if recipe.fp16 else None
    if compute is None:
        yield (
            "Without bf16 or fp16, LLaMA-Factory loads what is not quantized in the type that it "
            f"infers from the checkpoint; the trial took {recipe.dtype}."
        )
    elif recipe.dtype not in ("auto", compute):
        yield f"What is not quantized is loaded in {compute}; the trial took {recipe.dtype}."
    if recipe.is_4bit and compute != recipe.compute_dtype:
        yield (
            f"4-bit weights are multiplied in {compute or 'the inferred type'}; the trial took "
            f"{recipe.compute_dtype}."
        )
    if recipe.parameters:
        yield "adapter.target_parameters is of no module that LLaMA-Factory's LoRA takes."
    yield from file_differences(recipe)


def settings(recipe: Recipe) -> dict[str, Any]:
    """The content of sft.yaml."""
    training, adapter, model = recipe.training, recipe.adapter, recipe.spec.model
    start = adapter.init_lora_weights
    is_4bit = recipe.asked in ("nf4", "fp4")
    bits = 4 if is_4bit else 8 if recipe.asked == "int8" else None
    known = {
        "model_name_or_path": recipe.base,
        "model_revision": model.revision,
        "trust_remote_code": False,
        "flash_attn": _ATTENTION[model.attn_implementation],
        "quantization_bit": bits,
        "quantization_method": "bnb" if bits else None,
        "quantization_type": recipe.asked if is_4bit else None,
        "double_quantization": recipe.double if is_4bit else None,
        "disable_gradient_checkpointing": not training.gradient_checkpointing,
        "stage": "sft",
        "do_train": True,
        "do_eval": True,
        "finetuning_type": "lora",
        "lora_rank": adapter.r,
        "lora_alpha": whole_alpha(recipe)[0],
        "lora_dropout": adapter.lora_dropout,
        "lora_target": ",".join(recipe.targets),
        "additional_target": ",".join(recipe.whole) or None,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
        "pissa_init": True if start.startswith("pissa") else None,
        "pissa_iter": int(start.rpartition("_")[2]) if start.startswith("pissa_niter") else None,
        "loraplus_lr_ratio": adapter.loraplus_lr_ratio if adapter.loraplus_lr_ratio != 1 else None,
        "dataset_dir": ".",
        "dataset": "train",
        "eval_dataset": "validation",
        "tokenized_path": _TOKENS,
        "template": "empty",
        "cutoff_len": recipe.spec.data.max_length,
        "packing": False,
        "disable_shuffling": recipe.in_order,
        **common_settings(recipe),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.spec.evaluation.per_device_eval_batch_size,
        "optim": training.optim,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps,
        "tf32": recipe.tf32 or None,
        "eval_strategy": "steps",
        "eval_steps": recipe.num_steps,
        "report_to": "none",
        "output_dir": "trained",
    }
    if start == "pissa":
        known["pissa_iter"] = -1
    return {name: value for name, value in known.items() if value is not None}


LLAMA_FACTORY = TrainingTool(
    NAME,
    files,
    differences,
    "`llama-factory/sft.yaml` trains this configuration with LLaMA-Factory.",
)
