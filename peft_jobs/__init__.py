"""One trial: what it is (`TrialSpec`), how it runs (engines on a `TrialHost`), how it ended.

The light half (`spec`, `host`, `storage`, the modules beside the rooms) needs only the standard
library and pydantic; all that imports torch is reached by name (`peft_jobs.engines.load_engine`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft_jobs.errors import DataError, Diverged, Fenced, OutOfMemory, PeftJobsError, SpecError

if TYPE_CHECKING:
    from peft_jobs.host.result import Kind, Progress, State, TrialResult
    from peft_jobs.spec import TrialSpec

__all__ = [
    "DataError",
    "Diverged",
    "Fenced",
    "Kind",
    "OutOfMemory",
    "PeftJobsError",
    "Progress",
    "SpecError",
    "State",
    "TrialResult",
    "TrialSpec",
]
_HOMES = {
    "Kind": "host.result",
    "Progress": "host.result",
    "State": "host.result",
    "TrialResult": "host.result",
    "TrialSpec": "spec",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: a trial's proxy needs no specs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Completion offers the public names, imported or not."""
    return sorted(__all__)
