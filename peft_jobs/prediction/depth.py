"""A configuration with fewer layers, and what a model of all of them takes, from two such.

Memory and work are affine in the number of layers: embeddings and head are there once, and each
layer adds what the one before it added.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers")
"""Names of the number of layers; those of a decoder beside an encoder follow it."""
_DECODERS = ("num_decoder_layers", "decoder_layers")
MIN_DEPTH = 3
"""What the allocator leaves between blocks is not affine below."""


def full_depth(config: PretrainedConfig) -> int:
    """Layers of the text model; of the encoder, where there are two stacks."""
    return int(_text(config).num_hidden_layers)


def depths(config: PretrainedConfig) -> tuple[int, int] | None:
    """Two smaller numbers of layers that tell of the whole; None where the whole must be run."""
    number, period = full_depth(config), _period(config)
    text = _text(config)
    same = all(getattr(text, name, number) == number for name in _DECODERS)
    per_layer = [
        name
        for name, value in text.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == number and name != "layer_types"
    ]
    irregular = getattr(text, "first_k_dense_replace", 0) or per_layer or not same
    few, more = (max(MIN_DEPTH, period) * times for times in (1, 2))
    return None if irregular or more >= number else (few, more)


def at_depth(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    """A copy of the configuration with `depth` layers in each stack."""
    changed = copy.deepcopy(config)
    text: Any = _text(changed)
    for name in (*_DEPTHS, *_DECODERS):
        if hasattr(text, name):
            setattr(text, name, depth)
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:depth]
    return changed


def extrapolated(few: tuple[int, int], values: Sequence[float], depth: int) -> float:
    """The value at `depth` layers of what has `values` at as many as `few`."""
    (less, more), (first, second) = few, values
    return first + (second - first) * (depth - less) / (more - less)


def _text(config: PretrainedConfig) -> Any:
    return config.get_text_config(decoder=False)


def _period(config: PretrainedConfig) -> int:
    """After how many layers their kinds repeat."""
    kinds = list(getattr(_text(config), "layer_types", None) or ())
    for period in range(1, len(kinds)):
        if all(kind == kinds[place % period] for place, kind in enumerate(kinds)):
            return period
    return max(1, len(kinds))
