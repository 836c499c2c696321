"""What a pack's layers share: who is at work, and gradients that are added to the pack's rows in
place.

Autograd's own accumulation would build a gradient of all slots for every tensor, whoever takes
part, and add it to a strided view. Here each backward adds what it finds where it belongs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Rows = slice | Tensor
"""Slots at work: a range, or their numbers."""
Views = tuple[Tensor, Tensor]
"""Values of all slots at one place, in the dtype of the products, and their gradients."""
Kept = Callable[[], Tensor]
"""Draws what of the inputs is kept, bool [K, T, I], the same each time."""


def add_product(into: Tensor, rows: Rows, left: Tensor, right: Tensor) -> None:
    """`into[rows] += left @ right`."""
    add(into, rows, torch.bmm(left, right))


def add(into: Tensor, rows: Rows, found: Tensor) -> None:
    """`into[rows] += found`."""
    if isinstance(rows, slice):
        into[rows].add_(found)
    else:
        into.index_add_(0, rows, found.to(into.dtype))
