"""A trained adapter leaves: scored again from its files, merged into the weights it was made for.

Merging happens on the dequantized weights, in full precision: a merge into 4-bit weights rounds
the adapter away (https://github.com/huggingface/peft/issues/2321).
"""

import shutil
from pathlib import Path
from typing import cast

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_jobs.base.architecture import read_config
from peft_jobs.base.loading import Base, no_progress_bar
from peft_jobs.base.quantization import is_quantized
from peft_jobs.base.resident import Resident
from peft_jobs.base.stored_quantization import forget_stored
from peft_jobs.device.this_device import this_device
from peft_jobs.evaluation.row_scores import keep_rows
from peft_jobs.evaluation.samples import sample_answers
from peft_jobs.evaluation.scoring import Evaluation, examine
from peft_jobs.evaluation.serving import serving_settings
from peft_jobs.methods import load_adapter
from peft_jobs.phases import Phases
from peft_jobs.spec import QuantizationSpec, TaskSpec, TrialSpec
from peft_jobs.storage.attempt_folder import SAMPLES_FILE, read_labels, write_labels
from peft_jobs.storage.files import follow_umask, write_json
from peft_jobs.tasks.chat import template_of
from peft_jobs.training.counts import Counts
from peft_jobs.training.oom_ladder import OomLadder


def score_adapter(
    spec_json: str,
    adapter: Path,
    cache_dir: Path,
    test: bool,
    num_samples: int = 0,
    test_rows: Path | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """(validation, test) metrics of a saved adapter on a freshly loaded base.

    The test metrics are empty unless `test` is asked for and the data have such a split; what was
    found of each of its rows is written into the folder `test_rows`, if one is given. The names
    of the classes are written beside the adapter if they are not there, and so are the tokenizer
    with its chat template, and the generation settings; with `num_samples`, also how many examples
    there were, and the answers to as many prompts (see `sample_answers`).
    """
    spec = TrialSpec.model_validate_json(spec_json)
    base, data = Resident(cache_dir, this_device(), with_test=test).get(spec, Phases())
    if not read_labels(adapter):
        write_labels(adapter, data.classes)
    _save_tokenizer(base.tokenizer, spec.task, adapter)
    settings = serving_settings(base.model, base.tokenizer, spec, data.validation)
    if settings is not None:
        settings.save_pretrained(str(adapter))
    model = load_adapter(base.model, adapter)
    if num_samples:
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        examples = {split: len(rows) for split, rows in splits.items() if rows is not None}
        answers = sample_answers(model, base, spec, data.validation, num_samples)
        write_json(adapter / SAMPLES_FILE, {"examples": examples, "answers": answers})
    validation = examined(model, base, spec, data.validation).metrics
    if data.test is None:
        return validation, {}
    tested = examined(model, base, spec, data.test, "test")
    if test_rows is not None:
        keep_rows(test_rows, tested, data.test, data.numbers["test"])
    return validation, tested.metrics


def merge_adapter(spec_json: str, adapter: Path, out: Path, cache_dir: Path) -> dict[str, float]:
    """Write base and adapter as one unquantized model to `out`; its own validation metrics.

    `out` is replaced, by a model that is whole: an earlier one may have come no further.
    The metrics are those of the model as loaded again from `out`, without PEFT and quantization.
    """
    spec = TrialSpec.model_validate_json(spec_json)
    spec.adapter.check_merges()
    resident = Resident(cache_dir, this_device(), with_test=False)
    base, data = resident.get(spec, Phases())
    settings = serving_settings(base.model, base.tokenizer, spec, data.validation)
    merged = load_adapter(_dequantized(base), adapter).merge_and_unload()
    if settings is not None:
        merged.generation_config = settings
    _restore_cache(merged, spec)
    aside = out.with_name(f".{out.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with no_progress_bar():
        merged.save_pretrained(str(aside))
    _save_tokenizer(base.tokenizer, spec.task, aside)
    follow_umask(aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    model = spec.model.model_copy(update={"name_or_path": str(out), "revision": None})
    plain = spec.model_copy(
        update={"model": model, "quantization": QuantizationSpec(scheme="none")}
    )
    del merged, base  # the plain model takes the memory of this one
    again, data = resident.get(plain, Phases())
    return examined(again.model, again, plain, data.validation).metrics


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, task: TaskSpec, folder: Path) -> None:
    """Write a tokenizer with the chat template of a task, without the cut of the last text."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    own = tokenizer.chat_template
    tokenizer.chat_template = template_of(tokenizer, getattr(task, "chat_template", None))
    try:
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = own


def _restore_cache(model: PreTrainedModel, spec: TrialSpec) -> None:
    """Undo in the configuration what a resident base has switched off for itself."""
    own = read_config(spec.model, spec.task)
    if hasattr(own, "use_cache"):
        model.config.use_cache = own.use_cache
    else:
        del model.config.use_cache


def examined(
    model: nn.Module, base: Base, spec: TrialSpec, rows: Dataset, split: str = "validation"
) -> Evaluation:
    """A split, in as small batches as memory asks for, as the trial took them."""
    return OomLadder(spec, base.device).measured(
        Counts(), lambda smaller: examine(model, base, smaller, rows, split)
    )


def _dequantized(base: Base) -> PreTrainedModel:
    model = base.model
    if any(is_quantized(module) for module in model.modules()):
        model = cast(PreTrainedModel, model.dequantize(dtype=model.dtype))  # type: ignore[no-untyped-call]
        forget_stored(model)
    return model
