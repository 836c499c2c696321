"""A step on fake tensors holds what the same step holds on real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from peft_jobs.host.prediction import Lengths
from peft_jobs.methods import METHODS
from peft_jobs.prediction.batches import example_of
from peft_jobs.prediction.fake_base import hold_model, meta_base
from peft_jobs.prediction.meter import Meter, Peak
from peft_jobs.prediction.solo_steps import solo_steps, trainee_of
from peft_jobs.tasks import TASKS
from tests.support.fake_bases import spec_on

TOKENS, ROWS = 64, 4
FEWER_KEYS = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
)


def real_peaks(spec: Any, lengths: list[int], base: Any) -> dict[str, Peak]:
    """Of forward and backward with rows of these lengths; the meter sees all, and answers for
    values with what they are."""
    task = TASKS[spec.task.type]
    model = METHODS[spec.adapter.method].attach(base, spec, rows=range(ROWS))  # type: ignore[arg-type]
    model.train()
    batch = task.collate([example_of(spec.task, Lengths.of(n)) for n in lengths], 0)
    meter = Meter(FEWER_KEYS.vocab_size)
    with meter:
        hold_model(meter, model)
        with meter.phase("forward", "activations"):
            loss = task.losses(model, batch).sum()
        with meter.phase("backward", "workspace"):
            loss.backward()  # type: ignore[no-untyped-call]
    return meter.peaks


@pytest.mark.parametrize("is_padded", [True, False])
def test_what_a_real_step_holds_is_predicted(tmp_path: Path, is_padded: bool) -> None:
    LlamaForCausalLM(FEWER_KEYS).save_pretrained(tmp_path)
    spec = spec_on(tmp_path, training={"per_device_train_batch_size": ROWS})
    mean = TOKENS - 1 if is_padded else TOKENS
    lengths = Lengths(tokens=TOKENS, supervised=TOKENS, mean_tokens=mean)
    fake = meta_base(spec, "cpu", 2, None)
    told = solo_steps(spec, trainee_of(spec, fake), "cpu", lengths).peaks
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    rows = [TOKENS - is_padded] + [TOKENS] * (ROWS - 1)
    seen = real_peaks(spec, rows, replace(fake, model=model))
    for phase in ("forward", "backward"):
        held = told[phase].bytes - told[phase].by_category["optimizer"]
        assert held == pytest.approx(seen[phase].bytes, rel=0.01)


def test_a_row_by_itself_is_not_padded() -> None:
    of_some = Lengths(tokens=64, supervised=64, mean_tokens=20)
    assert [of_some.pads(rows) for rows in (1, 2)] == [False, True]
    assert Lengths.of(64).pads(2)
