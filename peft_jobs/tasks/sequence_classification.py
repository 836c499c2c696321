"""One class, any number of classes, or a number, per text or pair of texts.

Several classes at once are as many yes-or-no questions: the loss of a row is the mean of their
binary cross entropies, a class is predicted from a probability of one half on, and accuracy asks
for the whole set. A number is the one output of the head (`peft_jobs.tasks.regression`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Features, List, Value
from peft import TaskType
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError
from peft_jobs.spec import SequenceClassificationSpec
from peft_jobs.spec.templates import columns, render
from peft_jobs.tasks.label_values import flag, is_missing, number
from peft_jobs.tasks.regression import NumberScore, number_losses, number_metrics, number_scores
from peft_jobs.tasks.task import Batch, Encoder, Example, Row, Score, mask, pad, upcast
from peft_jobs.tasks.tokenizer_pieces import OwnFrame


class SequenceClassification:
    """See `peft_jobs.tasks.task.Task`. Examples: input_ids, token_type_ids for pairs, and label:
    the number of a class, for several classes a list with 0 or 1 for each, or a float."""

    peft_task_type = TaskType.SEQ_CLS

    def columns(self, spec: SequenceClassificationSpec) -> dict[str, tuple[str, ...]]:
        found = {"task.text": columns(spec.text)}
        if spec.text_pair is not None:
            found["task.text_pair"] = columns(spec.text_pair)
        if spec.label is not None:
            found["task.label"] = (spec.label,)
        if spec.labels is not None:
            found["task.labels"] = (spec.labels,) if isinstance(spec.labels, str) else spec.labels
        return found

    def label_field(self, spec: SequenceClassificationSpec) -> str | None:
        if spec.number_column is not None:
            return None
        if spec.label is not None:
            return "task.label"
        return "task.labels" if isinstance(spec.labels, str) else None

    def named_classes(self, spec: SequenceClassificationSpec) -> tuple[str, ...]:
        return spec.labels if isinstance(spec.labels, tuple) else spec.label_names

    def mistake(self, row: Row, spec: SequenceClassificationSpec) -> str | None:
        if (column := spec.number_column) is not None and number(row[column]) is None:
            what = "has no label" if is_missing(row[column]) else "must hold a finite number"
            return f"column {column!r} {what}"
        for name, template in (("text", spec.text), ("text_pair", spec.text_pair)):
            if template is not None and not render(template, row).strip():
                return _empty(name, template)
        if isinstance(spec.labels, str) and not isinstance(row[spec.labels], list):
            return f"column {spec.labels!r} must hold a list of labels"
        if isinstance(spec.labels, tuple):
            for name in spec.labels:
                if flag(row[name]) is None:
                    return f"column {name!r} must hold 0 or 1, or true or false"
        return None

    def features(
        self, tokenizer: PreTrainedTokenizerBase, spec: SequenceClassificationSpec
    ) -> Features:
        label = Value("int32") if spec.labels is None else List(Value("int8"))
        if spec.number_column is not None:
            label = Value("float64")
        found = {"input_ids": List(Value("int32")), "label": label}
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
        typed, frame = _typed(tokenizer, spec), OwnFrame(tokenizer)

        def encode(row: Row) -> Example | None:
            label = _label(row, spec, classes)
            texts = []
            for name, template in (("text", spec.text), ("text_pair", spec.text_pair)):
                if template is not None:
                    texts.append(frame.bare(render(template, row)))
                    if not texts[-1].strip():
                        raise DataError(_empty(name, template))
            found = tokenizer(*texts, truncation=True, max_length=max_length)
            example = {"input_ids": found["input_ids"], "label": label}
            return example | ({"token_type_ids": found["token_type_ids"]} if typed else {})

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask, for pairs token_type_ids [B, S]; labels [B], of classes in
        int64, to predict numbers in float32; for several classes [B, C] in float32."""
        rows = [example["input_ids"] for example in examples]
        labels = torch.tensor([example["label"] for example in examples])
        is_class = labels.ndim == 1 and not labels.is_floating_point()
        batch = {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "labels": labels if is_class else labels.float(),
        }
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([e["token_type_ids"] for e in examples], 0)
        return batch

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _losses(_logits(model, batch), batch["labels"])

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        logits_BC, labels = _logits(model, batch), batch["labels"]
        losses = _losses(logits_BC, labels).tolist()
        if labels.is_floating_point() and labels.ndim == 1:
            return number_scores(losses, logits_BC, labels)
        if labels.ndim == 2:
            sets = (losses, (logits_BC >= 0).int().tolist(), labels.int().tolist())
            return [
                SetScore(loss, 1, 0, tuple(p), tuple(a)) for loss, p, a in zip(*sets, strict=True)
            ]
        rows = (losses, logits_BC.argmax(dim=-1).tolist(), labels.tolist())
        return [
            Score(loss, 1, predicted=(predicted,), actual=(actual,))
            for loss, predicted, actual in zip(*rows, strict=True)
        ]

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        if isinstance(scores[0], NumberScore):
            return number_metrics(scores)
        sets = isinstance(scores[0], SetScore)
        predicted: list[object] = [s.predicted for s in scores]
        actual: list[object] = [s.actual for s in scores]
        if not sets:
            predicted = [label for score in scores for label in score.predicted]
            actual = [label for score in scores for label in score.actual]
        found = {
            "loss": sum(score.loss_sum for score in scores) / len(actual),
            "accuracy": float(accuracy_score(actual, predicted)),
        }
        averages = ("macro", "micro") if sets else ("macro",)
        return found | {
            f"{average}_f1": float(f1_score(actual, predicted, average=average, zero_division=0))
            for average in averages
        }


class SetScore(Score):
    """`predicted` and `actual` have a 0 or 1 for each class."""


def _empty(name: str, template: str) -> str:
    return f"the {name} is empty (column {', '.join(map(repr, columns(template)))})"


def _label(
    row: Row, spec: SequenceClassificationSpec, classes: Sequence[int | str]
) -> int | float | list[int] | None:
    """The number of the row's class, 0 or 1 for each class, or the number to predict."""
    if spec.number_column is not None:
        return number(row[spec.number_column])
    if isinstance(spec.labels, tuple):
        return [flag(row[name]) or 0 for name in map(str, classes)]
    numbers: dict[Any, int] = {name: place for place, name in enumerate(classes)}
    column = str(spec.labels or spec.label)
    held = row[column] if spec.labels is not None else [row[column]]
    for label in held:
        if label not in numbers:
            raise DataError(
                f"label {label!r} in column {column!r} is not among the "
                f"{len(classes)} classes of the training rows"
            )
    if spec.labels is None:
        return numbers[held[0]]
    return [int(name in held) for name in classes]


def _losses(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """[B], of one class, of a number, or of sets of classes."""
    if labels.ndim == 1 and labels.is_floating_point():
        return number_losses(logits_BC, labels)
    if labels.ndim == 1:
        return cross_entropy(logits_BC, labels, reduction="none")
    targets_BC = labels.to(logits_BC.dtype)
    return binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").mean(dim=1)


def _typed(tokenizer: PreTrainedTokenizerBase, spec: SequenceClassificationSpec) -> bool:
    """Whether types of tokens tell the model something: two texts apart, or XLNet's last token."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return spec.text_pair is not None or any(tokenizer("a")["token_type_ids"])


def reads_last_position(model: nn.Module) -> bool:
    """Whether the classifier takes what stands at the end of a row, padding too: XLNet's does."""
    return summary_type(model) in ("last", "cls_index")


def summary_type(model: nn.Module) -> str | None:
    """What the classifiers of XLNet, XLM and Flaubert take of a row; None for others."""
    found: str | None = getattr(getattr(model, "sequence_summary", None), "summary_type", None)
    return found


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, C], in float32 at least."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if reads_last_position(model):
        inputs = _padded_left(inputs)
    logits: Tensor = model(**inputs).logits
    return upcast(logits)


def _padded_left(inputs: Batch) -> Batch:
    """`inputs`, all [B, S], with the padding moved to the front of each row."""
    mask_BS = inputs["attention_mask"]
    places_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    from_BS = (places_S + mask_BS.sum(dim=1, keepdim=True)) % mask_BS.shape[1]
    return {name: value.gather(1, from_BS) for name, value in inputs.items()}
