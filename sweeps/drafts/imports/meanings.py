"""What other tools' settings mean in a sweep file: by name, with their values translated."""

from functools import cache
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.spec.dotted import paths_of
from sweeps.spec.other_names import other_names

_SCHEMES = {4: "nf4", 8: "int8"}
_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}
_ATTENTION = {"fa2": "flash_attention_2", "auto": None, "disabled": "eager", "sdpa": "sdpa"}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SWITCHES: dict[str, tuple[str, Any]] = {
    "load_in_4bit": ("quantization.scheme", "nf4"),
    "load_in_8bit": ("quantization.scheme", "int8"),
    "lora_target_linear": ("adapter.target_modules", "all-linear"),
    "flash_attention": ("model.attn_implementation", "flash_attention_2"),
    "pissa_init": ("adapter.init_lora_weights", "pissa"),
}
"""Settings that are on or off: what on is here; off is the default."""
OFF = {
    "quantization.scheme": "none",
    "model.attn_implementation": None,
    "adapter.init_lora_weights": "default",
}
"""What off is, where it can be a choice."""
REASONS = {
    "output_dir": "results lie below `storage`",
    "overwrite_output_dir": "nothing is overwritten",
    "report_to": "sweeps are tracked in MLflow (`tracking`)",
    "train_on_inputs": "prompts do not count in the loss",
    "special_tokens": "the tokenizer is the base's own",
    "tokens": "the tokenizer is the base's own",
    "dataset_prepared_path": "tokenized data are kept in the storage",
    "trust_remote_code": "code that comes with a model is not run",
    "deepspeed": "a trial has one GPU, or a share of it (`resources`)",
    "stage": "trials are trained on supervised rows",
}
_FAMILIES = {
    ("wandb_", "mlflow_", "comet_", "use_wandb"): REASONS["report_to"],
    ("fsdp",): REASONS["deepspeed"],
    (
        "save_",
        "saves_",
        "eval_",
        "evals_",
        "load_best",
        "resume_",
        "auto_resume",
        "early_stopping",
    ): ("trials are measured and saved at rungs (`budget.num_rungs`, `checkpoints`)"),
}
_OTHERWISE = "a sweep file has nothing of this kind"


@cache
def trial_paths() -> frozenset[str]:
    """Every dotted name in a trial."""
    return frozenset(paths_of(TrialSpec))


def dotted_of(name: str) -> str | None:
    """What a setting is called here: a dotted name; None if there is none."""
    if name in trial_paths():
        return name
    key = name.rpartition(".")[2].lower().replace("-", "_")
    found = other_names().get(key, ())
    if "quantization" in found:
        return "quantization.scheme"
    return next(iter(sorted(found, key=lambda path: path not in trial_paths())), None)


def value_of(dotted: str, value: Any) -> Any:
    """Another tool's value of what is `dotted` here, as it is written here."""
    if dotted == "training.optim":
        return _OPTIMIZERS.get(value, value)
    if dotted == "model.attn_implementation":
        return _ATTENTION.get(value, value)
    if dotted == "model.dtype":
        return _DTYPES.get(value, value)
    if dotted == "quantization.scheme":
        return _SCHEMES.get(value, value)
    if dotted == "adapter.target_modules" and isinstance(value, str):
        names = [name.strip() for name in value.split(",")]
        return "all-linear" if names == ["all"] else names if len(names) > 1 else value
    return value


def reason(name: str) -> str:
    """Why a setting is not taken over."""
    for prefixes, why in _FAMILIES.items():
        if name.startswith(prefixes):
            return why
    dotted = dotted_of(name)
    return REASONS.get(name) or (f"see `{dotted}`" if dotted is not None else _OTHERWISE)
