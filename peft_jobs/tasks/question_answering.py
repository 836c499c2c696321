"""The span of a context that answers a question, found in windows of a long context.

A row gives an example for each window; a window without the answer is supervised to point at its
first token, which stands for no answer (as in BERT's scheme for SQuAD). The answer of a row is the
best span over all of its windows; that there is none is said only where some row has none.

A batch is tensors alone, so the texts that exact match and F1 need travel in it as UTF-8 bytes.

Dimensions: B windows, S tokens (the batch's longest window).
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Features, List, Value
from peft import TaskType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.randomness import key
from peft_jobs.spec import QuestionAnsweringSpec
from peft_jobs.spec.templates import columns, render
from peft_jobs.tasks.answers import NOWHERE, answers_of, example_of
from peft_jobs.tasks.squad import WindowScore, compared
from peft_jobs.tasks.task import Batch, Encoder, Example, Row, Score, mask, pad, upcast
from peft_jobs.tasks.tokenizer_pieces import OwnFrame


class QuestionAnswering:
    """See `peft_jobs.tasks.task.Task`.

    Examples: input_ids, token_type_ids where the tokenizer has them; start and end, the answer's
    tokens; begins and ends, each token's characters in the window's part of the context; texts,
    JSON of that part and of the answers; row; longest, the tokens that an answer may have.
    """

    peft_task_type = TaskType.QUESTION_ANS

    def columns(self, spec: QuestionAnsweringSpec) -> dict[str, tuple[str, ...]]:
        return {
            "task.question": columns(spec.question),
            "task.context": (spec.context,),
            "task.answers": (spec.answers,),
        }

    def label_field(self, spec: QuestionAnsweringSpec) -> str | None:
        return None

    def named_classes(self, spec: QuestionAnsweringSpec) -> tuple[str, ...]:
        return ()

    def mistake(self, row: Row, spec: QuestionAnsweringSpec) -> str | None:
        context, question = row[spec.context], render(spec.question, row)
        if not question.strip():
            names = ", ".join(map(repr, columns(spec.question)))
            return f"the question is empty (column {names})"
        if not isinstance(context, str) or not context.strip():
            return f"column {spec.context!r} must hold a text"
        found = answers_of(row[spec.answers])
        if found is None:
            return (
                f"column {spec.answers!r} must hold {{text: [...], answer_start: [...]}} "
                "or a list of {text, answer_start}"
            )
        if any(context[start : start + len(text)] != text for text, start in found):
            return f"an answer of column {spec.answers!r} does not lie at its answer_start"
        return None

    def features(self, tokenizer: PreTrainedTokenizerBase, spec: QuestionAnsweringSpec) -> Features:
        tokens, number = List(Value("int32")), Value("int32")
        found = {"input_ids": tokens, "begins": tokens, "ends": tokens, "start": number}
        found |= {"end": number, "longest": number, "texts": Value("string"), "row": Value("int64")}
        return Features(
            found | ({"token_type_ids": List(Value("int8"))} if _typed(tokenizer) else {})
        )

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: QuestionAnsweringSpec,
        max_length: int,
        classes: Sequence[int | str] = (),
    ) -> Encoder:
        if not tokenizer.is_fast:
            raise SpecError(
                f"task.type {spec.type} needs a fast tokenizer; {tokenizer.name_or_path} has none"
            )
        special = tokenizer.num_special_tokens_to_add(pair=True)
        frame = OwnFrame(tokenizer)

        def encode(row: Row) -> list[Example]:
            question, whole = frame.bare(render(spec.question, row)), row[spec.context]
            context = frame.bare(whole)
            if not question.strip() or not context.strip():
                raise DataError("the question or the context holds nothing but special tokens")
            begin = whole.index(context)
            answers = [(t, at - begin) for t, at in answers_of(row[spec.answers]) or []]
            length = len(tokenizer(question, add_special_tokens=False)["input_ids"])
            room = max_length - length - special
            if room < 1:
                return []
            found: Any = tokenizer(
                question,
                context,
                truncation="only_second",
                max_length=max_length,
                stride=min(spec.stride, room // 2),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            number = key("row", question, context, json.dumps(answers)) >> 1
            return [
                example_of(found, window, context, answers)
                | {"row": number, "longest": spec.max_answer_tokens}
                for window in range(len(found["input_ids"]))
            ]

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask, token_type_ids, begins, ends [B, S]; start, end, row, longest
        [B]; texts [B, bytes], uint8, filled up with zeros."""
        rows = [example["input_ids"] for example in examples]
        texts = pad([list(example["texts"].encode()) for example in examples], 0)
        batch = {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "texts": texts.to(torch.uint8),
        }
        for name in ("begins", "ends"):
            batch[name] = pad([example[name] for example in examples], NOWHERE)
        for name in ("start", "end", "row", "longest"):
            batch[name] = torch.tensor([example[name] for example in examples])
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([e["token_type_ids"] for e in examples], 0)
        return batch

    def count(self, batch: Batch) -> int:
        return len(batch["start"])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _losses(*_logits(model, batch), batch)

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        starts_BS, ends_BS = _logits(model, batch)
        losses = _losses(starts_BS, ends_BS, batch).tolist()
        none = (starts_BS[:, 0] + ends_BS[:, 0]).tolist()
        logits, firsts, lasts = (found.tolist() for found in best_spans(starts_BS, ends_BS, batch))
        begins, ends = batch["begins"].tolist(), batch["ends"].tolist()
        found: list[Score] = []
        for window, number in enumerate(batch["row"].tolist()):
            texts = bytes(batch["texts"][window].tolist()).rstrip(b"\0").decode()
            context, answers = json.loads(texts)
            begin, end = begins[window][firsts[window]], ends[window][lasts[window]]
            found.append(
                WindowScore(
                    losses[window],
                    1,
                    row=number,
                    text=context[begin:end],
                    logit=logits[window],
                    none_logit=none[window],
                    answers=tuple(answers),
                )
            )
        return found

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        found = compared(scores).values()
        return {
            "loss": math.fsum(score.loss_sum for score in scores) / len(scores),
            "exact_match": sum(exact for exact, _ in found) / len(found),
            "f1": math.fsum(f1 for _, f1 in found) / len(found),
        }


def best_spans(starts_BS: Tensor, ends_BS: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logit, first and last token [B] of each window's best span inside the context."""
    outside_BS = batch["begins"] == NOWHERE
    starts_BS = starts_BS.masked_fill(outside_BS, -math.inf)
    ends_BS = ends_BS.masked_fill(outside_BS, -math.inf)
    length = starts_BS.shape[1]
    best_BS, widths_BS = starts_BS + ends_BS, torch.zeros_like(outside_BS, dtype=torch.long)
    for width in range(1, min(int(batch["longest"].max()), length)):
        logits = starts_BS[:, :-width] + ends_BS[:, width:]
        better = logits > best_BS[:, :-width]
        best_BS[:, :-width][better] = logits[better]
        widths_BS[:, :-width][better] = width
    logits_B, firsts_B = best_BS.max(dim=1)
    widths_B = widths_BS.gather(1, firsts_B.unsqueeze(1)).squeeze(1)
    return logits_B, firsts_B, firsts_B + widths_B


def _typed(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "token_type_ids" in tokenizer.model_input_names


def _losses(starts_BS: Tensor, ends_BS: Tensor, batch: Batch) -> Tensor:
    """[B], the mean of the cross entropies of start and end."""
    starts_B = cross_entropy(starts_BS, batch["start"], reduction="none")
    return (starts_B + cross_entropy(ends_BS, batch["end"], reduction="none")) / 2


def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [B, S] of start and end, in float32 at least; -inf on padding.

    Those of virtual tokens before the first one are left out.
    """
    names = ("input_ids", "attention_mask", "token_type_ids")
    found: Any = model(**{name: batch[name] for name in names if name in batch})
    padding_BS, length = batch["attention_mask"] == 0, batch["input_ids"].shape[1]
    starts_BS, ends_BS = (
        upcast(logits[:, -length:]).masked_fill(padding_BS, -math.inf)
        for logits in (found.start_logits, found.end_logits)
    )
    return starts_BS, ends_BS
