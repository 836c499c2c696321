"""How answers are decoded, wherever a model is: how they begin, and what ends them.

Decoding is greedy. Of a checkpoint's generation settings only its special tokens hold; what else it
would do (beams, penalties, forced, suppressed and bad words, lengths, sampling) is off, for every
method alike, so that an answer depends on the weights alone.

A decoder with an encoder is begun as it is in training: by the token that the architecture puts
before a target (mBART's language), and then by the one with which the tokenizer opens every target
(BART's bos, NLLB's language). That one is forced, whether the checkpoint does so or forces another:
it says what is asked of the model, and is none of its answer.

What is measured so is what leaves: `peft_jobs.evaluation.serving` writes it beside an export.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from peft_jobs.tasks.seq2seq import decoder_inputs
from peft_jobs.tasks.task import base_of
from peft_jobs.tasks.tokenizer_pieces import special_tokens, surroundings

_SPECIAL = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Decoding:
    """The tokens with which answers begin and end."""

    ends: tuple[int, ...]
    """The checkpoint's own come first."""
    decoder_start: int | None = None
    """Of an encoder-decoder: what its decoder reads first; None leaves it to the checkpoint."""
    forced: int | None = None
    """Of an encoder-decoder: the token that every target has first."""

    @property
    def tokens(self) -> dict[str, Any]:
        """Settings of transformers' GenerationConfig, as far as they are known."""
        found = {
            "eos_token_id": self.ends[0] if len(self.ends) == 1 else list(self.ends) or None,
            "decoder_start_token_id": self.decoder_start,
            "forced_bos_token_id": self.forced,
        }
        return {name: value for name, value in found.items() if value is not None}


def decoding_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[Sequence[int]] = (),
    chat: bool = False,
) -> Decoding:
    """How a model with or without an adapter answers, where `references` are true answers.

    An answer ends at the checkpoint's eos, at the tokenizer's, at what the tokenizer puts behind a
    target; and in a `chat`, whose template may close turns with another token, at that one.
    """
    base = base_of(model)
    own = base.generation_config.eos_token_id
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    if chat:
        ends += sorted(turn_ends(tokenizer, references))
    start = forced = None
    if base.config.is_encoder_decoder:
        opening, closing = surroundings(tokenizer, target=True)
        ends += closing[:1]
        forced = opening[0] if len(opening) == 1 else None
        if references:
            labels = torch.tensor([references[0]], device=base.device)
            start = int(decoder_inputs(base, labels)[0, 0])
    return Decoding(tuple(dict.fromkeys(end for end in ends if end is not None)), start, forced)


def turn_ends(
    tokenizer: PreTrainedTokenizerBase, references: Sequence[Sequence[int]]
) -> frozenset[int]:
    """The special tokens with which the references end, white space aside, and that are nowhere
    inside of them (as the last one of a reference that was cut may be)."""
    special = special_tokens(tokenizer)
    ends: set[int] = set()
    inside: set[int] = set()
    for reference in references:
        written = list(reference)
        while written and written[-1] not in special and not answer_text(tokenizer, written[-1:]):
            written.pop()
        if written and written[-1] in special:
            ends.add(written.pop())
        inside |= special & set(written)
    return frozenset(ends - inside)


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """An answer's text: without special tokens, and without white space around it."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


@contextmanager
def without_own_settings(model: nn.Module) -> Iterator[None]:
    """Of the checkpoint's generation settings only the special tokens hold in the block: where
    `generate` is told nothing, or None, it takes what it finds there."""
    base = base_of(model)
    own = base.generation_config
    base.generation_config = special_settings(own)
    try:
        yield
    finally:
        base.generation_config = own


def special_settings(own: GenerationConfig) -> GenerationConfig:
    """A checkpoint's generation settings without all but its special tokens: greedy decoding."""
    tokens = {name: getattr(own, name) for name in _SPECIAL}
    return GenerationConfig(**tokens)  # type: ignore[no-untyped-call]
