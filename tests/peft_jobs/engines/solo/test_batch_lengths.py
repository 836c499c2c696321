"""How long training rows are, against a plain loop over them."""

from pathlib import Path
from typing import Any

import pytest

from peft_jobs.engines.solo.batch_lengths import lengths_of
from peft_jobs.engines.solo.solo_engine import SoloEngine


def test_lengths_are_those_of_the_training_rows(
    trial: Any, rows_path: Path, tmp_path: Path
) -> None:
    spec = trial(
        {
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data.train": {"path": str(rows_path)},
            "data.validation": 0.2,
        }
    )
    _, data = SoloEngine(str(tmp_path), threads=1).check(spec)
    rows = data.train.to_list()
    found = lengths_of(spec, data)
    sizes = [len(row["input_ids"]) for row in rows]
    counted = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert len(set(sizes)) > 1
    assert max(counted) < max(sizes)
    assert (found.tokens, found.supervised) == (max(sizes), max(counted))
    assert found.mean_tokens == pytest.approx(sum(sizes) / len(sizes))
    packed = lengths_of(spec.with_params({"data.packing": True}), data)
    assert packed.tokens == packed.supervised == max(max(sizes), spec.data.max_length)
