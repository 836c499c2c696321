"""Meter: what a block of code asks of a device's memory and of its kernels, operator by operator.

It sees every operator below autograd. A storage counts from the operator that makes it to the death
of its last tensor, in the blocks of the allocator; nothing of this needs a value, so the tensors
may be fake.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peft_jobs.host.prediction import CATEGORIES
from peft_jobs.prediction.caching_allocator import Block, CachingAllocator, rounded
from peft_jobs.prediction.operations import (
    INDEXED,
    MULTIPLY_INT8,
    QUANTIZE_INT8,
    answer,
    flops_of,
    is_kernel,
    nonzero,
    unmasked,
    without_outliers,
)
from peft_jobs.prediction.operator_outputs import OperatorOutputs

_DEVICE = torch.ops.prim.device.default
"""Two of three calls: a fake tensor that is asked where it is dispatches that too."""


@dataclass
class Peak:
    """The largest sum of live storages in one phase."""

    bytes: int = 0
    by_category: dict[str, int] = field(default_factory=dict)


class Operation(NamedTuple):
    """One kernel: its floating-point operations, the bytes that it reads and writes, and the dtype
    of the largest of its tensors."""

    flops: int
    bytes: int
    dtype: str


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is on the stack of modes."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it, so torch need not guard each operator against that."""
        return False

    def __init__(self, vocabulary: int | None = None) -> None:
        """Tensors with a dimension of `vocabulary` are logits."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.total = 0
        self.allocator = CachingAllocator()
        self._blocks: dict[int, Block] = {}
        self.peaks: dict[str, Peak] = {}
        self.operations: list[Operation] = []
        """The kernels that were launched while it `is_counting`."""
        self.is_counting = False
        self._phase, self._category = "build", "weights"
        self._held: dict[int, tuple[str, int]] = {}
        """Category and bytes of each live storage."""
        self._deaths: dict[int, Any] = {}
        """What tells the death of each live storage."""
        self._outputs = OperatorOutputs()
        self._sparse: dict[tuple[int, ...], int] = {}
        """Values of a sparse tensor of each shape."""

    @contextmanager
    def phase(self, name: str, category: str) -> Iterator[None]:
        """A block whose peak is kept apart, and whose new storages are of `category`."""
        before = self._phase, self._category
        self._phase, self._category = name, category
        self._saw()
        try:
            yield
        finally:
            self._phase, self._category = before

    def micro_steps(self, number: int) -> Iterator[int]:
        """The turns of a loop over equal micro-steps, of which two are run: in the first gradients
        come into being, the others are as the second. One where it is not counting."""
        for turn in range(min(number, 2 if self.is_counting else 1)):
            before = len(self.operations)
            yield turn
            if turn == 1:
                self.operations += self.operations[before:] * (number - 2)

    @contextmanager
    def category(self, name: str) -> Iterator[None]:
        """A block whose new storages are of another category."""
        before, self._category = self._category, name
        try:
            yield
        finally:
            self._category = before

    def hold(self, tensor: Tensor, category: str) -> None:
        """Count the storage of `tensor`, as `category` whatever it was before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            held, size = self._held[key]
            self.live[held] -= size
            self.live[category] += size
            self._held[key] = category, size
        elif not tensor.is_meta:
            size = rounded(storage.nbytes())
            self._held[key] = category, size
            self._blocks[key] = self.allocator.allocate(size)
            self.live[category] += size
            self.total += size
            self._deaths[key] = weakref.ref(storage, lambda _: self._drop(key))
            self._saw()

    def let_go(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` no more, though it lives: it is elsewhere."""
        key = tensor.untyped_storage()._cdata
        if self._held.get(key, ("", 0))[1]:
            self._drop(key)
            self._held[key] = "workspace", 0

    def _drop(self, key: int) -> None:
        self._deaths.pop(key, None)
        category, size = self._held.pop(key)
        if key in self._blocks:
            self.allocator.free(self._blocks.pop(key))
        self.live[category] -= size
        self.total -= size

    def _saw(self) -> None:
        peak = self.peaks.setdefault(self._phase, Peak())
        if self.total > peak.bytes:
            peak.bytes = self.total
            peak.by_category = {name: self.live[name] for name in CATEGORIES}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_fake = bool(args) and isinstance(args[0], FakeTensor)
        if func is _DEVICE and is_fake:
            return args[0].fake_device
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func is aten._local_scalar_dense.default and is_fake:
            return answer(args[0])
        if func is aten.equal.default:
            return args[0].shape == args[1].shape and args[0] is args[1]
        if func in INDEXED:
            args = (args[0], unmasked(args[1]), *args[2:])
        if func is aten._sparse_coo_tensor_with_dims_and_tensors.default:
            self._sparse[tuple(args[2])] = args[4].numel()
        out = self._made(func, args, kwargs)
        if func is aten.any.default:
            out.is_any = True
        for tensor in _dense(out):
            if tensor.untyped_storage()._cdata not in self._held:
                self.hold(tensor, self._category_of(tensor))
        if self.is_counting and is_kernel(func):
            tensors = _dense((args, kwargs, out))
            if tensors:
                moved = sum({id(t): t.nbytes for t in tensors}.values())
                dtype = max(tensors, key=lambda t: t.nbytes).dtype
                flops = flops_of(func, args, kwargs, out)
                name = str(dtype).removeprefix("torch.")
                self.operations.append(Operation(flops, moved, name))
        return out

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives, where that is of a size which values would decide, too."""
        aten = torch.ops.aten
        if func is aten.nonzero.default:
            return nonzero(args[0])
        if func is aten._values.default:
            number = self._sparse[tuple(args[0].shape)]
            return torch.empty(number, dtype=args[0].dtype, device=args[0].device)
        if func in (QUANTIZE_INT8, MULTIPLY_INT8):
            return without_outliers(func, args)
        return self._outputs.of(func, args, kwargs)

    def _category_of(self, tensor: Tensor) -> str:
        if self.vocabulary is not None and self.vocabulary in tensor.shape[1:]:
            return "logits" if self._category in ("activations", "workspace") else self._category
        return self._category


def _dense(values: Any) -> list[Tensor]:
    """The tensors in `values`, but for sparse ones: their parts are tensors that were seen."""
    leaves = tree_leaves(values)
    return [t for t in leaves if isinstance(t, Tensor) and t.layout is torch.strided]
