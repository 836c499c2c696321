"""MLflow's tables, laid out once for all tests that are not about that: it takes two seconds."""

import functools
import tempfile
from pathlib import Path

from sweeps.tracking.destination import Destination, prepare


def lay_out(storage: Path) -> None:
    """Put an empty database of MLflow's into a storage that has none."""
    database = storage / "mlflow.db"
    if not database.exists():
        storage.mkdir(parents=True, exist_ok=True)
        database.write_bytes(_empty())


@functools.cache
def _empty() -> bytes:
    """As a driver lays it out."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        prepare(Destination(f"sqlite:///{database}", "experiment", "sweep", "key"))
        return database.read_bytes()
