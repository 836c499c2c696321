"""(IA)3, VeRA and MiSS in a pack: what a trial has of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.vera.model import _kaiming_init
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.engines.packed.forms.form import Form, FormParts
from peft_jobs.engines.packed.layout import Named, Part, features
from peft_jobs.methods.float32_copies import HALF
from peft_jobs.methods.scaling import scaled_inputs
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import Ia3Spec, MissSpec, VeraSpec


def ia3_parts(adapter: Ia3Spec, model: PreTrainedModel, targets: Sequence[str]) -> FormParts:
    inputs = scaled_inputs(adapter, targets)
    shapes: dict[tuple[str, Part], Sequence[int]] = {}
    for name in targets:
        width, height = features(model.get_submodule(name))
        if name in inputs:
            shapes[name, "scaled_inputs"] = (1, width)
        else:
            shapes[name, "scaled_outputs"] = (height, 1)
    return FormParts(shapes)


def ia3_values(spec: TrialSpec, form: FormParts, model: PreTrainedModel) -> Named:
    return {place: torch.ones(*shape) for place, shape in form.shapes.items()}


def vera_refusal(adapter: VeraSpec) -> str | None:
    if adapter.source is not None:
        return "a saved VeRA brings random matrices of its own"
    return None


def vera_parts(adapter: VeraSpec, model: PreTrainedModel, targets: Sequence[str]) -> FormParts:
    shapes: dict[tuple[str, Part], Sequence[int]] = {}
    widths = [features(model.get_submodule(name)) for name in targets]
    inputs, outputs = (max(sizes) for sizes in zip(*widths, strict=True))
    shapes["", "vera_A"], shapes["", "vera_B"] = (adapter.r, inputs), (outputs, adapter.r)
    for name, (_, height) in zip(targets, widths, strict=True):
        shapes[name, "lambda_d"], shapes[name, "lambda_b"] = (adapter.r,), (height,)
    halves = _halves(model, targets)
    drawn = partial(_projections, adapter.projection_prng_key, adapter.r, inputs, outputs)

    def frozen() -> Named:
        down, up = (_as_moved(matrix, halves) for matrix in drawn())
        return {("", "vera_A"): down, ("", "vera_B"): up}

    return FormParts(shapes, frozen=frozen)


def vera_values(spec: TrialSpec, form: FormParts, model: PreTrainedModel) -> Named:
    adapter = spec.adapter
    assert isinstance(adapter, VeraSpec)
    starts = {"lambda_d": adapter.d_initial, "lambda_b": 0.0}
    return {
        (module, part): _as_moved(torch.full(tuple(shape), starts[part]), _halves(model, [module]))
        for (module, part), shape in form.shapes.items()
        if part in starts
    }


def _halves(model: PreTrainedModel, modules: Sequence[str]) -> set[torch.dtype]:
    """Types in half precision among the weights of modules."""
    layers: list[Any] = [model.get_submodule(name) for name in modules]
    return {layer.weight.dtype for layer in layers} & HALF


def _as_moved(tensor: Tensor, halves: set[torch.dtype]) -> Tensor:
    """`tensor` as PEFT keeps it, which gives it the type of each of its layers before it is raised
    to float32 again (`_move_adapter_to_device_of_base_layer`)."""
    for dtype in halves:
        tensor = tensor.to(dtype).float()
    return tensor


def _projections(key: int, r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A [r, inputs] and B [outputs, r], as `VeraModel._init_vera_A_vera_B` of PEFT draws them."""
    source = torch.Generator().manual_seed(key)
    down: Tensor = _kaiming_init((r, inputs), generator=source)
    up: Tensor = _kaiming_init((outputs, r), generator=source)
    return down, up


def miss_refusal(adapter: MissSpec) -> str | None:
    if adapter.init_weights != "default":
        return f"the form {adapter.init_weights} of miss has no packed form"
    return None


def miss_layer_refusal(adapter: MissSpec, layer: nn.Module) -> str | None:
    if isinstance(layer, Conv1D):
        return "miss takes no Conv1D"
    if adapter.r > features(layer)[0]:
        return f"miss of rank {adapter.r} does not fit a layer of {features(layer)[0]} inputs"
    return None


def miss_parts(adapter: MissSpec, model: PreTrainedModel, targets: Sequence[str]) -> FormParts:
    widths = [features(model.get_submodule(name)) for name in targets]
    r, inputs = adapter.r, max(width for width, _ in widths)
    shapes: dict[tuple[str, Part], Sequence[int]] = {("", "shards"): (r, inputs)}
    for name, (_, height) in zip(targets, widths, strict=True):
        shapes[name, "block"] = (r, height)
    return FormParts(shapes, frozen=lambda: {("", "shards"): _shards(r, inputs)})


def _shards(r: int, inputs: int) -> Tensor:
    """[r, inputs]: which input goes into which sum."""
    return torch.eye(r).repeat(1, -(-inputs // r))[:, :inputs]


def miss_values(spec: TrialSpec, form: FormParts, model: PreTrainedModel) -> Named:
    return {
        place: torch.zeros(*shape) for place, shape in form.shapes.items() if place[1] == "block"
    }


IA3 = Form(lambda adapter: None, lambda adapter: 0.0, ia3_parts, ia3_values)
VERA = Form(vera_refusal, lambda adapter: adapter.vera_dropout, vera_parts, vera_values)
MISS = Form(
    miss_refusal, lambda adapter: adapter.miss_dropout, miss_parts, miss_values, miss_layer_refusal
)
