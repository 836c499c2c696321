"""A hash of a model's tensors that is cheap enough to take after every trial.

Each tensor is read as rows of 32-bit words and summed as `word * a[column] * b[row]` modulo 2**64,
with pseudo-random odd a and b. A change of one word changes the sum with certainty, because an odd
number has an inverse modulo 2**64; changes of several words cancel with a probability of about
2**-32 at most. Only integers are added, so CPU and GPU give the same hash for the same bits.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import torch

ROW = 1 << 16
"""Words in a row: what fits a CPU's second-level cache."""
GPU_ROWS = 64
"""Rows handled by one kernel; on a CPU it is one."""


def state_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All that decides what `model` computes: parameters, buffers, bitsandbytes' states.

    The scales of an int8 layer move from its weight to its state at the first forward; they are
    found in either place, under one name.
    """
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        scales = getattr(weight, "SCB", None)
        if scales is None:
            scales = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield f"{name}.SCB", scales
        state = getattr(weight, "quant_state", None)
        for level in ("state", "state2"):
            for part in ("absmax", "code", "offset"):
                tensor = getattr(state, part, None)
                if isinstance(tensor, torch.Tensor):
                    yield f"{name}.{level}.{part}", tensor
            state = getattr(state, "state2", None)


def content_hash(model: torch.nn.Module) -> str:
    """sha256, in hex, over names, types, shapes and sums of `state_tensors`; reads everything."""
    labels, sums = [], []
    for name, tensor in sorted(state_tensors(model), key=lambda item: item[0]):
        labels.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        sums.append(tensor_sum(tensor))
    digest = hashlib.sha256()
    for label, value in zip(labels, _to_ints(sums), strict=True):
        digest.update(f"{label} {value}\n".encode())
    return digest.hexdigest()


def tensor_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the words of `tensor`: int64, no dimension, on the tensor's device."""
    words = _words(tensor)
    columns, rows = _multipliers(str(tensor.device))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    block = ROW if tensor.device.type == "cpu" else ROW * GPU_ROWS
    row = 0
    for chunk in torch.split(words, block):
        whole = len(chunk) // ROW * ROW
        if whole:
            sums = (chunk[:whole].view(-1, ROW) * columns).sum(1)
            places = torch.arange(row, row + len(sums), device=tensor.device) % ROW
            total = total + (sums * rows[places]).sum()
            row += len(sums)
        if whole < len(chunk):
            rest = chunk[whole:]
            total = total + (rest * columns[: len(rest)]).sum() * rows[row % ROW]
    return total


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of `tensor` as int32, one dimension; a copy only where size or place are odd."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(raw) % 4:
        raw = torch.nn.functional.pad(raw, (0, 4 - len(raw) % 4))
    elif raw.storage_offset() % 4:
        raw = raw.clone()
    return raw.view(torch.int32)


@lru_cache(maxsize=8)
def _multipliers(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`ROW` odd int64 numbers for columns, as many for rows; the same on every machine."""
    source = torch.Generator().manual_seed(0)
    low, high = -(1 << 63), (1 << 63) - 1
    numbers = torch.randint(low, high, (2, ROW), generator=source, dtype=torch.int64) | 1
    columns, rows = numbers.to(device)
    return columns, rows


def _to_ints(sums: list[torch.Tensor]) -> list[int]:
    """The values on the host, with one transfer per device."""
    values = [0] * len(sums)
    for device in {tensor.device for tensor in sums}:
        places = [i for i, tensor in enumerate(sums) if tensor.device == device]
        for i, value in zip(places, torch.stack([sums[i] for i in places]).tolist(), strict=True):
            values[i] = value
    return values
