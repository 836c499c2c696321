"""What is remembered of operators, against what FakeTensorMode says of each of them."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from peft_jobs.prediction.operator_outputs import OperatorOutputs


def described(out: Any, args: Any) -> Any:
    """All that can be told of an output, and which of the arguments' storages it is in."""
    if isinstance(out, list | tuple):
        return type(out), [described(each, args) for each in out]
    if not isinstance(out, Tensor):
        return out
    given = [a for a in args if isinstance(a, Tensor) and a.layout is torch.strided]
    storages = [a.untyped_storage()._cdata for a in given]
    own = out.untyped_storage()
    shared = storages.index(own._cdata) if own._cdata in storages else None
    size = own.nbytes()
    layout = (tuple(out.shape), out.stride(), out.storage_offset(), out.dtype, str(out.device))
    return type(out).__name__, layout, shared, size, any(out is each for each in given)


class Compared(TorchDispatchMode):
    """Asks each operator itself, and twice what is remembered of it."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = OperatorOutputs()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        expected = func(*args, **kwargs)
        for _ in range(2 if func.namespace == "aten" else 0):  # not the profiler's marks
            found = self.outputs.of(func, args, kwargs)
            assert described(found, args) == described(expected, args), func
        self.seen[func.overloadpacket.__name__] += 1
        return expected


class Block(nn.Module):
    """Views, splits, masks, products, attention and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.words(ids))
        heads = self.qkv(hidden).view(*ids.shape, 3, 2, 8).transpose(1, 3)
        query, key, value = heads.unbind(2)
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        scores = (query @ key.mT / 8**0.5).masked_fill(~mask, float("-inf"))
        mixed = (scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value).transpose(1, 2)
        first, second = (hidden + mixed.reshape(*ids.shape, 16)).chunk(2, dim=-1)
        return self.out(torch.cat([second.relu(), first * 2, first * 2.0], -1)[..., :16])


def test_outputs_are_those_of_fake_tensors_views_and_all() -> None:
    compared = Compared()
    with FakeTensorMode(), compared:
        model = Block()
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, foreach=True)
        for length in (5, 7, 5):
            ids = torch.zeros(2, length, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
    assert compared.seen.total() > 300
    assert compared.seen.keys() >= {"mm", "view", "transpose", "add", "_foreach_add_", "unbind"}


def test_arguments_that_differ_in_more_than_values_are_told_apart() -> None:
    outputs, aten = OperatorOutputs(), torch.ops.aten
    with FakeTensorMode():
        whole = torch.zeros(2, 3, dtype=torch.int64)
        for other, dtype in ((2, torch.int64), (2.0, torch.float32), (True, torch.int64)):
            for _ in range(2):
                assert outputs.of(aten.mul.Tensor, (whole, other), {}).dtype is dtype
        for tensor in (whole, whole.t(), whole[:, 1:]):
            found = [outputs.of(aten.add.Tensor, (tensor, tensor), {}) for _ in range(2)]
            expected = tensor + tensor
            for each in found:
                assert (each.shape, each.stride()) == (expected.shape, expected.stride())
