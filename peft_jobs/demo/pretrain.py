"""Makes the demo's base model and its tokenizer: `python -m peft_jobs.demo.pretrain`.

The text comes from `peft_jobs.demo.pretraining_text`. The seed and the number of threads are fixed,
so a second run on the same machine and versions writes the same bytes; `--check` tells whether it
does.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peft_jobs.demo import BASE, DATA
from peft_jobs.demo.pretraining_text import documents

SEED = 7
NUM_THREADS = 2
VOCAB_SIZE = 768
TOKENIZER_DOCUMENTS = 20_000
STEPS = 1500
BATCH_SIZE = 16
SEQUENCE_LENGTH = 128
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits; it encodes any text and puts `<s>` in front."""
    specials = ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed), TOKENIZER_DOCUMENTS), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", specials.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of packed documents, `<s> ... </s>` each, shaped (batch, sequence)."""
    stream: list[int] = []
    needed = BATCH_SIZE * SEQUENCE_LENGTH
    for document in documents(seed):
        stream += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
        if len(stream) >= needed:
            yield torch.tensor(stream[:needed]).view(BATCH_SIZE, SEQUENCE_LENGTH)
            stream = stream[needed:]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights; every width is a multiple of 64, for 4-bit blocks."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Trains in place with AdamW and one cycle of linear warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    model.train()
    for step, ids in enumerate(islice(batches(tokenizer, SEED + 1), STEPS), start=1):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}/{STEPS} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean loss per token on pre-training text of another seed."""
    model.eval()
    losses = [
        model(input_ids=ids, labels=ids).loss.item()
        for ids in islice(batches(tokenizer, SEED + 2), 16)
    ]
    return sum(losses) / len(losses)


@torch.no_grad()
def demo_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean loss per sentence token on the demo's validation split, which training never sees."""
    model.eval()
    total, count = 0.0, 0
    for line in DATA["validation"].read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["record"] + "\n")["input_ids"]
        response = tokenizer(row["sentence"], add_special_tokens=False)["input_ids"]
        response = [*response, tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *response]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        total += model(input_ids=ids, labels=labels).loss.item() * len(response)
        count += len(response)
    return total / count
