"""Many trials: a sweep file in, a leaderboard and an exported adapter out.

from sweeps import SweepSpec, load_sweep, run_sweep
board = run_sweep(load_sweep(Path("sweep.yaml"), ["budget.n_trials=8"]))
"""

from sweeps.leaderboard import Leaderboard
from sweeps.loading import build_sweep, load_sweep
from sweeps.run import run_sweep
from sweeps.spec import SweepSpec

__all__ = ["Leaderboard", "SweepSpec", "build_sweep", "load_sweep", "run_sweep"]
