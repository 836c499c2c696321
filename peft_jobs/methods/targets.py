"""Named sets of target modules, resolved against the model that is there.

A set is made of roles, a role of the last part of module names: adding an architecture is adding
its names to `ROLES`. Fused projections count for each of their parts: a fused query-key-value
layer belongs to `attention-qv`, which then adapts the key too. Heads and embeddings never match.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import head_modules, inside, skeleton
from peft_jobs.base.text_reach import unreached_modules
from peft_jobs.errors import SpecError
from peft_jobs.spec import ModelSpec, TaskSpec

ROLES: dict[str, tuple[str, ...]] = {
    "query and value": (
        *("q_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, Phi, OPT, GPT-J, GPT-Neo
        *("qkv_proj", "Wqkv"),  # Phi-3; MPT, ModernBERT
        *("attn.c_attn", "crossattention.q_attn", "crossattention.c_attn"),  # GPT-2
        "query_key_value",  # GPT-NeoX, Pythia, Falcon, BLOOM
        *("attention.self.query", "attention.self.value"),  # BERT, RoBERTa, ELECTRA
        *("crossattention.self.query", "crossattention.self.value"),
        *("attention.self.query_proj", "attention.self.value_proj"),  # DeBERTa
        *("attention.query", "attention.value"),  # ALBERT
        *("q_lin", "v_lin"),  # DistilBERT
        *("SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"),  # T5
    ),
    "key and output": (
        *("k_proj", "o_proj", "self_attn.out_proj", "attn.out_proj", "attention.out_proj"),
        "self_attn.dense",  # Phi
        *("attn.c_proj", "crossattention.c_proj"),  # GPT-2
        *("attention.dense", "self_attention.dense"),  # GPT-NeoX, ALBERT; Falcon, BLOOM
        *("attention.self.key", "attention.output.dense"),  # BERT
        *("crossattention.self.key", "crossattention.output.dense"),
        *("attention.self.key_proj", "attention.key"),  # DeBERTa; ALBERT
        *("k_lin", "out_lin"),  # DistilBERT
        *("SelfAttention.k", "SelfAttention.o", "EncDecAttention.k", "EncDecAttention.o"),  # T5
        "attn.Wo",  # ModernBERT
    ),
    "mlp": (
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj"),  # Llama and kin; Phi-3
        *("fc1", "fc2", "fc_in", "fc_out"),  # OPT, Phi; GPT-J
        *("mlp.c_fc", "mlp.c_proj"),  # GPT-2, StarCoder
        *("dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX, Falcon, BLOOM
        *("intermediate.dense", "output.dense"),  # BERT
        *("lin1", "lin2", "ffn", "ffn_output"),  # DistilBERT; ALBERT
        *("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"),
        *("mlp.Wi", "mlp.Wo"),  # ModernBERT
    ),
}

SETS: dict[str, tuple[str, ...]] = {
    "attention-qv": ("query and value",),
    "attention": ("query and value", "key and output"),
    "attention+mlp": ("query and value", "key and output", "mlp"),
}
ALL_LINEAR = "all-linear"
_WITH_A_WEIGHT = (nn.Linear, Conv1D, nn.Embedding, nn.modules.conv._ConvNd)
_IN_PATTERNS = set(r"\^$*+?{}[]|()")
"""What no module's name has; a dot is in both."""


def resolve_targets(
    model: PreTrainedModel, target_modules: str | Sequence[str], exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The full names, sorted, of the linear modules that `target_modules` stands for.

    A named set, one module name or several, or a regular expression. They match as in PEFT: a name
    is a whole name or its last dotted parts, and an expression, one text that is neither, a whole
    name. Modules inside of `exclude` are left out like the head, and those that no text reaches.
    Raises SpecError for a name that matches nothing, also when the others match.
    """
    names = linear_modules(model, exclude)
    if not names:
        raise SpecError(
            f"adapter.target_modules: {type(model).__name__} has no linear module beside its head"
        )
    if target_modules == ALL_LINEAR:
        return names
    if isinstance(target_modules, str) and target_modules in SETS:
        return _named_set(model, names, target_modules)
    chosen: set[str] = set()
    for name in [target_modules] if isinstance(target_modules, str) else target_modules:
        matches = matching(names, name, "target_modules", name == target_modules)
        if not matches:
            raise SpecError(_no_match(model, name, names))
        chosen.update(matches)
    return tuple(sorted(chosen))


def matching(names: Sequence[str], given: str, field: str, may_be_pattern: bool) -> tuple[str, ...]:
    """Those of `names` that `given` stands for: by their ends, or else as a regular expression.

    Raises SpecError, which names the adapter's `field`, for an expression that is none.
    """
    ending = tuple(full for full in names if ends_with(full, given))
    if ending or not may_be_pattern or not _IN_PATTERNS & set(given):
        return ending
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise SpecError(f"adapter.{field}: {given!r} is no regular expression ({error})") from error
    return tuple(full for full in names if pattern.fullmatch(full))


def check_targets_without_weights(
    model: ModelSpec, task: TaskSpec, target_modules: str | Sequence[str]
) -> tuple[str, ...]:
    """`resolve_targets` on the model's skeleton: seconds, no weights, no accelerator."""
    return resolve_targets(skeleton(model, task), target_modules)


def linear_modules(model: PreTrainedModel, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """The full names, sorted, of all linear modules outside of the head and of `exclude`, but for
    those that no text reaches.

    Quantized layers are linear modules too: bitsandbytes derives them from `nn.Linear`.
    """
    found = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    return tuple(sorted(trainable_places(model, found, exclude)))


def parameters_apart(model: PreTrainedModel, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """The full names, sorted, of matrices that lie in no linear module, no embedding and no
    convolution, each with a name of its own: experts as three dimensions, routers."""
    modules = {
        name: [own for own, value in module.named_parameters(recurse=False) if value.ndim in (2, 3)]
        for name, module in model.named_modules()
        if not isinstance(module, _WITH_A_WEIGHT)
    }
    places = trainable_places(model, [name for name in modules if modules[name]], exclude)
    return tuple(sorted(f"{name}.{own}" for name in places for own in modules[name]))


def trainable_places(
    model: PreTrainedModel, names: Iterable[str], exclude: Sequence[str]
) -> tuple[str, ...]:
    """Those of the modules `names` that lie outside of the head and of `exclude`, and that a text
    reaches."""
    outside, unreached = (*head_modules(model), *exclude), unreached_modules(model)
    return tuple(
        name
        for name in names
        if name not in unreached and name not in outside and not inside(name, outside)
    )


def _named_set(model: PreTrainedModel, names: Sequence[str], target_set: str) -> tuple[str, ...]:
    roles = {name: _role(name) for name in names}
    missing = [role for role in SETS[target_set] if role not in roles.values()]
    if missing:
        experts = [name for name in parameters_apart(model) if model.get_parameter(name).ndim == 3]
        hint = f", with parameters such as {experts[0]} in target_parameters" if experts else ""
        raise SpecError(
            f"adapter.target_modules: {target_set!r} is not known for the architecture "
            f"{model.config.model_type} (no {' and no '.join(missing)} module); name modules, or "
            f"give '{ALL_LINEAR}'{hint}. Linear modules: {', '.join(_leaves(names))}"
        )
    return tuple(sorted(name for name, role in roles.items() if role in SETS[target_set]))


def _role(name: str) -> str | None:
    """The role whose longest suffix ends `name`: `attention.output.dense` is not `output.dense`."""
    matches = [
        (len(suffix), role)
        for role, suffixes in ROLES.items()
        for suffix in suffixes
        if ends_with(name, suffix)
    ]
    return max(matches)[1] if matches else None


def ends_with(name: str, suffix: str) -> bool:
    """Whether `suffix` is the name of a module or its last dotted parts."""
    return name == suffix or name.endswith(f".{suffix}")


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _no_match(model: PreTrainedModel, name: str, names: Sequence[str]) -> str:
    leaves = _leaves(names)
    others = [full for full, _ in model.named_modules() if full and ends_with(full, name)]
    if others and any(full in unreached_modules(model) for full in others):
        what = (
            f"matches only modules that no text goes through ({others[0]}, ...): an adapter there "
            "would not be trained"
        )
    elif others:
        what = f"matches no linear module of the backbone, only {others[0]}"
    else:
        what = "matches no module"
    close = difflib.get_close_matches(name, [*SETS, ALL_LINEAR, *leaves], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return (
        f"adapter.target_modules: {name!r} {what}{hint} linear modules: {', '.join(leaves)}; "
        f"sets: {', '.join([*SETS, ALL_LINEAR])}"
    )
