"""Methods that train a vector per module: (IA)3 and the tuning of normalisation layers."""

from typing import ClassVar, Literal

from peft_jobs.spec.adapters.section import Adapter, TargetedAdapter
from peft_jobs.spec.fields import Names


class Ia3Spec(TargetedAdapter):
    """(IA)3: Liu et al. 2022, arXiv 2205.05638."""

    method: Literal["ia3"]
    target_modules: str | Names = "ia3"
    """`ia3` (keys, values and the last layer of each feed-forward block), a named set of LoRA's, or
    module names."""
    feedforward_modules: Names | None = None
    """Those of the targets whose inputs are scaled, instead of their outputs; by default the last
    layers of the feed-forward blocks."""


class LnTuningSpec(Adapter):
    """Zhao et al. 2023, arXiv 2312.11420."""

    method: Literal["ln_tuning"]
    target_modules: str | Names = "all-norms"
    """`all-norms`, names of normalisation layers, or a regular expression."""
    exclude_modules: str | Names = ()
    """Those of the targets that are left out."""

    MERGES: ClassVar[bool] = True
