"""Sweeps over several methods: each with its own parameters, the impossible ones turned away."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from peft_jobs import TrialResult
from peft_jobs.spec import TrialSpec
from search_spaces import PRESETS
from sweeps import SweepSpec, load_sweep
from sweeps.spec.checks import problems
from sweeps.spec.plan import variants
from sweeps.spec.sample_points import draw_points, drawn_trials
from sweeps.spec.yaml_file import SweepFileError
from sweeps.study.point import Point
from sweeps.study.study import SweepStudy

OF_METHODS = """
name: methods
model: demo
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: demo, validation: demo}
adapter: {method: lora, r: 6, lora_dropout: 0.1, modules_to_save: [lm_head]}
space:
  parameters:
    adapter.method:
      choices: [lora, adalora, ia3, ln_tuning, prompt_tuning, prefix_tuning, bottleneck, vera, full]
    quantization.scheme: {choices: [none, nf4]}
    adapter.lora_alpha: {low: 4, high: 64, log: true, when: adapter.method == 'lora'}
    adapter.r: {choices: [4, 8], when: "adapter.method in ['lora', 'vera']"}
    adapter.target_r: {choices: [2, 4], when: adapter.method == 'adalora'}
    adapter.num_virtual_tokens:
      {low: 5, high: 20, when: "adapter.method in ['prompt_tuning', 'prefix_tuning']"}
    adapter.prefix_projection: {choices: [true, false], when: adapter.method == 'prefix_tuning'}
    adapter.encoder_hidden_size:
      choices: [16, 32]
      when: adapter.method == 'prefix_tuning' and adapter.prefix_projection
    adapter.placement: {choices: [houlsby, pfeiffer], when: adapter.method == 'bottleneck'}
    training.learning_rate:
      {low: 1.0e-4, high: 1.0e-2, log: true, times: 100 if adapter.method == 'prompt_tuning' else 1}
budget: {n_trials: 40, max_samples: 100}
resources: {backend: inline, engine: simulated}
tracking: none
"""


@pytest.fixture
def of_methods(tmp_path: Path) -> Callable[..., SweepSpec]:
    def build(**sections: Any) -> SweepSpec:
        path = tmp_path / "methods.yaml"
        tree = {**yaml.safe_load(OF_METHODS), "storage": str(tmp_path / "runs"), **sections}
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_sweep(path)

    return build


def test_every_method_is_drawn_with_its_own_parameters_and_its_own_defaults(
    of_methods: Callable[..., SweepSpec],
) -> None:
    spec = of_methods()
    points, trials = draw_points(spec), drawn_trials(spec)
    assert len({point["adapter.method"] for point in points}) == 9
    assert {trial.adapter.method for trial in trials} == {p["adapter.method"] for p in points}
    for point in points:
        own = {name for name in point if name.startswith("adapter.")}
        assert ("adapter.r" in own) == (point["adapter.method"] in ("lora", "vera"))
        hidden = point["adapter.method"] == "prefix_tuning" and point["adapter.prefix_projection"]
        assert ("adapter.encoder_hidden_size" in own) == hidden
        rate = point["training.learning_rate"]
        assert isinstance(rate, float)
        assert (rate > 1e-2) == (point["adapter.method"] == "prompt_tuning")
    adapters = [trial.adapter for trial in trials]
    assert all(adapter.modules_to_save == ("lm_head",) for adapter in adapters)
    assert {a.lora_dropout for a in adapters if a.method in ("lora", "adalora")} == {0.1}  # type: ignore[attr-defined]
    assert {a.init_r for a in adapters if a.method == "adalora"} == {12}  # type: ignore[attr-defined]
    assert {trial.adapter.method for trial in variants(spec)} == {t.adapter.method for t in trials}


def test_points_that_a_method_cannot_do_are_turned_away_and_the_sweep_goes_on(
    of_methods: Callable[..., SweepSpec],
    open_study: Callable[..., SweepStudy],
    run: Callable[[SweepStudy, Point], TrialResult],
) -> None:
    spec = of_methods()
    study = open_study(
        space=spec.space.model_dump(mode="json"), sampler="random", budget={"n_trials": 40}
    )
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(40):
        asked = study.ask()
        if asked is None:
            break
        seen[asked.spec.adapter.method, asked.spec.quantization.scheme] += 1
        run(study, asked)
    assert ("full", "nf4") not in seen
    turned_away = [
        trial.user_attrs["reason"]
        for trial in study.optuna.get_trials(states=(TrialState.PRUNED,))
        if trial.user_attrs.get("kind") == "rejected"
    ]
    assert turned_away
    assert set(turned_away) == {"adapter.method: full needs quantization.scheme none, got nf4"}


def test_a_sweep_whose_every_point_is_impossible_is_refused(
    of_methods: Callable[..., SweepSpec], sweep: Callable[..., SweepSpec]
) -> None:
    spec = sweep(space={"parameters": {"adapter.r": {"choices": [4, 8]}}})
    space = of_methods().space.model_validate(
        {"parameters": {"adapter.method": "loha", "adapter.r": {"choices": [4, 8]}}}
    )
    found = problems(spec.model_copy(update={"space": space}))
    assert found == ["space: adapter.method: loha needs quantization.scheme none, got nf4"]


@pytest.mark.parametrize(
    ("methods", "field", "says"),
    [
        (["lora", "ia3"], "r", "ia3 has no r; give it `when: \"adapter.method == 'lora'\"`"),
        (["ia3", "loha", "lora"], "r", "`when: \"adapter.method in ['loha', 'lora']\"`"),
        (["lora", "ia3"], "eva_config.rho", "ia3 has no eva_config; give it `when:"),
        (["ia3"], "r", "ia3 has no r; leave it out"),
    ],
)
def test_a_field_that_a_method_lacks_is_told_with_the_when_that_it_needs(
    of_methods: Callable[..., SweepSpec], methods: list[str], field: str, says: str
) -> None:
    space = {"adapter.method": {"choices": methods}, f"adapter.{field}": {"choices": [4, 8]}}
    with pytest.raises(SweepFileError) as caught:
        of_methods(space={"parameters": space}, adapter={})
    (line,) = caught.value.problems
    assert line.startswith(f"space: adapter.{field.partition('.')[0]}: the method ia3 has no")
    assert says in line


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_trials(name: str, of_methods: Callable[..., SweepSpec]) -> None:
    spec = of_methods(space={"preset": name}, adapter={"method": "lora"})
    trials = drawn_trials(spec)
    assert len(trials) == len(draw_points(spec)) == 128
    assert all(TrialSpec.model_validate_json(trial.to_json()) == trial for trial in trials)
    assert len({trial.fingerprint() for trial in trials}) > 1
