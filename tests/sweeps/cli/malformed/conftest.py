"""A sweep on a copy of the demo base, with whatever is wrong with it; what answers cost."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from peft_jobs.demo import BASE

Cli = Callable[..., Result]
Spoil = Callable[[Path], object]

MAX_SECONDS = 10.0
"""Of this process's work: a busy machine may take longer."""
GOOD = [{"a": f"the {n} lamps", "b": f"{n} lamps are lit"} for n in range(6)]
SWEEP: dict[str, Any] = {
    "model": "base",
    "task": {"type": "causal_lm", "prompt": "{a} ", "response": "{b}"},
    "data": {
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "on_leak": "warn",
        "max_length": 64,
    },
    "space": {"parameters": {"adapter.r": {"choices": [2, 4]}}},
    "budget": {"n_trials": 1, "max_samples": 4, "num_rungs": 0},
    "resources": {"backend": "inline"},
    "tracking": "none",
}


@pytest.fixture(scope="module")
def seconds() -> Iterator[dict[str, float]]:
    """Mistake -> processor seconds of its answer; the slowest is printed."""
    import peft_jobs.engines.solo.solo_engine  # noqa: F401  # torch is imported once, and is no part of an answer

    taken: dict[str, float] = {}
    yield taken
    name = max(taken, key=taken.__getitem__)
    print(f"\nthe slowest of {len(taken)} answers: {name}, {taken[name]:.2f} s")


@pytest.fixture
def refused(
    cli: Cli, folder: Path, seconds: dict[str, float], request: pytest.FixtureRequest
) -> Callable[[], list[str]]:
    """Runs `waves.yaml`, which must be refused before any trial; the lines on stderr."""

    def run() -> list[str]:
        started = time.process_time()  # others may be busy
        result = cli("run", "waves.yaml")
        seconds[request.node.name] = taken = time.process_time() - started
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        for word in ("Traceback", "Logging error", "Warning"):
            assert word not in result.stderr
        assert taken < MAX_SECONDS
        assert list(folder.rglob("trials")) == []
        assert list(folder.rglob("pwned")) == []
        for database in folder.rglob("optuna.db"):
            rows = sqlite3.connect(database).execute("select count(*) from trials")
            assert rows.fetchone() == (0,)
        return [line.replace(f"{folder}/", "") for line in result.stderr.splitlines()]

    return run


@pytest.fixture
def refusal(refused: Callable[[], list[str]], folder: Path) -> Callable[..., str]:
    """What spoils the folder, sections, `rows` of files -> the lines that refuse the sweep."""

    def run(spoil: Spoil = lambda _: None, **given: Any) -> str:
        shutil.copytree(BASE, folder / "base")
        if given.get("task", {}).get("type") == "question_answering":
            _make_encoder(folder / "base")
        rows = given.pop("rows", GOOD)
        for split in ("train", "validation"):
            content = given.pop(split, rows)
            if isinstance(content, list):
                content = "".join(json.dumps(row) + "\n" for row in content)
            content = content.encode() if isinstance(content, str) else content
            (folder / f"{split}.jsonl").write_bytes(content)
        spoil(folder)
        data = SWEEP["data"] | given.pop("data", {})
        (folder / "waves.yaml").write_text(yaml.safe_dump({**SWEEP, **given, "data": data}))
        lines = refused()
        listed = [line.strip() for line in lines if line.startswith("  ")]
        return "\n".join(listed) if any(" mistake" in line for line in lines) else lines[-1]

    return run


def _make_encoder(base: Path) -> None:
    """Put a random BertModel in the place of the model; spans are not found by decoders alone."""
    from transformers import BertConfig, BertModel

    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 128}
    config = BertConfig(vocab_size=vocabulary, num_hidden_layers=1, num_attention_heads=2, **sizes)
    BertModel(config).save_pretrained(base)
