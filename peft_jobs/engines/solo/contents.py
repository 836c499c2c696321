"""What the trials of a sweep see, as fingerprints by words: a later launch must find the same.

Names alone do not say that a base, a file or a tokenizer is what it was: they are changed in place.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from peft_jobs.base.loading import Base
from peft_jobs.data.selection import select
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import DataSpec, TrialSpec

log = logging.getLogger(__name__)


def contents(
    spec: TrialSpec,
    variants: Sequence[TrialSpec],
    base: Base,
    data: TokenizedData,
    device_name: str,
    cache_dir: Path,
) -> dict[str, str]:
    """Of base, tokenizer and rows. `variants` may train on other rows than `spec`.

    Weights are known as they were loaded, which another device may do with other bits.
    """
    found = {
        f"base's weights on {device_name}": base.contents["weights"],
        "base's config.json": base.contents["config"],
        "tokenizer": data.fingerprints["tokenizer"],
        _rows(spec.data): data.fingerprints["train_data"],
    }
    for variant in variants:
        if (name := _rows(variant.data)) not in found:
            try:
                found[name] = select(variant.data, "train", cache_dir).fingerprint
            except (DataError, SpecError) as error:  # its trials will end so
                log.warning("%s: %s", name, error)
    return found


def _rows(data: DataSpec) -> str:
    """Which rows are trained on, in words."""
    named = data.train.model_dump(exclude_none=True)
    chosen = {name: getattr(data, name) for name in ("subset", "group_by", "seed")}
    if isinstance(data.validation, float):
        chosen["validation"] = data.validation
    parts = {**named, **{name: value for name, value in chosen.items() if value}}
    path = parts.pop("path")
    if data.train_also is not None:
        path += f" and {data.train_also.path}"
    told = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"training rows of {path}" + (f" ({told})" if told else "")
