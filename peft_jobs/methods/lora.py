"""LoRA (Hu et al. 2021, arXiv 2106.09685) with its variants and initialisations.

The saved adapter is always an ordinary LoRA on the untouched base: an initialisation that moves a
part of the base into the adapter is taken out of it again when it is saved (`_saved`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from peft_jobs.base.quantization import QUANTIZED, weight_of
from peft_jobs.errors import SpecError
from peft_jobs.methods import loftq
from peft_jobs.methods.adapter_files import remember_initial
from peft_jobs.methods.method import Method
from peft_jobs.methods.setting import OURS, Setting, whole_alphas
from peft_jobs.randomness import ADAPTER, generator, initial_lora_A, tuner_layers
from peft_jobs.spec import TaskSpec
from peft_jobs.spec.adapters import LoraSpec
from peft_jobs.tasks import TASKS, Batch

_OTHERWISE = (
    "loraplus_lr_ratio",
    "init_lora_weights",
    "eva_config",
    "corda_config",
    "use_dora",
    "target_parameters",
)
ZERO_AT_FIRST = ("default", "gaussian")
"""Initialisations whose B is zero."""
EVA_PASSES = 50
EVA_ROWS, CORDA_ROWS = 1024, 256
"""Training rows that are looked at: EVA's authors take about a thousand; CorDA, section 4, 256."""


def peft_config(
    adapter: LoraSpec, targets: Sequence[str], task: TaskSpec, parameters: Sequence[str] = ()
) -> LoraConfig:
    """PEFT's configuration of an ordinary LoRA on the modules of the full names `targets`, and on
    the `parameters`."""
    return LoraConfig(
        task_type=TASKS[task.type].peft_task_type,
        target_modules=list(targets),
        target_parameters=list(parameters) or None,
        use_dora=adapter.use_dora,
        **whole_alphas(adapter.model_dump(exclude={*OURS, *_OTHERWISE})),
    )


def config(setting: Setting) -> LoraConfig:
    adapter: LoraSpec = setting.adapter
    config = peft_config(adapter, setting.targets, setting.spec.task, setting.parameters)
    if adapter.mutates_base or adapter.init_lora_weights == "eva":
        config.init_lora_weights = cast(Any, adapter.init_lora_weights)
    if adapter.init_lora_weights == "corda":
        config.corda_config = CordaConfig(**adapter.corda_config.model_dump(), verbose=False)
    if adapter.init_lora_weights == "eva":
        has_tokens = setting.task_type.value == "CAUSAL_LM"
        config.eva_config = EvaConfig(**adapter.eva_config.model_dump(), use_label_mask=has_tokens)
    return config


def before(setting: Setting, config: Any) -> None:
    """CorDA decomposes the base by what the data put into its layers."""
    if setting.adapter.init_lora_weights != "corda":
        return
    pooled = [name for name in setting.targets if "pooler" in name]
    if pooled:
        raise SpecError(
            f"adapter.init_lora_weights: corda needs layers that see every token, and {pooled[0]} "
            "does not; name other target_modules"
        )
    model = setting.base.model

    def run() -> None:
        for batch in setting.first_batches(CORDA_ROWS, batch_size=1):
            model(**batch)

    preprocess_corda(model, config, run_model=run)


def initialise(model: PeftModel, setting: Setting) -> None:
    """Draw A by its key; or what the named initialisation says."""
    adapter: LoraSpec = setting.adapter
    name = adapter.init_lora_weights
    if adapter.mutates_base:
        remember_initial(model)
    elif name == "eva":
        eva(model, setting)
    else:
        with torch.no_grad():
            for module, layer in tuner_layers(model):
                down, up = _weights(layer, module, name, setting)
                layer.lora_A[ADAPTER].weight.copy_(down)
                layer.lora_B[ADAPTER].weight.copy_(up)
                if adapter.use_dora:
                    scale, update = layer.scaling[ADAPTER], None
                    if name not in ZERO_AT_FIRST:
                        update = down, up
                    first = first_magnitude(layer.get_base_layer(), scale, update)
                    layer.lora_magnitude_vector[ADAPTER].weight.copy_(first)


def _weights(layer: Any, module: str, name: str, setting: Setting) -> tuple[Tensor, Tensor]:
    """The first A and B of a layer."""
    seed = setting.spec.seed
    (r, inputs), (outputs, _) = (
        part[ADAPTER].weight.shape for part in (layer.lora_A, layer.lora_B)
    )
    if name == "loftq":
        return loftq.factors(setting.base, setting.spec, module, r, layer.scaling[ADAPTER])
    return drawn_factors(name, seed, module, r, inputs, outputs)


def drawn_factors(
    name: str, seed: int, module: str, r: int, inputs: int, outputs: int
) -> tuple[Tensor, Tensor]:
    """The first A and B by an initialisation that looks at nothing: default, gaussian,
    orthogonal."""
    if name == "orthogonal":
        return orthogonal(seed, module, r, inputs, outputs)
    zero = torch.zeros(outputs, r)
    if name == "gaussian":
        return torch.randn(r, inputs, generator=generator("cpu", name, seed, module)) / r, zero
    return initial_lora_A(seed, module, r, inputs), zero


def first_magnitude(
    layer: nn.Module, scale: float, factors: tuple[Tensor, Tensor] | None
) -> Tensor:
    """DoRA's first magnitudes on a layer of the base: the lengths of the rows of `W + scale * B A`,
    [outputs], on the layer's device. `factors` are A and B; None where their product is zero."""
    weight = weight_of(layer)
    if isinstance(layer, QUANTIZED):
        weight = weight.float()
    if factors is not None:
        down, up = (factor.to(weight) for factor in factors)
        weight = weight + scale * (up @ down)
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return lengths


def orthogonal(seed: int, module: str, r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A and B in complementary halves of a random basis: both are not zero, their product is.

    The distribution is PEFT's (`LoraLayer.orthogonal_init`), whose own code fails on 4-bit bases.
    """
    source = generator("cpu", "orthogonal", seed, module)
    basis, _ = torch.linalg.qr(torch.randn(r, r, generator=source))
    down = torch.randn(inputs, r // 2, generator=source).mm(basis[0::2]).T / 10.0
    up = torch.randn(r // 2, outputs, generator=source).T.mm(basis[1::2]) / 10.0
    return down, up


def eva(model: PeftModel, setting: Setting) -> None:
    """A from the principal components of each layer's inputs; ranks go where they explain most."""
    size = max(setting.spec.training.per_device_train_batch_size, 16)
    batches = _Passes([_told_apart(batch) for batch in setting.first_batches(EVA_ROWS, size)])
    initialize_lora_eva_weights(
        model,
        batches,
        prepare_model_inputs_fn=_tokens,
        prepare_layer_inputs_fn=_vectors,
        show_progress_bar=False,
    )
    # What is saved is an ordinary LoRA, with the ranks that its `rank_pattern` says.
    found: Any = model.peft_config[ADAPTER]
    found.init_lora_weights, found.eva_config = True, None


class _Passes:
    """The batches again and again; PEFT itself would wait forever for components to settle."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(EVA_PASSES):
            yield from self.batches
        raise SpecError(
            f"adapter.init_lora_weights: eva does not settle in {EVA_PASSES} passes over the first "
            f"{EVA_ROWS} training rows; give a smaller r or eva_config.rho"
        )


def _told_apart(batch: Batch) -> Batch:
    """Targets that are as long as the sources, made longer by a token that does not count: a
    layer's inputs tell by their length whose tokens they are."""
    names = ("decoder_input_ids", "decoder_attention_mask")
    if names[0] not in batch or batch[names[0]].shape[1] != batch["input_ids"].shape[1]:
        return batch
    return {**batch, **{name: nn.functional.pad(batch[name], (0, 1)) for name in names}}


def _tokens(batch: Batch, _config: object) -> dict[int, Tensor]:
    """Where the tokens that count are, [tokens, 2], by the length of the rows that they are in."""
    masks = [batch[name] for name in ("attention_mask", "decoder_attention_mask") if name in batch]
    return {mask.shape[1]: mask.nonzero() for mask in masks}


def _vectors(layer_input: Any, tokens: dict[int, Tensor], _name: str) -> Tensor:
    """A layer's inputs at the tokens that count; one of a pooled row is taken as it is.

    They come to the batch's device: PEFT compares what it finds in them between all layers.
    """
    states: Tensor = layer_input if isinstance(layer_input, Tensor) else layer_input[0]
    device = next(iter(tokens.values())).device
    if states.dim() != 3:
        return states.contiguous().to(device)
    return states[tokens[states.shape[1]].to(states.device).T.unbind()].to(device)


def learning_rates(model: nn.Module, optimizer: Any, ratio: float) -> None:
    """Give B, and with it every vector that is trained, `ratio` times the learning rate, in place.

    The groups are those of PEFT's `create_loraplus_optimizer`, in an optimizer that exists.
    """
    if ratio == 1:
        return
    fast = {
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ("lora_B" in name or parameter.ndim == 1)
    }
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if parameter in fast]
        if chosen:
            group["params"] = [p for p in group["params"] if p not in fast]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})


LORA = Method(name="lora", config=config, before=before, initialise=initialise)
