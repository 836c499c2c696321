"""What finished trials of a storage say of the predictions for a device."""

from pathlib import Path

from peft_jobs.host.gpus import Device, device_of
from sweeps.results.prediction_error import (
    PredictionError,
    prediction_errors,
    recorded_results,
)


def learned(storage: Path, device: Device) -> PredictionError | None:
    """The error of predictions on such a device, by the trials of all sweeps of `storage`; None
    where no trial tells."""
    errors = prediction_errors(recorded_results(storage))
    return next((error for error in errors if _is_such(error.device, device)), None)


def _is_such(name: str, device: Device) -> bool:
    """Whether trials on `name`, as their records call it, were on such a device."""
    if name == "cpu" or device.kind == "cpu":
        return name == device.kind
    found = device_of(name, device.memory_bytes)
    rates = ("bytes_per_second", "half_flops", "float_flops")
    return all(getattr(found, rate) == getattr(device, rate) for rate in rates)
