"""A base that cannot be loaded, or that carries code: refused, and nothing of it is run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Spoil = Callable[[Path], object]
TURNS = [{"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
CHAT = {"type": "causal_lm", "messages": "m"}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def edited(name: str, **entries: Any) -> Spoil:
    """Replace entries of a JSON file of the base; None removes one."""

    def edit(folder: Path) -> None:
        path = folder / "base" / name
        content = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return edit


def written(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def removed(pattern: str) -> Spoil:
    return lambda folder: [path.unlink() for path in (folder / "base").glob(pattern)]


BASES: dict[str, tuple[Spoil, str]] = {
    "no configuration": (removed("config.json"), "Should have a `model_type` key"),
    "no tokenizer": (removed("tok*"), "it holds no tokenizer"),
    "no weights": (removed("*.safetensors"), "no file named model.safetensors"),
    "a broken configuration": (written("base/config.json", b"{"), "is not a valid JSON file"),
    "a broken tokenizer": (written("base/tokenizer.json", b"{"), "is no model that can be loaded"),
    "an unknown architecture": (edited("config.json", model_type="llamma"), "`llamma`"),
    "a width that is a word": (edited("config.json", hidden_size="wide"), "expected int, got str"),
    "another width": (
        edited("config.json", hidden_size=32),
        "its weights have other shapes than its config.json says",
    ),
    "an absurd width": (
        edited("config.json", hidden_size=10**9),
        "its weights have other shapes than its config.json says",
    ),
    "no heads": (edited("config.json", num_attention_heads=0), "is no model that can be loaded"),
    "no layers": (edited("config.json", num_hidden_layers=0), "has no linear module"),
    "more layers": (edited("config.json", num_hidden_layers=99), "lacks weights of"),
    "weights that are cut off": (
        lambda folder: _cut(folder / "base" / "model.safetensors"),
        "incomplete metadata, file not fully covered",
    ),
    "weights that are none": (written("base/model.safetensors", b"junk" * 99), "header too large"),
    "weights of no bytes": (written("base/model.safetensors", b""), "header too small"),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_cannot_be_loaded(refusal: Callable[..., str], name: str) -> None:
    spoil, says = BASES[name]
    line = refusal(spoil)
    assert line.startswith(("model.name_or_path: ", "adapter.target_modules: "))
    assert says in line


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class _Planted:
    """Its pickle writes the file `pwned` when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.target = str(folder / "pwned")

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.safetensors"])
def test_pickled_weights_are_refused_and_never_loaded(
    refusal: Callable[..., str], folder: Path, name: str
) -> None:
    def plant(folder: Path) -> None:
        removed("*.safetensors")(folder)
        (folder / "base" / name).write_bytes(pickle.dumps(_Planted(folder)))

    line = refusal(plant)
    wanted = "header too large" if name.endswith("safetensors") else "holds pickled weights"
    assert wanted in line
    pickle.loads(pickle.dumps(_Planted(folder)))  # what loading it would have done
    assert (folder / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.T", None]}},
        ),
    ],
)
def test_code_of_a_base_is_refused_and_never_run(
    refusal: Callable[..., str], name: str, entries: dict[str, Any]
) -> None:
    def plant(folder: Path) -> None:
        edited(name, **entries)(folder)
        (folder / "base" / "own.py").write_text(f"open({str(folder / 'pwned')!r}, 'w')\n")

    line = refusal(plant)
    assert (
        "needs Python code of its own (auto_map in its configuration), which is never run" in line
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for", "unexpected 'end of template'"),
        ("{{ raise_exception('no') }}", "refuses the conversation: no"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_chat_template_cannot_do_harm(
    refusal: Callable[..., str], template: str, says: str
) -> None:
    spoil = edited("tokenizer_config.json", chat_template=template)
    line = refusal(spoil, task=CHAT, rows=TURNS)
    refuses = "train.jsonl, rows 1, 2, 3: the chat template refuses the conversation: "
    assert line.startswith(("task.chat_template: ", refuses))
    assert says in line


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"m": "hello"}] * 3, "rows 1, 2, 3: column 'm' must hold a list of messages"),
        ([{"m": [{"content": "a"}]}] * 3, "column 'm' must hold messages with a role"),
        ([{"m": [{"role": "user", "content": "a"}]}] * 3, "column 'm' has no assistant turn"),
    ],
)
def test_conversations_that_are_none(
    refusal: Callable[..., str], rows: list[dict[str, Any]], says: str
) -> None:
    line = refusal(edited("tokenizer_config.json", chat_template=TEMPLATE), task=CHAT, rows=rows)
    assert says in line


def test_a_tokenizer_without_padding_pads_with_its_end_and_needs_one(
    refusal: Callable[..., str],
) -> None:
    line = refusal(edited("tokenizer_config.json", pad_token=None, eos_token=None))
    assert "has neither a padding nor an end-of-text token; add a pad_token" in line
