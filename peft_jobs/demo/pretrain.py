"""Makes the demo's base model, its tokenizer and its model card.

`python -m peft_jobs.demo.pretrain [--out DIR]` takes about four minutes on two cores. The text
comes from `peft_jobs.demo.pretraining_text`. The seed and the number of threads are fixed, so a
second run on the same machine with the same versions writes the same bytes; `--check` tells
whether it does.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
VOCAB_SIZE = 1024
TOKENIZER_DOCUMENTS = 20_000
STEPS = 1500
BATCH_SIZE = 16
SEQUENCE_LENGTH = 128
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05

WEIGHTS = "model.safetensors"


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
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
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
            initializer_range=0.06,
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
    model.train(mode=False)
    found = [
        float(model(input_ids=ids, labels=ids).loss)
        for ids in islice(batches(tokenizer, SEED + 2), 16)
    ]
    return sum(found) / len(found)


@torch.no_grad()
def demo_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean loss per sentence token on the demo's validation split, which training never sees."""
    model.train(mode=False)
    total, count = 0.0, 0
    for line in DATA["validation"].read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["record"] + "\n")["input_ids"]
        response = tokenizer(row["sentence"], add_special_tokens=False)["input_ids"]
        response = [*response, tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *response]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        total += float(model(input_ids=ids, labels=labels).loss) * len(response)
        count += len(response)
    return total / count


@dataclass(frozen=True)
class Losses:
    """Mean losses per token: on held-out pre-training text, and on the demo's sentences."""

    held_out: float
    demo: float


def losses(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Losses:
    """Both losses of `model` as it stands."""
    return Losses(held_out_loss(model, tokenizer), demo_loss(model, tokenizer))


def make(out: Path) -> None:
    """Trains a tokenizer and a model and writes both, with the card, into the folder `out`."""
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    tokenizer = train_tokenizer(SEED)
    model = new_model(tokenizer)
    before = losses(model, tokenizer)
    train(model, tokenizer)
    after = losses(model, tokenizer)
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / WEIGHTS).chmod(0o644)  # safetensors leaves the file readable by its owner only
    (out / "README.md").write_text(card(out, model, before, after, seconds))
    print(f"held-out loss {before.held_out:.4f} -> {after.held_out:.4f}")
    print(f"demo loss {before.demo:.4f} -> {after.demo:.4f}")
    print(f"{out / WEIGHTS}: sha256 {sha256(out / WEIGHTS)}, {seconds:.0f} s")


def card(out: Path, model: LlamaForCausalLM, before: Losses, after: Losses, seconds: float) -> str:
    """The model card, in Markdown."""
    config = model.config
    return f"""# The demo's base model

A Llama of {model.num_parameters():,} parameters in float32, for sweeps that need no network. It is
not meant to be useful. `python -m peft_jobs.demo.pretrain` makes it; `--check` makes it again in a
temporary folder and compares. On other machines and versions the weights may differ in their last
bits.

* Architecture: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, MLP width
  {config.intermediate_size}, {config.num_attention_heads} heads, tied embeddings, positions up to
  {config.max_position_embeddings}. All widths of the linear layers are multiples of 64.
* Tokenizer: byte-level BPE, {config.vocab_size} tokens, single digits, `<s>` in front, trained on
  the first {TOKENIZER_DOCUMENTS:,} documents of the pre-training text.
* Text: `peft_jobs/demo/pretraining_text.py`. The demo's data set is of another distribution and
  plays no part in the training.
* Training: seed {SEED}, {STEPS} steps of {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens, AdamW, learning
  rate {PEAK_LEARNING_RATE}, {WARMUP_STEPS} steps of warm-up, cosine decay, weight decay
  {WEIGHT_DECAY}, {NUM_THREADS} threads, {seconds:.0f} seconds on a shared
  {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}).
* `{WEIGHTS}`: {(out / WEIGHTS).stat().st_size:,} bytes, sha256
  `{sha256(out / WEIGHTS)}`.
* Made with Python {platform.python_version()}, torch {torch.__version__}, transformers
  {transformers.__version__}, tokenizers {tokenizers.__version__}.

| loss per token | random weights | pre-trained |
|---|---|---|
| held-out pre-training text | {before.held_out:.4f} | {after.held_out:.4f} |
| the demo's validation sentences | {before.demo:.4f} | {after.demo:.4f} |

The pre-trained model is surer of its own text and so does worse than chance on the demo's
sentences until it is fine-tuned.
"""


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reproduces(base: Path) -> bool:
    """Whether a new run writes the weights and the tokenizer that lie in `base`."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return all(
            sha256(Path(folder) / name) == sha256(base / name)
            for name in (WEIGHTS, "tokenizer.json")
        )


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peft_jobs.demo.pretrain")
    parser.add_argument("--out", type=Path, default=BASE, help="folder to write to")
    parser.add_argument("--check", action="store_true", help="only compare a new run with --out")
    options = parser.parse_args()
    if not options.check:
        make(options.out)
        return 0
    same = reproduces(options.out)
    print(f"{options.out}: {'reproduced' if same else 'NOT reproduced'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
