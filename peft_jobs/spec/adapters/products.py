"""Other products of small matrices: LoHa, LoKr, VeRA, MiSS, and the rotations of OFT."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peft_jobs.spec.adapters.section import UNQUANTIZED, LayeredAdapter, without
from peft_jobs.spec.fields import Positive, Rate, Width

SMALL_SEED = Annotated[int, Field(ge=0, lt=2**32)]


class _Lycoris(LayeredAdapter):
    SCHEMES: ClassVar[tuple[str, ...]] = UNQUANTIZED

    r: Width = 8
    alpha: Positive = 8
    """The scale is alpha / r."""
    rank_dropout: Rate = 0.0
    module_dropout: Rate = 0.0
    rank_pattern: dict[str, Width] = Field(default_factory=dict)
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)


class LohaSpec(_Lycoris):
    """Hadamard product of two low ranks: Hyeon-Woo et al. 2021 (FedPara), arXiv 2108.06098."""

    method: Literal["loha"]


class LokrSpec(_Lycoris):
    """Kronecker product: Yeh et al. 2023 (LyCORIS), arXiv 2309.14859."""

    method: Literal["lokr"]
    decompose_both: bool = False
    decompose_factor: Annotated[int, Field(ge=-1, le=2**16)] = -1
    """The first factor's size is at most this; -1 is the square root of the layer's."""
    rank_dropout_scale: bool = False


class OftSpec(LayeredAdapter):
    """Rotations of the inputs in blocks: Qiu et al. 2023, arXiv 2306.07280."""

    method: Literal["oft"]
    oft_block_size: Annotated[int, Field(ge=0, le=2**16)] = 32
    """Must divide the width of every target; the nearest divisor is taken where it does not."""
    coft: bool = False
    """Keep the rotation within `eps` of none."""
    eps: Positive = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100)] = 5
    bias: Literal["none", "all", "oft_only"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_used(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        idle = set() if value.get("coft") else {"eps"}
        idle |= set() if value.get("use_cayley_neumann", True) else {"num_cayley_neumann_terms"}
        return without(value, idle)


class VeraSpec(LayeredAdapter):
    """Vectors between two frozen random matrices: Kopiczko et al. 2023, arXiv 2310.11454."""

    method: Literal["vera"]
    r: Width = 256
    vera_dropout: Rate = 0.0
    d_initial: Positive = 0.1
    projection_prng_key: SMALL_SEED = 0
    """Of the random matrices; the trial's seed has no part in them."""
    save_projection: bool = True
    """Save the random matrices too, so that other versions of torch load the same."""


class MissSpec(LayeredAdapter):
    """Sums over shards of the input: Kang and Yin 2024, arXiv 2409.15371."""

    method: Literal["miss"]
    r: Width = 64
    mini_r: Width = 1
    """Of the initialisation `mini`."""
    miss_dropout: Rate = 0.0
    init_weights: Literal["default", "bat", "mini"] = "default"
    """`bat` and `mini` are other forms of the method: more costly, or with fewer parameters."""

    def refusal(self, scheme: str, task: str, gradient_checkpointing: bool) -> str | None:
        if self.init_weights == "bat" and scheme not in UNQUANTIZED:
            return f"init_weights bat needs quantization.scheme none, got {scheme}"
        return super().refusal(scheme, task, gradient_checkpointing)

    @model_validator(mode="before")
    @classmethod
    def _default_is_true(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("init_weights") is True:
            value = {**value, "init_weights": "default"}
        mini = isinstance(value, dict) and value.get("init_weights") == "mini"
        return value if mini else without(value, {"mini_r"})

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.init_weights == "mini" and self.r % self.mini_r:
            raise ValueError(f"mini_r must divide r, got {self.mini_r} and {self.r}")
        return self
