"""A tag for each word of a sentence that is given as words.

The words are joined by spaces and tokenised as a text, so that encoders and decoders see what they
know. A word's first piece is supervised and carries its tag; the other pieces do not count. Words
beyond max_length are cut and not measured, nor is a word for which the tokenizer has no piece, or
one whose tag is -100 or -1.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from datasets import Features, List, Value
from peft import TaskType
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import TokenClassificationSpec
from peft_jobs.tasks.spans import precision_recall_f1, spans
from peft_jobs.tasks.tag_schemes import Tag, is_plain, read_tags
from peft_jobs.tasks.task import (
    IGNORED,
    Batch,
    Encoder,
    Example,
    Row,
    Score,
    mask,
    pad,
    upcast,
)
from peft_jobs.tasks.tokenizer_pieces import OwnFrame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TagScore(Score):
    """`predicted` and `actual` are the tags of the words."""

    correct_spans: int = 0
    found_spans: int = 0
    true_spans: int = 0


class TokenClassification:
    """See `peft_jobs.tasks.task.Task`. Examples: input_ids, labels."""

    peft_task_type = TaskType.TOKEN_CLS

    def columns(self, spec: TokenClassificationSpec) -> dict[str, tuple[str, ...]]:
        return {"task.tokens": (spec.tokens,), "task.tags": (spec.tags,)}

    def label_field(self, spec: TokenClassificationSpec) -> str | None:
        return "task.tags"

    def named_classes(self, spec: TokenClassificationSpec) -> tuple[str, ...]:
        return spec.tag_names

    def mistake(self, row: Row, spec: TokenClassificationSpec) -> str | None:
        words, tags = row[spec.tokens], row[spec.tags]
        for column, cell in ((spec.tokens, words), (spec.tags, tags)):
            if not isinstance(cell, list):
                return f"column {column!r} must hold a list"
        if not words:
            return f"there are no words (column {spec.tokens!r})"
        if not all(isinstance(word, str) and word.strip() for word in words):
            return f"column {spec.tokens!r} must hold words, none of them empty"
        if len(words) != len(tags):
            return f"columns {spec.tokens!r} and {spec.tags!r} must have equal lengths"
        return None

    def features(
        self, tokenizer: PreTrainedTokenizerBase, spec: TokenClassificationSpec
    ) -> Features:
        return Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: TokenClassificationSpec,
        max_length: int,
        classes: Sequence[int | str],
    ) -> Encoder:
        if not tokenizer.is_fast:
            raise SpecError(
                f"task.type {spec.type} needs a fast tokenizer; {tokenizer.name_or_path} has none"
            )
        if isinstance(classes[0], int):
            raise SpecError(
                f"task.tag_names: column {spec.tags!r} holds numbers; give the names of the tags "
                f"0 to {max(map(int, classes))} in this order, e.g. [O, B-person, I-person]"
            )
        numbers: dict[Any, int] = {tag: number for number, tag in enumerate(classes)}
        try:
            meaning = read_tags(map(str, classes))
        except DataError as error:
            raise DataError(f"task.tags, column {spec.tags!r}: {error}") from error
        if is_plain(meaning):
            log.warning(
                "column %r: the tags follow no scheme of spans (BIO, IOBES, BILOU, BMES, ...); "
                "precision, recall and f1 count each word whose tag is not O by itself",
                spec.tags,
            )

        frame = OwnFrame(tokenizer)

        def encode(row: Row) -> Example | None:
            inner = frame.bare_words(row[spec.tokens])
            words, tags = row[spec.tokens][inner], row[spec.tags][inner]
            for tag in tags:
                if tag is not None and tag not in numbers:
                    raise DataError(
                        f"tag {tag!r} in column {spec.tags!r} is not among the "
                        f"{len(classes)} tags of the training rows"
                    )
            found = tokenizer(
                " ".join(words),
                truncation=True,
                max_length=max_length,
                return_offsets_mapping=True,
            )
            pieces = first_pieces(words, found["offset_mapping"])
            labels = [IGNORED] * len(found["input_ids"])
            for piece, tag in zip(pieces, tags, strict=True):
                if piece is not None and tag is not None:
                    labels[piece] = numbers[tag]
            if all(label == IGNORED for label in labels):
                return None
            return {"input_ids": found["input_ids"], "labels": labels}

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask, labels [B, S]."""
        rows = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "labels": pad([example["labels"] for example in examples], IGNORED),
        }

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _losses(_logits(model, batch), batch["labels"]).sum(dim=1)

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        logits_BSC, labels_BS = _logits(model, batch), batch["labels"]
        losses_B = _losses(logits_BSC, labels_BS).double().sum(dim=1)
        config: Any = model.config
        rows = (losses_B.tolist(), logits_BSC.argmax(dim=-1).tolist(), labels_BS.tolist())
        names: dict[int, str] = config.id2label
        meaning = read_tags(names.values())
        return [tag_score(*row, names, meaning) for row in zip(*rows, strict=True)]

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        num_words = sum(score.count for score in scores)
        predicted = [tag for score in scores for tag in score.predicted]
        actual = [tag for score in scores for tag in score.actual]
        rows = [score for score in scores if isinstance(score, TagScore)]
        precision, recall, f1 = precision_recall_f1(
            sum(row.correct_spans for row in rows),
            sum(row.found_spans for row in rows),
            sum(row.true_spans for row in rows),
        )
        return {
            "loss": math.fsum(score.loss_sum for score in scores) / num_words,
            "accuracy": float(accuracy_score(actual, predicted)),
            "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The number of the first piece of each word, None for one that has none.

    `offsets` are the pieces' characters in the words joined by spaces, (0, 0) of special tokens.
    """
    found: list[int | None] = []
    ends = accumulate(len(word) + 1 for word in words)
    piece = 0
    for word, end in zip(words, ends, strict=True):
        last = end - 1
        first = last - len(word)
        while piece < len(offsets) and offsets[piece][1] <= first:
            piece += 1
        inside = piece < len(offsets) and offsets[piece][0] < last
        found.append(piece if inside else None)
        piece += inside
    return found


def tag_score(
    loss: float,
    predicted: list[int],
    labels: list[int],
    names: Mapping[int, str],
    meaning: Mapping[str, Tag],
) -> TagScore:
    """Of one row, from numbers of tags: IGNORED among `labels` where there is none."""
    tags = [(p, a) for p, a in zip(predicted, labels, strict=True) if a != IGNORED]
    found = spans([names[p] for p, _ in tags], meaning)
    true = spans([names[a] for _, a in tags], meaning)
    return TagScore(
        loss,
        len(tags),
        predicted=tuple(p for p, _ in tags),
        actual=tuple(a for _, a in tags),
        correct_spans=len(found & true),
        found_spans=len(found),
        true_spans=len(true),
    )


def _losses(logits_BSC: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross entropy [B, S]; 0 where nothing is supervised."""
    return cross_entropy(
        logits_BSC.transpose(1, 2), labels_BS, ignore_index=IGNORED, reduction="none"
    )


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, S, C], in float32 at least; virtual tokens before the first one are left out."""
    tokens_BS = batch["input_ids"]
    logits: Tensor = model(input_ids=tokens_BS, attention_mask=batch["attention_mask"]).logits
    return upcast(logits[:, -tokens_BS.shape[1] :])
