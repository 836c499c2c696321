"""A trained adapter leaves: re-scored from its files, and merged into the weights it was trained on.

Merging happens on the dequantized weights, in full precision: a merge into 4-bit weights rounds
the adapter away (https://github.com/huggingface/peft/issues/2321).
"""

from peft_jobs import notices  # noqa: F401  # isort: skip  # before bitsandbytes speaks

import shutil
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peft_jobs.base import Base, load_base
from peft_jobs.data import class_names
from peft_jobs.evaluation import evaluate
from peft_jobs.memory import release
from peft_jobs.quantized import is_quantized
from peft_jobs.spec import QuantizationSpec, TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.tokenized import TokenizedData, load_data


def score_adapter(
    spec_json: str, adapter: Path, cache_dir: Path, test: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """(validation, test) metrics of a saved adapter on a freshly loaded base.

    The test metrics are empty unless `test` is asked for and the data have such a split.
    """
    spec = TrialSpec.model_validate_json(spec_json)
    splits = ("test",) if test and spec.data.test is not None else ()
    base, data = _load(spec, cache_dir, splits)
    model = PeftModel.from_pretrained(base.model, str(adapter))
    validation = _metrics(model, base, spec, data, "validation")
    return validation, _metrics(model, base, spec, data, "test") if splits else {}


def merge_adapter(spec_json: str, adapter: Path, out: Path, cache_dir: Path) -> dict[str, float]:
    """Write base and adapter as one unquantized model to `out`; its own validation metrics.

    The metrics are those of the model as loaded again from `out`, without PEFT and quantization.
    """
    spec = TrialSpec.model_validate_json(spec_json)
    base, _ = _load(spec, cache_dir)
    merged = PeftModel.from_pretrained(_dequantized(base), str(adapter)).merge_and_unload()
    aside = out.with_name(f".{out.name}")
    shutil.rmtree(aside, ignore_errors=True)
    merged.save_pretrained(str(aside))
    base.tokenizer.save_pretrained(str(aside))
    device = base.device
    del merged, base
    release(device)
    aside.rename(out)
    model = spec.model.model_copy(update={"name_or_path": str(out), "revision": None})
    plain = spec.model_copy(update={"model": model, "quantization": QuantizationSpec(scheme="none")})
    again, data = _load(plain, cache_dir)
    return _metrics(again.model, again, plain, data, "validation")


def _load(
    spec: TrialSpec, cache_dir: Path, splits: tuple[str, ...] = ()
) -> tuple[Base, TokenizedData]:
    classes = class_names(spec.data, spec.task, TASKS[spec.task.type], cache_dir)
    labels = [str(name) for name in classes]
    base = load_base(spec.model, spec.quantization, spec.task, labels=labels)
    return base, load_data(spec, base.tokenizer, cache_dir, splits)


def _dequantized(base: Base) -> PreTrainedModel:
    model = base.model
    if any(is_quantized(module) for module in model.modules()):
        return cast(PreTrainedModel, model.dequantize(dtype=model.dtype))  # type: ignore[no-untyped-call]
    return model


def _metrics(
    model: torch.nn.Module, base: Base, spec: TrialSpec, data: TokenizedData, split: str
) -> dict[str, float]:
    return evaluate(
        model,
        TASKS[spec.task.type],
        data.validation if split == "validation" else data.test,
        batch_size=spec.evaluation.per_device_eval_batch_size,
        pad_token_id=int(base.tokenizer.pad_token_id),
        device=base.device,
        bf16=spec.training.bf16,
        split=split,
    )
