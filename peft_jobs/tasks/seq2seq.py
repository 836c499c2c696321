"""A target text from a source text, with an encoder and a decoder (T5, BART, NLLB, ...).

Both are tokenised as the tokenizer itself does it, with its special tokens for sources and for
targets (`text_target=`), each of them once though template or data hold it too, and cut on the
right: the source at max_length, the target at max_target_length. All of the target's tokens are
supervised, its end among them; special tokens are no bytes of text.

Dimensions: B rows, S tokens of the source, T of the target, V vocabulary.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Features, List, Value
from peft import TaskType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import Seq2SeqSpec
from peft_jobs.spec.templates import columns, render
from peft_jobs.tasks.causal_lm import text_metrics
from peft_jobs.tasks.task import (
    IGNORED,
    Batch,
    Encoder,
    Example,
    Row,
    Score,
    base_of,
    mask,
    pad,
    upcast,
)
from peft_jobs.tasks.tokenizer_pieces import OwnFrame


class Seq2Seq:
    """See `peft_jobs.tasks.task.Task`. Examples: input_ids, labels, num_bytes."""

    peft_task_type = TaskType.SEQ_2_SEQ_LM

    def columns(self, spec: Seq2SeqSpec) -> dict[str, tuple[str, ...]]:
        return {"task.source": columns(spec.source), "task.target": columns(spec.target)}

    def label_field(self, spec: Seq2SeqSpec) -> str | None:
        return None

    def named_classes(self, spec: Seq2SeqSpec) -> tuple[str, ...]:
        return ()

    def mistake(self, row: Row, spec: Seq2SeqSpec) -> str | None:
        for name, template in (("source", spec.source), ("target", spec.target)):
            if not render(template, row).strip():
                return _empty(name, template)
        return None

    def features(self, tokenizer: PreTrainedTokenizerBase, spec: Seq2SeqSpec) -> Features:
        tokens = List(Value("int32"))
        return Features({"input_ids": tokens, "labels": tokens, "num_bytes": Value("int32")})

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: Seq2SeqSpec,
        max_length: int,
        classes: Sequence[int | str] = (),
    ) -> Encoder:
        sources, targets = OwnFrame(tokenizer), OwnFrame(tokenizer, target=True)
        eos = tokenizer.eos_token
        _check_room("data.max_length", max_length, sources)
        _check_room("task.max_target_length", spec.max_target_length, targets)

        def encode(row: Row) -> Example | None:
            source, target = render(spec.source, row), render(spec.target, row)
            if sources.is_blank(source):
                raise DataError(_empty("source", spec.source))
            if targets.is_blank(target):
                raise DataError(_empty("target", spec.target))
            if not targets.closing and not (eos and target.rstrip().endswith(eos)):
                raise DataError(
                    f"nothing ends the target: the tokenizer of {tokenizer.name_or_path} puts no "
                    "token behind it, and a model would never learn to stop; write one in "
                    f"task.target ({spec.target}{eos or '</s>'}), or give a tokenizer that does"
                )
            piece = targets.piece(target, spec.max_target_length)
            return {
                "input_ids": sources.tokens(source, max_length),
                "labels": piece.tokens,
                "num_bytes": sum(piece.sizes),
            }

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask [B, S]; labels [B, T]; num_bytes [B]."""
        rows = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "labels": pad([example["labels"] for example in examples], IGNORED),
            "num_bytes": torch.tensor([example["num_bytes"] for example in examples]),
        }

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _losses(model, batch).sum(dim=1)

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        losses_B = _losses(model, batch).double().sum(dim=1)
        counts_B = (batch["labels"] != IGNORED).sum(dim=1)
        rows = (losses_B.tolist(), counts_B.tolist(), batch["num_bytes"].tolist())
        return [Score(*row) for row in zip(*rows, strict=True)]

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return text_metrics(scores)


def _check_room(field: str, length: int, frame: OwnFrame) -> None:
    """Raise SpecError if nothing of a text is left beside the tokens around it."""
    around = len(frame.opening) + len(frame.closing)
    if length <= around:
        raise SpecError(
            f"{field} must be > {around}, the tokens that the tokenizer puts around a text, "
            f"got {length}"
        )


def _empty(name: str, template: str) -> str:
    return f"the {name} is empty (column {', '.join(map(repr, columns(template)))})"


def decoder_inputs(model: nn.Module, labels_BT: Tensor) -> Tensor:
    """What the decoder reads to predict the labels, [B, T]: they, moved to the right by one, as
    the architecture itself does it. `model` is a base, or has an adapter on it. Raises SpecError if
    the architecture does not know how."""
    base = base_of(model)
    own = labels_BT.clone()  # some (FSMT) write into what they are given
    shifted: Tensor
    try:
        if hasattr(base, "prepare_decoder_input_ids_from_labels"):
            shifted = base.prepare_decoder_input_ids_from_labels(labels=own)
        else:  # M2M100, NLLB-MoE and Blenderbot (transformers 5.23) keep it beside their classes
            shift: Any = sys.modules[type(base).__module__].shift_tokens_right
            shifted = shift(own, base.config.pad_token_id, base.config.decoder_start_token_id)
    except (AttributeError, TypeError, ValueError) as error:
        raise SpecError(
            f"model.name_or_path: {base.name_or_path} ({type(base).__name__}) does not say how a "
            f"target begins; give the decoder_start_token_id in its config.json ({error})"
        ) from error
    return shifted


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy [B, T] of the target's tokens, 0 on padding.

    In float32, or float64 of a model in float64; logits of virtual tokens are left out.
    """
    labels_BT = batch["labels"]
    logits: Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=decoder_inputs(model, labels_BT),
        use_cache=False,
    ).logits
    logits_BTV = upcast(logits[:, -labels_BT.shape[1] :])
    return cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
    )
