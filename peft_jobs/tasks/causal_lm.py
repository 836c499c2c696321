"""Next-token prediction on a response, whose prompt is context and does not count, or on a text.

Prompt and response are tokenised apart and joined, so that the prompt's tokens are those that the
tokenizer gives at inference, and none straddles the border. The tokenizer's opening tokens (bos)
come first where it has them; eos ends the response and is supervised, its bytes are none. Each
stands once, though template or data hold it too (`peft_jobs.tasks.tokenizer_pieces`). A plain text
is supervised as a whole; a long one goes on in further examples. Conversations are in
`peft_jobs.tasks.chat`.
"""

import math
from collections.abc import Sequence

import torch
from datasets import Features, List, Value
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.spec.templates import columns, render
from peft_jobs.tasks import chat
from peft_jobs.tasks.supervised import MOST_LOGITS, token_losses
from peft_jobs.tasks.task import IGNORED, Batch, Encoder, Example, Row, Score, mask, pad
from peft_jobs.tasks.tokenizer_pieces import Frame

MAX_EXPONENT = 700.0
"""exp of more than 709 overflows a double; perplexity stops here, at 1e304."""


class CausalLM:
    """See `peft_jobs.tasks.task.Task`. Examples: input_ids, labels, num_bytes."""

    peft_task_type = TaskType.CAUSAL_LM

    def __init__(self, most_logits: int = MOST_LOGITS) -> None:
        """`most_logits` are held at a time."""
        self.most_logits = most_logits

    def columns(self, spec: CausalLMSpec) -> dict[str, tuple[str, ...]]:
        found = {
            f"task.{name}": columns(template)
            for name in ("prompt", "response", "text")
            if (template := getattr(spec, name)) is not None
        }
        if spec.messages is not None:
            found["task.messages"] = (spec.messages,)
        if spec.tools is not None:
            found["task.tools"] = (spec.tools,)
        return found

    def label_field(self, spec: CausalLMSpec) -> str | None:
        return None

    def named_classes(self, spec: CausalLMSpec) -> tuple[str, ...]:
        return ()

    def mistake(self, row: Row, spec: CausalLMSpec) -> str | None:
        if spec.messages is not None:
            return chat.mistake(row, spec)
        name = "response" if spec.text is None else "text"
        template = spec.response if spec.text is None else spec.text
        assert template is not None
        return None if render(template, row).strip() else _empty(template, name)

    def features(self, tokenizer: PreTrainedTokenizerBase, spec: CausalLMSpec) -> Features:
        tokens = List(Value("int32"))
        return Features({"input_ids": tokens, "labels": tokens, "num_bytes": Value("int32")})

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: CausalLMSpec,
        max_length: int,
        classes: Sequence[int | str] = (),
    ) -> Encoder:
        if spec.messages is not None or spec.use_chat_template:
            return chat.encoder(tokenizer, spec, max_length)
        if spec.text is not None:
            return _of_plain_text(tokenizer, spec.text, max_length)
        frame = Frame(tokenizer)
        if not frame.closing:
            raise SpecError(
                f"task.response: nothing ends an answer, as the tokenizer of "
                f"{tokenizer.name_or_path} has no end-of-text token, and a model would never learn "
                "to stop; add an eos_token to its tokenizer_config.json"
            )
        assert spec.response is not None
        response_template = spec.response

        def encode(row: Row) -> Example | None:
            response = _written(frame, response_template, row, "response")
            context = frame.context(render(spec.prompt, row) if spec.prompt is not None else "")
            answer = frame.answer(response, context)
            supervised = answer.tokens[: max(0, max_length - len(context))]
            unscored = 0 if context else 1  # nothing predicts the first token of a text
            if len(supervised) <= unscored:
                return None
            return {
                "input_ids": context + supervised,
                "labels": [IGNORED] * (len(context) + unscored) + supervised[unscored:],
                "num_bytes": sum(answer.sizes[unscored : len(supervised)]),
            }

        return encode

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """input_ids, attention_mask, labels [B, S]; `predict_at` [N], the positions in the
        flattened batch whose logits predict `targets` [N]; num_bytes [B]."""
        rows = [example["input_ids"] for example in examples]
        labels_BS = pad([example["labels"] for example in examples], IGNORED)
        labels_BS[:, 0] = IGNORED
        supervised = (labels_BS.flatten() != IGNORED).nonzero().flatten()
        return {
            "input_ids": pad(rows, pad_token_id),
            "attention_mask": mask(rows),
            "labels": labels_BS,
            "predict_at": supervised - 1,
            "targets": labels_BS.flatten()[supervised],
            "num_bytes": torch.tensor([example["num_bytes"] for example in examples]),
        }

    def count(self, batch: Batch) -> int:
        return batch["targets"].numel()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return _by_row(self._token_losses(model, batch), batch)

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        losses_B = _by_row(self._token_losses(model, batch).double(), batch)
        counts_B = (batch["labels"] != IGNORED).sum(dim=1)
        rows = (losses_B.tolist(), counts_B.tolist(), batch["num_bytes"].tolist())
        return [Score(*row) for row in zip(*rows, strict=True)]

    def _token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy [N] of the supervised tokens."""
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        return token_losses(model, inputs, batch["predict_at"], batch["targets"], self.most_logits)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return text_metrics(scores)


def text_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Loss and perplexity by token, bits by byte of the supervised text."""
    nats = math.fsum(score.loss_sum for score in scores)
    loss = nats / sum(score.count for score in scores)
    num_bytes = sum(score.num_bytes for score in scores)
    found = {"loss": loss, "perplexity": math.exp(min(loss, MAX_EXPONENT))}
    if num_bytes:
        found["bits_per_byte"] = nats / math.log(2) / num_bytes
    return found


def _of_plain_text(tokenizer: PreTrainedTokenizerBase, template: str, max_length: int) -> Encoder:
    """Every token is supervised once: a further example begins with the last token of the one
    before, as context."""
    frame = Frame(tokenizer)

    def encode(row: Row) -> list[Example]:
        piece = frame.whole(_written(frame, template, row, "text"))
        tokens = piece.tokens
        first, start = max(1, len(frame.opening)), 0
        examples = []
        while first < min(len(tokens), start + max_length):
            stop = min(len(tokens), start + max_length)
            examples.append(
                {
                    "input_ids": tokens[start:stop],
                    "labels": [IGNORED] * (first - start) + tokens[first:stop],
                    "num_bytes": sum(piece.sizes[first:stop]),
                }
            )
            first, start = stop, stop - 1
        return examples

    return encode


def _written(frame: Frame, template: str, row: Row, name: str) -> str:
    """The text of a row; DataError if it is nothing but special tokens."""
    text = render(template, row)
    if frame.is_blank(text):
        raise DataError(_empty(template, name))
    return text


def _empty(template: str, name: str) -> str:
    return f"the {name} is empty (column {', '.join(map(repr, columns(template)))})"


def _by_row(losses_N: Tensor, batch: Batch) -> Tensor:
    """Sums [B] of the tokens' losses."""
    num_rows, length = batch["input_ids"].shape
    return losses_N.new_zeros(num_rows).index_add(0, batch["predict_at"] // length, losses_N)
