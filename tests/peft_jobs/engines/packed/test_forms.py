"""DoRA, (IA)3 and VeRA in a pack, beside each other and beside LoRA, are the trials alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.packed.forms import FORMS as FORMS_OF_METHODS
from peft_jobs.engines.packed.forms import peft_name
from peft_jobs.engines.packed.forms.magnitude_layer import row_lengths
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.parts import initial_values, parts_of
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.evaluation.scoring import score
from peft_jobs.methods import METHODS
from peft_jobs.methods.lora import first_magnitude
from peft_jobs.spec.adapters import ADAPTERS
from tests.peft_jobs.engines.packed.conftest import CLASSES, FORMS
from tests.peft_jobs.engines.packed.test_engine import (
    adapters,
    both,
    check_bfloat16,
    check_same,
    engines_of,
)
from tests.peft_jobs.engines.packed.test_equivalence import EXACT, apart
from tests.peft_jobs.engines.packed.test_launches import step
from tests.support.packed_runs import Driven, furthest, plain_losses, run_all, told

NUM_STEPS = 6


def check_packed_is_plain(double: Any, specs: list[Any]) -> None:
    base, rows = double
    expected = [plain_losses(base, rows, spec, NUM_STEPS) for spec in specs]
    with Driven(base, rows, specs, NUM_STEPS) as driven:
        found = driven.to_end()
    for one, other in zip(expected, found, strict=True):
        assert apart(one, other) < EXACT
        assert len(set(one)) == NUM_STEPS


@pytest.mark.parametrize("name", ["dora", "ia3", "vera", "miss"])
def test_trials_of_one_form_are_those_of_plain_loops(double: Any, formed: Any, name: str) -> None:
    check_packed_is_plain(double, formed(*[name] * 3))


def test_trials_of_all_forms_share_a_step(double: Any, formed: Any) -> None:
    check_packed_is_plain(double, formed(*FORMS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_trials_start_with_is_what_peft_gives_them(
    cache: str, formed: Any, dtype: str
) -> None:
    specs = formed(*FORMS, **{"model.dtype": dtype})
    base, _ = SoloEngine(cache, threads=1).check(specs[0])
    for spec in specs:
        parts = parts_of(spec, base.model)
        own = initial_values(spec, parts, base.model) | parts.form.frozen()
        found = {peft_name(*place): value for place, value in own.items() if place[1] != "shards"}
        method = METHODS[spec.adapter.method]
        model = method.attach(base, spec)
        expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if spec.adapter.method == "vera":
            shared = model.base_model.vera_A, model.base_model.vera_B
            names = "base_model.vera_A.default", "base_model.vera_B.default"
            expected |= {name: held["default"] for name, held in zip(names, shared, strict=True)}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value.detach()), name
        method.detach(model)


def test_lengths_of_rows_are_those_of_the_sum() -> None:
    source = torch.Generator().manual_seed(0)
    weight, down, up = (
        torch.randn(*shape, generator=source, dtype=torch.float64)
        for shape in ((7, 5), (3, 2, 5), (3, 7, 2))
    )
    scales = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    whole = [weight + s * b @ a for s, a, b in zip(scales, down, up, strict=True)]
    expected = torch.stack(whole).square().sum(dim=2).sqrt()
    assert torch.allclose(row_lengths(weight, down, up, scales), expected, rtol=1e-14)
    opposite = torch.eye(5, dtype=torch.float64)
    gone = row_lengths(opposite, opposite[None], -opposite[None], torch.ones(1))
    assert gone.abs().max() < 1e-7, "of W - W, and no square root of less than nothing"


def test_a_form_has_as_many_launches_whatever_the_number_of_slots(double: Any, formed: Any) -> None:
    same = {"training.per_device_train_batch_size": 4}
    some = formed("dora", "ia3", "vera of its own", "miss", **same)
    counts = []
    for repeats in (1, 2, 6):
        specs = [spec.with_params({"seed": n}) for n in range(repeats) for spec in some]
        with Driven(*double, specs, 2) as driven:
            counts.append(step(driven, specs).launches.total())
    assert max(counts) <= 1.05 * min(counts)


@pytest.mark.parametrize("scheme", ["none", "nf4", "int8"])
def test_packed_forms_are_the_solo_engines(
    cache: str, formed: Any, tmp_path: Path, scheme: str
) -> None:
    """Two slots, so that a freed row is filled by a trial of another form."""
    params = {"quantization.scheme": scheme, "quantization.llm_int8_threshold": 0.0}
    steps = {"training.max_steps": 4, "evaluation.rungs": [5]}
    names = ["ia3", "vera of its own", "miss of its own", "vera", *["dora"] * (scheme != "int8")]
    specs = formed(*names, **params, **steps)
    expected, found, _ = both(cache, specs, tmp_path, num_slots=2)
    check_same(expected, found, 2e-3 if scheme == "int8" else 1e-6)
    assert engines_of(found) == ["packed"] * len(specs)
    for trial in range(len(specs)):
        (one, its), (other, others) = (adapters(tmp_path / e, trial) for e in ("solo", "packed"))
        assert one.keys() == other.keys()
        assert [(t.shape, t.dtype) for t in one.values()] == [
            (other[key].shape, other[key].dtype) for key in one
        ]
        trained = [key for key in one if key not in ("base_model.vera_A", "base_model.vera_B")]
        assert all(torch.equal(one[key], other[key]) for key in one.keys() - set(trained))
        whole, apart = (
            torch.cat([tensor.flatten() for tensor in tensors]).norm()
            for tensors in (
                [one[key] for key in trained],
                [one[key] - other[key] for key in trained],
            )
        )
        assert apart < 1e-6 * whole
        lists = {"target_modules", "feedforward_modules"}
        assert {k for k in its if its[k] != others[k]} <= lists
        assert all(set(its[k]) == set(others[k]) for k in lists & its.keys())


@pytest.mark.parametrize(("first", "second"), [("packed", "solo"), ("solo", "packed")])
def test_either_engine_goes_on_with_a_form_from_the_others_checkpoints(
    cache: str, formed: Any, tmp_path: Path, first: str, second: str
) -> None:
    params = {"task": CLASSES, "quantization.scheme": "nf4", "training.max_steps": 4}
    specs = formed("dora rslora", "ia3", "vera of its own", "miss", **params)
    kinds: dict[str, Callable[[], Any]] = {
        "solo": lambda: SoloEngine(cache, threads=1, checkpoint_seconds=0),
        "packed": lambda: PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=0),
    }
    expected = run_all(kinds[first](), specs, tmp_path)
    starts = {
        trial: next(p.checkpoint for p in reports if p.checkpoint)
        for trial, reports in expected[0].items()
    }
    reports, ends = run_all(kinds[second](), specs, tmp_path, checkpoints=starts, attempt=2)
    for trial, whole in expected[0].items():
        assert ends[trial].error is None, ends[trial].traceback
        step = ends[trial].provenance["resumed_from"]
        assert 0 < step < 4
        rest = [report for report in whole if report.step >= step]
        assert told(reports[trial]) == told(rest)
        assert furthest(rest, reports[trial]) < 1e-6


def test_a_form_that_is_exported_gives_the_engines_own_metric_and_goes_on(
    cache: str, formed: Any, tmp_path: Path
) -> None:
    specs = formed("dora orthogonal", "ia3 of outputs", "vera", "miss", **{"training.max_steps": 3})
    engine = PackedEngine(cache, num_slots=3, threads=1)
    _, ends = run_all(engine, specs, tmp_path)
    further = []
    for trial, spec in enumerate(specs):
        base, data = engine.solo.check(spec)
        folder = tmp_path / str(trial) / "attempts" / "1" / "adapter"
        model = PeftModel.from_pretrained(copy.deepcopy(base.model), folder)
        found = score(model, base, spec, data.validation)
        assert found
        assert found == pytest.approx({k: ends[trial].metrics[k] for k in found}, rel=1e-6)
        tree = {**spec.model_dump(mode="json"), "adapter": {"from": str(folder)}}
        further.append(type(spec).model_validate(tree))
    expected, found, _ = both(cache, further, tmp_path / "further")
    check_same(expected, found, 1e-6)
    assert engines_of(found) == ["packed", "packed", "solo", "packed"], "a saved VeRA goes alone"


def test_forms_in_bfloat16_differ_no_more_than_by_another_padding(
    cache: str, formed: Any, tmp_path: Path
) -> None:
    params = {"training.bf16": True, "adapter.lora_dropout": 0.0}
    check_bfloat16(cache, formed("dora", "ia3", "vera", "lora", **params), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dora", "ia3", "vera", "miss"])
def test_a_form_in_bfloat16_on_nf4(cache: str, formed: Any, tmp_path: Path, name: str) -> None:
    params = {
        "training.bf16": True,
        "adapter.lora_dropout": 0.0,
        "quantization.scheme": "nf4",
        "quantization.bnb_4bit_compute_dtype": "bfloat16",
    }
    check_bfloat16(cache, formed(*[name] * 3, **params), tmp_path)


def test_what_has_no_packed_form_says_why(cache: str, formed: Any, mixed: Any) -> None:
    spec = mixed()[0]
    base, _ = SoloEngine(cache, threads=1).check(spec)
    for method in ADAPTERS:
        tree = {**spec.model_dump(mode="json"), "adapter": {"method": method}}
        reason = unpackable(type(spec).model_validate(tree), base)
        assert (reason is None) == (method in FORMS_OF_METHODS), (method, reason)
        assert reason is None or method in reason


def test_miss_goes_alone_where_it_does_not_fit(cache: str, formed: Any) -> None:
    wide, other = formed("miss", "miss")
    base, _ = SoloEngine(cache, threads=1).check(wide)
    assert unpackable(other, base) is None
    too_wide = unpackable(wide.with_params({"adapter.r": 4096}), base)
    assert "miss of rank 4096 does not fit a layer of" in str(too_wide)
    mini = other.with_params({"adapter.init_weights": "mini", "adapter.mini_r": 2})
    assert unpackable(mini, base) == "the form mini of miss has no packed form"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_magnitudes_are_peft_s_own(tiny_llama_path: Path, dtype: torch.dtype) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_path, dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]))
    layer: Any = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    magnitudes, scale = layer.lora_magnitude_vector["default"], layer.scaling["default"]
    assert torch.equal(first_magnitude(layer.base_layer, scale, None), magnitudes.weight.to(dtype))
    source = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=source) for shape in ((4, 64), (64, 4)))
    magnitudes.update_layer(
        base_layer=layer.base_layer, lora_A=down.to(dtype), lora_B=up.to(dtype), scaling=scale
    )
    found = first_magnitude(layer.base_layer, scale, (down, up))
    assert torch.allclose(found, magnitudes.weight, rtol=1e-6 if dtype == torch.float32 else 1e-2)
