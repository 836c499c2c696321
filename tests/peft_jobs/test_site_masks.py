"""Masks of a base's sites, drawn for several at once, against those of each site by itself."""

import pytest
import torch
from torch import Tensor

from peft_jobs import site_masks
from peft_jobs.dropout_masks import signed
from peft_jobs.randomness import counters_of, dropout_step_key, dropped
from peft_jobs.site_masks import TOGETHER, SiteMasks

SEED, RATE = 3, 0.3
SITES = [f"base layers.{number // 2}.{'ab'[number % 2]} 4" for number in range(2 * TOGETHER + 1)]
SHAPES = [(2, 5, 6), (2, 5, 6), (2, 4, 7, 9)]


def begun(masks: SiteMasks, step: int) -> None:
    masks.begin(torch.full((1, 1), signed(dropout_step_key(SEED, step))))


def drops(masks: SiteMasks, x: Tensor, site: str, p: float = RATE) -> Tensor:
    return masks.dropped(x, p, site, lambda: counters_of(x.shape[:-1].numel(), x.device))


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Streams of each draw."""
    found: list[int] = []
    draw = site_masks.draw_kept

    def noting(keys: Tensor, *args: object) -> Tensor:
        found.append(len(keys))
        return draw(keys, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(site_masks, "draw_kept", noting)
    return found


def test_each_site_drops_what_it_drops_by_itself(draws: list[int]) -> None:
    masks = SiteMasks()
    for step in (1, 2, 3):
        begun(masks, step)
        draws.clear()
        for site in SITES:
            for number, shape in enumerate(SHAPES):
                x = torch.randn(shape) if step < 3 else torch.randn(3, *shape[1:])
                own = f"{site} {number}"
                expected = dropped(x, RATE, SEED, step, own)
                torch.testing.assert_close(drops(masks, x, own), expected)
        if step == 1:
            assert draws == [1] * 3 * len(SITES), "nothing is known of the sites"
    # Of the two shapes: 18 sites in groups of four, and 9.
    assert sorted(draws) == [1, 2, *[TOGETHER] * 6], "known by their places, not by their lengths"


def test_a_site_of_another_shape_than_its_group_is_right_too() -> None:
    masks = SiteMasks()
    for step, widths in enumerate([(6, 6, 6), (6, 8, 6), (8, 8, 6)], start=1):
        begun(masks, step)
        for site, width in zip("abc", widths, strict=True):
            x = torch.randn(2, 5, width)
            torch.testing.assert_close(drops(masks, x, site), dropped(x, RATE, SEED, step, site))


def test_rates_are_not_mixed() -> None:
    masks, x = SiteMasks(), torch.randn(2, 5, 6)
    for step in (1, 2):
        begun(masks, step)
        for site, rate in zip("abc", (0.1, 0.5, 0.1), strict=True):
            expected = dropped(x, rate, SEED, step, site)
            torch.testing.assert_close(drops(masks, x, site, rate), expected)


def test_the_gradient_is_dropped_where_the_value_is() -> None:
    masks = SiteMasks()
    begun(masks, 1)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    found = drops(masks, x, "a")
    assert torch.autograd.gradcheck(lambda y: drops(masks, y, "a"), (x,))
    found.backward(torch.ones_like(found))
    assert x.grad is not None
    assert torch.equal(x.grad == 0, found == 0)
    assert x.grad.unique().tolist() == pytest.approx([0.0, 1 / (1 - RATE)])


def test_the_group_that_was_drawn_last_is_not_drawn_again(draws: list[int]) -> None:
    """For activations that are computed again, from the last ones to the first."""
    masks, x = SiteMasks(), torch.randn(2, 5, 6)
    for step in (1, 2):
        begun(masks, step)
        draws.clear()
        forward = [drops(masks, x, site) for site in SITES]
        again = [drops(masks, x, site) for site in SITES[::-1]][::-1]
        assert all(torch.equal(*pair) for pair in zip(forward, again, strict=True))
    assert draws == [4, 4, 1, 4, 4]
