"""What a sweep's trials see, changed in place between two launches: refused, with what it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peft_jobs import DataError, SpecError
from sweeps import SweepSpec, build_sweep
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch
from tests.support.seq2seq_families import words

METRIC = """
from helper import FACTOR

def own(model, tokenizer, rows):
    return {"own": FACTOR * len(rows)}
"""
SPACE = """
def rates(trial):
    return {"training.learning_rate": trial.suggest_float("training.learning_rate", 1e-4, 1e-3)}
"""


def write_rows(path: Path, start: int, count: int = 24) -> None:
    rows = ({"q": f"a {'bc'[n % 2]} {'def'[n % 3]}{n % 7}", "a": f"g{n}."} for n in range(count))
    rows = ({**row, "a": f"{'hijklm'[(start + n) % 6]}{n}"} for n, row in enumerate(rows))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepSpec]:
    """Sections -> a sweep of one trial on a tiny base, data and own code that may be changed."""
    tokenizer = words("<s> $A")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for number, name in enumerate(("train", "validation")):
        write_rows(tmp_path / f"{name}.jsonl", 2 * number + 1)
    code = tmp_path / "code"
    code.mkdir()
    (code / "my_metric_in_place.py").write_text(METRIC.replace("helper", "my_helper_in_place"))
    (code / "my_helper_in_place.py").write_text("FACTOR = 2.0\n")
    monkeypatch.syspath_prepend(code)

    def build(**sections: Any) -> SweepSpec:
        tree = {
            "name": "changed",
            "model": str(tmp_path / "base"),
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {
                "train": str(tmp_path / "train.jsonl"),
                "validation": str(tmp_path / "validation.jsonl"),
                "max_length": 32,
            },
            "evaluation": {"metrics": ["my_metric_in_place:own"]},
            "objective": {"metric": "validation/own", "direction": "minimize"},
            "space": {"parameters": {"training.learning_rate": {"choices": [1e-3, 2e-3, 3e-3]}}},
            "budget": {"n_trials": 1, "max_samples": 16},
            "pruner": "none",
            "resources": {"backend": "inline", "engine": "solo"},
            "tracking": "none",
            "storage": str(tmp_path / "runs"),
        }
        return build_sweep({**tree, **sections})

    return build


def change_training_rows(folder: Path) -> None:
    write_rows(folder / "train.jsonl", 2)


def change_validation_rows(folder: Path) -> None:
    write_rows(folder / "validation.jsonl", 4)


def change_weights(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][0, 0] += 1e-3
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def change_config(folder: Path) -> None:
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def change_tokenizer(folder: Path) -> None:
    path = folder / "base" / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tree))


def change_metric(folder: Path) -> None:
    (folder / "code" / "my_helper_in_place.py").write_text("FACTOR = 3.0\n")


CHANGES = [
    (change_training_rows, "training rows of {0}/train.jsonl"),
    (change_validation_rows, "data"),
    (change_weights, "base's weights on cpu"),
    (change_config, "base's config.json"),
    (change_tokenizer, "tokenizer"),
    (change_metric, "code of my_metric_in_place:own"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=lambda c: getattr(c, "__name__", ""))
def test_what_was_changed_in_place_is_refused_when_the_sweep_is_taken_up(
    change: Callable[[Path], None], told: str, sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    assert launch(sweep()).status == "complete"
    change(tmp_path)
    with pytest.raises(SpecError) as error:
        launch(sweep(budget={"n_trials": 2, "max_samples": 16}))
    first, *lines, remedy = str(error.value).splitlines()
    assert first == "the sweep 'changed' exists with another specification:"
    assert len(lines) == 1, "and nothing else has changed"
    assert lines[0].startswith(f"  the {told.format(tmp_path)}: was ")
    assert remedy == "Give this sweep another name, or take the changes back."
    assert len(open_sweep(tmp_path / "runs", "changed").trials().rows) == 1


def test_what_stayed_goes_on(sweep: Callable[..., SweepSpec], tmp_path: Path) -> None:
    assert launch(sweep()).status == "complete"
    metric = tmp_path / "code" / "my_metric_in_place.py"
    metric.write_text(f"# of rows\n{metric.read_text()}\n")
    assert launch(sweep(budget={"n_trials": 2, "max_samples": 16})).status == "complete"
    assert len(open_sweep(tmp_path / "runs", "changed").trials().rows) == 2


def test_the_code_of_a_space_counts(sweep: Callable[..., SweepSpec], tmp_path: Path) -> None:
    path = tmp_path / "code" / "my_space_in_place.py"
    path.write_text(SPACE)
    space = {"function": "my_space_in_place:rates"}
    assert launch(sweep(space=space)).status == "complete"
    path.write_text(SPACE.replace("1e-4", "2e-4"))
    with pytest.raises(SpecError, match="the code of my_space_in_place:rates: was"):
        launch(sweep(space=space, budget={"n_trials": 2, "max_samples": 16}))


def test_validation_rows_that_are_trained_on_are_refused(
    sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    """And the files may have been replaced by each other before the first launch."""
    (tmp_path / "train.jsonl").write_bytes((tmp_path / "validation.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"24 of 24 validation rows have an input .* 24 of them"):
        launch(sweep())
    spec = sweep()
    data = {**spec.trial.data.model_dump(mode="json"), "on_leak": "warn"}
    assert launch(sweep(data=data)).status == "complete"
    record = json.loads((tmp_path / "runs" / "changed" / "sweep.json").read_text())
    assert "24 of 24 validation rows" in record["prepared"]["leaks"][0]
