"""Code that looks at values, run where there are none: PEFT's initialisations on the meta device.

What follows from a value in them changes no shape, but for what is said below.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.adamss import layer as adamss_layer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any_only, tree_map_only

from peft_jobs.prediction.operations import INDEXED, answer, nonzero, unmasked

META = torch.device("meta")


@contextmanager
def without_values() -> Iterator[None]:
    """A block in which modules on the meta device can be given adapters; torch's generator is left
    as it was.

    AdaMSS clusters rows by their values: here clusters are of equal sizes.
    """
    names = vars(adamss_layer)
    own, names["clustering_Z"] = names["clustering_Z"], _even_clusters
    try:
        with _Unvalued(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        names["clustering_Z"] = own


class _Unvalued(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps on the meta device what comes there, and answers where a value is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._marked: int | None = None
        """Elements of a mask that were last set by their places (SHiRA)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if not tree_any_only(Tensor, lambda t: t.is_meta, (args, kwargs)):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return answer(args[0])
        if func is aten.equal.default:
            return True
        if func is aten.copy_.default and args[1].is_meta:
            return args[0]
        if func is aten.nonzero.default:
            number, self._marked = self._marked, None
            return nonzero(args[0], number)
        if func is aten.scatter_.value or func is aten.scatter_.src:
            self._marked = args[2].numel()
        if func in INDEXED:
            args = (args[0], unmasked(args[1]), *args[2:])
        if func is aten._to_copy.default:
            kwargs = {**kwargs, "device": META}
        args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        out = func(*args, **kwargs)
        if func is aten.any.default:
            out.is_any = True
        return out


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _even_clusters(rows: Tensor, num_clusters: int, _: int) -> tuple[Tensor, int]:
    """The cluster of each row, and their number, as of `clustering_Z`."""
    number = min(num_clusters, len(rows))
    return torch.arange(len(rows), device="cpu") % number, number
