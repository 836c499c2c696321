"""What a plan says of a space, against shares that follow from its constraints."""

from collections.abc import Callable

import pytest

from sweeps import SweepSpec
from sweeps.planning.points import IMPOSSIBLE, points_of

Sweep = Callable[..., SweepSpec]


def test_each_constraint_is_told_with_the_share_that_it_turns_away(sweep: Sweep) -> None:
    """Of r and alpha from 1, 2, 4, 8 alike: 6 of 16 have alpha < r, 1 of 16 alpha > 4 r."""
    choices = {"choices": [1, 2, 4, 8]}
    constraints = ["adapter.lora_alpha >= adapter.r", "adapter.lora_alpha <= 4 * adapter.r"]
    space = {
        "parameters": {"adapter.r": choices, "adapter.lora_alpha": choices},
        "constraints": constraints,
    }
    found = points_of(sweep(space=space), 4000)
    assert found.size == 16
    assert list(found.turned_away) == constraints
    assert found.turned_away[constraints[0]] == pytest.approx(6 / 16, abs=0.02)
    assert found.turned_away[constraints[1]] == pytest.approx(1 / 16, abs=0.02)
    assert found.accepted == pytest.approx(9 / 16, abs=0.02)
    assert len(found.trials) == 9, "each allowed point once"
    assert found.repeated == pytest.approx(1 - 9 / (4000 * found.accepted))
    for trial in found.trials:
        assert trial.adapter.r <= trial.adapter.lora_alpha <= 4 * trial.adapter.r


def test_points_that_no_method_can_train_are_counted(sweep: Sweep) -> None:
    space = {"parameters": {"adapter.method": {"choices": ["lora", "prompt_tuning"]}}}
    found = points_of(sweep(space=space), 64)
    assert found.turned_away.keys() <= {IMPOSSIBLE}
    assert {trial.adapter.method for trial in found.trials} == {"lora", "prompt_tuning"}
    assert found.accepted == 1.0 - sum(found.turned_away.values())
