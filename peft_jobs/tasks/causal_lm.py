"""Next-token prediction on the response; prompt tokens are context and do not count.

Prompt and response are tokenised apart and joined, so that the prompt's tokens are those that the
tokenizer gives at inference, and none straddles the border. The tokenizer's opening tokens (bos)
come first where it has them; eos ends the response and is supervised, its bytes are none.
Conversations are in `peft_jobs.tasks.chat`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Features, List, Value
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from peft_jobs.spec import CausalLMSpec
from peft_jobs.tasks import chat
from peft_jobs.tasks._base import IGNORED, Batch, Encoder, Example, Row, Score, mask, pad, upcast
from peft_jobs.templates import columns, render

MAX_EXPONENT = 700.0
"""exp of more than 709 overflows a double; perplexity stops here, at 1e304."""


class CausalLM:
    """See `peft_jobs.tasks._base.Task`. Examples: input_ids, labels, num_bytes."""

    def columns(self, spec: CausalLMSpec) -> dict[str, tuple[str, ...]]:
        found = {
            f"task.{name}": columns(template)
            for name, template in (("prompt", spec.prompt), ("response", spec.response))
            if template is not None
        }
        return found if spec.messages is None else {"task.messages": (spec.messages,)}

    def label_column(self, spec: CausalLMSpec) -> str | None:
        return None

    def mistake(self, row: Row, spec: CausalLMSpec) -> str | None:
        if spec.messages is not None:
            return chat.mistake(row[spec.messages], spec.messages)
        assert spec.response is not None
        if render(spec.response, row).strip():
            return None
        names = columns(spec.response)
        return f"the response is empty (column {', '.join(map(repr, names))})"

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
        opening = opening_tokens(tokenizer)
        closing = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        assert spec.response is not None
        response_template = spec.response

        def encode(row: Row) -> Example | None:
            prompt = render(spec.prompt, row) if spec.prompt is not None else ""
            response = render(response_template, row)
            context = [*opening, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
            tokens, ends = tokens_with_ends(tokenizer, response)
            ends = [*ends, *[len(response)] * len(closing)]
            supervised = [*tokens, *closing][: max(0, max_length - len(context))]
            unscored = 0 if context else 1  # nothing predicts the first token of a text
            if len(supervised) <= unscored:
                return None
            begin = ends[unscored - 1] if unscored else 0
            return {
                "input_ids": context + supervised,
                "labels": [IGNORED] * (len(context) + unscored) + supervised[unscored:],
                "num_bytes": len(response[begin : ends[len(supervised) - 1]].encode()),
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
        losses_N = cross_entropy(_logits(model, batch), batch["targets"], reduction="none")
        num_rows, length = batch["input_ids"].shape
        return losses_N.new_zeros(num_rows).index_add(0, batch["predict_at"] // length, losses_N)

    def score(self, model: nn.Module, batch: Batch) -> Score:
        losses_N = cross_entropy(_logits(model, batch), batch["targets"], reduction="none")
        num_bytes = int(batch["num_bytes"].sum())
        return Score(losses_N.double().sum().item(), self.count(batch), num_bytes)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        nats = math.fsum(score.loss_sum for score in scores)
        loss = nats / sum(score.count for score in scores)
        num_bytes = sum(score.num_bytes for score in scores)
        found = {"loss": loss, "perplexity": math.exp(min(loss, MAX_EXPONENT))}
        if num_bytes:
            found["bits_per_byte"] = nats / math.log(2) / num_bytes
        return found


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


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [N, V] that predict the targets; the head is applied to their positions alone.

    In float32, or float64 of a model in float64.
    """
    predict_at = batch["predict_at"]

    def supervised_only(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1).index_select(0, predict_at).unsqueeze(0), *inputs[1:])

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(supervised_only)
    try:
        logits: Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
    finally:
        hook.remove()
    logits = logits.flatten(0, 1)
    if len(logits) != len(predict_at):  # a model that multiplies by the head's weight itself
        logits = logits.index_select(0, predict_at)
    return upcast(logits)
