"""Names that other tools have for what a sweep file has: `lr` is `training.learning_rate`.

Of Axolotl, LLaMA-Factory, TRL and transformers, Unsloth, torchtune, Optuna, Ray and W&B. They are
never taken for ours in silence: messages and importers name what they stand for.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from peft_jobs import TrialSpec
from peft_jobs.spec.dotted import paths_of
from sweeps.spec.sweep import SweepSpec

_CALLED = {
    "model.name_or_path": "base_model model_name_or_path model_name model_id model_path "
    "pretrained_model_name_or_path base_model_name_or_path base_model_name",
    "model.revision": "model_revision base_model_revision",
    "model.dtype": "torch_dtype precision",
    "model.attn_implementation": "flash_attention flash_attn attention_implementation "
    "flash_attn_implementation",
    "quantization": "load_in_4bit load_in_8bit quantization_bit bits quantize",
    "quantization.bnb_4bit_use_double_quant": "double_quant double_quantization use_nested_quant",
    "adapter.method": "peft_type adapter_type finetuning_type peft_method",
    "adapter.r": "lora_r lora_rank rank lora_dim",
    "adapter.lora_alpha": "alpha lora_scaling",
    "adapter.lora_dropout": "dropout",
    "adapter.target_modules": "lora_target_modules lora_target lora_modules target_linear "
    "lora_target_linear lora_attn_modules",
    "adapter.modules_to_save": "lora_modules_to_save additional_target",
    "adapter.layers_to_transform": "lora_layers_to_transform peft_layers_to_transform",
    "adapter.use_dora": "peft_use_dora dora lora_use_dora",
    "adapter.use_rslora": "peft_use_rslora rslora lora_use_rslora",
    "adapter.init_lora_weights": "peft_init_lora_weights",
    "data.train": "dataset datasets dataset_name dataset_path train_file data_files train_data "
    "train_dataset",
    "data.validation": "val_set_size val_size eval_size eval_dataset test_datasets val_data "
    "validation_split validation_file valid_file",
    "data.max_length": "sequence_len sequence_length seq_length seq_len cutoff_len max_seq_length "
    "max_seq_len model_max_length block_size context_length max_len",
    "data.packing": "sample_packing pack",
    "data.subset": "max_train_samples",
    "data.validation_subset": "max_eval_samples",
    "task.messages": "field_messages conversations",
    "training.learning_rate": "lr learningrate",
    "training.per_device_train_batch_size": "batch_size micro_batch_size train_batch_size "
    "per_gpu_train_batch_size batchsize",
    "training.gradient_accumulation_steps": "gradient_accumulation grad_accum grad_accum_steps "
    "accumulate_grad_batches accumulation_steps",
    "training.optim": "optimizer optimizer_name",
    "training.lr_scheduler_type": "scheduler lr_scheduler lr_schedule scheduler_type "
    "learning_rate_scheduler",
    "training.warmup_steps": "warmup_ratio warmup num_warmup_steps lr_warmup_steps",
    "training.weight_decay": "wd",
    "training.adam_beta1": "beta1",
    "training.adam_beta2": "beta2",
    "training.adam_epsilon": "eps epsilon adam_eps",
    "training.max_grad_norm": "gradient_clipping grad_clip gradient_clip_val max_norm clip_grad",
    "training.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing",
    "evaluation.per_device_eval_batch_size": "eval_batch_size val_batch_size batch_size",
    "seed": "random_state random_seed",
    "name": "run_name sweep_name study_name",
    "budget.num_train_epochs": "num_epochs epochs epoch max_epochs n_epochs num_train_epochs",
    "budget.max_steps": "max_steps num_steps total_steps steps",
    "budget.max_samples": "max_samples",
    "budget.n_trials": "run_cap num_trials max_trials num_samples count trials",
    "objective.metric": "metric metric_for_best_model",
    "objective.direction": "goal mode greater_is_better",
    "pruner": "early_terminate early_stopping hyperband",
    "sampler": "search_alg algorithm search_algorithm",
    "storage": "output_dir",
    "tracking.uri": "mlflow_tracking_uri tracking_uri",
    "tracking.experiment": "mlflow_experiment_name experiment_name wandb_project project report_to",
    "resources.max_concurrent": "max_concurrent_trials n_jobs",
}
"""By our dotted name; that of a trial's length is the budget's."""


@cache
def other_names() -> Mapping[str, tuple[str, ...]]:
    """Our dotted names by each other name, the likeliest first, and by each last part that only one
    of ours has."""
    ours = {*paths_of(TrialSpec), *(p for p in paths_of(SweepSpec) if not p.startswith("trial."))}
    last = Counter(path.rpartition(".")[2] for path in ours)  # keys of the file itself among them
    own = {path.rpartition(".")[2]: (path,) for path in ours if "." in path}
    found = {name: paths for name, paths in own.items() if last[name] == 1}
    called: dict[str, list[str]] = {}
    for path, names in _CALLED.items():
        for name in names.split():
            called.setdefault(name, []).append(path)
    return found | {name: tuple(paths) for name, paths in called.items()}


def meant(path: Sequence[str], known: Collection[str]) -> str | None:
    """What the unknown key at the end of `path` means here: one of `known`, the keys beside it, or
    the dotted name of another section's; None if nobody knows."""
    name = path[-1].rpartition(".")[2].lower().replace("-", "_")
    elsewhere = []
    for dotted in other_names().get(name, ()):
        section, _, last = dotted.rpartition(".")
        if section != ".".join(path[:-1]):
            elsewhere += [dotted] if dotted != path[-1] else []
        elif last in known:
            return last
    return elsewhere[0] if elsewhere else None


def parameter_meant(name: str, known: Collection[str]) -> str | None:
    """Which of `known`, dotted names, the unknown name of a parameter means; None if none."""
    dotted = meant(("space", name), known)
    return dotted if dotted in known else None
