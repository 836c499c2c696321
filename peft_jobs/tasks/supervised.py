"""Cross entropy of supervised positions alone, with no more logits at a time than a chunk has.

The logits of all positions, and with a large vocabulary those of the supervised ones too, are the
largest tensors of a step by far. A head that is frozen gives the gradient of its input along with
the loss, so nothing is computed twice; one that is trained computes its chunks again in the
backward. A model that does something to the logits after its head (caps, scales) is left to do it,
in one piece; another type or device is nothing, as the losses are the same.

The head may be on another device than the batch, where a base is spread over several.

Dimensions: N supervised positions, H hidden size, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from peft_jobs.tasks.task import upcast

MOST_LOGITS = 1 << 26
"""Of a chunk: 256 MiB in float32."""

_CHANGED: "WeakSet[nn.Module]" = WeakSet()
"""Heads whose model changes what they give."""


def token_losses(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    predict_at: Tensor,
    targets_N: Tensor,
    most_logits: int = MOST_LOGITS,
) -> Tensor:
    """Cross entropy [N] of `targets_N` by the logits at `predict_at` of the flattened batch.

    `inputs` are the model's. In float32, or float64 of a model in float64; on the device of
    `predict_at`.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    vocabulary = getattr(head, "out_features", None)
    size = max(1, most_logits // vocabulary) if vocabulary else len(targets_N)
    if size < len(targets_N) and head not in _CHANGED:
        hidden_NH = _hidden(model, head, inputs, predict_at)
        if hidden_NH is not None:
            targets_N = targets_N.to(hidden_NH.device)
            return _in_chunks(head, hidden_NH, targets_N, size).to(predict_at.device)
        _CHANGED.add(head)
    logits_NV = _logits(model, head, inputs, predict_at)
    return _losses(logits_NV, targets_N).to(predict_at.device)


def _logits(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Tensor], predict_at: Tensor
) -> Tensor:
    """Logits [N, V]; the head is applied to the supervised positions alone."""

    def supervised_only(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_select(args[0], inputs, predict_at).unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(supervised_only)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    if logits.shape[:2].numel() != len(predict_at):  # the model uses the head's weight itself
        return _select(logits, inputs, predict_at)
    return logits.flatten(0, 1)


def _hidden(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Tensor], predict_at: Tensor
) -> Tensor | None:
    """What the head is given at the supervised positions, [N, H]; None if its logits are not the
    model's own."""
    given: list[Tensor] = []
    shown: list[Tensor] = []

    def first_only(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given.append(_select(args[0], inputs, predict_at))
        return (given[0][:1].unsqueeze(0), *args[1:])

    def show(_head: nn.Module, _args: Any, logits: Tensor) -> Tensor:
        shown.append(_pattern(logits))
        return shown[-1]

    hooks = head.register_forward_pre_hook(first_only), head.register_forward_hook(show)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return given[0] if len(shown) == 1 and _is_same(logits, shown[0]) else None


def _pattern(like: Tensor) -> Tensor:
    """Numbers to which nothing can be done unseen: any type holds them, none is in its place after
    a sum, a product or a cap."""
    places = torch.arange(like.numel(), device=like.device)
    sizes = torch.where(places % 2 == 0, 1.0, 32768.0)
    return (sizes * (places % 3 - 1)).to(like.dtype).view(like.shape)


def _is_same(logits: Tensor, shown: Tensor) -> bool:
    """Whether these are the logits that were `shown`, perhaps in another type or elsewhere."""
    if logits is shown and logits._version == shown._version == 0:
        return True
    return logits.shape == shown.shape and torch.equal(logits, _pattern(shown).to(logits))


def _select(states: Tensor, inputs: Mapping[str, Tensor], predict_at: Tensor) -> Tensor:
    """The states, [B, S, ...], at the positions; an adapter's virtual tokens come before them."""
    length = inputs["input_ids"].shape[1]
    return states[:, -length:].flatten(0, 1).index_select(0, predict_at.to(states.device))


def _losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return cross_entropy(upcast(logits_NV), targets_N.to(logits_NV.device), reduction="none")


def _in_chunks(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, size: int) -> Tensor:
    """Losses [N], with no more than `size` rows of logits at a time."""
    if not torch.is_grad_enabled():
        return _FrozenHead.of(head, hidden_NH, targets_N, size, with_gradients=False)[0]
    if not any(parameter.requires_grad for parameter in head.parameters()):
        losses_N: Tensor = _FrozenHead.apply(  # type: ignore[no-untyped-call]
            hidden_NH, targets_N, head, size
        )
        return losses_N

    def of_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        return _losses(head(hidden), targets)

    parts = zip(torch.split(hidden_NH, size), torch.split(targets_N, size), strict=True)
    return torch.cat(
        [
            checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
    )


class _FrozenHead(torch.autograd.Function):
    """Each loss depends on one row of `hidden` alone: its gradient is scaled in the backward."""

    @staticmethod
    def of(
        head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, size: int, with_gradients: bool
    ) -> tuple[Tensor, Tensor | None]:
        losses: list[Tensor] = []
        grad_NH = torch.empty_like(hidden_NH) if with_gradients else None
        for start in range(0, len(hidden_NH), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(with_gradients):
                hidden = hidden_NH[rows].detach().requires_grad_(with_gradients)
                found = _losses(head(hidden), targets_N[rows])
                if grad_NH is not None:
                    (grad_NH[rows],) = torch.autograd.grad(found.sum(), hidden)
            losses.append(found.detach().to(hidden_NH.device))
        return torch.cat(losses), grad_NH

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: nn.Module, size: int
    ) -> Tensor:
        losses_N, grad_NH = _FrozenHead.of(head, hidden_NH, targets_N, size, True)
        ctx.save_for_backward(grad_NH)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad_NH,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(1) * grad_NH).to(grad_NH.dtype), None, None, None
