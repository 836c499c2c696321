"""Scoring an adapter again from its files, and merging it, for every quantization and task."""

import json
import threading
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peft_jobs.engines.solo.adapter_export import merge_adapter, score_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Job
from peft_jobs.host.result import State, TrialResult
from peft_jobs.spec import TrialSpec

WORDS = ("the", "a", "red", "green", "cat", "dog", "bird")
CAUSAL = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
CLASSES = {"type": "sequence_classification", "text": "{a}", "label": "class"}


def train(spec: TrialSpec, folder: Path) -> tuple[TrialResult, Path]:
    """The trial run to its end, and its adapter's folder."""
    job = Job(1, 1, spec, folder / "attempt", None, threading.Condition())
    result = SoloEngine(str(folder / "cache"), threads=1).run(job)
    assert result is not None
    assert result.state is State.COMPLETE, result.traceback
    assert result.adapter is not None
    return result, job.directory / result.adapter


def spec(model: Path, folder: Path, task: dict[str, Any], scheme: str) -> TrialSpec:
    rows = [
        {"q": WORDS[i % 7], "a": f"{WORDS[i % 7]} {WORDS[(i + 1) % 7]}", "class": i % 2}
        for i in range(40)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrialSpec.model_validate(
        {
            "model": str(model),
            "quantization": scheme,
            "adapter": {"r": 4, "lora_alpha": 32},
            "task": task,
            "data": {"train": str(path), "validation": 0.3, "test": str(path), "max_length": 64},
            "training": {"learning_rate": 1e-2, "max_steps": 6},
        }
    )


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("task", [CAUSAL, CLASSES], ids=lambda task: str(task["type"]))
def test_an_adapter_and_its_merge_score_as_recorded(
    tiny_llama_path: Path, tmp_path: Path, task: dict[str, Any], scheme: str
) -> None:
    trial = spec(tiny_llama_path, tmp_path, task, scheme)
    result, adapter = train(trial, tmp_path)
    cache = tmp_path / "cache"
    validation, test = score_adapter(trial.to_json(), adapter, cache, True, test_rows=tmp_path)
    rows = pandas.read_parquet(tmp_path / "rows.parquet")
    assert rows["loss_sum"].sum() / rows["count"].sum() == pytest.approx(test["test/loss"])
    recorded = {name: result.metrics[name] for name in validation}
    assert validation == pytest.approx(recorded, rel=1e-5)
    assert test["test/loss"] > 0
    merged = merge_adapter(trial.to_json(), adapter, tmp_path / "merged", cache)
    # int8 activations are rounded in the trial's own evaluation, not in the merged model.
    close = 2e-2 if scheme == "int8" else 1e-4
    assert merged["validation/loss"] == pytest.approx(recorded["validation/loss"], rel=close)


@pytest.mark.parametrize("scheme", ["int8", "nf4", "fp4"])
def test_an_adapter_of_a_checkpoint_that_is_stored_quantized_merges_into_a_plain_model(
    tiny_llama_path: Path, tmp_path: Path, scheme: str
) -> None:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": scheme}
    options: dict[str, Any] = {"load_in_8bit": True} if scheme == "int8" else four
    stored = AutoModelForCausalLM.from_pretrained(
        tiny_llama_path,
        quantization_config=BitsAndBytesConfig(**options),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    stored.save_pretrained(tmp_path / "stored")
    AutoTokenizer.from_pretrained(tiny_llama_path).save_pretrained(tmp_path / "stored")
    trial = spec(tmp_path / "stored", tmp_path, CAUSAL, scheme)
    result, adapter = train(trial, tmp_path)
    assert result.provenance["quantization"]["scheme"] == scheme
    assert result.provenance["quantization"]["from_checkpoint"]
    merged = merge_adapter(trial.to_json(), adapter, tmp_path / "merged", tmp_path / "cache")
    close = 2e-2 if scheme == "int8" else 1e-4  # int8 activations are rounded, as above
    assert merged["validation/loss"] == pytest.approx(result.metrics["validation/loss"], rel=close)
    about = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in about
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}


def test_no_test_metrics_unless_they_are_asked_for(tiny_llama_path: Path, tmp_path: Path) -> None:
    trial = spec(tiny_llama_path, tmp_path, CAUSAL, "nf4")
    _, adapter = train(trial, tmp_path)
    assert score_adapter(trial.to_json(), adapter, tmp_path / "cache", test=False)[1] == {}
