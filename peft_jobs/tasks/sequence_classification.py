"""One class per text or pair of texts."""

from collections.abc import Sequence

import torch
from datasets import Features, List, Value
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError
from peft_jobs.spec import SequenceClassificationSpec
from peft_jobs.tasks._base import Batch, Encoder, Example, Row, Score, mask, pad, upcast
from peft_jobs.templates import columns, render


class SequenceClassification:
    """See `peft_jobs.tasks._base.Task`. Examples: input_ids, label, token_type_ids for pairs."""

    def columns(self, spec: SequenceClassificationSpec) -> dict[str, tuple[str, ...]]:
        found = {"task.text": columns(spec.text), "task.label": (spec.label,)}
        if spec.text_pair is not None:
            found["task.text_pair"] = columns(spec.text_pair)
        return found

    def label_column(self, spec: SequenceClassificationSpec) -> str | None:
        return spec.label

    def mistake(self, row: Row, spec: SequenceClassificationSpec) -> str | None:
        if row[spec.label] is None:
            return f"column {spec.label!r} has no label"
        for name, template in (("text", spec.text), ("text_pair", spec.text_pair)):
            if template is not None and not render(template, row).strip():
                return f"the {name} is empty (column {', '.join(map(repr, columns(template)))})"
        return None

    def features(
        self, tokenizer: PreTrainedTokenizerBase, spec: SequenceClassificationSpec
    ) -> Features:
        found = {"input_ids": List(Value("int32")), "label": Value("int32")}
        if _typed(tokenizer, spec):
            found["token_type_ids"] = List(Value("int8"))
        return Features(found)

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: SequenceClassificationSpec,
        max_length: int,
        classes: Sequence[int | str],
    ) -> Encoder:
        index = {name: number for number, name in enumerate(classes)}
        typed = _typed(tokenizer, spec)

        def encode(row: Row) -> Example | None:
            label = row[spec.label]
            if label not in index:
                raise DataError(
                    f"label {label!r} in column {spec.label!r} is not among the "
                    f"{len(index)} classes of the training rows"
                )
            texts = [render(t, row) for t in (spec.text, spec.text_pair) if t is not None]
            found = tokenizer(*texts, truncation=True, max_length=max_length)
            example = {"input_ids": found["input_ids"], "label": index[label]}
            return example | ({"token_type_ids": found["token_type_ids"]} if typed else {})

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask, for pairs token_type_ids [B, S]; labels [B]."""
        rows = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "labels": torch.tensor([example["label"] for example in examples]),
        }
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([e["token_type_ids"] for e in examples], 0)
        return batch

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="none")

    def score(self, model: nn.Module, batch: Batch) -> Score:
        logits_BC, labels_B = _logits(model, batch), batch["labels"]
        losses_B = cross_entropy(logits_BC, labels_B, reduction="none")
        return Score(
            losses_B.double().sum().item(),
            len(labels_B),
            predicted=tuple(logits_BC.argmax(dim=-1).tolist()),
            actual=tuple(labels_B.tolist()),
        )

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        predicted = [label for score in scores for label in score.predicted]
        actual = [label for score in scores for label in score.actual]
        return {
            "loss": sum(score.loss_sum for score in scores) / len(actual),
            "accuracy": float(accuracy_score(actual, predicted)),
            "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        }


def _typed(tokenizer: PreTrainedTokenizerBase, spec: SequenceClassificationSpec) -> bool:
    return spec.text_pair is not None and "token_type_ids" in tokenizer.model_input_names


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, C], in float32 at least."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return upcast(logits)
