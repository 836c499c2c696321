"""Several samples in a row: the same losses and gradients, and nobody sees a neighbour."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from peft_jobs.data.sample_packing import check_apart, fill, pack
from peft_jobs.errors import SpecError
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import IGNORED, TASKS

TASK = TASKS["causal_lm"]


def examples(num_examples: int) -> list[dict[str, Any]]:
    """Uneven samples of 2 to 23 tokens; some supervise all but the first one, some the end."""
    source = torch.Generator().manual_seed(0)
    found = []
    for number in range(num_examples):
        length = int(torch.randint(2, 24, (), generator=source))
        tokens = torch.randint(6, 100, (length,), generator=source).tolist()
        context = 1 if number % 3 == 0 else max(1, length // 2)
        labels = [IGNORED] * context + tokens[context:]
        found.append({"input_ids": tokens, "labels": labels, "num_bytes": length})
    return found


def small(kind: str, attention: str = "sdpa") -> Any:
    """A random model in float64: rotary, learned or no positions, a window, several experts."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
    if kind == "gpt2":
        sizes = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    elif kind == "mamba":
        sizes |= {"state_size": 4}
    else:
        sizes |= {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "mistral":
        sizes |= {"sliding_window": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**sizes, attn_implementation=attention, initializer_range=0.2)
        return AutoModelForCausalLM.from_config(config).double()


def gradients(model: nn.Module, batches: list[Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        TASK.losses(model, batch).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mistral"])
def test_losses_and_gradients_are_those_of_samples_alone(kind: str, attention: str) -> None:
    # The eager attention takes its softmax in float32, whatever the model is in.
    exact = 1e-12 if attention == "sdpa" else 1e-7
    model, rows = small(kind, attention), examples(12)
    apart = [TASK.collate([row], 0) for row in rows]
    packed = pack(rows, 0, collate=TASK.collate, max_length=32)
    assert len(packed["input_ids"]) < len(rows) / 2
    assert packed["input_ids"].shape[1] <= 32
    assert TASK.count(packed) == sum(map(TASK.count, apart))
    alone = [TASK.losses(model, batch).item() for batch in apart]
    order = fill([len(row["input_ids"]) for row in rows], 32)
    expected = [sum(alone[number] for number in row) for row in order]
    assert TASK.losses(model, packed).tolist() == pytest.approx(expected, rel=exact)
    found, wanted = gradients(model, [packed]), gradients(model, apart)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e3 * exact, atol=100 * exact)


def test_rows_hold_every_sample_once_and_no_more_than_fits() -> None:
    lengths = [len(example["input_ids"]) for example in examples(40)]
    rows = fill(lengths, 32)
    assert sorted(itertools.chain(*rows)) == list(range(40))
    assert all(sum(lengths[number] for number in row) <= 32 for row in rows)
    assert len(rows) <= 1.3 * sum(lengths) / 32
    assert fill([50, 3], 32) == [[0], [1]]
    assert fill(lengths, 32) == rows


def test_models_that_let_samples_see_each_other_are_refused() -> None:
    for kind in ("llama", "gpt2", "mistral"):
        check_apart(small(kind))
    with pytest.raises(SpecError, match=r"data\.packing: samples in one row would see each other"):
        check_apart(small("mamba", "eager"))
    leaking = small("llama")
    forward = leaking.forward
    leaking.forward = lambda position_ids, **inputs: forward(**inputs)
    with pytest.raises(SpecError, match="see each other"):
        check_apart(leaking)


def packing_trial(base: Path, rows: Path, packing: bool, **params: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(base),
            "quantization": "nf4",
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {"train": str(rows), "max_length": 24, "packing": packing},
            "training": {
                "learning_rate": 5e-3,
                "max_samples": 96,
                "gradient_accumulation_steps": 2,
                "logging_steps": 1,
            },
            "evaluation": {"rungs": [32, 64]},
        }
    ).with_params(params)


def test_a_trial_trains_the_same_with_samples_sharing_rows(
    tiny_llama_path: Path, rows_path: Path, listen: Any, tmp_path: Path
) -> None:
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    engine = SoloEngine(str(tmp_path / "cache"))
    found = {}
    for packing in (False, True):
        spec = packing_trial(tiny_llama_path, rows_path, packing)
        engine.check(spec)
        driver = listen(engine, tmp_path / str(packing))
        shapes: list[tuple[int, ...]] = []
        base = engine.base
        assert base is not None

        def seen(module: Any, _inputs: Any, given: dict[str, Any], into: Any = shapes) -> None:
            if module.training:
                into.append(tuple(given["input_ids"].shape))

        hook = base.model.register_forward_pre_hook(seen, with_kwargs=True)
        result = driver.run(spec)
        hook.remove()
        assert result.state == "COMPLETE", result.error
        assert shapes
        assert all(rows < 8 for rows, _ in shapes) is packing
        found[packing] = (result, copy.deepcopy(driver.reports))
    (plain, plain_reports), (packed, packed_reports) = found[False], found[True]
    assert packed.samples == plain.samples == 96
    assert packed.tokens == plain.tokens
    assert packed.metrics == pytest.approx(plain.metrics, rel=1e-4)
    for one, other in zip(plain_reports, packed_reports, strict=True):
        assert (one.step, one.samples, one.rung) == (other.step, other.samples, other.rung)
        assert other.metrics == pytest.approx(one.metrics, rel=1e-3)


def test_only_tasks_and_methods_that_can_share_rows_do(
    tiny_llama_path: Path, rows_path: Path
) -> None:
    with pytest.raises(ValidationError, match=r"data\.packing is for task\.type causal_lm"):
        packing_trial(
            tiny_llama_path,
            rows_path,
            True,
            task={"type": "sequence_classification", "text": "{q}", "label": "class"},
        )
    with pytest.raises(ValidationError, match=r"prompt_tuning adds tokens to each row"):
        packing_trial(tiny_llama_path, rows_path, True, **{"adapter.method": "prompt_tuning"})


def test_a_pack_of_trials_refuses_it(
    tiny_llama_path: Path, rows_path: Path, llama_base: Any
) -> None:
    from peft_jobs.engines.packed.eligibility import unpackable

    base = llama_base("nf4")
    assert unpackable(packing_trial(tiny_llama_path, rows_path, False), base) is None
    reason = unpackable(packing_trial(tiny_llama_path, rows_path, True), base)
    assert reason == "data.packing lays several samples into a row"
    writing = {"evaluation.generation": {"max_samples": 2}}
    reason = unpackable(packing_trial(tiny_llama_path, rows_path, False, **writing), base)
    assert reason == "evaluation.generation writes texts, which a pack cannot"
