"""Classifiers on encoders with decoders: their labels are classes, their output table no matter."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_jobs.engines.solo.adapter_export import merge_adapter
from peft_jobs.spec import TrialSpec
from tests.peft_jobs.engines.solo.test_adapter_export import train
from tests.support.seq2seq_families import save

TEXTS = ("the red fox", "a cat", "blue whales sing all night", "no")


@pytest.mark.parametrize("family", ["T5", "BART", "MVP"])
def test_a_trial_trains_one_and_its_merge_scores_the_same_in_plain_transformers(
    family: str, tmp_path: Path
) -> None:
    rows = [{"text": TEXTS[i % 4], "label": "ab"[i % 2]} for i in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrialSpec.model_validate(
        {
            "model": str(save(family, tmp_path / "base")),
            "adapter": {"r": 4},
            "task": {"type": "sequence_classification", "text": "{text}", "label": "label"},
            "data": {"train": str(path), "validation": str(path), "max_length": 32},
            "training": {"learning_rate": 1e-2, "max_steps": 3},
        }
    )
    result, adapter = train(spec, tmp_path)
    merge_adapter(spec.to_json(), adapter, tmp_path / "merged", tmp_path / "cache")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        losses = [
            model(
                **tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False),
                labels=torch.tensor([model.config.label2id[row["label"]]]),
            ).loss.item()
            for row in rows
        ]
    loss = sum(losses) / len(losses)
    assert result.metrics["validation/loss"] == pytest.approx(loss, rel=1e-5)
    assert len({round(value, 4) for value in losses}) > 2, "the rows differ"
