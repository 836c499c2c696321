"""A trial's examples as tokens, for other training tools, and what these must be told of the base.

What stands in the files is what the trial was given: prompt, template, end tokens, cuts and the
tokens that count are decided already, so no tool decides them anew. No weights are read.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from torch import nn

from peft_jobs.base.architecture import skeleton
from peft_jobs.base.tokenizer import load_tokenizer
from peft_jobs.data.tokenized import load_data
from peft_jobs.methods.adapter_files import CONFIG
from peft_jobs.randomness import epoch_order
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.files import whole_folder

_TOKENS = List(Value("int32"))
_FEATURES = Features({"input_ids": _TOKENS, "attention_mask": _TOKENS, "labels": _TOKENS})


def write_rows(spec_json: str, adapter: Path, out: Path, cache_dir: Path) -> dict[str, Any]:
    """Write `train.parquet`, in the order of the trial's first epoch, and `validation.parquet` to
    the folder `out`, which is replaced; how many rows each has, and the modules of `adapter`.

    Columns: input_ids, attention_mask, labels (-100 where a token does not count). `targets` are
    the names under which PEFT finds the modules that the adapter changes, and no others.
    """
    spec = TrialSpec.model_validate_json(spec_json)
    data = load_data(spec, load_tokenizer(spec.model, spec.task), cache_dir)
    order = epoch_order(spec.seed, 0, len(data.train)).tolist()
    with whole_folder(out) as aside:
        for name, rows in (("train", data.train.select(order)), ("validation", data.validation)):
            _examples(rows).to_parquet(aside / f"{name}.parquet")
    about = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    base = skeleton(spec.model, spec.task)
    return {
        "train": len(data.train),
        "validation": len(data.validation),
        "targets": short_names(base, about["target_modules"] or ()),
        "parameters": sorted(about.get("target_parameters") or ()),
        "whole": sorted(about.get("modules_to_save") or ()),
    }


def write_arrow(rows: Path, out: Path) -> None:
    """Write what `write_rows` left in `rows` to `out`, as `datasets.load_from_disk` reads it."""
    files = {name: str(rows / f"{name}.parquet") for name in ("train", "validation")}
    loaded = load_dataset("parquet", data_files=files)
    assert isinstance(loaded, DatasetDict)
    with whole_folder(out) as aside:
        loaded.save_to_disk(aside)


def short_names(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """The last parts of the names of `modules` where they name no other module of `model`; the
    full names of the rest. Sorted."""
    chosen = set(modules)
    leaves = {name.rpartition(".")[2] for name in chosen}
    for name, _ in model.named_modules():
        if name not in chosen:
            leaves.discard(name.rpartition(".")[2])
    return sorted(leaves | {name for name in chosen if name.rpartition(".")[2] not in leaves})


def _examples(rows: Dataset) -> Dataset:
    def with_mask(batch: dict[str, Any]) -> dict[str, Any]:
        tokens = batch["input_ids"]
        masks = [[1] * len(row) for row in tokens]
        return {"input_ids": tokens, "attention_mask": masks, "labels": batch["labels"]}

    return rows.map(with_mask, batched=True, remove_columns=rows.column_names, features=_FEATURES)
