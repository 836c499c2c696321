"""How many tokens a row may have: a base's positions, less those that virtual tokens take.

Positions that are computed (rotary, relative, ALiBi) go on for as long as a row does; a table of
them ends, and a row that is longer fails in the middle of a step.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from peft_jobs.base.loading import Base
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.errors import Refused, SpecError
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import PrefixTuningSpec, PTuningV2Spec

_NO_LIMIT = 10**9
_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")


def table_length(model: nn.Module) -> int | None:
    """Tokens for which the model's table of positions is long enough; None if it has none."""
    lengths = [
        _usable(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    lengths += [  # of GPT-J, whose sines and cosines are a tensor
        len(buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[2] in _TABLES
    ]
    return min(lengths, default=None)


def stated_limit(config: PretrainedConfig) -> int | None:
    """Tokens for which the configuration says that the model is made; None if it does not say.

    -1 (XLNet), 0 and powers of ten beyond any length stand for no limit.
    """
    for part in (config, getattr(config, "text_config", None)):
        stated = getattr(part, "max_position_embeddings", None)
        if isinstance(stated, int) and 0 < stated < _NO_LIMIT:
            return stated
    return None


def check_lengths(base: Base, spec: TrialSpec, data: TokenizedData) -> None:
    """Raise SpecError if an example is longer than the base has positions for."""
    limits = (stated_limit(base.model.config), table_length(base.model))
    limit = min((known for known in limits if known is not None), default=None)
    if limit is not None and data.longest > limit:
        raise SpecError(
            f"data.max_length must be <= {limit}, the positions of "
            f"{spec.model.name_or_path}, got {spec.data.max_length} with examples of up to "
            f"{data.longest} tokens"
        )


def check_virtual_tokens(base: Base, spec: TrialSpec, data: TokenizedData) -> None:
    """Raise Refused if the adapter's virtual tokens and an example need more positions than a table
    has: the encoder's, or of a prefix, which the decoder alone counts, those of the target."""
    virtual = getattr(spec.adapter, "num_virtual_tokens", 0)
    limit = table_length(base.model) if virtual else None
    if limit is None:
        return
    prefix = isinstance(spec.adapter, PrefixTuningSpec | PTuningV2Spec)
    of_targets = prefix and base.model.config.is_encoder_decoder
    longest = data.longest_target if of_targets else data.longest
    if longest + virtual > limit:
        field = "task.max_target_length" if of_targets else "data.max_length"
        raise Refused(
            f"adapter.num_virtual_tokens: {virtual} virtual tokens before examples of up to "
            f"{longest} tokens need {longest + virtual} positions, and {spec.model.name_or_path} "
            f"has {limit}; give {field} of at most {max(limit - virtual, 0)}"
        )


def check_some_fit(base: Base, trials: Sequence[TrialSpec], data: TokenizedData) -> None:
    """Raise what `check_virtual_tokens` raises if it does so for all of the trials."""
    refusals = []
    for trial in trials:
        try:
            check_virtual_tokens(base, trial, data)
        except Refused as error:
            refusals.append(error)
    if refusals and len(refusals) == len(trials):
        raise refusals[0]


def _usable(table: Any) -> int:
    """Positions of a table; RoBERTa's begin after the padding token's, OPT's after two more."""
    before = table.padding_idx + 1 if type(table) is nn.Embedding and table.padding_idx else 0
    return int(table.num_embeddings) - before - int(getattr(table, "offset", 0))
