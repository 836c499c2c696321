"""Sweeps whose trials go on from a saved adapter: from the first launch to the export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from peft_jobs import DataError, SpecError
from sweeps import SweepSpec, build_sweep
from sweeps.exporters.export import export_trial
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch
from sweeps.spec.plan import sources
from sweeps.spec.yaml_file import SweepFileError
from sweeps.study.study import SweepStudy
from tests.support.saved_adapters import write_saved

ROWS = [{"text": f"a {('zebra', 'cat', 'dog')[i % 3]} sees {i}"} for i in range(24)]
Sweep = Callable[..., SweepSpec]


@pytest.fixture
def real(tmp_path: Path) -> Callable[..., SweepSpec]:
    """(name, sections) -> a sweep of two trials on the demo's base."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def build(name: str, **sections: Any) -> SweepSpec:
        return build_sweep(
            {
                "name": name,
                "model": "demo",
                "task": {"type": "causal_lm", "text": "{text}"},
                "data": {
                    "train": str(rows),
                    "validation": str(rows),
                    "on_leak": "warn",
                    "max_length": 64,
                },
                "space": {"parameters": {"training.learning_rate": {"choices": [1e-3, 2e-3]}}},
                "sampler": "grid",
                "budget": {"n_trials": 2, "max_samples": 32, "num_rungs": 1},
                "resources": {"backend": "inline"},
                "tracking": {"enabled": False},
                "storage": str(tmp_path / "runs"),
                **sections,
            }
        )

    return build


def test_a_sweep_goes_on_from_the_winner_of_another(
    real: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    assert launch(real("one", adapter={"r": 4, "lora_alpha": 12})).status == "complete"
    first = export_trial(tmp_path / "runs", "one", out=tmp_path / "one")
    spec = real("two", adapter={"from": str(first.path)})
    outcome = launch(spec)
    board = outcome.leaderboard
    assert outcome.status == "complete"
    assert board.baseline == pytest.approx(first.validation["validation/loss"], rel=1e-6)
    assert set(board.references) == {"adapter before training"}
    assert board.best is not None
    assert board.best.value is not None
    assert board.baseline is not None
    assert board.best.value < board.baseline
    assert board.to_json()["goes_on"] is True
    assert "goes_on" not in open_sweep(tmp_path / "runs", "one").leaderboard().to_json()

    exported = export_trial(tmp_path / "runs", "two", out=tmp_path / "two", to=("peft", "merged"))
    best = board.best.value
    assert exported.validation["validation/loss"] == pytest.approx(best, rel=1e-6)
    assert exported.merged is not None
    assert exported.merged["validation/loss"] == pytest.approx(best, rel=1e-4)
    card = (exported.path / "README.md").read_text()
    sha256 = spec.trial.adapter.source.sha256  # type: ignore[union-attr]
    assert f"went on from the adapter `{first.path}` (sha256 of its files {sha256})" in card
    assert "The adapter before training: validation/loss" in card


def test_an_adapter_that_was_written_over_is_told_at_the_next_launch(
    real: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    launch(real("one", adapter={"r": 4}))
    first = export_trial(tmp_path / "runs", "one", out=tmp_path / "one")
    launch(real("two", adapter={"from": str(first.path)}))
    record = json.loads((tmp_path / "runs" / "two" / "sweep.json").read_text())
    recorded = SweepSpec.model_validate(record["sweep"])
    assert launch(recorded).status == "complete"  # taken up as it was recorded

    weights = first.path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({name: 2 * value for name, value in tensors.items()}, weights)
    with pytest.raises(SpecError, match=r"adapter\.from\.sha256: was \w+\.\.\., is \w+\.\.\."):
        launch(real("two", adapter={"from": str(first.path)}))
    with pytest.raises(DataError, match=r"adapter.from: .* has changed since the trial was made"):
        launch(recorded)


def test_points_may_choose_among_adapters_and_those_are_watched(
    sweep: Sweep, open_study: Callable[..., SweepStudy], tmp_path: Path
) -> None:
    one = write_saved(tmp_path / "one")
    two = write_saved(tmp_path / "two", r=2)
    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    parameters = {"adapter.from": {"choices": [None, one, two]}, "training.learning_rate": rate}
    adapter = {"target_modules": "attention-qv"}
    sections = {"space": {"parameters": parameters}, "adapter": adapter, "sampler": "random"}
    spec = sweep(**sections)
    seen = sources(spec)
    assert seen.keys() == {one, two}
    study = open_study(**sections)
    found: dict[str | None, int] = {}
    for _ in range(12):
        point = study.ask()
        assert point is not None
        source = point.spec.adapter.source
        found[source and source.name_or_path] = point.spec.adapter.r  # type: ignore[attr-defined]
    assert found == {None: 8, one: 4, two: 2}

    watched = {f"adapter {name}": sha256 for name, sha256 in seen.items()}
    study.optuna.set_user_attr(
        "spec", {**study.optuna.user_attrs["spec"], **{f"the {k}": v for k, v in watched.items()}}
    )
    again = SweepStudy(study.spec, study.storage)
    write_saved(tmp_path / "one", value=0.5)
    now = {f"adapter {name}": sha256 for name, sha256 in sources(study.spec).items()}
    with pytest.raises(SpecError, match=f"the adapter {one}: was"):
        again.take_over(now)
    again.take_over(watched)

    def ask_on() -> None:
        while again.ask() is not None:
            pass

    with pytest.raises(SpecError, match="has changed since the sweep began"):
        ask_on()


def test_what_a_fresh_adapter_needs_may_be_sampled_for_it_alone(
    open_study: Callable[..., SweepStudy], tmp_path: Path
) -> None:
    saved = write_saved(tmp_path / "one")
    fresh = {"choices": [16, 32], "when": "adapter.from == null"}
    parameters = {"adapter.from": {"choices": [None, saved]}, "adapter.r": fresh}
    study = open_study(space={"parameters": parameters}, sampler="grid", budget={"n_trials": 3})
    found = set()
    while (point := study.ask()) is not None:
        adapter: Any = point.spec.adapter
        found.add((adapter.source is None, adapter.r))
    assert found == {(True, 16), (True, 32), (False, 4)}


def test_what_is_sampled_and_contradicts_the_adapter_is_a_mistake_of_the_file(
    sweep: Sweep, tmp_path: Path
) -> None:
    saved = write_saved(tmp_path / "one")
    with pytest.raises(SweepFileError) as found:
        sweep(adapter={"from": saved})  # the space has r and alpha
    told = [line for line in found.value.problems if line.startswith("space: adapter.from: ")]
    assert told
    assert len(told) == len(found.value.problems)
    assert any("r is 4 there and 32 here; lora_alpha is 12 there and 64 here" in t for t in told)
