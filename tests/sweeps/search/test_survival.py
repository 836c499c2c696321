"""How many trials a pruner leaves, against exact expectations and against sweeps that were run."""

from collections.abc import Callable
from statistics import mean

import pytest

from sweeps import SweepSpec
from sweeps.run import launch
from sweeps.search.pruners import PrunerSpec
from sweeps.search.samplers import SamplerSpec, first_learnt
from sweeps.search.survival import survival


def test_without_a_pruner_all_is_trained() -> None:
    found = survival(PrunerSpec(type="none"), 40, 900, (100, 300), 5, 10)
    for share in (found.complete, found.samples):
        assert (share.low, share.expected, share.high) == (1.0, 1.0, 1.0)
    assert found.evaluations.expected == 3.0, "at two rungs and at the end"


@pytest.mark.parametrize(
    ("n_trials", "factor", "startup"), [(12, 3, 0), (20, 4, 1), (60, 3, 0), (20, 3, 5), (30, 3, 8)]
)
def test_successive_halving_one_by_one_leaves_what_ranks_at_random_leave(
    n_trials: int, factor: int, startup: int
) -> None:
    """The i-th value at a rung is equally likely to have each rank, and goes on if it is among the
    first `i / factor`, rounded up, or if fewer than `startup` have come that far."""
    pruner = PrunerSpec(
        type="successive_halving", reduction_factor=factor, n_startup_trials=startup
    )
    found = survival(pruner, n_trials, 900, (300,), 1, None)
    shares = (-(-i // factor) / i if i >= startup else 1.0 for i in range(1, n_trials + 1))
    exact = mean(shares)
    assert found.complete.expected == pytest.approx(exact, abs=0.03)
    in_samples = exact + (1 - exact) / 3
    assert found.samples.expected == pytest.approx(in_samples, abs=0.02)
    assert found.evaluations.expected == pytest.approx(1 + found.complete.expected)
    assert found.complete.low <= exact <= found.complete.high


def test_more_trials_survive_where_a_sampler_learns() -> None:
    pruner = PrunerSpec()
    blind = survival(pruner, 40, 900, (100, 300), 5, None)
    learning = survival(pruner, 40, 900, (100, 300), 5, 10)
    assert learning.complete.expected > 1.2 * blind.complete.expected
    assert learning.complete.high - learning.complete.low > 0


@pytest.mark.parametrize("pruner", ["successive_halving", "median", "hyperband"])
def test_sweeps_that_are_run_keep_as_many(sweep: Callable[..., SweepSpec], pruner: str) -> None:
    """Four simulated sweeps: their mean lies within the range of one."""
    budget = {"n_trials": 30, "max_samples": 900, "rungs": [100, 300]}
    resources = {"engine_options": {"num_slots": 5}, "slots_per_gpu": 5}
    expected = survival(PrunerSpec(type=pruner), 30, 900, (100, 300), 5, None)
    shares = []
    for seed in range(4):
        spec = sweep(
            name=f"s{seed}",
            seed=seed,
            pruner=pruner,
            sampler="random",
            budget=budget,
            resources=resources,
        )
        rows = [row for row in launch(spec).leaderboard.rows if row.kind != "duplicate"]
        shares.append(sum(row.state == "COMPLETE" for row in rows) / 30)
    assert expected.complete.low <= mean(shares) <= expected.complete.high


def test_samplers_begin_to_learn_after_their_first_trials() -> None:
    assert first_learnt(SamplerSpec(type="random")) is None
    assert first_learnt(SamplerSpec(type="qmc")) is None
    assert first_learnt(SamplerSpec(type="tpe")) == 10
    assert first_learnt(SamplerSpec(type="tpe", n_startup_trials=3)) == 3
    assert first_learnt(SamplerSpec(type="cmaes")) == 1
