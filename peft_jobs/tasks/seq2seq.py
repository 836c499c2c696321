"""A target text from a source text, with an encoder and a decoder (T5 and its family).

The source is tokenised as a text of its own, with the tokenizer's special tokens, and cut at
max_length on the right; the target likewise as targets are, and cut at max_target_length. All of
the target's tokens are supervised, its end among them.

Dimensions: B rows, S tokens of the source, T of the target, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Features, List, Value
from peft import TaskType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.spec import Seq2SeqSpec
from peft_jobs.spec.templates import columns, render
from peft_jobs.tasks.causal_lm import text_metrics
from peft_jobs.tasks.task import IGNORED, Batch, Encoder, Example, Row, Score, mask, pad, upcast
from peft_jobs.tasks.tokenizer_pieces import closing_tokens, tokens_with_ends


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
                names = ", ".join(map(repr, columns(template)))
                return f"the {name} is empty (column {names})"
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
        closing = closing_tokens(tokenizer)

        def encode(row: Row) -> Example | None:
            source, target = render(spec.source, row), render(spec.target, row)
            found = tokenizer(source, truncation=True, max_length=max_length)
            tokens, ends = tokens_with_ends(tokenizer, target)
            labels = [*tokens, *closing][: spec.max_target_length]
            kept = ends[min(len(labels), len(tokens)) - 1] if tokens else 0
            if not labels:
                return None
            num_bytes = len(target[:kept].encode())
            return {"input_ids": found["input_ids"], "labels": labels, "num_bytes": num_bytes}

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


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy [B, T] of the target's tokens, 0 on padding.

    The decoder reads the target moved to the right by one, as the architecture itself does it. In
    float32, or float64 of a model in float64; logits of virtual tokens are left out.
    """
    labels_BT = batch["labels"]
    shift: Any = model.prepare_decoder_input_ids_from_labels
    logits: Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=shift(labels=labels_BT),
        use_cache=False,
    ).logits
    logits_BTV = upcast(logits[:, -labels_BT.shape[1] :])
    return cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
    )
