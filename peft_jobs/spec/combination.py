"""How saved adapters are combined into one, by PEFT's words, and which of them can be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, get_args

from pydantic import model_validator

from peft_jobs.spec.fields import Section, Share, Width
from peft_jobs.storage.saved_adapter import SavedAdapter

CombinationType = Literal[
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
COMBINATION_TYPES: tuple[str, ...] = get_args(CombinationType)
_METHODS = ("lora", "ia3")
"""Those whose adapters PEFT combines."""
_IA3_TYPE = "linear"


class CombinationSpec(Section):
    """PEFT's `add_weighted_adapter`, by its names."""

    type: CombinationType = "cat"
    """`cat` adds the updates up as they are, and the ranks too; `svd` cuts that sum to one rank;
    `linear` adds the factors up, a rough approximation; `ties` (Yadav et al. 2023, arXiv
    2306.01708), `dare` (Yu et al. 2023, arXiv 2311.03099) and `magnitude_prune` drop weights
    before, of the factors or, with `svd`, of the updates."""
    density: Share | None = None
    """The share of weights that is kept where some are dropped; ties' authors keep 0.2."""
    rank: Width | None = None
    """Of the result, with `svd`; by default the largest rank of those combined."""

    @property
    def drops(self) -> bool:
        return self.type not in ("cat", "svd", "linear")

    @property
    def needs_one_rank(self) -> bool:
        """Whether factors are added up, which must have one shape."""
        return self.type != "cat" and not self.type.endswith("svd")

    def equal_weights(self, count: int) -> list[float]:
        """The weights of a mean of `count` adapters: ties takes the mean by itself."""
        return [1.0 if "ties" in self.type else 1 / count] * count

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.drops and self.density is None:
            raise ValueError(f"{self.type} needs density: the share of weights that is kept")
        if self.density is not None and not self.drops:
            raise ValueError(f"density is for ties, dare and magnitude_prune, got {self.type}")
        if self.rank is not None and not self.type.endswith("svd"):
            raise ValueError(f"rank is for svd, got {self.type}")
        return self


def refusals(
    adapters: Mapping[str, SavedAdapter],
    how: CombinationSpec,
    weights: Sequence[float] | None = None,
) -> Iterator[str]:
    """Why PEFT cannot combine the named adapters so, or would get it wrong; in sentences.

    Without `weights` they are those of a mean.
    """
    methods = {name: str(saved.settings["peft_type"]).lower() for name, saved in adapters.items()}
    if any(method not in _METHODS for method in methods.values()):
        names = ", ".join(f"{n} is {m}" for n, m in methods.items() if m not in _METHODS)
        yield f"PEFT combines lora and ia3, and {names}: leave those out"
        return
    if len(set(methods.values())) > 1:
        told = ", ".join(f"{name} is {method}" for name, method in methods.items())
        yield f"adapters of one method are combined, and {told}: leave some out"
        return
    for name, saved in adapters.items():
        yield from (f"{name} {reason}" for reason in _alone(saved.settings))
    if "ia3" in methods.values():
        yield from _of_vectors(adapters, how, weights)
    elif how.needs_one_rank:
        ranks = {name: _ranks(saved.settings) for name, saved in adapters.items()}
        if len({str(rank) for rank in ranks.values()}) > 1:
            told = ", ".join(f"{name} has {_told(*rank)}" for name, rank in ranks.items())
            yield f"{how.type} adds up factors of one rank, and {told}: take cat or svd"


def _alone(settings: Mapping[str, Any]) -> Iterator[str]:
    """What of one adapter PEFT does not combine."""
    if settings.get("modules_to_save"):
        names = ", ".join(settings["modules_to_save"])
        yield f"has modules that are trained whole ({names}), which PEFT does not combine"
    if settings.get("use_dora"):
        yield "is a DoRA, whose magnitudes PEFT leaves out"
    if settings.get("bias", "none") != "none":
        yield f"trains biases of the base (bias {settings['bias']}), which PEFT does not combine"
    if settings.get("target_parameters"):
        yield "has target_parameters, which PEFT does not combine"


def _of_vectors(
    adapters: Mapping[str, SavedAdapter], how: CombinationSpec, weights: Sequence[float] | None
) -> Iterator[str]:
    if how.type != _IA3_TYPE:
        yield f"vectors of (IA)3 are added up as they are: give the type {_IA3_TYPE}"
    if len({frozenset(saved.shapes) for saved in adapters.values()}) > 1:
        names = " and ".join(adapters)
        yield f"the (IA)3 of {names} scale different modules: combine those of equal targets"
    if weights is not None and not math.isclose(sum(weights), 1, rel_tol=1e-6):
        yield f"(IA)3 multiplies, so its weights must add up to 1, got {sum(weights):g}"


def _ranks(settings: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    return settings["r"], dict(sorted((settings.get("rank_pattern") or {}).items()))


def _told(rank: int, pattern: Mapping[str, int]) -> str:
    return f"{rank}" + (f" and {len(pattern)} others by pattern" if pattern else "")
