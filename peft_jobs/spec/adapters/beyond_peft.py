"""Methods that PEFT does not have: bottleneck adapters, and full fine-tuning as the reference."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peft_jobs.spec.adapters.section import UNQUANTIZED, Adapter
from peft_jobs.spec.fields import Rate

OWN = ("bottleneck", "full")
"""What they save is loaded by `peft_jobs.methods.load_adapter` alone."""


class BottleneckSpec(Adapter):
    """Small networks after the blocks of each layer; field names of the AdapterHub library."""

    MERGES: ClassVar[bool] = False

    method: Literal["bottleneck"]
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """`houlsby` after attention and feed-forward (Houlsby et al. 2019, arXiv 1902.00751, figure 2),
    `pfeiffer` after the feed-forward alone (Pfeiffer et al. 2020, arXiv 2005.00247)."""
    reduction_factor: Annotated[int, Field(ge=1, le=1024)] = 16
    """Width of the layer by width of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    adapter_dropout: Rate = 0.0
    """Before the bottleneck."""


class FullSpec(Adapter):
    """Full fine-tuning: every weight of the base, in float32; what adapters are compared with."""

    SCHEMES: ClassVar[tuple[str, ...]] = UNQUANTIZED

    method: Literal["full"]
    train_embeddings: bool = True
    """Whether the token and position embeddings are trained too."""

    @property
    def mutates_base(self) -> bool:
        return True
