"""What every sampler must do: fill the budget with distinct, valid points, twice the same."""

from collections.abc import Callable

import pytest

from sweeps import SweepSpec
from sweeps.run import launch
from sweeps.search.samplers import SAMPLERS

FINITE = {
    "parameters": {
        "adapter.r": {"choices": [4, 8, 16]},
        "adapter.lora_alpha": "2 * adapter.r",
        "training.learning_rate": {"low": 0.002, "high": 0.01, "step": 0.0005},
    }
}
slow_gp = [pytest.param(n, marks=pytest.mark.slow) if n == "gp" else n for n in sorted(SAMPLERS)]


@pytest.mark.parametrize("name", slow_gp)
class TestSampler:
    def test_a_sweep_has_its_trials_and_no_configuration_twice(
        self, name: str, sweep: Callable[..., SweepSpec]
    ) -> None:
        outcome = launch(sweep(space=FINITE, sampler=name, pruner="none"))
        rows = outcome.leaderboard.rows
        assert outcome.status == "complete"
        assert len(rows) == 12
        assert len({repr(row.params) for row in rows}) == 12
        for row in rows:
            assert row.params["adapter.lora_alpha"] == 2 * row.params["adapter.r"]
            assert row.params["adapter.r"] in (4, 8, 16)

    def test_a_seed_gives_the_same_sweep(self, name: str, sweep: Callable[..., SweepSpec]) -> None:
        boards = [
            launch(sweep(space=FINITE, sampler=name, name=again)).leaderboard
            for again in ("first", "second")
        ]
        assert [(r.number, r.params, r.value) for r in boards[0].rows] == [
            (r.number, r.params, r.value) for r in boards[1].rows
        ]
