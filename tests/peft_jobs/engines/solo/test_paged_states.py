"""Paged optimizers leave no managed memory behind: what one trial had, the next one has."""

from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes import functional

from peft_jobs.engines.solo import paged_states

GPU = torch.device("cuda", 0)


class Managed:
    """What bitsandbytes asks of its library for paged states, in ordinary memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = 0
        monkeypatch.setattr(functional, "get_paged", self.get_paged)
        monkeypatch.setattr(functional, "fill", lambda buffer, value: buffer.fill_(value))
        monkeypatch.setattr(paged_states, "_free", {})

    def get_paged(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Any:
        found: Any = torch.full(shape, 7, dtype=dtype)
        self.allocated += found.nbytes
        found.is_paged, found.page_deviceid = True, device.index
        return found


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> Managed:
    return Managed(monkeypatch)


def states(shapes: list[tuple[int, int]]) -> list[Any]:
    """Both moments of parameters of these shapes, as bitsandbytes' own optimizer makes them."""
    optimizer = bitsandbytes.optim.PagedAdamW32bit([torch.nn.Parameter(torch.zeros(1))])
    parameters: list[Any] = [
        SimpleNamespace(shape=torch.Size(shape), numel=lambda s=shape: s[0] * s[1], device=GPU)
        for shape in shapes
    ]
    return [optimizer.get_state_buffer(p) for p in parameters for _ in range(2)]


def test_the_next_trial_has_the_memory_of_the_one_before(managed: Managed) -> None:
    pages = functional.GlobalPageManager.get_instance()
    own = [(400, 300), (500, 1000)]
    for trial in range(4):
        with paged_states.reused():
            found = states(own)
            assert [tuple(one.shape) for one in found] == [(400, 300)] * 2 + [(500, 1000)] * 2
            assert all(one.is_paged and one.page_deviceid == 0 for one in found)
            assert not any(one.any() for one in found), "of nobody before"
            assert len({one.data_ptr() for one in found}) == 4
            assert len(pages.paged_tensors) == 4
            for one in found:
                one.fill_(trial + 1)
            assert [one.unique().tolist() for one in found] == [[trial + 1]] * 4
        assert pages.paged_tensors == []
    assert managed.allocated == 2 * 4 * ((1 << 17) + (1 << 19)), "each up to a power of two"


def test_a_trial_of_like_size_takes_them_and_a_larger_one_adds_what_it_lacks(
    managed: Managed,
) -> None:
    with paged_states.reused():
        states([(400, 300)])
    before = managed.allocated
    with paged_states.reused():
        states([(300, 401)])
    assert managed.allocated == before
    with paged_states.reused():
        states([(300, 401), (300, 402)])
    assert managed.allocated == 2 * before


def test_what_a_trial_had_is_free_after_its_error_too(managed: Managed) -> None:
    def fail() -> None:
        with paged_states.reused():
            states([(400, 300)])
            raise ValueError("ours")

    for _ in range(2):
        with pytest.raises(ValueError, match="ours"):
            fail()
    assert managed.allocated == 2 * 4 << 17
    assert functional.get_paged == managed.get_paged
