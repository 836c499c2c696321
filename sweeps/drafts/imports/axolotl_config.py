"""Axolotl's configurations (`axolotl train config.yaml`), and its sweeps (`--sweep sweep.yaml`).

A sweep of Axolotl gives each key a list of values, and under `_` lists of values that go together.
"""

from collections.abc import Mapping
from typing import Any

from sweeps.drafts.imports.carried import Carried

_OF_DATA = ("datasets", "test_datasets", "val_set_size", "chat_template")
_METHODS = {"lora": "lora", "qlora": "lora"}
_SHAREGPT = {"role": "from", "content": "value"}
_FILES = ("ds_type", "data_files")


def is_axolotl(tree: Mapping[str, Any]) -> bool:
    """Whether the mapping of a file is a configuration of Axolotl."""
    return "base_model" in tree


def is_axolotl_sweep(tree: Mapping[str, Any]) -> bool:
    """Whether it is a sweep of Axolotl."""
    return bool(tree) and all(isinstance(values, list) for values in tree.values())


def carry(tree: Mapping[str, Any], carried: Carried, with_data: bool) -> None:
    """Take over what a sweep file can hold; `with_data` is for a person who gives no other data."""
    carried.fix("base_model", tree["base_model"])
    carried.tree["quantization"] = {"scheme": "none"}  # unless they say otherwise
    if with_data:
        _data(tree, carried)
    else:
        for name in _OF_DATA:
            if name in tree:
                carried.leave(name, "the data are those of --data")
    _adapter(tree.get("adapter"), carried)
    for name, value in tree.items():
        if name in ("base_model", "adapter", *_OF_DATA):
            continue
        if name == "train_on_inputs" and not value:
            continue
        carried.fix(name, value)


def carry_sweep(tree: Mapping[str, Any], carried: Carried) -> None:
    """Take over what is sampled: each list is a choice."""
    for name, values in tree.items():
        if name == "_":
            keys = ", ".join(dict.fromkeys(key for each in values for key in each))
            why = f"values that go together ({keys}); write them as a derived parameter"
            carried.leave("_", why)
        elif len(values) == 1:
            carried.fix(name, values[0])
        else:
            carried.sample(name, {"choices": values})
    carried.tree["sampler"], carried.tree["pruner"] = "grid", "none"
    count = 1
    for parameter in carried.parameters.values():
        count *= len(parameter["choices"])
    carried.tree["budget"]["n_trials"] = count
    carried.said.append(f"Axolotl runs all {count} combinations to their ends: grid, no pruner")


def _adapter(name: Any, carried: Carried) -> None:
    if name is None:
        carried.put("adapter", "adapter.method", "full")
    elif name in _METHODS:
        carried.put("adapter", "adapter.method", _METHODS[name])
    else:
        carried.leave("adapter", f"{name!r} is not known; adapter.method is lora")


def _data(tree: Mapping[str, Any], carried: Carried) -> None:
    """The first data set, as source and task."""
    sets = tree.get("datasets") or []
    if not sets:
        return
    for number, other in enumerate(sets[1:], start=1):
        why = f"a sweep trains on one source ({other.get('path')}): put the rows into one file"
        carried.leave(f"datasets[{number}]", why)
    first = sets[0]
    task, data = _task(first, carried)
    if task is None:
        return
    template = tree.get("chat_template")
    if template is not None and template != "tokenizer_default" and "messages" in task:
        if template == "chatml":
            task["chat_template"] = template
        else:
            carried.leave("chat_template", "the tokenizer's own template is taken")
    data |= {"train": _source(first), "validation": _validation(tree, carried)}
    carried.replace("datasets", {"task": task, "data": data})


def _task(
    first: Mapping[str, Any], carried: Carried
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The sections task and data of a data set's `type`; no task for a prompt that is not known."""
    kind, task = first.get("type"), {"type": "causal_lm"}
    if isinstance(kind, Mapping):  # a person's own prompt
        written = str(kind.get("format") or "{instruction}")
        fields = {name: kind.get(f"field_{name}", name) for name in ("instruction", "input")}
        for name, column in fields.items():
            written = written.replace("{" + name + "}", "{" + str(column) + "}")
        if kind.get("no_input_format") or kind.get("system_prompt"):
            carried.leave("datasets[0].type", "one template is for all rows: the first is taken")
        answer = "{" + str(kind.get("field_output", "output")) + "}"
        return {**task, "prompt": written, "response": answer}, {}
    if kind == "alpaca":
        return {**task, "messages": "messages"}, {"format": "alpaca"}
    if kind == "completion":
        return {**task, "text": "{" + str(first.get("field") or "text") + "}"}, {}
    if kind in ("chat_template", "sharegpt", None):
        default = "conversations" if kind == "sharegpt" else "messages"
        names = dict(first.get("message_property_mappings") or {})
        is_sharegpt = kind == "sharegpt" or names == _SHAREGPT
        form: dict[str, Any] = {"format": "sharegpt"} if is_sharegpt else {}
        others = {key: value for key, value in names.items() if key != value}
        if others and not is_sharegpt:
            form["keys"] = others
        return {**task, "messages": first.get("field_messages", default)}, form
    why = f"{kind!r} is a prompt of Axolotl's; write `task`, or give --data FILE"
    carried.leave("datasets[0].type", why)
    return None, {}


def _source(given: Mapping[str, Any]) -> Any:
    files = given.get("data_files")
    path = given["path"]
    if files:
        return files[0] if isinstance(files, list) else files
    known = {"path": path, "name": given.get("name"), "split": given.get("split")}
    is_file = "." in str(path).rpartition("/")[2]
    return path if is_file else {k: v for k, v in known.items() if v is not None}


def _validation(tree: Mapping[str, Any], carried: Carried) -> Any:
    if tests := tree.get("test_datasets"):
        return _source(tests[0])
    size = tree.get("val_set_size")
    if isinstance(size, float) and 0 < size < 1:
        return size
    if size:
        carried.leave("val_set_size", "a held-out part is a share here; it is a tenth")
    else:
        carried.said.append("data.validation holds a tenth of the rows out: a sweep must measure")
    return 0.1
