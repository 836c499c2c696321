"""LoRA and its variants, by PEFT's field names."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from peft_jobs.spec.adapters.section import UNQUANTIZED, LayeredAdapter, without
from peft_jobs.spec.fields import Names, Positive, Rate, Section, Width

MUTATING = ("pissa", "olora", "corda")
"""Initialisations that move a part of the base's weights into the adapter."""
FROM_DATA = ("eva", "corda")
"""Initialisations that look at the trial's first training rows."""


class EvaSpec(Section):
    rho: Annotated[float, Field(ge=1, le=100)] = 2.0
    """Ranks may grow to `rho * r` where they explain more; 1 keeps all at `r`."""


class CordaSpec(Section):
    corda_method: Literal["ipm", "kpm"] = "ipm"
    """`ipm` adapts what the data use, `kpm` what they do not."""


def _initialisation(value: Any) -> Any:
    return "default" if value is True else value


Initialisation = Annotated[
    Literal[
        "default",
        "gaussian",
        "orthogonal",
        "eva",
        "loftq",
        "pissa",
        "pissa_niter_4",
        "pissa_niter_16",
        "olora",
        "corda",
    ],
    BeforeValidator(_initialisation),
]


class LoraSpec(LayeredAdapter):
    """Hu et al. 2021, arXiv 2106.09685."""

    method: Literal["lora"] = "lora"
    r: Width = 8
    lora_alpha: Positive = 16
    lora_dropout: Rate = 0.0
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353)."""
    init_lora_weights: Initialisation = "default"
    """`default` (PEFT's `true`), gaussian, orthogonal; pissa (arXiv 2404.02948; with
    `niter` by a fast SVD), olora (arXiv 2406.01775), eva (arXiv 2410.07170), corda (arXiv
    2406.05223); loftq (arXiv 2310.08659), which makes up for the quantization of the base."""
    eva_config: EvaSpec = EvaSpec()
    corda_config: CordaSpec = CordaSpec()
    rank_pattern: dict[str, Width] = Field(default_factory=dict)
    """Ranks of some of the targets, by the end of their names (a regular expression)."""
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    target_parameters: Names = ()
    """Parameters that lie in no linear module, by the end of their names: the experts of a mixture
    (`experts.gate_up_proj`), which transformers keeps as one parameter of three dimensions."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases of the base that are trained too; they keep the base's dtype."""
    loraplus_lr_ratio: Positive = 1.0
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns at this many times `learning_rate`."""

    @property
    def mutates_base(self) -> bool:
        return self.init_lora_weights.startswith(MUTATING)

    def refusal(self, scheme: str, task: str, gradient_checkpointing: bool) -> str | None:
        name = f"init_lora_weights {self.init_lora_weights}"
        if self.mutates_base and scheme not in UNQUANTIZED:
            return f"{name} needs quantization.scheme none, got {scheme}"
        if self.init_lora_weights == "loftq" and scheme in UNQUANTIZED:
            return f"{name} needs quantization.scheme nf4, fp4 or int8, got {scheme}"
        if self.use_dora and scheme == "int8":  # PEFT 0.21.2 loses the scales of int8 layers
            return "use_dora needs quantization.scheme none, nf4 or fp4, got int8"
        if self.target_parameters:
            if self.lora_dropout:
                return f"target_parameters needs lora_dropout 0, got {self.lora_dropout:g}"
            if self.use_dora:
                return "target_parameters needs use_dora false, got true"
            if self.init_lora_weights != "default":
                return f"{name} cannot start target_parameters; give default"
        return super().refusal(scheme, task, gradient_checkpointing)

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_initialisation_uses(cls, value: Any) -> Any:
        chosen = value.get("init_lora_weights") if isinstance(value, dict) else None
        idle = {f"{name}_config" for name in FROM_DATA if name != chosen}
        return without(value, idle)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ranks = [self.r, *self.rank_pattern.values()]
        patterns = bool(self.rank_pattern or self.alpha_pattern)
        if self.init_lora_weights == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError(f"init_lora_weights orthogonal needs an even r, got {ranks}")
        if self.mutates_base and self.use_dora:
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} cannot be taken out of a DoRA again; "
                "give use_dora false"
            )
        if self.mutates_base and self.bias != "none":
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} needs bias none, got {self.bias}"
            )
        if self.mutates_base and self.use_rslora and patterns:
            raise ValueError(
                f"init_lora_weights {self.init_lora_weights} with use_rslora takes no rank_pattern "
                "or alpha_pattern"
            )
        if self.init_lora_weights == "eva" and patterns:
            raise ValueError("init_lora_weights eva chooses the ranks; leave the patterns out")
        return self
