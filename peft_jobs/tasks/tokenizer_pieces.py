"""What a tokenizer makes of a text: its own opening, the tokens, the characters behind each."""

from transformers import PreTrainedTokenizerBase


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: bos, or nothing."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def tokens_with_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Tokens of `text` without special ones, and the character at which each ends."""
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], [end for _, end in found["offset_mapping"]]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = [len(tokenizer.decode(tokens[: count + 1])) for count in range(len(tokens))]
    return tokens, ends


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end of a text: eos, or nothing."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
