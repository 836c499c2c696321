"""A base over several devices gives what it gives on one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from peft_jobs.base.loading import load_base
from peft_jobs.evaluation.scoring import to_device
from peft_jobs.methods.loftq import factors
from peft_jobs.methods.lora import _vectors
from peft_jobs.spec import CausalLMSpec, ModelSpec, QuantizationSpec
from peft_jobs.tasks.causal_lm import CausalLM
from tests.peft_jobs.tasks.test_supervised import SMALL, batch_of, furthest, gradients


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_a_spread_base_is_the_same_base(tiny_llama_path: Path, scheme: str) -> None:
    model = ModelSpec(name_or_path=str(tiny_llama_path))
    quantization, task = QuantizationSpec(scheme=scheme), CausalLMSpec(response="{x}")
    placed = load_base(model, quantization, task)
    spread = load_base(model, quantization, task, spread=True)
    assert spread.fingerprint == placed.fingerprint
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        same = torch.equal(spread.model(tokens).logits, placed.model(tokens).logits)
    assert same
    assert {p.device for p in spread.model.parameters()} == {placed.device}


class MovedTo(ModelHook):
    """What comes in goes to a device, and what comes out to another or nowhere, as in
    accelerate's own hooks, which cannot be put on tensors without contents."""

    def __init__(self, device: str, back: str | None = None) -> None:
        self.device, self.back = device, back

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)

    def post_forward(self, module: Any, output: Any) -> Any:
        return output if self.back is None else send_to_device(output, self.back)


@pytest.fixture
def llama() -> Callable[[], Any]:
    def build() -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(**SMALL, attn_implementation="eager")
        return LlamaForCausalLM(config).requires_grad_(False).eval()

    return build


@pytest.mark.parametrize(
    ("most_logits", "back"), [(1 << 26, "cuda:0"), (1 << 26, None), (7 * 1000, None)]
)
def test_losses_come_back_to_the_batch_whose_base_is_elsewhere(
    llama: Any, most_logits: int, back: str | None
) -> None:
    """Tensors that have a device and no contents: operations on two devices fail as on GPUs."""
    model, mode = llama(), FakeTensorMode()
    for name, module in model.named_modules():
        device = "cuda:1" if name == "lm_head" else "cpu"
        for tensors in (module._parameters, module._buffers):
            for key in [key for key, tensor in tensors.items() if tensor is not None]:
                empty = tensors[key].detach().to("meta")
                tensors[key] = FakeTensor(mode, empty, torch.device(device))
    add_hook_to_module(model.lm_head, MovedTo("cuda:1"))
    add_hook_to_module(model, MovedTo("cpu", back))
    batch = {
        key: FakeTensor(mode, tensor.to("meta"), torch.device("cuda:0"))
        for key, tensor in batch_of().items()
    }
    with mode, torch.no_grad():
        losses = CausalLM(most_logits).losses(model, batch)
    assert losses.device == torch.device("cuda:0")
    assert losses.shape == (6,)


@pytest.mark.parametrize("num_rows", [(), (2,)])
def test_eva_compares_layers_on_the_device_of_the_batch(num_rows: tuple[int, ...]) -> None:
    mode = FakeTensorMode()

    def on(device: str, *shape: int, **kind: Any) -> Any:
        return FakeTensor(mode, torch.empty(shape, device="meta", **kind), torch.device(device))

    states, places = on("cpu", *num_rows, 5, 8), on("cuda:0", 7, 2, dtype=torch.long)
    with mode:
        found = _vectors((states,), {5: places}, "layer")
    assert found.device == torch.device("cuda:0")
    assert found.shape == ((7, 8) if num_rows else (5, 8))


def test_loftq_works_on_the_device_of_each_layer(trial: Any) -> None:
    """On one without contents, for which bitsandbytes has no kernels: it is not quantized."""
    spec, name = trial(), "model.layers.1.self_attn.q_proj"
    base = load_base(spec.model, spec.quantization, spec.task)
    layer = base.model.get_submodule(name)
    wrapper = torch.nn.Module()
    wrapper.base_layer = layer.to("meta")
    base.model.set_submodule(name, wrapper)
    down, up = factors(base, spec, name, r=4, scale=2.0)
    assert (down.shape, up.shape) == ((4, 64), (64, 4))
    assert {down.device, up.device} == {torch.device("meta")}


@pytest.mark.gpu
@pytest.mark.parametrize("most_logits", [1 << 26, 7 * 1000])
@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize("head_alone", [False, True])
def test_a_base_over_two_devices_learns_the_same(
    llama: Any, most_logits: int, head: str, head_alone: bool
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    task, batch = CausalLM(most_logits), batch_of()
    found = []
    for second in (0, 1):
        model = llama()
        model.model.layers[0].requires_grad_(True)
        model.lm_head.requires_grad_(head == "trained")
        places = {
            "model.embed_tokens": 0,
            "model.rotary_emb": 0,
            "model.layers.0": 0,
            "model.layers.1": 0 if head_alone else second,
            "model.norm": 0 if head_alone else second,
            "lm_head": second,
        }
        dispatch_model(model, places, main_device=0, force_hooks=True)
        losses, grads = gradients(task, model, to_device(batch, torch.device("cuda:0")))
        assert losses.device == torch.device("cuda:0")
        found.append([losses.cpu(), *(grad.cpu() for grad in grads)])
        with torch.no_grad():
            assert furthest([losses], [task.losses(model, to_device(batch, losses.device))]) < 1e-5
    assert furthest(*found) < 1e-5
