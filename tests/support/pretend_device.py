"""A pretended accelerator: tensors that lie on a device of their own, computed on the CPU.

It keeps a GPU's rules, which a CPU does not show: what lies on two devices does not meet, the host
waits where it asks for a value, and there is so much memory and no more. Values are real, so whole
trials run on it. torch has one such place for a device that it does not know, to be taken before
the process makes its first backward: who uses this runs in a process of its own.
"""

import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.support.operators import ALLOCATIONS, PRODUCTS, WAITS

NAME = "pretend"
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_to_copy"}


class DevicesDoNotMatch(RuntimeError):
    """An operator was given tensors of two devices, which a GPU refuses."""


class Memory:
    """The device's own: storages that are alive count, whatever holds them."""

    def __init__(self) -> None:
        self.total = 1 << 40
        self.allocated = self.peak = 0
        self.times_full = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def hold(self, raw: Tensor) -> None:
        """Count a tensor's storage once. Raises torch.OutOfMemoryError as a GPU does."""
        storage = raw.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        if self.allocated + size > self.total:
            self.times_full += 1
            raise torch.OutOfMemoryError(f"{NAME} out of memory: {size} bytes of {self.total}")
        self._live[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def _drop(self, key: int, size: int) -> None:
        del self._live[key]
        self.allocated -= size

    def forget_peak(self) -> None:
        self.peak = self.allocated


class PretendDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on `device`. Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = OnPretendDevice.memory = Memory()
        _setup_privateuseone_for_python_backend(NAME, _Module(self.memory))
        # Under autocast the base computes as without it: what we cast ourselves is cast.
        self._library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
        self._library.fallback(torch.library.fallthrough_kernel)
        self.device = torch.device(NAME, 0)
        OnPretendDevice.run = self.run
        self.begin()

    def begin(self) -> None:
        """Count from nothing."""
        self.launches: Counter[str] = Counter()
        self.waits: list[tuple[str, int]] = []
        """What the host has waited for, and the launches before it."""
        self.sent: list[tuple[str, int]] = []
        """Copies out of the host's memory, in the same way."""
        self.products: list[int] = []
        """Launches before each matrix multiplication."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # of torch.tensor: the copy is seen
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operator on the CPU; its results are where a GPU would have them."""
        name, wanted = func.overloadpacket.__name__, kwargs.get("device")
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {id(leaf.raw): leaf for leaf in given if isinstance(leaf, OnPretendDevice)}
        is_here = bool(known) if wanted is None else torch.device(wanted).type == NAME
        if name == "copy_":
            is_here = isinstance(args[0], OnPretendDevice)
        if known or is_here:
            self._check(func, name, given, is_here)
        if wanted is not None and is_here:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        on_cpu = tree_map_only(OnPretendDevice, lambda tensor: tensor.raw, (args, kwargs))
        found = func(*on_cpu[0], **on_cpu[1])
        if not is_here:
            return found
        return tree_map_only(
            Tensor, lambda raw: known[id(raw)] if id(raw) in known else OnPretendDevice(raw), found
        )

    def _check(self, func: Any, name: str, given: list[Tensor], is_here: bool) -> None:
        """Count the operator, which touches the device; raise DevicesDoNotMatch."""
        now = self.launches.total()
        from_host = [tensor for tensor in given if not isinstance(tensor, OnPretendDevice)]
        if name in COPIES:
            if from_host and from_host[-1] is given[-1]:
                self.sent.append((name, now))
            elif not is_here:
                self.waits.append((name, now))
        elif name in INDEXING:
            if not isinstance(given[0], OnPretendDevice):
                raise DevicesDoNotMatch(f"{func} of {[str(t.device) for t in given]}")
            self.sent += [(name, now) for _ in from_host]
            if any(tensor.dtype == torch.bool for tensor in given[1:]):
                self.waits.append((name, now))
        elif from_host and not (
            (torch.Tag.pointwise in func.tags or name == "fill_")
            and all(tensor.ndim == 0 for tensor in from_host)
            and from_host[0] is not given[0]
        ):
            raise DevicesDoNotMatch(f"{func} of {[str(t.device) for t in given]}")
        if name in WAITS:
            self.waits.append((name, now))
        if name in PRODUCTS:
            self.products.append(now)
        aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
        if name not in ALLOCATIONS and all(alias.is_write for alias in aliases):
            self.launches[name] += 1


class OnPretendDevice(Tensor):
    """A tensor of the device; `raw` are its values."""

    raw: Tensor
    run: Any
    memory: Memory

    @staticmethod
    def __new__(cls, raw: Tensor) -> "OnPretendDevice":
        tensor: OnPretendDevice = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        cls.memory.hold(raw)
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnPretendDevice({self.raw!r})"


class _Module:
    """What torch asks of `torch.pretend`."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    synchronize = empty_cache = staticmethod(lambda device=None: None)

    def __init__(self, memory: Memory) -> None:
        self.memory_allocated = self.memory_reserved = lambda device=None: memory.allocated
        self.max_memory_allocated = self.max_memory_reserved = lambda device=None: memory.peak
        self.reset_peak_memory_stats = lambda device=None: memory.forget_peak()
        self.mem_get_info = lambda device=None: (memory.total - memory.allocated, memory.total)
        self.get_device_properties = lambda device=None: SimpleNamespace(
            name=NAME, total_memory=memory.total
        )


def move(model: nn.Module, device: torch.device) -> None:
    """Put a frozen model on the device: parameters, buffers, quantization states."""
    known: dict[int, Tensor] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in known:
                there: Any = value.detach().as_subclass(Tensor).to(device)
                if isinstance(value, nn.Parameter):
                    there = nn.Parameter(there, requires_grad=value.requires_grad)
                    vars(there).update({name: moved(own) for name, own in vars(value).items()})
                known[id(value)] = there
            return known[id(value)]
        if type(value).__module__.startswith("bitsandbytes") and not isinstance(value, nn.Module):
            for name, part in list(vars(value).items()):
                setattr(value, name, moved(part))
        return value

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: moved(value) for name, value in held.items()})
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, moved(value))
