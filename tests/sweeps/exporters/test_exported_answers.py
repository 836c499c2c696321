"""What leaves answers as it was measured: plain transformers on an export's own files."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from sweeps import build_sweep
from sweeps.exporters.export import export_trial
from sweeps.run import launch
from tests.support import seq2seq_families
from tests.support.seq2seq_families import words

ANSWERS = ("a fox.", "two owls.", "red.", "no.", "a very old oak.", "yes.")
ROWS = [{"q": f"item {'abcdef'[n]}", "a": answer} for n, answer in enumerate(ANSWERS)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OWN_SETTINGS = {
    "num_beams": 2,
    "no_repeat_ngram_size": 1,
    "min_length": 12,
    "repetition_penalty": 3.0,
    "do_sample": True,
    "temperature": 4.0,
}
LONGEST = 20
CHAT = {"type": "causal_lm", "prompt": "{q}", "response": "{a}", "use_chat_template": True}
WRITE = {"type": "causal_lm", "prompt": "{q}: ", "response": "{a}"}


def decoder(folder: Path) -> None:
    """A base whose eos is not what its template closes turns with."""
    tokenizer = words("<s> $A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["\n"])
    tokenizer.chat_template = CHATML
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def careful() -> Iterator[int]:
    """A umask that leaves others nothing; gives the permissions of a file."""
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


@pytest.mark.parametrize(
    ("base", "task", "method", "measured"),
    [
        pytest.param("Llama", CHAT, "full", True, id="turns"),
        pytest.param("Llama", CHAT, "lora", True, id="turns, adapter"),
        pytest.param("Llama", CHAT, "full", False, id="turns that were not measured"),
        pytest.param("Llama", WRITE, "full", True, id="texts", marks=pytest.mark.slow),
        pytest.param("BART", None, "full", True, id="targets"),
        pytest.param("NLLB", None, "full", True, id="targets in a language"),
        pytest.param("mBART", None, "full", True, id="targets behind a language"),
        pytest.param("T5", None, "full", True, id="targets of T5", marks=pytest.mark.slow),
    ],
)
def test_plain_generate_reproduces_what_was_recorded(
    base: str,
    task: dict[str, Any] | None,
    method: str,
    measured: bool,
    careful: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "base"
    if task is None:
        languages = seq2seq_families.FAMILIES[base][3]
        task = {"type": "seq2seq", "source": "{q}", "target": "{a}", **languages}
        seq2seq_families.save(base, folder)
    else:
        decoder(folder)
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **OWN_SETTINGS}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rate = 3e-3 if method == "full" else 1e-2
    sweep = {
        "name": "one",
        "model": str(folder),
        "task": task,
        "data": {
            "train": str(rows),
            "validation": str(rows),
            "on_leak": "warn",
            "max_length": 64,
        },
        "adapter": {
            "method": method,
            **({"target_modules": "all-linear"} if method == "lora" else {}),
        },
        "training": {"per_device_train_batch_size": 6, "learning_rate": rate},
        "evaluation": {"generation": {"metrics": ["exact_match"], "max_new_tokens": LONGEST}}
        if measured
        else {},
        "space": {"parameters": {"training.weight_decay": {"choices": [0.0, 0.01]}}},
        "sampler": "random",
        "pruner": "none",
        "budget": {"n_trials": 1, "max_steps": 120},
        "resources": {"backend": "inline", "engine": "solo"},
        "tracking": {"enabled": False},
        "storage": str(tmp_path / "runs"),
    }
    assert launch(build_sweep(sweep)).status == "complete"
    exported = export_trial(tmp_path / "runs", "one", out=tmp_path / "out", to=("peft", "merged"))

    monkeypatch.chdir(exported.path)
    loaded: dict[str, Any] = {}
    card = Path("README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, loaded)
    merged = getattr(tf, code.split("from transformers import ")[1].split(",")[0])
    models = [
        (loaded["model"], loaded["tokenizer"]),
        (merged.from_pretrained("merged").eval(), tf.AutoTokenizer.from_pretrained("merged")),
    ]
    for model, tokenizer in models:
        chat = tokenizer.chat_template is not None and "use_chat_template" in task
        answers = [answer(model, tokenizer, row["q"], task, chat, measured) for row in ROWS]
        right = [text == row["a"] for text, row in zip(answers, ROWS, strict=True)]
        assert any(right), answers
        if measured:
            assert sum(right) / len(ROWS) == exported.recorded["validation/exact_match"]
        if task["type"] == "seq2seq":
            loss = plain_loss(model, tokenizer)
            assert loss == pytest.approx(exported.recorded["validation/loss"], rel=2e-6)
    assert ("as they were measured" in card) == measured
    settings = json.loads(Path("merged/generation_config.json").read_text())
    assert settings == json.loads(Path("generation_config.json").read_text())
    assert ("num_beams" in settings) == (not measured)
    config = json.loads(Path("merged/config.json").read_text())
    assert config["use_cache"] == json.loads((folder / "config.json").read_text())["use_cache"]
    for place in (".", "merged"):
        written = json.loads((Path(place) / "tokenizer.json").read_text())
        assert (written["truncation"], written["padding"]) == (None, None)
    if "Llama" in base:
        kept = [Path("chat_template.jinja"), Path("merged/chat_template.jinja")]
        assert [path.read_text() for path in kept] == [CHATML] * 2
    files = [path for path in tmp_path.rglob("*") if folder not in path.parents]
    wrong = {
        str(path): oct(mode)
        for path in files
        if (mode := stat.S_IMODE(path.stat().st_mode)) != (careful if path.is_file() else 0o750)
    }
    assert len(files) > 40
    assert not wrong


def answer(
    model: Any, tokenizer: Any, question: str, task: dict[str, Any], chat: bool, measured: bool
) -> str:
    """Of plain `generate`, told nothing that is not in the files."""
    if chat:
        turn = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        text = question if task["type"] == "seq2seq" else f"{question}: "
        inputs = tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "min_length": 0}
    told = {} if measured else {**greedy, "no_repeat_ngram_size": 0}
    written = model.generate(**inputs, max_new_tokens=LONGEST, **told)[0]
    if task["type"] != "seq2seq":
        written = written[inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def plain_loss(model: Any, tokenizer: Any) -> float:
    total = count = 0.0
    for row in ROWS:
        inputs = tokenizer(row["q"], text_target=row["a"], return_tensors="pt")
        with torch.no_grad():
            loss = model(**inputs).loss
        total += loss.item() * inputs["labels"].numel()
        count += inputs["labels"].numel()
    return total / count
