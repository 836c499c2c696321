"""(IA)3 and VeRA in a pack: what a trial has of them."""

from collections.abc import Sequence
from functools import partial

import torch
from peft.tuners.vera.model import _kaiming_init
from torch import Tensor
from transformers import PreTrainedModel

from peft_jobs.engines.packed.forms.form import Form, FormParts
from peft_jobs.engines.packed.layout import Named, Part, features
from peft_jobs.methods.scaling import scaled_inputs
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import Ia3Spec, VeraSpec


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
    drawn = partial(_projections, adapter.projection_prng_key, adapter.r, inputs, outputs)
    return FormParts(shapes, frozen=lambda: _named(*drawn()))


def vera_values(spec: TrialSpec, form: FormParts, model: PreTrainedModel) -> Named:
    adapter = spec.adapter
    assert isinstance(adapter, VeraSpec)
    starts = {"lambda_d": adapter.d_initial, "lambda_b": 0.0}
    return {
        (module, part): torch.full(tuple(shape), starts[part])
        for (module, part), shape in form.shapes.items()
        if part in starts
    }


def _projections(key: int, r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A [r, inputs] and B [outputs, r], as `VeraModel._init_vera_A_vera_B` of PEFT draws them."""
    source = torch.Generator().manual_seed(key)
    down: Tensor = _kaiming_init((r, inputs), generator=source)
    up: Tensor = _kaiming_init((outputs, r), generator=source)
    return down, up


def _named(down: Tensor, up: Tensor) -> Named:
    return {("", "vera_A"): down, ("", "vera_B"): up}


IA3 = Form(lambda adapter: None, lambda adapter: 0.0, ia3_parts, ia3_values)
VERA = Form(vera_refusal, lambda adapter: adapter.vera_dropout, vera_parts, vera_values)
