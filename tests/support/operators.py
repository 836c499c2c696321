"""Counts what a block of code asks of the device: launches, and waits for its results."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "_unsafe_view", "lift_fresh"),
}
"""Operators without a kernel, beside views."""


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim"}
"""Operators whose result the host reads, or whose size depends on values."""
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


class Operators(TorchDispatchMode):
    """Counts the operators that are kernels, by name, and those that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.at_waits: list[int] = []
        """Launches before each."""
        self.first_product = 0
        """Launches before the first matrix multiplication."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
        is_view = any(not alias.is_write for alias in aliases)
        if name in WAITS:
            self.waits[name] += 1
            self.at_waits.append(self.launches.total())
        if name in PRODUCTS and not self.first_product:
            self.first_product = self.launches.total()
        if not is_view and name not in ALLOCATIONS:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))
