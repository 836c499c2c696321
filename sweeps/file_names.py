"""The names of the files and folders of a storage and of a sweep in it; each stands only here.

Those of a trial's attempts are in `peft_jobs.storage.attempt_folder`. Paths are `SweepFolder`'s.
"""

STUDY_DATABASE = "optuna.db"
TRACKING_DATABASE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"
CACHE_FOLDER = "cache"
"""Tokenized data."""
PLANS_FOLDER = "plans"
"""In the cache."""
STORAGE_FILES = (STUDY_DATABASE, TRACKING_DATABASE, ARTIFACTS_FOLDER, CACHE_FOLDER)
"""What a storage has beside its sweeps, which may not be called so."""

SOURCE_FILE = "sweep.yaml"
"""The sweep file as it ran, overrides included."""
RECORD_FILE = "sweep.json"
"""The resolved sweep, what was prepared, and the environment."""
ID_FILE = "sweep.id"
"""Names the sweep whose folder it is in; its study carries the same name as `key`."""
OUTBOX_FILE = "tracking.db"
MARKER_FILE = ".driver"
INPUTS_FOLDER = "inputs"
"""Local data of the sweep, for nodes that do not see them elsewhere."""
TRIALS_FOLDER = "trials"
EXPORTS_FOLDER = "exports"
PLOTS_FOLDER = "plots"
LEADERBOARD_JSON = "leaderboard.json"
LEADERBOARD_CSV = "leaderboard.csv"
LEADERBOARD_HTML = "leaderboard.html"
REPORT_FILE = "report.html"
EXPORT_FILE = "export.json"
"""What was measured on an export; in its folder."""
