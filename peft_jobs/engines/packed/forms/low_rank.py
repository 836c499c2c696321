"""LoRA and DoRA in a pack: what a trial has of them."""

import math
from collections.abc import Sequence

from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from peft_jobs.engines.packed.forms.form import Form, FormParts
from peft_jobs.engines.packed.layout import Named, Part, features
from peft_jobs.methods.lora import ZERO_AT_FIRST, drawn_factors, first_magnitude
from peft_jobs.spec import LoraSpec, TrialSpec


def refusal(adapter: LoraSpec) -> str | None:
    if adapter.target_parameters:
        return "LoRA on parameters outside of linear modules has no packed form"
    if adapter.init_lora_weights not in ("default", "gaussian", "orthogonal"):
        return f"init_lora_weights {adapter.init_lora_weights} looks at the base or at the data"
    if adapter.bias != "none":
        return "biases of the base are trained too"
    return None


def parts(adapter: LoraSpec, model: PreTrainedModel, targets: Sequence[str]) -> FormParts:
    shapes: dict[tuple[str, Part], Sequence[int]] = {}
    scales: dict[str, float] = {}
    for name in targets:
        inputs, outputs = features(model.get_submodule(name))
        r, scales[name] = _rank_and_scale(adapter, name)
        shapes[name, "lora_A"], shapes[name, "lora_B"] = (r, inputs), (outputs, r)
        if adapter.use_dora:
            shapes[name, "magnitude"] = (outputs,)
    return FormParts(shapes, scales)


def values(spec: TrialSpec, form: FormParts, model: PreTrainedModel) -> Named:
    adapter = spec.adapter
    assert isinstance(adapter, LoraSpec)
    found: Named = {}
    for name, scale in form.scales.items():
        (r, inputs), (outputs, _) = form.shapes[name, "lora_A"], form.shapes[name, "lora_B"]
        down, up = drawn_factors(adapter.init_lora_weights, spec.seed, name, r, inputs, outputs)
        found[name, "lora_A"], found[name, "lora_B"] = down, up
        if adapter.use_dora:
            layer = model.get_submodule(name)
            factors = None if adapter.init_lora_weights in ZERO_AT_FIRST else (down, up)
            found[name, "magnitude"] = first_magnitude(layer, scale, factors).cpu()
    return found


def _rank_and_scale(adapter: LoraSpec, name: str) -> tuple[int, float]:
    """With the patterns read as PEFT reads them."""
    r = adapter.rank_pattern.get(get_pattern_key([*adapter.rank_pattern], name), adapter.r)
    key = get_pattern_key([*adapter.alpha_pattern], name)
    alpha = adapter.alpha_pattern.get(key, adapter.lora_alpha)
    return r, alpha / (math.sqrt(r) if adapter.use_rslora else r)


LORA = Form(refusal, lambda adapter: adapter.lora_dropout, parts, values)
