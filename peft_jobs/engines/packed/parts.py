"""Parts: what a trial trains on a base, and what that starts with."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import head_modules
from peft_jobs.base.heads import fresh_modules, initial_head
from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import QUANTIZED
from peft_jobs.engines.packed.forms import FORMS, FormParts, file_name
from peft_jobs.engines.packed.layout import FROZEN, Named, Shapes
from peft_jobs.methods.continuation import read_weights
from peft_jobs.methods.placement import places
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import saved_adapter


@dataclass(frozen=True)
class Parts:
    """An adapter on some modules, and other modules whole."""

    adapted: tuple[str, ...]
    """Sorted."""
    form: FormParts
    whole: Mapping[str, str]
    """Linear layers that are trained whole, with the heads that they are, or lie in."""
    shapes: Shapes
    """Of all tensors of the trial, those that it does not train among them."""
    is_transposed: bool = False
    """Whether an adapted module keeps its weight the other way round, [inputs, outputs]."""

    @property
    def heads(self) -> list[str]:
        """Sorted."""
        return sorted(set(self.whole.values()))


def parts_of(spec: TrialSpec, model: PreTrainedModel) -> Parts:
    """The modules that the trial trains, which must be one that has a packed form."""
    fresh = fresh_modules(model)
    targets = places(model, spec.adapter, exclude=fresh)
    heads = (*fresh, *head_modules(model)) if spec.task.HAS_HEAD else ()
    whole = {
        f"{head}.{inner}".rstrip("."): head
        for head in heads
        for inner, module in model.get_submodule(head).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    form = FORMS[spec.adapter.method].parts(spec.adapter, model, targets)
    shapes = dict(form.shapes)
    for name in whole:
        for own, parameter in model.get_submodule(name).named_parameters():
            shapes[name, "bias" if own == "bias" else "weight"] = parameter.shape
    is_transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    return Parts(targets, form, whole, shapes, is_transposed)


def initial_values(spec: TrialSpec, parts: Parts, model: PreTrainedModel) -> Named:
    """What the trial starts with: its adapter by its keys, and its own copies of the heads; or what
    a saved adapter has in their place."""
    values = FORMS[spec.adapter.method].values(spec, parts.form, model)
    heads = {head: initial_head(model, head, spec.seed) for head in parts.heads}
    for name, head in parts.whole.items():
        layer = heads[head].get_submodule(name[len(head) + 1 :])
        for part, parameter in layer.named_parameters():
            values[name, "bias" if part == "bias" else "weight"] = parameter.detach()
    return values if spec.adapter.source is None else _saved_values(spec, parts, values)


def _saved_values(spec: TrialSpec, parts: Parts, fresh: Named) -> Named:
    """`fresh` with the tensors of the saved adapter in their place."""
    own = {file_name(*place): value for place, value in fresh.items()}
    found = read_weights(saved_adapter(spec.adapter), own, parts.heads)
    named = {file_name(*place): place for place in fresh}
    return fresh | {named[name]: tensor.float() for name, tensor in found.items()}


def trained(shapes: Shapes) -> Shapes:
    """Those of tensors that are trained."""
    return {place: shape for place, shape in shapes.items() if place[1] not in FROZEN}


def dtype_of(base: Base) -> torch.dtype:
    """Of the trained parameters: float32, whatever the base is in (float64 in float64)."""
    weights = {p.dtype for m in base.model.modules() for p in m.parameters(recurse=False)
               if not isinstance(m, QUANTIZED)}  # fmt: skip
    return torch.float64 if torch.float64 in weights else torch.float32
