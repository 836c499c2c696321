"""MLflow's mirror of a sweep: one parent run, one child run per trial.

The driver speaks to a `Tracker`; importing this package does not import mlflow.
"""

from sweeps.tracking.mlflow_tracker import MlflowTracker, deliver_pending
from sweeps.tracking.tracker import Artifact, NoTracker, RunStatus, Tracker
from sweeps.tracking.view import View

__all__ = [
    "Artifact",
    "MlflowTracker",
    "NoTracker",
    "RunStatus",
    "Tracker",
    "View",
    "deliver_pending",
]
