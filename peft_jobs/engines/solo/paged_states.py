"""Managed memory of bitsandbytes' paged optimizers, which the next trial uses again.

bitsandbytes 0.50.2 allocates it, frees none of it, and keeps a list of all of it for the life of
the process. So each trial would leave its moments behind, out of reach of torch's counters.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from bitsandbytes import functional
from torch import Tensor

_free: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}
"""Buffers that no trial uses, by the number of their elements, a power of two."""


@contextmanager
def reused() -> Iterator[None]:
    """A block whose optimizer takes buffers of blocks before it, and leaves its own to the next.

    So a process has as many as the trial with the most of each size. They are free when the block
    ends: nothing may use the optimizer after it.
    """
    lent: list[tuple[tuple[torch.dtype, torch.device, int], Tensor]] = []
    allocate = cast(Any, functional.get_paged)

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        number = math.prod(shape)
        size = 1 << (number - 1).bit_length()
        key = dtype, device, size
        if not (buffers := _free.setdefault(key, [])):
            buffers.append(allocate(size, dtype=dtype, device=device))
        lent.append((key, buffers.pop()))
        part: Any = lent[-1][1][:number].view(shape)
        part.is_paged, part.page_deviceid = True, device.index
        return cast(Tensor, part)

    registry = cast(Any, functional.GlobalPageManager).get_instance()
    bnb: Any = functional
    bnb.get_paged = get_paged
    try:
        yield
    finally:
        bnb.get_paged = allocate
        registry.initialize()
        for key, buffer in lent:
            _free[key].append(buffer)
