"""Where a method puts its parameters: the modules of a model that an adapter section stands for.

LoRA's sets of linear modules are in `targets`; here are those of other methods (the
scaled modules of (IA)3, normalisation layers, the ends of blocks), and the choice of layers.
"""

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from peft_jobs.base.architecture import skeleton
from peft_jobs.errors import SpecError
from peft_jobs.methods.targets import (
    ends_with,
    linear_modules,
    matching,
    parameters_apart,
    resolve_targets,
    trainable_places,
)
from peft_jobs.spec import ModelSpec, TaskSpec
from peft_jobs.spec.adapters import (
    Adapter,
    BottleneckSpec,
    Ia3Spec,
    LnTuningSpec,
    TargetedAdapter,
)
from peft_jobs.spec.mistakes import suggest

KEY_AND_VALUE = (
    *("k_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, Phi, OPT, GPT-J, GPT-Neo
    *("qkv_proj", "Wqkv", "attn.c_attn", "query_key_value"),  # fused: the query is scaled too
    *("attention.self.key", "attention.self.value"),  # BERT, RoBERTa, ELECTRA
    *("attention.self.key_proj", "attention.self.value_proj"),  # DeBERTa
    *("attention.key", "attention.value"),  # ALBERT
    *("k_lin", "v_lin"),  # DistilBERT
    *("SelfAttention.k", "SelfAttention.v", "EncDecAttention.k", "EncDecAttention.v"),  # T5
)
ATTENTION_OUTPUT = (
    *("o_proj", "self_attn.out_proj", "attn.out_proj", "attention.out_proj", "self_attn.dense"),
    *("attn.c_proj", "attention.dense", "self_attention.dense", "attention.output.dense"),
    *("out_lin", "SelfAttention.o", "EncDecAttention.o", "attn.Wo", "encoder_attn.out_proj"),
)
FEEDFORWARD_OUTPUT = (
    *("down_proj", "fc2", "fc_out", "mlp.c_proj", "dense_4h_to_h", "output.dense", "lin2"),
    *("ffn_output", "DenseReluDense.wo", "mlp.Wo"),
)
"""The last linear layer of a block; `attention.output.dense` is no `output.dense`."""
IA3 = "ia3"
ALL_NORMS = "all-norms"


def places(
    model: PreTrainedModel, adapter: Adapter, exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The full names, sorted, of the modules that the adapter changes; none if it changes none.

    Modules inside of the head and of `exclude` are left out. Raises SpecError for a name, a layer
    or a pattern that matches nothing, and for an architecture that is not known.
    """
    if isinstance(adapter, BottleneckSpec):
        found = block_ends(model, adapter.placement, exclude)
    elif isinstance(adapter, LnTuningSpec):
        found = _norms(model, adapter.target_modules, exclude)
    elif not isinstance(adapter, TargetedAdapter):
        return ()
    elif isinstance(adapter, Ia3Spec) and adapter.target_modules == IA3:
        names = linear_modules(model, exclude)
        found = _known(model, _ending(names, KEY_AND_VALUE), "key and value", "target_modules")
        found += _known(model, feedforward_outputs(names), "feed-forward", "target_modules")
    else:
        found = resolve_targets(model, adapter.target_modules, exclude)
    found = _without(found, getattr(adapter, "exclude_modules", ()))
    layers = getattr(adapter, "layers_to_transform", None)
    if found:  # none where parameters alone are adapted
        found = _in_layers(found, layers, getattr(adapter, "layers_pattern", ()))
    ranked = (*found, *parameter_places(model, adapter, exclude))
    for field in ("rank_pattern", "alpha_pattern"):
        _check_pattern(field, getattr(adapter, field, {}), ranked)
    return tuple(sorted(found))


def parameter_places(
    model: PreTrainedModel, adapter: Adapter, exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The full names, sorted, of the parameters that `target_parameters` stands for.

    Raises SpecError for a name that matches none outside of linear modules.
    """
    given = getattr(adapter, "target_parameters", ())
    known = parameters_apart(model, exclude) if given else ()
    found: set[str] = set()
    for name in given:
        matches = _ending(known, [name])
        if not matches:
            raise SpecError(_no_parameter(model, name, known))
        found.update(matches)
    layers, lists = (
        getattr(adapter, "layers_to_transform", None),
        getattr(adapter, "layers_pattern", ()),
    )
    return tuple(sorted(_in_layers(tuple(found), layers, lists) if found else ()))


def _no_parameter(model: PreTrainedModel, name: str, known: Sequence[str]) -> str:
    ends = sorted({".".join(full.rsplit(".", 2)[-2:]) for full in known})
    others = [full for full, _ in model.named_parameters() if ends_with(full, name)]
    if not others:
        what = f"matches no parameter{suggest(name, ends)}"
    else:
        what = (
            f"matches {others[0]}, which is no matrix outside of the linear modules (name those in "
            f"target_modules); there are: {', '.join(ends) or 'none'}"
        )
    return f"adapter.target_parameters: {name!r} {what}"


def check_places_without_weights(
    model: ModelSpec, task: TaskSpec, adapter: Adapter
) -> tuple[str, ...]:
    """`places` on the model's skeleton: seconds, no weights, no accelerator."""
    return places(skeleton(model, task), adapter)


def feedforward_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that end a feed-forward block."""
    ends = _ending(names, FEEDFORWARD_OUTPUT)
    return tuple(name for name in ends if not _ending([name], ATTENTION_OUTPUT))


def block_ends(
    model: PreTrainedModel, placement: str, exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The last linear modules of the feed-forward blocks, and for `houlsby` of attention too."""
    names = linear_modules(model, exclude)
    found = _known(model, feedforward_outputs(names), "feed-forward", "placement")
    if placement == "houlsby":
        found += _known(model, _ending(names, ATTENTION_OUTPUT), "attention", "placement")
    return tuple(sorted(found))


def _norms(
    model: PreTrainedModel, given: str | Sequence[str], exclude: Sequence[str]
) -> tuple[str, ...]:
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")
        if getattr(module, "weight", None) is not None
    ]
    names = trainable_places(model, norms, exclude)
    if given == ALL_NORMS:
        return _known(model, names, "normalisation", "target_modules")
    found: set[str] = set()
    for name in [given] if isinstance(given, str) else given:
        matches = matching(names, name, "target_modules", name == given)
        if not matches:
            leaves = ", ".join(sorted({full.rpartition(".")[2] for full in names}))
            raise SpecError(
                f"adapter.target_modules: {name!r} matches no normalisation layer; there are "
                f"{leaves or 'none'}; set: {ALL_NORMS}"
            )
        found.update(matches)
    return tuple(found)


def _without(names: tuple[str, ...], given: str | Sequence[str]) -> tuple[str, ...]:
    """`names` but for those that `adapter.exclude_modules` stands for."""
    left_out: set[str] = set()
    for name in [given] if isinstance(given, str) else given:
        matches = matching(names, name, "exclude_modules", name == given)
        if not matches:
            raise SpecError(f"adapter.exclude_modules: {name!r} matches none of the target modules")
        left_out.update(matches)
    if left_out and left_out == set(names):
        raise SpecError("adapter.exclude_modules: leaves no target module")
    return tuple(name for name in names if name not in left_out)


def _in_layers(
    names: tuple[str, ...], layers: Sequence[int] | None, lists: Sequence[str] = ()
) -> tuple[str, ...]:
    """Those of `names` in one of `layers`; of the module lists named `lists`, if any are given."""
    if layers is None:
        return names
    for part in lists:
        if not any(_layer(name, [part]) is not None for name in names):
            raise SpecError(
                f"adapter.layers_pattern: {part!r} is no list of layers with a target module in it"
            )
    numbers = {name: _layer(name, lists) for name in names}
    missing = sorted(set(layers) - set(numbers.values()))
    if missing:
        highest = max((n for n in numbers.values() if n is not None), default=None)
        raise SpecError(
            f"adapter.layers_to_transform: no target module lies in layer {missing[0]}"
            + (f", layers end at {highest}" if highest is not None else "")
        )
    return tuple(name for name, number in numbers.items() if number in layers)


def _layer(name: str, lists: Sequence[str] = ()) -> int | None:
    """The number in a module's name: 3 of `model.layers.3.mlp.up_proj`; after one of `lists`."""
    before = rf"(?:^|\.)(?:{'|'.join(map(re.escape, lists))})\." if lists else r"(?:^|\.)"
    found = re.search(rf"{before}(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def _check_pattern(field: str, pattern: dict[str, float], names: Sequence[str]) -> None:
    for key in pattern:
        try:
            matched = any(re.match(rf"(.*\.)?({key})$", name) for name in names)
        except re.error as error:
            raise SpecError(f"adapter.{field}: {key!r} is no regular expression") from error
        if not matched:
            raise SpecError(f"adapter.{field}: {key!r} matches none of the target modules")


def _ending(names: Sequence[str], suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(ends_with(name, suffix) for suffix in suffixes))


def _known(model: nn.Module, names: tuple[str, ...], what: str, field: str) -> tuple[str, ...]:
    if not names:
        raise SpecError(
            f"adapter.{field}: no {what} layer is known in the architecture {type(model).__name__}"
        )
    return names
