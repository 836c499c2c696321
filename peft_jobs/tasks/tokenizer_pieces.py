"""What a tokenizer makes of a text: its own opening, the tokens, the bytes behind each, the end.

Special tokens stand once. Templates and data may hold in writing what is put around a text anyway
(`<s>[INST] {q} [/INST]`, `{a}</s>`): it is taken for that, however often it is repeated and
whatever white space lies before a bos that begins the text, or after an eos that ends it. Elsewhere
in a text a bos or eos stays as it was written. Neither is a byte of text, written or not: sizes
count what a reader sees.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase


def surroundings(
    tokenizer: PreTrainedTokenizerBase, target: bool = False
) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and behind a text, or a `target`: bos, eos, ..."""
    text = "text_target" if target else "text"
    plain = list(tokenizer(**{text: "a"}, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(**{text: "a"})["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        stop = start + len(plain)
        if whole[start:stop] == plain:
            return whole[:start], whole[stop:]
    return [], []


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: bos, or nothing."""
    return surroundings(tokenizer)[0]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that are no text: what `decode(skip_special_tokens=True)` leaves out, and more
    that were added as such."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


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


def written_once(text: str, marks: Iterable[str]) -> str:
    """`text` with one mark where several of a kind follow each other, white space aside."""
    for mark in marks:
        if text.count(mark) > 1:
            first, *others = text.split(mark)
            kept = [part for part in others[:-1] if part.strip()] + others[-1:]
            text = mark.join([first, *kept])
    return text


@dataclass(frozen=True)
class Piece:
    """Tokens, and the UTF-8 bytes of text behind each: none behind bos and eos."""

    tokens: list[int]
    sizes: list[int]
    rest: int = 0
    """Bytes behind the last token, as of white space that a tokenizer drops."""

    def after(self, count: int) -> "Piece":
        """Without the first `count` tokens."""
        return Piece(self.tokens[count:], self.sizes[count:], self.rest)


class Frame:
    """Puts texts between what a tokenizer opens them with and eos."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.opening = opening_tokens(tokenizer)
        self.closing = closing_tokens(tokenizer)
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        opening = "".join(map(str, tokenizer.convert_ids_to_tokens(self.opening)))
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self._openings = tuple(filter(None, (opening, bos)))
        self._closings = tuple(filter(None, (eos,)))

    def is_blank(self, text: str) -> bool:
        """Whether a text has nothing in it beside bos, eos and white space."""
        for mark in (*self._openings, *self._closings):
            text = text.replace(mark, "")
        return not text.strip()

    def context(self, text: str) -> list[int]:
        """The opening and the text."""
        return self.opening + self._begun(self._piece(self._stripped(text))).tokens

    def answer(self, text: str, context: list[int]) -> Piece:
        """What follows on the context, with its end; a bos that the context has is left out."""
        piece = self._begun(self._piece(self._stripped(text, to_the_end=True)))
        begins = piece.tokens[:1]
        opened = self._bos != self._eos and self._bos in context[: len(self.opening) or 1]
        if (begins == [self._bos] and opened) or (begins == [self._eos] and context[-1:] == begins):
            piece = piece.after(1)
        return self._ended(piece)

    def whole(self, text: str) -> Piece:
        """The opening, the text and its end."""
        piece = self._begun(self._piece(self._stripped(text, to_the_end=True)))
        sizes = [0] * len(self.opening) + piece.sizes
        return self._ended(Piece(self.opening + piece.tokens, sizes, piece.rest))

    def _stripped(self, text: str, to_the_end: bool = False) -> str:
        text = written_once(text, (*self._openings, *self._closings))
        if text.lstrip().startswith(self._openings):
            text = text.lstrip()
        closed = to_the_end and text.rstrip().endswith(self._closings)
        return text.rstrip() if closed else text

    def _piece(self, text: str) -> Piece:
        tokens, ends = tokens_with_ends(self.tokenizer, text)
        borders = [0, *ends]
        sizes = [
            0 if token in (self._bos, self._eos) else len(text[start:end].encode())
            for token, (start, end) in zip(tokens, pairwise(borders), strict=True)
        ]
        return Piece(tokens, sizes, len(text[borders[-1] :].encode()))

    def _begun(self, piece: Piece) -> Piece:
        """Without what of the opening is written in it."""
        for count in range(len(self.opening), 0, -1):
            if piece.tokens[:count] == self.opening[-count:]:
                return piece.after(count)
        return piece

    def _ended(self, piece: Piece) -> Piece:
        if not self.closing or piece.tokens[-1:] == self.closing:
            return piece
        return Piece(piece.tokens + self.closing, [*piece.sizes, piece.rest])


class OwnFrame:
    """Texts, or targets, between what the tokenizer itself puts around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, target: bool = False) -> None:
        self.tokenizer = tokenizer
        self.opening, self.closing = surroundings(tokenizer, target)
        self._text = "text_target" if target else "text"
        self._before, self._behind = self._pattern(self.opening), self._pattern(self.closing)

    def tokens(self, text: str, max_length: int) -> list[int]:
        """Of the text with what is around it, cut on the right as the tokenizer does it."""
        return self.piece(text, max_length).tokens

    def is_blank(self, text: str) -> bool:
        """Whether a text has nothing in it beside what the tokenizer puts around it."""
        return not self.bare(text).strip()

    def piece(self, text: str, max_length: int) -> Piece:
        """`tokens`, with the bytes behind each; those of a slow tokenizer are at the last."""
        text = self.bare(text)
        options = {"truncation": True, "max_length": max_length}
        if not self.tokenizer.is_fast:
            whole = self.tokenizer(**{self._text: text})["input_ids"]
            tokens = list(self.tokenizer(**{self._text: text}, **options)["input_ids"])
            cut = len(whole) > len(tokens)
            kept = self.tokenizer.decode(tokens, skip_special_tokens=True) if cut else text
            return Piece(tokens, [0] * (len(tokens) - 1) + [len(str(kept).encode())])
        found = self.tokenizer(**{self._text: text}, **options, return_offsets_mapping=True)
        marks, reached, sizes = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id), 0, []
        for token, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            sizes.append(0 if token in marks else len(text[reached:end].encode()))
            reached = max(reached, end)
        return Piece(list(found["input_ids"]), sizes)

    def bare(self, text: str) -> str:
        """The text without what is written at its ends and put there anyway."""
        if self._before is not None:
            text = re.sub(rf"^(?:\s*(?:{self._before}))+", "", text)
        if self._behind is not None:
            text = re.sub(rf"(?:(?:{self._behind})\s*)+$", "", text)
        return text

    def bare_words(self, words: Sequence[str]) -> slice:
        """Of words, those between what is put there anyway, where it is written as words."""
        inner = [number for number, word in enumerate(words) if not self.is_blank(word)]
        return slice(inner[0], inner[-1] + 1) if inner else slice(0, 0)

    def _pattern(self, tokens: list[int]) -> str | None:
        written = map(str, self.tokenizer.convert_ids_to_tokens(tokens))
        return "|".join(map(re.escape, written)) or None
