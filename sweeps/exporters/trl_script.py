"""The script that trains a trial again with TRL."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.exporters.loading_code import OUTPUTS, literal
from sweeps.exporters.recipe import Recipe, common_settings
from sweeps.exporters.training_tool import comment

_SCRIPT = '''"""{docstring}"""

from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).resolve().parent
BASE = {base}


def arguments() -> SFTConfig:
    return SFTConfig(
        output_dir=str(HERE / "trained"),
{arguments}    )


def lora() -> LoraConfig:
    return LoraConfig(
{lora}    )


def quantization() -> BitsAndBytesConfig | None:
    return {quantization}


def rows() -> dict:
    """Tokens, with -100 in the labels where one does not count."""
    files = {{name: str(HERE / f"../rows/{{name}}.parquet") for name in ("train", "validation")}}
    return load_dataset("parquet", data_files=files)


def trainer() -> SFTTrainer:
    data = rows()
    made = SFTTrainer(
        model=BASE,
        args=arguments(),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=AutoTokenizer.from_pretrained(HERE / ".."),
        quantization_config=quantization(),
        peft_config=lora(),
    )
    for parameter in made.model.parameters():
        if parameter.requires_grad:  # on a quantized base TRL casts the adapter to bfloat16
            parameter.data = parameter.data.float()
    for layer in made.model.modules():  # else 4-bit layers lose gradients on some CPUs
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return made


@torch.no_grad()
def validation_loss(made: SFTTrainer) -> float:
    """By token, as the sweep measures it; the Trainer's own is a mean over batches."""
    total = count = 0.0
    model = made.model.eval()
    for batch in made.get_eval_dataloader():
        tokens = (batch["labels"][:, 1:] != -100).sum().item()
        with made.compute_loss_context_manager():
            total += model(**batch).loss.item() * tokens
        count += tokens
    return total / count


if __name__ == "__main__":
    made = trainer()
    made.train()
    made.save_model()
    print(f"validation loss by token: {{validation_loss(made):.6f}}")
'''


def script(recipe: Recipe, differences: Sequence[str]) -> str:
    """The text of train.py."""
    model = recipe.spec.model
    loading = {"dtype": recipe.dtype, "revision": model.revision}
    loading["attn_implementation"] = model.attn_implementation
    given = {name: value for name, value in loading.items() if value is not None}
    intro = (
        f"Trains {recipe.title} again, with TRL: python train.py (its folder is found). What is "
        "different there:"
    )
    return _SCRIPT.format(
        docstring=comment(differences, intro, prefix="").rstrip().replace("\\", "/") + "\n",
        base=literal(recipe.base),
        arguments=_lines({**training_arguments(recipe), "model_init_kwargs": given}),
        lora=_lines(lora_arguments(recipe)),
        quantization=_quantization(recipe),
    )


def training_arguments(recipe: Recipe) -> dict[str, Any]:
    """Fields of SFTConfig, without `output_dir` and how the base is loaded."""
    training = recipe.training
    return {
        **common_settings(recipe),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.spec.evaluation.per_device_eval_batch_size,
        "optim": training.optim,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "gradient_checkpointing": training.gradient_checkpointing,
        **({"tf32": True} if recipe.tf32 else {}),
        "max_length": recipe.spec.data.max_length,
        "packing": False,
        "train_sampling_strategy": "sequential" if recipe.in_order else "random",
        "report_to": "none",
    }


def lora_arguments(recipe: Recipe) -> dict[str, Any]:
    """Fields of LoraConfig."""
    adapter = recipe.adapter
    unusual = {
        "rank_pattern": adapter.rank_pattern,
        "alpha_pattern": recipe.alpha_pattern,
        "target_parameters": list(recipe.parameters),
        "modules_to_save": list(recipe.whole),
    }
    return {
        "task_type": "CAUSAL_LM",
        "r": adapter.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": list(recipe.targets),
        "bias": adapter.bias,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
        "init_lora_weights": recipe.start,
        **{name: value for name, value in unusual.items() if value},
    }


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"        {name}={literal(value)},\n" for name, value in values.items())


def _quantization(recipe: Recipe) -> str:
    quantization = recipe.quantization
    skipped = list(quantization.llm_int8_skip_modules)
    options: dict[str, Any] = {}
    if recipe.asked == "none":
        return "None"
    if quantization.scheme == "int8":
        options |= {"load_in_8bit": True, "llm_int8_threshold": quantization.llm_int8_threshold}
    else:
        options |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quantization.scheme,
            "bnb_4bit_use_double_quant": quantization.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": recipe.compute_dtype,
        }
    if skipped:
        options["llm_int8_skip_modules"] = [*skipped, *OUTPUTS]
    return f"BitsAndBytesConfig(\n{_lines(options)}    )"
