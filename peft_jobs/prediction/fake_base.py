"""A base without weights: its modules from config.json alone, on fake tensors.

Fake tensors say that they are on the CPU, whatever device is asked about: no build of torch and no
driver is needed for one, and the answer is the same on every machine. What torch does otherwise on
a GPU is told apart by the `Kind` of the device.

It is built on the meta device, quantized there by shapes, given its adapter there by the product's
own methods, and only then becomes fake: PEFT moves its new layers with `.to`, which no fake
parameter bears.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_any, tree_map_only
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from peft_jobs.base.architecture import auto_class, head_modules, read_config
from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import bnb_config
from peft_jobs.base.stored_quantization import check_stored, drop_stored
from peft_jobs.base.text_reach import note_unreached
from peft_jobs.prediction.depth import at_depth
from peft_jobs.prediction.meter import Meter
from peft_jobs.prediction.quantized_layers import fake_weight, quantize_by_shape
from peft_jobs.spec import TrialSpec

Kind = Literal["cuda", "cpu"]
"""Of the device that is asked about."""
META, CPU = torch.device("meta"), torch.device("cpu")


@dataclass(frozen=True)
class FakeTokenizer:
    """What the engines ask of a tokenizer while they train."""

    pad_token_id: int
    eos_token_id: int | None = None


def meta_base(spec: TrialSpec, kind: Kind, num_labels: int, depth: int | None) -> Base:
    """The base of a trial on the meta device, frozen, in eval mode; `depth` layers of it, or all.

    `kind` is that of the device it is meant for. Raises SpecError like `read_config`.
    """
    labels = num_labels if spec.task.HAS_HEAD else None
    config = read_config(spec.model, spec.task, labels)
    check_stored(spec.model, config, spec.quantization)
    drop_stored(config)
    pad = config.pad_token_id
    config.pad_token_id = 0 if pad is None else pad
    config.use_cache = False
    if depth is not None:
        config = at_depth(config, depth)
    with META, torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = auto_class(spec.task).from_config(
            config,
            trust_remote_code=False,
            dtype=dtype_of(spec, config, kind),
            attn_implementation=spec.model.attn_implementation,
        )
    note_unreached(model)
    quantization = spec.quantization
    if quantization.scheme != "none":
        skip = [*head_modules(model), *quantization.llm_int8_skip_modules]
        in_float32 = list(model._keep_in_fp32_modules or ())
        left_out = HfQuantizer.get_modules_to_not_convert(model, skip, in_float32)
        chosen = bnb_config(quantization, skip, torch.device("cpu"))
        assert chosen is not None
        if quantization.bnb_4bit_compute_dtype == "auto" and kind == "cuda":
            chosen.bnb_4bit_compute_dtype = torch.bfloat16
        replace_with_bnb_linear(model, left_out, chosen, pre_quantized=False)
        quantize_by_shape(model, quantization)
    model.requires_grad_(False).train(False)
    tokenizer: Any = FakeTokenizer(config.pad_token_id)
    return Base(model, tokenizer, META, {}, {}, "", "", {})


def dtype_of(spec: TrialSpec, config: PretrainedConfig, kind: Kind) -> torch.dtype:
    """Of the weights that are not quantized, as `peft_jobs.base.loading` has them."""
    name = spec.model.dtype
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if kind == "cpu":
        return torch.float32
    stored = config.dtype or config.get_text_config(decoder=True).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def fake_in_place(model: nn.Module, mode: FakeTensorMode) -> None:
    """Make every tensor of `model` a fake one of `mode`, which is not on, in place: parameters,
    buffers, and what modules hold beside them."""
    converter = mode.fake_tensor_converter
    known: dict[int, Any] = {}

    def faked(tensor: Tensor) -> Tensor:
        if id(tensor) in known:
            return cast(Tensor, known[id(tensor)][1])
        on_meta = tensor.detach() if tensor.is_meta else tensor.detach().to("meta")
        fake: Tensor = converter.from_meta_and_device(mode, on_meta, CPU)
        if isinstance(tensor, nn.Parameter):
            fake = fake_weight(tensor, nn.Parameter(fake, requires_grad=tensor.requires_grad))
            for name, value in vars(tensor).items():
                setattr(fake, name, _faked(value, faked))
        known[id(tensor)] = tensor, fake
        return fake

    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name not in ("_modules", "_forward_hooks", "_forward_pre_hooks"):
                vars(module)[name] = _faked(value, faked)


def _faked(value: Any, faked: Any) -> Any:
    """`value` with its tensors made fake, in dictionaries, lists and quantization states too."""
    if isinstance(value, Tensor):
        return faked(value)
    if type(value).__module__.startswith("bitsandbytes"):
        for name, part in list(vars(value).items()):
            setattr(value, name, _faked(part, faked))
        return value
    if isinstance(value, dict | list | tuple) and tree_any(
        lambda leaf: isinstance(leaf, Tensor), value
    ):
        return tree_map_only(Tensor, faked, value)
    return value


def hold_model(meter: Meter, model: nn.Module) -> None:
    """Count the parameters and buffers of `model`: adapter, quantization state, or weights."""
    for parameter in model.parameters():
        meter.hold(parameter, "adapter" if parameter.requires_grad else "weights")
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for value in vars(part).values() if part is not None else ():
                if isinstance(value, Tensor):
                    meter.hold(value, "quantization")
    for module in model.modules():
        for name, value in vars(module).items():
            held = value if name != "state" else vars(value)
            for leaf in held.values() if isinstance(held, dict) else (held,):
                if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
                    meter.hold(leaf, "weights")
