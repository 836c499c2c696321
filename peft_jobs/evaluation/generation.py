"""Metrics of texts that a model writes: greedy answers to the prompts of some rows of a split.

Nothing is sampled; how answers begin and end is in `peft_jobs.evaluation.decoding`. Prompt and
reference come from the tokenised rows: the reference is the last run of supervised tokens, in a
conversation the assistant's last turn, and the prompt all that stands before it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sacrebleu
import torch
from datasets import Dataset
from peft import PeftType
from rouge_score.rouge_scorer import RougeScorer
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from peft_jobs.activity import moved
from peft_jobs.base.positions import stated_limit, table_length
from peft_jobs.errors import Refused, SpecError
from peft_jobs.evaluation.custom_metrics import checked, load_metric
from peft_jobs.evaluation.decoding import Decoding, answer_text, decoding_of, without_own_settings
from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.tasks import IGNORED
from peft_jobs.tasks.task import mask, pad

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Written:
    """What a model has written, and what is measured of it."""

    metrics: dict[str, float]
    examples: list[int]
    """The places in the split of the examples that were answered."""
    columns: dict[str, Sequence[Any]]
    """Of each: `answer`, `reference`, and the metrics that each has by itself."""


def written(
    spec: GenerationSpec,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    batch_size: int,
    chat: bool = False,
) -> Written:
    """Answers, and their metrics by name. The model is in eval mode, and no gradients are kept.

    In a `chat`, whose template may close a turn with another token than eos, that token ends an
    answer too. Raises SpecError if the base has no room for the answers.
    """
    examples = spread(len(rows), spec.max_samples)
    pairs = _pairs(examples, model, rows)
    prompts = [prompt for prompt, _ in pairs]
    decoding = decoding_of(model, tokenizer, [reference for _, reference in pairs], chat)
    answers = generate(model, tokenizer, prompts, spec.max_new_tokens, batch_size, decoding)
    references = [answer_text(tokenizer, reference) for _, reference in pairs]
    columns: dict[str, Sequence[Any]] = {"answer": answers, "reference": references}
    found: dict[str, float] = {}
    for metric in spec.metrics:
        if metric == "bleu":  # of all answers together
            found |= _bleu(answers, references)
            continue
        each = _BY_ANSWER[metric](answers, references)
        columns |= each
        found |= {name: math.fsum(values) / len(values) for name, values in each.items()}
    for function in spec.functions:
        found |= checked(function, load_metric(function)(answers, references), found)
    return Written(found, examples, columns)


def references_of(spec: GenerationSpec, model: nn.Module, rows: Dataset) -> list[list[int]]:
    """Tokens of the true answers with which those of a model are compared."""
    examples = spread(len(rows), spec.max_samples)
    return [reference for _, reference in _pairs(examples, model, rows)]


def _pairs(examples: Sequence[int], model: Any, rows: Dataset) -> list[tuple[list[int], list[int]]]:
    chosen = rows.select(examples)
    return [
        prompt_and_reference(tokens, labels, model.config.is_encoder_decoder)
        for tokens, labels in zip(chosen["input_ids"], chosen["labels"], strict=True)
    ]


def spread(num_rows: int, most: int) -> list[int]:
    """At most `most` row numbers, evenly over all."""
    count = min(num_rows, most)
    return [position * num_rows // count for position in range(count)]


def prompt_and_reference(
    tokens: Sequence[int], labels: Sequence[int], encoder_decoder: bool
) -> tuple[list[int], list[int]]:
    """Tokens to answer, and tokens of the true answer."""
    if encoder_decoder:
        return list(tokens), list(labels)
    stop = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
    start = stop
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return list(tokens[:start]), list(labels[start:stop])


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    decoding: Decoding | None = None,
) -> list[str]:
    """The model's greedy answer to each prompt, as text without special tokens.

    `decoding` is by default what checkpoint and tokenizer say. Prompts are batched by length;
    decoders have them padded on the left.
    """
    decoding = decoding_of(model, tokenizer) if decoding is None else decoding
    source: Any = model
    decoder = not source.config.is_encoder_decoder
    _check_room(source, prompts, max_new_tokens)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **decoding.tokens,
    )
    answers = [""] * len(prompts)
    for numbers in _batches(prompts, batch_size, mixed=not (decoder and _loses_positions(model))):
        moved()
        tokens_BS, mask_BS = _padded([prompts[n] for n in numbers], tokenizer, left=decoder)
        with without_own_settings(source):
            written = source.generate(
                input_ids=tokens_BS.to(source.device),
                attention_mask=mask_BS.to(source.device),
                generation_config=settings,
            )
        new = written[:, tokens_BS.shape[1] :] if decoder else written
        for number, answer in zip(numbers, new.tolist(), strict=True):
            answers[number] = answer_text(tokenizer, answer)
    return answers


def _batches(
    prompts: Sequence[Sequence[int]], batch_size: int, *, mixed: bool
) -> Iterator[list[int]]:
    """All prompts' numbers, the longest first; lengths differ within a batch only if `mixed`."""
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), number))
    groups = [order] if mixed else [list(g) for _, g in groupby(order, lambda n: len(prompts[n]))]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _loses_positions(model: Any) -> bool:
    """Whether padding on the left moves what stands behind it: PEFT (0.21.2) puts virtual tokens
    before the padding and drops the positions that would leave it out. Keys and values of a prefix
    do not, and keep them."""
    config = getattr(model, "active_peft_config", None)
    return (
        config is not None
        and config.is_prompt_learning
        and config.peft_type is not PeftType.PREFIX_TUNING
    )


def _padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask [B, S]."""
    value: Any = tokenizer.pad_token_id
    if not left:
        return pad(rows, value), mask(rows)
    turned = [list(reversed(row)) for row in rows]
    return pad(turned, value).flip(1), mask(turned).flip(1)


def _exact_match(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    pairs = zip(answers, references, strict=True)
    return {"exact_match": [float(answer == reference) for answer, reference in pairs]}


def _rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    return {name: [score[name].fmeasure for score in scores] for name in ROUGE}


def _bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    return {"bleu": float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score)}


_BY_ANSWER = {"exact_match": _exact_match, "rouge": _rouge}


def _check_room(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise SpecError if the base has too few positions, Refused if an adapter's tokens are why."""
    alone = not model.config.is_encoder_decoder  # otherwise only answers are in the decoder
    longest = max(map(len, prompts)) if alone else 0
    stated, table = stated_limit(model.config), table_length(model)
    limit = min((known for known in (stated, table) if known is not None), default=None)
    if limit is None:
        return
    adapter = getattr(model, "active_peft_config", None) if alone and table is not None else None
    virtual = getattr(adapter, "num_virtual_tokens", None) or 0
    room = limit - longest - virtual
    if max_new_tokens > room:
        before = f"{virtual} virtual tokens, and " if virtual else ""
        raise (Refused if max_new_tokens <= limit - longest else SpecError)(
            f"evaluation.generation.max_new_tokens must be <= {room}: the base has {limit} "
            f"positions, {before}prompts have up to {longest} tokens; got {max_new_tokens}"
        )
