"""MLflow's mirror of a sweep: one parent run, one child run per trial.

The driver speaks to a `Tracker`; importing this package does not import mlflow.

tracker          what a driver says about its sweep and trials, whoever listens
mlflow_tracker   mirrors a sweep into MLflow at the cost of a row in a local file for each call
destination      the server or database, the experiment, and the sweep's identity there
schema           whether the installed MLflow can use a database that is there
artifact_root    where artifacts lie, also after a move
values           params, tags and metrics in the shape and size that MLflow takes
outbox           a queue of operations on disk, which a killed driver leaves for the next one
drain            the thread that empties the outbox
delivery         carries operations to MLflow, each exactly once
batch            what a few neighbouring operations add to a run
recorded_runs    a sweep's runs deleted, or copied to another store
registry         an exported adapter as a version of a registered model
view             the table of trials as MLflow's page opens it
ui               MLflow's server on a local storage
"""

from sweeps.tracking.mlflow_tracker import MlflowTracker, deliver_pending
from sweeps.tracking.tracker import Artifact, Dataset, NoTracker, RunStatus, Tracker
from sweeps.tracking.view import View

__all__ = [
    "Artifact",
    "Dataset",
    "MlflowTracker",
    "NoTracker",
    "RunStatus",
    "Tracker",
    "View",
    "deliver_pending",
]
