"""One trial: what it is (`TrialSpec`), how it runs (engines on a `TrialHost`), how it ended.

The light half (spec, result, errors, files, templates, host) needs only the standard library and
pydantic; everything that imports torch is reached by name (`peft_jobs.engines.load_engine`).
"""

from peft_jobs.errors import DataError, Diverged, Fenced, OutOfMemory, PeftJobsError, SpecError
from peft_jobs.result import Kind, Progress, State, TrialResult
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
