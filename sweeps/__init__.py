"""Many trials: a sweep file in, a leaderboard and an exported adapter out.

from sweeps import load_sweep, open_sweep, run_sweep
board = run_sweep(load_sweep(Path("sweep.yaml"), ["budget.n_trials=8"]))
frame = open_sweep(Path("runs"), "sweep").trials().to_frame()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.errors import LeaseLost, Unavailable
    from sweeps.exporters.export import Exported, export_top, export_trial
    from sweeps.exporters.hub import push_to_hub
    from sweeps.report.report import write_report
    from sweeps.results.leaderboard import Leaderboard, Row
    from sweeps.results.ranking import make_leaderboard
    from sweeps.results.recorded_sweep import RecordedSweep, open_sweep
    from sweeps.run import run_sweep
    from sweeps.spec import SweepSpec
    from sweeps.spec.loading import build_sweep, load_sweep
    from sweeps.spec.yaml_file import SweepFileError

__all__ = [
    "Exported",
    "Leaderboard",
    "LeaseLost",
    "RecordedSweep",
    "Row",
    "SweepFileError",
    "SweepSpec",
    "Unavailable",
    "build_sweep",
    "export_top",
    "export_trial",
    "load_sweep",
    "make_leaderboard",
    "open_sweep",
    "push_to_hub",
    "run_sweep",
    "write_report",
]
_HOMES = {
    "Exported": "exporters.export",
    "Leaderboard": "results.leaderboard",
    "LeaseLost": "errors",
    "RecordedSweep": "results.recorded_sweep",
    "Row": "results.leaderboard",
    "SweepFileError": "spec.yaml_file",
    "SweepSpec": "spec",
    "Unavailable": "errors",
    "build_sweep": "spec.loading",
    "export_top": "exporters.export",
    "export_trial": "exporters.export",
    "load_sweep": "spec.loading",
    "make_leaderboard": "results.ranking",
    "open_sweep": "results.recorded_sweep",
    "push_to_hub": "exporters.hub",
    "run_sweep": "run",
    "write_report": "report.report",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: the command line's help comes at once, without Optuna."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Completion offers the public names, imported or not."""
    return sorted(__all__)
