"""Conversations in the forms of other tools, as the messages that `task.messages` reads.

openai     a list of {role, content}
sharegpt   a list of {from, value}, as LLaMA-Factory and Axolotl have them
alpaca     a row with instruction, input, output, and earlier turns in history
"""

from collections.abc import Callable, Mapping
from typing import Any

from peft_jobs.errors import DataError
from peft_jobs.spec import CausalLMSpec, DataSpec, TaskSpec
from peft_jobs.spec.cells import structure_of, text_of
from peft_jobs.tasks import Row, Task

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "tool_call",
    "function_response": "tool",
    "tool_response": "tool",
}
_ALPACA_OPTIONAL = ("input", "system", "history")


def columns_of(
    data: DataSpec, task: Task[Any], spec: TaskSpec, known: list[str]
) -> dict[str, tuple[str, ...]]:
    """The columns of `known` that each field of the spec uses, and those that it must have."""
    found = task.columns(spec)
    if not isinstance(spec, CausalLMSpec) or spec.messages is None or data.format == "openai":
        return found
    if data.format == "sharegpt":
        system = data.keys.get("system", "system")
        named = "system" in data.keys
        return {**found, "data.keys": (system,)} if named or system in known else found
    needed = [data.keys.get(name, name) for name in ("instruction", "output")]
    optional = [data.keys.get(name, name) for name in _ALPACA_OPTIONAL]
    given = set(data.keys.values())
    columns = (*needed, *(name for name in optional if name in known or name in given))
    return {**{k: v for k, v in found.items() if k != "task.messages"}, "data.format": columns}


def reader_of(data: DataSpec, spec: TaskSpec) -> Callable[[Row], Row]:
    """The function from a row in the form that `data.format` names to one with messages."""
    if not isinstance(spec, CausalLMSpec) or spec.messages is None:
        return lambda row: row
    column = spec.messages

    def read(row: Row) -> Row:
        if data.format == "alpaca":
            return {**row, column: _of_alpaca(row, data.keys)}
        messages = row[column]
        if not isinstance(messages, list):
            return row
        found = [_message(message, data) for message in messages]
        system = row.get(data.keys.get("system", "system")) if data.format == "sharegpt" else None
        if system and not (isinstance(found[0], Mapping) and found[0].get("role") == "system"):
            found = [{"role": "system", "content": text_of(system)}, *found]
        return {**row, column: found}

    return read


def _message(message: Any, data: DataSpec) -> Any:
    """A message with the keys and roles that templates know; what is no mapping stays as it is."""
    if not isinstance(message, Mapping):
        return message
    form = {"role": "from", "content": "value"} if data.format == "sharegpt" else {}
    names = {data.keys.get(name, form.get(name, name)): name for name in ("role", "content")}
    found = {names.get(key, key): value for key, value in message.items()}
    known = (_SHAREGPT_ROLES if data.format == "sharegpt" else {}) | data.roles
    role = found.get("role")
    return {**found, "role": known.get(role, role)} if isinstance(role, str) else found


def _of_alpaca(row: Row, keys: Mapping[str, str]) -> list[dict[str, str]]:
    def cell(name: str) -> Any:
        return row.get(keys.get(name, name))

    history = structure_of(cell("history")) or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise DataError(
            f"column {keys.get('history', 'history')!r} must hold a list of [question, answer]"
        )
    turns = [*history, (_instruction(cell), cell("output"))]
    system = text_of(cell("system"))
    found = [{"role": "system", "content": system}] if system.strip() else []
    for asked, answered in turns:
        found.append({"role": "user", "content": text_of(asked)})
        found.append({"role": "assistant", "content": text_of(answered)})
    return found


def _instruction(cell: Callable[[str], Any]) -> str:
    parts = [text_of(cell(name)) for name in ("instruction", "input")]
    return "\n".join(part for part in parts if part.strip())
