"""Dropout masks of the sites in a base that drop, those of several sites drawn at once.

A site is a module and the line of its code that drops (`peft_jobs.base_dropout`). What a site drops
is known when its turn comes. So the first micro-step says which sites are of one shape, and from
the second on they are drawn together: fewer launches, the same bits.

Dimensions: K streams, N sites of a group, T tokens, C words of a token and one more, I a site's
columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_jobs.dropout_masks import draw_kept, num_words, signed, threshold
from peft_jobs.randomness import dropout_module_key

TOGETHER = 4
"""Sites of a group at most: while a group is drawn, it takes about eight bytes an element."""

Asked = tuple[torch.Size, float]
"""A site's shape and rate."""


@dataclass(frozen=True)
class _Group:
    """Sites that had one shape and rate when they were seen, one after the other."""

    sites: Sequence[str]
    keys_N11: Tensor


class SiteMasks:
    """Of one model, micro-step for micro-step."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        """What each site was when it was seen first."""
        self._groups: dict[str, _Group] = {}
        """Of each site; of one that was not known when the micro-step began, itself alone."""
        self._num_known = 0
        self._constants: dict[Any, Tensor] = {}
        self._held: dict[Asked, tuple[_Group, Tensor]] = {}
        """Of each kind, the group that was drawn last, and what it keeps."""

    def begin(self, steps_K1: Tensor) -> None:
        """The draws that follow are of streams whose micro-steps have these keys, int64."""
        self._steps_1K1, self._held = steps_K1.unsqueeze(0), {}
        if self._num_known == len(self._asked):
            return
        self._num_known = len(self._asked)
        kinds: dict[Asked, list[str]] = {}
        for site, asked in self._asked.items():
            kinds.setdefault(asked, []).append(site)
        for sites in kinds.values():
            for start in range(0, len(sites), TOGETHER):
                group = self._group(sites[start : start + TOGETHER])
                self._groups |= dict.fromkeys(group.sites, group)

    def dropped(self, x: Tensor, p: float, site: str, counters: Callable[[], Tensor]) -> Tensor:
        """`x` with elements zeroed with probability `p`, the others scaled by 1 / (1 - p).

        `counters` gives [K, T], as `draw_kept` takes them; `x` has the columns of K * T tokens. The
        result rounds once.
        """
        kind = x.shape, p
        if site not in self._asked:
            self._asked[site], self._groups[site] = kind, self._group([site])
        group, kept_NKTI = self._held.get(kind, (None, None))
        if group is None or kept_NKTI is None or site not in group.sites:
            self._held.pop(kind, None)  # before the next is drawn
            group = self._groups[site]
            kept_NKTI = self._drawn(group, x.shape[-1], p, counters())
            self._held[kind] = group, kept_NKTI
        kept = kept_NKTI[group.sites.index(site)].reshape(x.shape)
        zero = self._constant((x.dtype, x.device), lambda: x.new_zeros(()))
        found: Tensor = _Dropped.apply(x, kept, zero, 1 / (1 - p))  # type: ignore[no-untyped-call]
        return found

    def _group(self, sites: Sequence[str]) -> _Group:
        keys_N = [signed(dropout_module_key(site)) for site in sites]
        return _Group(sites, torch.tensor(keys_N, device=self._steps_1K1.device).view(-1, 1, 1))

    def _drawn(self, group: _Group, width: int, p: float, counters_KT: Tensor) -> Tensor:
        """[N, K, T, I]."""
        device, num_streams = counters_KT.device, len(group.sites) * len(counters_KT)
        words_C = self._constant(
            (width, device), lambda: torch.arange(num_words(width), device=device)
        )
        keys_NK1 = self._steps_1K1.to(device) ^ group.keys_N11.to(device)
        keys_S1 = keys_NK1.bitwise_or_(1).view(num_streams, 1)
        counters_ST = counters_KT.expand(len(group.sites), -1, -1).reshape(num_streams, -1)
        kept_STI = draw_kept(keys_S1, keys_S1 * words_C, counters_ST, threshold(p))[..., :width]
        return kept_STI.view(len(group.sites), -1, *kept_STI.shape[1:])

    def _constant(self, name: Any, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]


class _Dropped(torch.autograd.Function):
    """One kernel each way, where autograd of the product would take two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, zero: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept, zero)
        ctx.factor = factor
        return torch.addcmul(zero, x, kept, value=factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        kept, zero = ctx.saved_tensors
        return torch.addcmul(zero, gradients[0], kept, value=ctx.factor), None, None, None
