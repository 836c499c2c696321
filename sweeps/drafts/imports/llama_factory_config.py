"""LLaMA-Factory's configurations (`llamafactory-cli train FILE`), with `dataset_info.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.drafts.imports.carried import Carried

_OF_DATA = ("dataset", "dataset_dir", "eval_dataset", "val_size")
_FLAGS = ("do_train", "do_eval", "do_predict")
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}


def is_llama_factory(tree: Mapping[str, Any]) -> bool:
    """Whether the mapping of a file is a configuration of LLaMA-Factory."""
    return "model_name_or_path" in tree and ("finetuning_type" in tree or "template" in tree)


def carry(tree: Mapping[str, Any], carried: Carried, folder: Path, with_data: bool) -> None:
    """Take over what a sweep file can hold; `folder` is that of the file."""
    carried.fix("model_name_or_path", tree["model_name_or_path"])
    carried.tree["quantization"] = {"scheme": "none"}  # unless they say otherwise
    if tree.get("stage", "sft") != "sft":
        carried.leave("stage", f"{tree['stage']} is not trained here, supervised rows are")
    if with_data:
        _data(tree, carried, folder)
    else:
        for name in _OF_DATA:
            if name in tree:
                carried.leave(name, "the data are those of --data")
    method = {"lora": "lora", "full": "full"}.get(tree.get("finetuning_type", "lora"))
    if method is None:
        carried.leave("finetuning_type", f"{tree['finetuning_type']!r} is not known")
    else:
        carried.put("finetuning_type", "adapter.method", method)
    if tree.get("template") is not None:
        why = "conversations take the tokenizer's own template, or `task.chat_template`"
        carried.leave("template", why)
    done = ("model_name_or_path", "stage", "finetuning_type", "template", *_OF_DATA, *_FLAGS)
    for name, value in tree.items():
        if name not in done:
            carried.fix(name, value)


def _data(tree: Mapping[str, Any], carried: Carried, folder: Path) -> None:
    """The first data set, by its entry in `dataset_info.json`."""
    given = tree.get("dataset") or ""
    names = given if isinstance(given, list) else [name.strip() for name in str(given).split(",")]
    for other in names[1:]:
        carried.leave(
            f"dataset {other}", "a sweep trains on one source: put the rows into one file"
        )
    where = Path(tree.get("dataset_dir") or "data")
    files = [base / where / "dataset_info.json" for base in (Path(), folder)]
    file = next((file for file in files if file.is_file()), None)
    info = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    entry = info.get(names[0])
    if file is None or not isinstance(entry, Mapping):
        carried.leave("dataset", f"{files[0]} tells nothing of {names[0]!r}: give --data FILE")
        return
    size = tree.get("val_size")
    share = size if isinstance(size, float) and 0 < size < 1 else 0.1
    data: dict[str, Any] = {"train": _source(entry, file.parent), "validation": share}
    if size and share != size:
        carried.leave("val_size", "a held-out part is a share here; it is a tenth")
    task, form = _task(entry)
    carried.replace("dataset", {"task": task, "data": {**data, **form}})


def _source(entry: Mapping[str, Any], folder: Path) -> Any:
    if "file_name" in entry:
        return str(folder / entry["file_name"])
    known = {
        "path": entry.get("hf_hub_url"),
        "name": entry.get("subset"),
        "split": entry.get("split"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _task(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if entry.get("formatting", "alpaca") == "alpaca":
        keys = {_COLUMNS[k]: v for k, v in columns.items() if k in _COLUMNS and _COLUMNS[k] != v}
        form = {"format": "alpaca", **({"keys": keys} if keys else {})}
        return {"type": "causal_lm", "messages": "messages"}, form
    names = {"role": tags.get("role_tag", "from"), "content": tags.get("content_tag", "value")}
    task = {"type": "causal_lm", "messages": columns.get("messages", "conversations")}
    if names == {"role": "role", "content": "content"}:
        return task, {}
    usual = names == {"role": "from", "content": "value"}
    return task, {"format": "sharegpt"} if usual else {"keys": names}
