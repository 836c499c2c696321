"""The quantized base that trials share: loaded once, frozen, and checked to stay as it was.

What `peft.prepare_model_for_kbit_training` does is done here as far as it suits a base that stays
resident: everything is frozen, but nothing is cast to float32 behind the spec's back
(`model.dtype: float32` gives that function's result, at its price in memory), and gradient
checkpointing belongs to the trial (`peft_jobs.methods`).
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from peft_jobs.base.architecture import (
    auto_class,
    head_modules,
    location,
    outputs_by_class,
    read_config,
    readable,
    skeleton,
    stored_config_fingerprint,
)
from peft_jobs.base.content_hash import content_hash
from peft_jobs.base.heads import FRESH, forget, fresh_modules, reset_head, topmost_modules
from peft_jobs.base.languages import set_languages
from peft_jobs.base.quantization import (
    bnb_config,
    check_contents,
    check_skipped,
    is_quantized,
    loaded_quantization,
    quantization_seconds,
    settle,
)
from peft_jobs.base.stored_quantization import (
    check_stored,
    check_unused,
    prepare_stored,
    stored_quantization,
)
from peft_jobs.base.text_reach import carry_unreached
from peft_jobs.base.tokenizer import pad_ready_tokenizer
from peft_jobs.base.vocabulary import check_padding
from peft_jobs.base.weight_shares import warn_of_shares, weight_shares
from peft_jobs.device.this_device import this_device
from peft_jobs.errors import SpecError
from peft_jobs.spec import ModelSpec, QuantizationSpec, Seq2SeqSpec, TaskSpec
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.tasks.sequence_classification import reads_last_position

__all__ = ["Base", "base_key", "load_base", "reset_head", "this_device"]

CANONICAL_SEED = 0
"""Of a fresh head on the base itself; each trial trains a copy with weights of its own seed."""


@dataclass(frozen=True)
class Base:
    """A frozen model in eval mode, its tokenizer, and what was measured while it was loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    seconds: dict[str, float]
    """`quantize`: inside bitsandbytes' quantization, which happens while the weights are read;
    `load`: all the rest."""
    quantization: dict[str, Any]
    """What was loaded, read from its layers: see `loaded_quantization`, and `WeightShares` where
    anything is quantized."""
    fingerprint: str
    """sha256 over configuration and contents, in hex: what the model is, wherever it lies."""
    key: str
    """What was asked for, as canonical JSON: equal keys can share one resident base."""
    contents: dict[str, str]
    """Fingerprints by part: `weights` as they were loaded, and so by quantization, dtype and kind
    of device; `config` as it lies in the checkpoint, whatever version reads it."""

    def state_hash(self) -> str:
        """sha256 of the contents as they are now; compare it before and after a trial."""
        return content_hash(self.model)


def base_key(
    model: ModelSpec,
    quantization: QuantizationSpec,
    task: TaskSpec,
    num_labels: int | None = None,
    labels: Sequence[str] = (),
    new_head: bool = False,
) -> str:
    """`Base.key` of the base that `load_base` gives for the same arguments."""
    sections = (model, quantization)
    parts: list[Any] = [*(section.model_dump(mode="json") for section in sections), task.type]
    if isinstance(task, Seq2SeqSpec):
        parts += [task.source_language, task.target_language]
    num_labels = len(labels) or num_labels
    return canonical_json([*parts, num_labels, list(labels), task.head_problem, new_head])


def load_base(
    model: ModelSpec,
    quantization: QuantizationSpec,
    task: TaskSpec,
    num_labels: int | None = None,
    labels: Sequence[str] = (),
    spread: bool = False,
    new_head: bool = False,
) -> Base:
    """Load and quantize a base on the GPU, or on the CPU where there is none.

    Frozen, in eval mode; heads are never quantized; a head that the checkpoint lacks is drawn from
    a fixed seed. The tokenizer has a padding token (the end-of-text token where it had none).
    `new_head` draws the outputs of a head that the checkpoint has, too: they mean other classes.
    `spread` divides its layers among all GPUs that this process sees, by accelerate's device map.
    Reads safetensors only, runs no code from the checkpoint, leaves torch's generators alone.
    Raises SpecError for a base that cannot be had, or not in this quantization.
    """
    device = this_device()
    with readable(model):
        config = read_config(model, task, num_labels, labels)
        check_stored(model, config, quantization)
        outline = skeleton(model, task)
    # We pad rows ourselves; the side is for whoever batches with it after an export.
    side = {"padding_side": "left"} if reads_last_position(outline) else {}
    tokenizer = pad_ready_tokenizer(model, **side)
    set_languages(tokenizer, task, model.name_or_path)
    check_padding(config, tokenizer, model.name_or_path)
    config.pad_token_id = tokenizer.pad_token_id
    config.use_cache = False
    check_skipped(outline, quantization)
    skip = [*head_modules(outline), *quantization.llm_int8_skip_modules]
    asked = bnb_config(quantization, skip, device)
    from_checkpoint = stored_quantization(config) is not None
    if from_checkpoint:
        prepare_stored(config, outline, asked, head_modules(outline) if task.HAS_HEAD else ())
    started = time.perf_counter()
    with quantization_seconds(device) as quantize:
        given = None if from_checkpoint else asked
        loaded = _load(model, task, config, given, device, spread)
        fresh = fresh_modules(loaded)
        if any(is_quantized(loaded.get_submodule(name)) for name in fresh):
            # Seen only now: what the checkpoint lacks has no values that could be quantized.
            if from_checkpoint:
                prepare_stored(config, outline, asked, fresh)  # beside what was left out before
            else:
                given = bnb_config(quantization, [*skip, *fresh], device)
            loaded = _load(model, task, config, given, device, spread)
    seconds = time.perf_counter() - started
    if new_head:
        forget(loaded, outputs_by_class(model, task))
    loaded.requires_grad_(False).train(False)
    check_contents(loaded, quantization, model.name_or_path)
    settle(loaded, quantization)
    carry_unreached(loaded, outline)
    shares = weight_shares(loaded)
    warn_of_shares(shares, quantization)
    reset_head(loaded, CANONICAL_SEED)
    settings = config.to_json_string(use_diff=True)
    weights = content_hash(loaded)
    return Base(
        model=loaded,
        tokenizer=tokenizer,
        device=device,
        seconds={"load": seconds - quantize[0], "quantize": quantize[0]},
        quantization=loaded_quantization(loaded, from_checkpoint)
        | ({} if quantization.scheme == "none" else asdict(shares)),
        fingerprint=sha256(f"{settings}\n{weights}"),
        key=base_key(model, quantization, task, num_labels, labels, new_head),
        contents={"weights": weights, "config": stored_config_fingerprint(model)},
    )


def _load(
    model: ModelSpec,
    task: TaskSpec,
    config: Any,
    quantization_config: BitsAndBytesConfig | None,
    device: torch.device,
    spread: bool,
) -> PreTrainedModel:
    dtype = "float32" if model.dtype == "auto" and device.type == "cpu" else model.dtype
    has_head = task.HAS_HEAD
    # Weights that the checkpoint lacks are drawn: from a fixed seed, and nobody else notices.
    with readable(model), no_progress_bar(), _forked_generators(device):
        loaded, info = auto_class(task).from_pretrained(
            location(model),
            config=config,
            revision=model.revision,
            dtype=dtype,
            attn_implementation=model.attn_implementation,
            quantization_config=quantization_config,
            device_map="auto" if spread else {"": str(device)},
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=has_head,
            output_loading_info=True,
        )
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    fresh = topmost_modules(loaded, missing)
    lost = [name for name in missing if not name.startswith(tuple(f"{part}." for part in fresh))]
    inner = [name for name in fresh if f"{name}.".startswith(f"{loaded.base_model_prefix}.")]
    if lost or ([name for name in inner if "pooler" not in name] if has_head else fresh):
        raise SpecError(
            f"model.name_or_path: {model.name_or_path} lacks weights of {type(loaded).__name__}: "
            f"{', '.join(sorted(missing)[:4])}; give a complete checkpoint of this architecture"
        )
    check_unused(loaded, model.name_or_path, info["unexpected_keys"])
    setattr(loaded, FRESH, fresh)
    built: PreTrainedModel = loaded
    return built


@contextlib.contextmanager
def _forked_generators(device: torch.device) -> Iterator[None]:
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(CANONICAL_SEED)
        yield


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keeps the bars of transformers off the screen."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
