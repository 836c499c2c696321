"""The dropout that a base has itself (BERT, GPT-2), keyed as that of an adapter is.

A base drops by torch's functions, in modules and in attention. They are watched while the model
runs, and the mask comes from (seed, micro-step, module) instead of torch's generators: whoever
trains beside a trial, and computing it again in a backward, change nothing. Where in a module a
mask belongs is its line in the code, so another version of transformers may draw another one; a
module that is called several times (ALBERT's one layer) drops the same each time.

Dimensions: B rows, H heads, Q queries, S keys.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from peft_jobs.dropout_masks import signed
from peft_jobs.randomness import ADAPTER, Clock, base_name, counters_of, dropout_step_key, key
from peft_jobs.site_masks import SiteMasks

Draw = Callable[[Tensor, float, str], Tensor]
"""(x, p, where) -> x with elements dropped, the others scaled."""


class KeyedBaseDropout(TorchFunctionMode):
    """While it is entered, what modules of `model` drop by functions is dropped by `draw`, which is
    set before."""

    draw: Draw

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.masks = SiteMasks()
        self._last: tuple[Tensor | None, Any, Tensor] | None = None
        """A mask of attention, what scores it is for, and what is added to them."""
        self._names = {id(module): _name(name) for name, module in model.named_modules()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        if p == 1:
            return torch.zeros_like(input)
        return self.draw(input, p, self._where())

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """As torch's, whose own draws no key reaches: with its probabilities at hand."""
        if not dropout_p:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=is_causal, **options
            )
        if options.pop("enable_gqa", False):
            groups = query.shape[-3] // key.shape[-3]
            key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
        if (scale := options.pop("scale", None)) is None:
            scale = query.shape[-1] ** -0.5
        assert not options, options
        scores_BHQS = (query * scale) @ key.transpose(-1, -2)
        if is_causal or attn_mask is not None:
            scores_BHQS = scores_BHQS + self._added(attn_mask, scores_BHQS)
        # In float32, as torch's kernels and transformers' own attention add up the shares.
        wide = torch.promote_types(scores_BHQS.dtype, torch.float32)
        shares_BHQS = torch._safe_softmax(scores_BHQS, -1, dtype=wide).to(scores_BHQS.dtype)
        return self.draw(shares_BHQS, dropout_p, self._where()) @ value

    def _added(self, attn_mask: Tensor | None, scores_BHQS: Tensor) -> Tensor:
        """What is added to scores, in their dtype: to those of later tokens where there is no mask.
        Of a mask that one layer after the other has, it is made once."""
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            return attn_mask
        kind = scores_BHQS.shape[-2:], scores_BHQS.dtype, scores_BHQS.device
        if self._last is None or self._last[0] is not attn_mask or self._last[1] != kind:
            allowed = attn_mask
            if allowed is None:
                size, device = scores_BHQS.shape[-2:], scores_BHQS.device
                allowed = torch.ones(size, dtype=torch.bool, device=device).tril()
            zeros = torch.zeros_like(allowed, dtype=scores_BHQS.dtype)
            self._last = attn_mask, kind, zeros.masked_fill_(~allowed, -torch.inf)
        return self._last[2]

    def _where(self) -> str:
        """The innermost module of the model at work, and the line of its code."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            held = frame.f_locals
            for module in (held.get("self"), held.get("module")):
                if id(module) in self._names:
                    line = frame.f_lineno - frame.f_code.co_firstlineno
                    return f"base {self._names[id(module)]} {line}"
        raise RuntimeError("dropout outside of the modules of the model")


def _name(name: str) -> str:
    """In the base, of a module of a PeftModel."""
    return base_name(name).replace(f".modules_to_save.{ADAPTER}", "").replace(".base_layer", "")


def key_base_dropout(
    peft_model: nn.Module, seed: int, clock: Clock, always: bool = False
) -> Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]] | None:
    """Make what the base itself draws in training follow (seed, micro-step) too.

    What is left to torch's global generators is drawn from a state that follows them as well. A
    base without dropout is left alone, with None, unless `always` says that the adapter itself
    draws in some such way. Otherwise gives what `torch.utils.checkpoint` takes as `context_fn`.
    """
    if not always and not has_dropout(peft_model):
        return None

    keyed, entered = KeyedBaseDropout(peft_model), list[Any]()
    device = getattr(next(peft_model.parameters(), None), "device", None)
    counters: dict[int, Tensor] = {}

    def draw(x: Tensor, p: float, where: str) -> Tensor:
        tokens = x.shape[:-1].numel()
        if tokens not in counters:
            counters[tokens] = counters_of(tokens, x.device)
        return keyed.masks.dropped(x, p, where, lambda: counters[tokens])

    keyed.draw = draw

    def begin(module: nn.Module, _inputs: object) -> None:
        if module.training:  # or nothing drops, and each of torch's functions would be looked at
            torch.manual_seed(key("base dropout", seed, clock.micro_step))
            step = signed(dropout_step_key(seed, clock.micro_step))
            keyed.masks.begin(torch.full((1, 1), step, device=device))
            counters.clear()
            entered.append(keyed.__enter__())  # type: ignore[no-untyped-call]

    def end(*_: object) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    peft_model.register_forward_pre_hook(begin)
    peft_model.register_forward_hook(end, always_call=True)
    return lambda: (nullcontext(), keyed)


def has_dropout(model: nn.Module) -> bool:
    """Whether the base under `model` may drop something in training: by module or by configuration,
    where some rates are of heads that it does not have."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config: Any = getattr(model, "config", None)
    return _names_a_rate(config.to_dict() if hasattr(config, "to_dict") else {})


def _names_a_rate(values: Mapping[str, Any]) -> bool:
    """Whether a configuration, or one in it (of the text part), names a rate of dropout: LayerDrop
    too, which leaves out whole layers."""
    return any(
        _names_a_rate(value)
        if isinstance(value, dict)
        else "drop" in str(name) and isinstance(value, float) and value > 0
        for name, value in values.items()
    )
