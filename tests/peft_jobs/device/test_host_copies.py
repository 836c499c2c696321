"""Copies that another thread writes are what the tensors held when they were asked for."""

import pytest
import torch

from peft_jobs.device.host_copies import HostCopies, whole
from peft_jobs.engines.packed.layout import Layout, Part, Place
from tests.support.devices import CUDA

on_each = pytest.mark.parametrize("device", ["cpu", CUDA], indirect=True)


@on_each
def test_a_copy_is_of_its_moment_though_nobody_waited(device: torch.device) -> None:
    values = torch.arange(1 << 20, dtype=torch.float32, device=device)
    column = values.view(1024, 1024)[:, 3]
    copies = HostCopies({"all": values, "column": column})
    values.zero_()
    found = copies.read()
    assert {tensor.device.type for tensor in found.values()} == {"cpu"}
    assert torch.equal(found["all"], torch.arange(1 << 20, dtype=torch.float32))
    assert torch.equal(found["column"], torch.arange(3, 1 << 20, 1024, dtype=torch.float32))
    assert found["column"].is_contiguous()
    assert copies.seconds > 0


@on_each
def test_a_row_is_filled_and_read_back(device: torch.device) -> None:
    """At rank 2, in a row with room for rank 4."""
    places = (Place("q", "lora_A", (4, 6), 0), Place("q", "lora_B", (5, 4), 24))
    layout, named = (
        Layout(places, 44, 44),
        {
            ("q", "lora_A"): torch.rand(2, 6),
            ("q", "lora_B"): torch.rand(5, 2),
        },
    )
    rows = torch.ones(3, 44, device=device)
    layout.fill(rows[1], named)
    assert rows[[0, 2]].eq(1).all()
    assert rows[1].count_nonzero() == 2 * 6 + 5 * 2
    for found in (
        HostCopies({"row": rows[1]}, lambda c: _named(layout, c["row"])).read(),
        _named(layout, rows[1].cpu()),
    ):
        assert torch.equal(found["lora_A"], named["q", "lora_A"])
        assert torch.equal(found["lora_B"], named["q", "lora_B"])


def _named(layout: Layout, row: torch.Tensor) -> dict[str, torch.Tensor]:
    shapes: dict[Part, tuple[int, int]] = {"lora_A": (2, 6), "lora_B": (5, 2)}
    own = {("q", part): shape for part, shape in shapes.items()}
    return {part: whole(tensor) for (_, part), tensor in layout.parts(row, own).items()}
