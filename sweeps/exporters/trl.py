"""TRL: a script that trains the trial again, and the same as a file for `trl sft --config`."""

from collections.abc import Iterator
from typing import Any

import yaml

from sweeps.exporters.exporter import Draft
from sweeps.exporters.recipe import (
    ROWS_FOLDER,
    Recipe,
    beyond,
    common_differences,
    file_differences,
    whole_alpha,
)
from sweeps.exporters.training_tool import TrainingTool, comment
from sweeps.exporters.trl_script import script, training_arguments


def files(draft: Draft, recipe: Recipe, told: list[str]) -> dict[str, str]:
    """The script, and the file for `trl sft --config`."""
    intro = f"Trains {recipe.title} with TRL; in this folder: trl sft --config sft.yaml"
    heading = comment(list(sft_differences(recipe)), intro)
    return {
        "train.py": script(recipe, list(script_differences(recipe))),
        "sft.yaml": heading + yaml.safe_dump(settings(recipe), sort_keys=False),
    }


def differences(recipe: Recipe) -> Iterator[str]:
    """What the script does otherwise than the trial, and then the file alone."""
    of_script = list(script_differences(recipe))
    yield from of_script
    for line in sft_differences(recipe):
        if line not in of_script:
            yield f"trl sft: {line}"


def script_differences(recipe: Recipe) -> Iterator[str]:
    """What the script does otherwise than the trial."""
    yield from common_differences(recipe)
    known = ("bias", "rank_pattern", "alpha_pattern", "target_parameters")
    takes = dict.fromkeys((*known, "init_lora_weights", "llm_int8_skip_modules"), True)
    yield from beyond(recipe, takes)
    if recipe.tf32:
        yield "tf32 is written as torch's own switch; it needs a GPU that has it."


def sft_differences(recipe: Recipe) -> Iterator[str]:
    """What `trl sft` does otherwise with the YAML file."""
    yield from common_differences(recipe)
    yield from beyond(recipe, {"target_parameters": True})
    if recipe.quantization.scheme != "none":
        yield (
            "TRL trains the adapter in bfloat16 on a quantized base, the trial in float32 "
            "(train.py casts it back)."
        )
    if recipe.is_4bit and recipe.compute_dtype != recipe.dtype:
        yield (
            f"4-bit weights are multiplied in `dtype`, here {recipe.dtype}; the trial took "
            f"{recipe.compute_dtype}."
        )
    if recipe.is_4bit and recipe.on_cpu:
        yield (
            "On CPUs with AVX512-BF16, bitsandbytes loses the gradient through 4-bit layers after "
            "an evaluation (train.py switches that kernel off)."
        )
    yield "The tokenizer is the base's, which pads; template and end tokens are in the rows."
    yield from file_differences(recipe)


def settings(recipe: Recipe) -> dict[str, Any]:
    """The content of sft.yaml."""
    adapter, model, scheme = recipe.adapter, recipe.spec.model, recipe.asked
    is_4bit = scheme in ("nf4", "fp4")
    known = {
        "model_name_or_path": recipe.base,
        "model_revision": model.revision,
        "attn_implementation": model.attn_implementation,
        "dtype": recipe.dtype,
        "load_in_4bit": True if is_4bit else None,
        "bnb_4bit_quant_type": scheme if is_4bit else None,
        "use_bnb_nested_quant": True if is_4bit and recipe.double else None,
        "load_in_8bit": True if scheme == "int8" else None,
        "use_peft": True,
        "lora_r": adapter.r,
        "lora_alpha": whole_alpha(recipe)[0],
        "lora_dropout": adapter.lora_dropout,
        "lora_target_modules": list(recipe.targets),
        "lora_target_parameters": list(recipe.parameters) or None,
        "lora_modules_to_save": list(recipe.whole) or None,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
        "dataset_name": f"../{ROWS_FOLDER}",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "output_dir": "trained",
        **training_arguments(recipe),
        "eval_strategy": "steps",
        "eval_steps": recipe.num_steps,
    }
    return {name: value for name, value in known.items() if value is not None}


TRL = TrainingTool(
    "trl",
    files,
    differences,
    "`trl/train.py` trains this configuration with TRL, and so does `trl sft --config sft.yaml`.",
)
