"""What decides the shapes of a trial's steps: trials of equal shapes take the same."""

from collections.abc import Sequence

from peft_jobs.spec import LoraSpec, TrialSpec
from peft_jobs.storage.files import canonical_json

_NO_SHAPE = {
    "training": (
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta1", "adam_beta2"),
        *("adam_epsilon", "max_loss", "logging_steps", "num_train_epochs", "max_samples"),
    ),
    "adapter": ("lora_alpha", "alpha", "use_rslora", "init_lora_weights", "delora_lambda"),
}
"""Fields that change no shape and no operator."""


def shape_key(spec: TrialSpec) -> str:
    """Equal for trials whose steps are of equal shapes."""
    tree = spec.model_dump(mode="json", exclude={"data", "evaluation", "seed"})
    for section, names in _NO_SHAPE.items():
        for name in names:
            tree[section].pop(name, None)
    adapter = tree["adapter"]
    for name in adapter:
        if name.endswith("dropout"):
            adapter[name] = bool(adapter[name])
    return canonical_json(tree)


def ranks_of(specs: Sequence[TrialSpec]) -> dict[str, tuple[int, int]]:
    """Lowest and highest rank of plain LoRA trials that differ in nothing else: what they take is
    affine in it."""
    ranks: dict[str, list[int]] = {}
    for spec in specs:
        adapter = spec.adapter
        if isinstance(adapter, LoraSpec) and not adapter.rank_pattern:
            ranks.setdefault(but_rank(spec), []).append(adapter.r)
    return {key: (min(found), max(found)) for key, found in ranks.items()}


def rank_of(spec: TrialSpec) -> int:
    return spec.adapter.r if isinstance(spec.adapter, LoraSpec) else 0


def but_rank(spec: TrialSpec) -> str:
    is_lora = isinstance(spec.adapter, LoraSpec)
    return shape_key(spec.with_params({"adapter.r": 1}) if is_lora else spec)
