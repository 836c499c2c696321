"""Many trials: a sweep file in, a leaderboard and an exported adapter out.

from sweeps import load_sweep, run_sweep
board = run_sweep(load_sweep(Path("sweep.yaml"), ["budget.n_trials=8"]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.results.leaderboard import Leaderboard
    from sweeps.run import run_sweep
    from sweeps.spec import SweepSpec
    from sweeps.spec.loading import build_sweep, load_sweep

__all__ = ["Leaderboard", "SweepSpec", "build_sweep", "load_sweep", "run_sweep"]
_HOMES = {
    "Leaderboard": "results.leaderboard",
    "SweepSpec": "spec",
    "build_sweep": "spec.loading",
    "load_sweep": "spec.loading",
    "run_sweep": "run",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: the command line's help comes at once, without Optuna."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Completion offers the public names, imported or not."""
    return sorted(__all__)
