"""Tokenizers that know the special tokens of a chat template, and write every other byte alone."""

import re
from typing import Any

_SPECIAL = re.compile(r"<[|\uff5cA-Za-z_][^<>\s'\"{}]*>")
_PLAIN = re.compile(r"</?[a-z_]+>$")
_ENDS = ("<end_of_turn>", "<start_of_turn>", "<end_of_utterance>")


def tokenizer_for(template: str | None, eos: str = "</s>") -> Any:
    """A fast tokenizer with bos `<s>`, `eos`, and as special tokens all that `template` writes in
    angle brackets, but for plain tags such as `<think>` or `<tool_call>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token="<pad>"
    )
    names = sorted({*_SPECIAL.findall(template or ""), *_ENDS})
    special = [name for name in names if name in _ENDS or not _PLAIN.match(name)]
    found.add_tokens([AddedToken(name, special=True) for name in special], special_tokens=True)
    found.add_tokens(
        [AddedToken(tag) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    )
    found.chat_template = template
    return found
