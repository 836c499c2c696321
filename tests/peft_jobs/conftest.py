"""Tiny random bases, saved as a user's would be, and the real ones where they are at hand."""

import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.support.repository import SHARED

# The models are too small to share their work; infra/numerics.sh asks for two, to round otherwise.
THREADS = int(os.environ.get("PEFT_SWEEPS_TEST_THREADS", "1"))
torch.set_num_threads(THREADS)
if THREADS > 1:  # the tests' engines ask for one
    torch.set_num_threads = lambda number, set_=torch.set_num_threads: set_(max(number, THREADS))

WORDS = ["the", "a", "red", "green", "blue", "cat", "dog", "bird", "sees", "likes", "good", "bad"]
NUM_TOKENS = 128


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of `tests.support.devices.on_each_device`; engines of this process train on it."""
    from peft_jobs.device.this_device import this_device

    found = this_device()
    if found.type != request.param:
        pytest.skip(f"engines train on {found} here: hide the GPUs, CUDA_VISIBLE_DEVICES=''")
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the repository; skips the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real inputs at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories_path(shared: Path) -> Path:
    """A real pretrained Llama of 260k parameters; skips the test where it is absent."""
    path = shared / "models" / "stories260k"
    if not path.is_dir():
        pytest.skip(f"no model at {path}")
    return path


def save_tokenizer(folder: Path, *, bert: bool) -> None:
    """Word-level tokenizer of some words and all printable characters, as `tokenizer.json`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"] + (["[CLS]", "[SEP]", "[PAD]"] if bert else [])
    letters = [chr(code) for code in range(33, 127)]
    words = list(dict.fromkeys([*special, *WORDS, *letters]))[:NUM_TOKENS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if bert:
        cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
        )
        names = {
            "unk_token": "<unk>",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
        }
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random LlamaForCausalLM: hidden 64, 2 layers, vocabulary 128, no pad token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, bert=False)
    return folder


@pytest.fixture(scope="session")
def tiny_bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random BertModel without a head: hidden 64, 2 layers, vocabulary 128."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.1,
        pad_token_id=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


@pytest.fixture(scope="session")
def llama_base(tiny_llama_path: Path) -> Callable[[str], Any]:
    """scheme -> the resident tiny Llama in that quantization, one per session."""
    from peft_jobs.base.loading import load_base
    from peft_jobs.spec import CausalLMSpec, ModelSpec, QuantizationSpec

    @functools.cache
    def load(scheme: str) -> Any:
        model = ModelSpec(name_or_path=str(tiny_llama_path))
        task = CausalLMSpec(response="{text}")
        return load_base(model, QuantizationSpec(scheme=scheme), task)

    return load


@pytest.fixture(scope="session")
def trial(tiny_llama_path: Path) -> Callable[..., Any]:
    """Dotted parameters -> a TrialSpec on the tiny Llama (`{"adapter.r": 4}`)."""
    from peft_jobs.spec import TrialSpec

    def build(parameters: dict[str, Any] | None = None) -> Any:
        spec = TrialSpec.model_validate(
            {
                "model": str(tiny_llama_path),
                "task": {"type": "causal_lm", "response": "{text}"},
                "data": {"train": "train.jsonl"},
            }
        )
        return spec.with_params(parameters or {})

    return build


@pytest.fixture(scope="session")
def take_steps() -> Callable[..., list[float]]:
    """(PeftModel, number of steps) -> losses of AdamW steps on fixed tokens, two rows of nine."""
    from peft_jobs.methods import clock_of

    def take(
        model: Any, num_steps: int = 3, num_labels: int | None = None, method: Any = None
    ) -> list[float]:
        source = torch.Generator().manual_seed(0)
        tokens = torch.randint(6, 100, (2, 9), generator=source).to(model.device)
        labels = tokens if num_labels is None else torch.arange(2, device=model.device) % num_labels
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        model.train()
        losses = []
        for step in range(1, num_steps + 1):
            clock_of(model).micro_step += 1
            loss = model(input_ids=tokens, labels=labels).loss
            if method is not None and method.penalty is not None:
                loss = loss + method.penalty(model)
            loss.backward()
            optimizer.step()
            if method is not None and method.after_step is not None:
                method.after_step(model, step)
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return take


@pytest.fixture(scope="session")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 rows: an answer that follows from the question, and a class that follows from both."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ("the", "a", "red", "green", "cat", "dog", "bird", "sees", "likes")
    rows = [
        {
            "q": f"{words[i % 9]} {words[i // 9 % 9]}",
            "a": " ".join(words[(i + j) % 9] for j in range(1 + i % 4)),
            "class": ("odd", "even")[i % 2],
        }
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Listening:
    """Runs jobs on an engine in this thread; keeps what they report, and decides at once."""

    def __init__(self, engine: Any, trial_folder: Path) -> None:
        self.engine, self.folder = engine, trial_folder
        self.reports: list[Any] = []
        self.job: Any = None
        self.on_report: Callable[[Any], None] = lambda progress: None

    def run(
        self,
        spec: Any,
        attempt: int = 1,
        checkpoint: Path | str | None = None,
        ladder: Any = None,
    ) -> Any:
        """The result of an attempt; `reports` are those of this attempt alone."""
        from peft_jobs.host.job import Job

        listening = self

        class Decided(Job):
            def report(self, progress: Any) -> None:
                listening.reports.append(progress)
                listening.on_report(progress)

        directory = self.folder / "attempts" / str(attempt)
        start = None if checkpoint is None else Path(checkpoint)
        self.reports = []
        changed = threading.Condition()
        self.job = Decided(0, attempt, spec, directory, start, changed, ladder=ladder)
        return self.engine.run(self.job)

    def checkpoints(self, attempt: int = 1) -> list[Path]:
        """The checkpoints that an attempt has left, oldest first."""
        return sorted((self.folder / "attempts" / str(attempt) / "checkpoints").glob("step-*"))


@pytest.fixture(scope="session")
def listen() -> Callable[..., Listening]:
    """(engine, folder of a trial) -> Listening."""
    return Listening


@pytest.fixture(scope="session")
def watch_forward() -> Callable[..., Any]:
    """(base, look) -> a context in which `look(training, rows)` is called before each forward."""

    @contextmanager
    def watch(base: Any, look: Callable[[bool, int], None]) -> Iterator[None]:
        active = True

        def hook(module: Any, _inputs: Any, arguments: dict[str, Any]) -> None:
            if active:
                look(module.training, len(arguments["input_ids"]))

        # Detaching an adapter puts copies of the hooks back: `remove` would not find this one.
        base.model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            active = False

    return watch
