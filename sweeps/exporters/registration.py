"""An export goes into MLflow's registry of models, in the store where its sweep is mirrored."""

from pathlib import Path
from typing import TYPE_CHECKING

from peft_jobs import SpecError, TrialSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE
from sweeps.errors import Unavailable
from sweeps.exporters.hub import parcel
from sweeps.exporters.names import base_name
from sweeps.results.recorded_sweep import RecordedSweep

if TYPE_CHECKING:
    from sweeps.tracking.registry import Registered


def register_export(sweep: RecordedSweep, number: int, folder: Path, model: str) -> "Registered":
    """Make the export of trial `number` in `folder` the champion of the registered `model`.

    What is registered are the export's own files and `trial.json`: no base weights. Raises
    SpecError if the sweep is not in MLflow, or the address of its server has lost its credentials,
    Unavailable if MLflow does not do it.
    """
    from sweeps.tracking.destination import Destination

    spec = TrialSpec.model_validate_json((folder / TRIAL_FILE).read_text(encoding="utf-8"))
    tracking = sweep.spec.tracking
    if not tracking.enabled:
        raise SpecError(f"the sweep {sweep.name!r} is not in MLflow: tracking.enabled is false")
    uri = tracking.uri or sweep.folder.tracking_url
    if "***@" in uri:
        raise SpecError(
            f"--register: the sweep is at {uri}, whose credentials are not recorded; register the "
            "export there with MLflow's own client"
        )
    key = str(sweep.study.optuna.user_attrs["key"])
    destination = Destination(uri, tracking.experiment, sweep.name, key)
    files = dict.fromkeys([*parcel(folder).files, TRIAL_FILE])
    tags = {
        "sweep": sweep.name,
        "trial.number": str(number),
        "base_model": base_name(spec),
        "base_model.revision": spec.model.revision or "",
        "quantization": spec.quantization.scheme,
    }
    from sweeps.tracking.registry import register  # imports mlflow

    try:
        return register(destination, number, folder, list(files), model, tags)
    except LookupError as error:
        raise SpecError(f"--register: {error}") from error
    except Exception as error:  # of MLflow, requests, a database's driver, an object store
        raise Unavailable(f"--register: MLflow does not register {model!r}: {error}") from error
