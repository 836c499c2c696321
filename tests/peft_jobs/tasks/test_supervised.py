"""Losses in chunks are the losses in one piece, and no chunk holds more logits than it may."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from peft_jobs.base.loading import load_base
from peft_jobs.methods import METHODS
from peft_jobs.tasks import TASKS
from peft_jobs.tasks.causal_lm import CausalLM

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WHOLE, CHUNKED = TASKS["causal_lm"], CausalLM(most_logits=7 * 1000)


@pytest.fixture(scope="module")
def make() -> Callable[..., Any]:
    """(name of an architecture, more of its configuration) -> random model, frozen."""
    import transformers

    def build(name: str = "Llama", **config: Any) -> Any:
        torch.manual_seed(0)
        built = getattr(transformers, f"{name}Config")(**{**SMALL, **config})
        model = getattr(transformers, f"{name}ForCausalLM")(built)
        return model.requires_grad_(False).eval()

    return build


def batch_of(num_rows: int = 6, vocabulary: int = 1000) -> Any:
    """Rows of several lengths, of which the first third is no target."""
    source = torch.Generator().manual_seed(1)
    examples = []
    for row in range(num_rows):
        tokens = torch.randint(1, vocabulary, (6 + 3 * row,), generator=source).tolist()
        context = len(tokens) // 3
        labels = [-100] * context + tokens[context:]
        examples.append({"input_ids": tokens, "labels": labels, "num_bytes": 1})
    return WHOLE.collate(examples, 0)


def gradients(task: Any, model: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses, and gradients of their sum with weights of their own."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = task.losses(model, batch)
    weights = torch.linspace(0.1, 2.0, len(losses), dtype=losses.dtype, device=losses.device)
    return losses.detach(), list(torch.autograd.grad((losses * weights).sum(), trained))


def furthest(one: Any, other: Any) -> float:
    """The largest difference, in parts of the largest value of its tensor."""
    return max(
        ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
def test_losses_and_gradients_do_not_depend_on_the_chunks(
    make: Any, head: str, dtype: torch.dtype, close: float
) -> None:
    model, batch = make().to(dtype), batch_of()
    model.model.layers[0].requires_grad_(True)
    model.lm_head.requires_grad_(head == "trained")
    losses, grads = gradients(WHOLE, model, batch)
    for size in (1, 7, 1000):
        found = gradients(CausalLM(most_logits=size * 1000), model, batch)
        assert furthest([losses], [found[0]]) < close
        assert furthest(grads, found[1]) < close
    with torch.no_grad():
        assert furthest([losses], [CHUNKED.losses(model, batch)]) < close
    assert len(grads) == 9 + (head == "trained")
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize(
    "params",
    [
        {"quantization.scheme": "nf4"},
        {"adapter.modules_to_save": ["lm_head"]},
        {"training.gradient_checkpointing": True, "adapter.lora_dropout": 0.2},
        {"training.gradient_checkpointing": True, "adapter.modules_to_save": ["lm_head"]},
    ],
    ids=["nf4", "head trained whole", "gradient checkpointing", "both"],
)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_trials_learn_the_same_in_chunks(trial: Any, params: dict[str, Any], bf16: bool) -> None:
    spec = trial({"adapter.r": 4, **params})
    base = load_base(spec.model, spec.quantization, spec.task)
    model = METHODS["lora"].attach(base, spec).train()
    with torch.no_grad():  # zero B has no gradient for A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    batch = batch_of(vocabulary=128)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses, grads = gradients(WHOLE, model, batch)
        found = gradients(CausalLM(most_logits=5 * 128), model, batch)
    METHODS["lora"].detach(model)
    close = 2e-2 if bf16 else 1e-5
    assert furthest([losses], [found[0]]) < close
    assert furthest(grads, found[1]) < close
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Gemma2", {"final_logit_softcapping": 0.1, "head_dim": 8}),
        ("Granite", {"logits_scaling": 7.0}),
        ("Cohere", {"logit_scale": 3.0}),
        ("Llama", {"tie_word_embeddings": True}),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_what_a_model_does_to_its_logits_is_done(
    make: Any, name: str, config: dict[str, Any], again: bool
) -> None:
    model, batch = make(name, **config), batch_of()
    model.model.layers[0].requires_grad_(True)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = model(**inputs).logits[:, :-1].transpose(1, 2)
    expected = cross_entropy(logits, batch["labels"][:, 1:], reduction="none").sum(dim=1)
    for _ in range(1 + again):
        found = gradients(CHUNKED, model, batch)
    assert furthest([expected.detach()], [found[0]]) < 1e-5
    assert furthest(gradients(WHOLE, model, batch)[1], found[1]) < 1e-5


class Logits(TorchDispatchMode):
    """Remembers the most rows of logits that were in one tensor."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                self.most = max(self.most, tensor.numel() // self.vocabulary)
        return found


@pytest.mark.parametrize("head", ["frozen", "trained", "evaluated"])
def test_no_tensor_holds_more_logits_than_a_chunk(make: Any, head: str) -> None:
    model, batch = make(), batch_of(24)
    num_targets, chunk = len(batch["targets"]), 40
    assert num_targets > 10 * chunk > 10 * SMALL["hidden_size"], "the head's weight is smaller"
    model.model.layers[0].requires_grad_(True)
    model.lm_head.requires_grad_(head == "trained")
    seen = []
    for task in (WHOLE, CausalLM(most_logits=chunk * 1000)):
        with Logits(1000) as logits, torch.set_grad_enabled(head != "evaluated"):
            losses = task.losses(model, batch)
            if head != "evaluated":
                losses.sum().backward()
        seen.append(logits.most)
    assert seen == [num_targets, chunk]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", ["frozen", "evaluated"])
def test_logits_in_another_type_are_had_in_chunks(make: Any, dtype: torch.dtype, head: str) -> None:
    """As accelerate leaves a model's forward in mixed precision."""
    model, batch, chunk = make(), batch_of(24), 40
    model.model.layers[0].requires_grad_(True)
    plain = model.forward
    found, most = [], []
    for task in (WHOLE, CausalLM(most_logits=chunk * 1000)):
        model.forward = MethodType(convert_outputs_to_fp32(plain.__func__), model)
        for _ in range(2):  # what is learnt of the head is right
            with Logits(1000) as logits, torch.autocast("cpu", dtype):
                if head == "evaluated":
                    with torch.no_grad():
                        found.append([task.losses(model, batch)])
                else:
                    found.append([*gradients(task, model, batch)[1]])
            most.append(logits.most)
            model.forward = plain
    assert most == [len(batch["targets"])] * 2 + [chunk] * 2
    for other in found[1:]:
        assert furthest(found[0], other) < 2e-2


def test_a_cap_that_is_far_from_all_logits_is_seen(make: Any) -> None:
    model, batch = make("Gemma2", final_logit_softcapping=1e6, head_dim=8), batch_of()
    model.model.layers[0].requires_grad_(True)
    model.lm_head.weight.data *= 1e-3
    with Logits(1000) as logits, torch.no_grad():
        CHUNKED.losses(model, batch)
    assert logits.most > 7
