"""What every pruner must do: end each trial once, and never stop the one that would have won."""

from collections.abc import Callable
from typing import Any

import pytest

from sweeps import Leaderboard, SweepSpec
from sweeps.run import launch
from sweeps.search.pruners import PRUNERS

ARGUMENTS: dict[str, dict[str, Any]] = {
    "median": {"n_startup_trials": 2},
    "patient": {"wrapped_pruner": {"type": "median", "n_startup_trials": 2}, "patience": 0},
    "percentile": {"percentile": 50.0, "n_startup_trials": 2},
    "threshold": {"upper": 3.2},
}


@pytest.fixture(scope="module")
def unpruned() -> list[Leaderboard]:
    """The leaderboard of the sweep that prunes nothing, once it was run."""
    return []


@pytest.mark.parametrize("name", sorted(PRUNERS))
class TestPruner:
    def test_the_winner_is_the_one_of_the_sweep_that_prunes_nothing(
        self, name: str, sweep: Callable[..., SweepSpec], unpruned: list[Leaderboard]
    ) -> None:
        # The simulated curves never cross, so that pruning cannot lose the winner.
        pruner = {"type": name, **ARGUMENTS.get(name, {})}
        same = {"sampler": "random", "budget": {"n_trials": 16}}
        pruned = launch(sweep(name="pruned", pruner=pruner, **same))
        if not unpruned:
            unpruned.append(launch(sweep(name="whole", pruner="none", **same)).leaderboard)
        best, reference = pruned.leaderboard.best, unpruned[0].best
        assert best is not None
        assert reference is not None
        assert (best.number, best.value) == (reference.number, reference.value)
        states = [row.state for row in pruned.leaderboard.rows]
        assert set(states) <= {"COMPLETE", "PRUNED"}
        # Patience is never at its end where every trial improves from rung to rung.
        assert (states.count("PRUNED") > 0) == (name not in ("none", "patient"))
