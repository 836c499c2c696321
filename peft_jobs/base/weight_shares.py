"""How much of a base is quantized, and what is not: bitsandbytes quantizes linear layers alone.

Parameters outside of them are in no list of modules: the experts of a mixture, which transformers 5
keeps as one parameter of three dimensions, stay as they are, and with them most of the memory.
"""

import logging
import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from peft_jobs.base.architecture import head_modules, inside, skeleton
from peft_jobs.base.quantization import QUANTIZED, bnb_config
from peft_jobs.base.stored_quantization import check_stored, stored_quantization
from peft_jobs.spec import ModelSpec, QuantizationSpec, TaskSpec

log = logging.getLogger(__name__)

EMBEDDINGS, HEADS, VECTORS = "embeddings", "heads", "vectors"
_ALWAYS_LEFT = {EMBEDDINGS, HEADS, VECTORS}
_WORTH_A_WORD = 0.05
"""Of all weights: what more than that is left as it is comes as a surprise."""


@dataclass(frozen=True)
class WeightShares:
    """Numbers of weights, each counted once where several modules share it."""

    num_weights: int
    num_quantized: int
    left: dict[str, int]
    """What is not quantized, largest first: `embeddings`, `heads`, `vectors` (norms and biases),
    and all others by the end of their names (`experts.down_proj`)."""

    @property
    def others_left(self) -> int:
        """Weights that are not quantized and whose kind can be."""
        return sum(number for kind, number in self.left.items() if kind not in _ALWAYS_LEFT)

    def words(self, scheme: str) -> str:
        """A sentence with all of it."""
        left = [f"{kind} {number:,} ({self._share(number)})" for kind, number in self.left.items()]
        others = len(left) - 5
        more = f" and {others} other kind{'s' * (others > 1)}" if others > 0 else ""
        return (
            f"{scheme} quantizes {self.num_quantized:,} of {self.num_weights:,} weights "
            f"({self._share(self.num_quantized)}); left as they are: {', '.join(left[:5])}{more}"
        )

    def _share(self, number: int) -> str:
        return f"{100 * number / max(self.num_weights, 1):.1f} %"


def weight_shares(model: PreTrainedModel) -> WeightShares:
    """The shares of a model, which may be on the meta device."""
    heads, seen = head_modules(model), set()
    quantized, left = 0, Counter[str]()
    for name, module in model.named_modules():
        is_head = name in heads or inside(name, heads)
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, QUANTIZED) and own == "weight":  # perhaps two to a byte
                quantized += module.in_features * module.out_features
            else:
                left[_kind(module, f"{name}.{own}", parameter, is_head)] += parameter.numel()
    return WeightShares(quantized + left.total(), quantized, dict(left.most_common()))


def planned_shares(
    model: ModelSpec, quantization: QuantizationSpec, task: TaskSpec
) -> WeightShares | None:
    """The shares as loading would give them, without weights; None where none is quantized.

    Raises SpecError for a base that cannot be had so.
    """
    if quantization.scheme == "none":
        return None
    outline = skeleton(model, task)
    check_stored(model, outline.config, quantization)
    stored = stored_quantization(outline.config)
    skip: list[str] | None = [*head_modules(outline), *quantization.llm_int8_skip_modules]
    if stored is not None:
        skip = stored.get("llm_int8_skip_modules")
    config = bnb_config(quantization, skip or (), torch.device("cpu"))
    in_float32 = list(outline._keep_in_fp32_modules or ())
    left_out = HfQuantizer.get_modules_to_not_convert(outline, skip, in_float32)
    replace_with_bnb_linear(outline, left_out, config, pre_quantized=False)
    return weight_shares(outline)


def warn_of_shares(shares: WeightShares | None, quantization: QuantizationSpec) -> None:
    """Log a warning if a large part of what might be quantized is not, and nobody asked for it."""
    if shares is None or quantization.scheme == "none" or quantization.llm_int8_skip_modules:
        return
    if shares.others_left > _WORTH_A_WORD * shares.num_weights:
        log.warning(
            "%s; bitsandbytes quantizes linear layers alone, so these take the memory that they "
            "take unquantized",
            shares.words(f"quantization.scheme: {quantization.scheme}"),
        )


def _kind(module: nn.Module, name: str, parameter: torch.Tensor, is_head: bool) -> str:
    if isinstance(module, nn.Embedding):
        return EMBEDDINGS
    if is_head:
        return HEADS
    if parameter.ndim < 2:
        return VECTORS
    parts = [part for part in re.sub(r"\b\d+\b", "", name).split(".") if part]
    return ".".join(parts[-2:]).removesuffix(".weight")
