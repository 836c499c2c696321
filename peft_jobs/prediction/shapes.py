"""What decides the shapes of a trial's steps: trials of equal shapes take the same."""

from collections.abc import Mapping, Sequence

from peft_jobs.spec import LoraSpec, TrialSpec
from peft_jobs.storage.files import canonical_json

_NO_SHAPE = {
    "training": (
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta1", "adam_beta2"),
        *("adam_epsilon", "max_loss", "logging_steps", "num_train_epochs", "max_samples"),
        "weight_decay",  # one pass more over what is trained, by optimizers that are not fused
    ),
    "adapter": (
        *("lora_alpha", "alpha", "alpha_pattern", "use_rslora", "randlora_alpha", "delora_lambda"),
        *("init_lora_weights", "eva_config", "corda_config", "d_initial", "projection_prng_key"),
        *("scaling", "random_loc_seed", "orth_reg_weight", "beta1", "beta2", "eps"),
    ),
}
"""Fields that change no shape and no operator."""
_NONE = {"max_grad_norm": 0, "loraplus_lr_ratio": 1}
"""Values of fields that do no more than be something else, beside no dropout."""


def shape_key(spec: TrialSpec) -> str:
    """Equal for trials whose steps are of equal shapes."""
    tree = spec.model_dump(mode="json", exclude={"data", "evaluation", "seed"})
    for section, names in _NO_SHAPE.items():
        for name in names:
            tree[section].pop(name, None)
    for section in (tree["adapter"], tree["training"]):
        for name in section:
            if name in _NONE or name.endswith("dropout"):
                section[name] = section[name] != _NONE.get(name, 0)
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


def runs_of(spec: TrialSpec, ranks: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """LoRA's rank in each run of steps that tells of the trial, by a key of the run: the trial's
    own, or two that it lies between."""
    key = but_rank(spec)
    low, high = ranks.get(key, (0, 0))
    return {f"{key} {rank}": rank for rank in ((low, high) if low < high else (rank_of(spec),))}


def with_few_shapes(specs: Sequence[TrialSpec], most: int) -> list[TrialSpec]:
    """Those of the trials, in their order, that at most `most` runs of steps tell of. At least
    one."""
    ranks, runs = ranks_of(specs), set[str]()
    kept: list[TrialSpec] = []
    for spec in specs:
        needed = runs | runs_of(spec, ranks).keys()
        if len(needed) <= most or not kept:
            runs = needed
            kept.append(spec)
    return kept


def rank_of(spec: TrialSpec) -> int:
    return spec.adapter.r if isinstance(spec.adapter, LoraSpec) else 0


def but_rank(spec: TrialSpec) -> str:
    is_lora = isinstance(spec.adapter, LoraSpec)
    return shape_key(spec.with_params({"adapter.r": 1}) if is_lora else spec)
