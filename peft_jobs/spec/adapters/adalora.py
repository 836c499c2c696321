"""AdaLoRA: LoRA whose ranks are cut during training where they matter least."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peft_jobs.spec.adapters.section import LayeredAdapter
from peft_jobs.spec.fields import Count, NonNegative, Positive, Rate, Share, Width

SCHEDULE = ("tinit", "tfinal")


class AdaLoraSpec(LayeredAdapter):
    """Zhang et al. 2023, arXiv 2303.10512. The schedule is tied to the trial's own steps."""

    MERGES: ClassVar[bool] = True

    method: Literal["adalora"]
    init_r: Width = 12
    """Rank of every target at first."""
    target_r: Width = 8
    """Average rank at the end."""
    lora_alpha: Positive = 32
    """The scale is alpha / init_r, whatever the rank has become."""
    lora_dropout: Rate = 0.0
    tinit: Annotated[float, Field(ge=0)] = 0.1
    """Steps before the first cut, or below 1 the share of all steps."""
    tfinal: Annotated[float, Field(ge=0)] = 0.3
    """Steps after the last cut, or below 1 the share of all steps."""
    deltaT: Count = 1
    """Steps between cuts."""
    beta1: Share = 0.85
    beta2: Share = 0.85
    orth_reg_weight: NonNegative = 0.5

    def schedule(self, num_steps: int) -> tuple[int, int]:
        """(tinit, tfinal) in steps of a trial of `num_steps`."""
        first, last = (
            round(value * num_steps) if value < 1 else int(value)
            for value in (self.tinit, self.tfinal)
        )
        return first, last

    @model_validator(mode="after")
    def _cuts_in_between(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r must be <= init_r, got {self.target_r} > {self.init_r}")
        for name in SCHEDULE:
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(f"{name} must be a share below 1 or whole steps, got {value}")
        if max(self.tinit, self.tfinal) < 1 and self.tinit + self.tfinal > 0.9:
            raise ValueError("tinit and tfinal must leave a tenth of the steps between them")
        return self
