"""Sweep files: read safely, every mistake at once, wrong values as clear lines."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.spec.tasks import (
    QuestionAnsweringSpec,
    Seq2SeqSpec,
    SequenceClassificationSpec,
    TokenClassificationSpec,
)
from sweeps import SweepSpec, build_sweep, load_sweep
from sweeps.spec import ObjectiveSpec
from sweeps.spec.metrics import default_direction
from sweeps.spec.yaml_file import MAX_FILE_BYTES, SweepFileError, override

Tree = Callable[..., dict[str, Any]]


def problems_of(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(SweepFileError) as caught:
        build_sweep(tree)
    return caught.value.problems


def found_problems(tree: dict[str, Any]) -> list[str]:
    """The mistakes of a file that may have none."""
    try:
        build_sweep(tree)
    except SweepFileError as error:
        return error.problems
    return []


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_all_mistakes_of_a_file_are_reported_at_once_with_suggestions(tree: Tree) -> None:
    wrong = tree(
        trianing={"learning_rate": 1e-3},
        quantization="nf5",
        adapter={"lora_alhpa": 8},
        sampler="tpee",
        pruner={"type": "median", "n_startup_trails": 3},
        budget={"n_trials": 0},
        data={"train": "demo", "subset": -1},
    )
    lines = problems_of(wrong)
    assert len(lines) == 7
    text = "\n".join(lines)
    assert "trianing: unknown key 'trianing'; did you mean 'training' or 'tracking'?" in text
    assert "quantization.scheme: must be 'none', 'int8', 'nf4' or 'fp4', got 'nf5'" in text
    assert "did you mean 'lora_alpha'?" in text
    assert "sampler: unknown sampler 'tpee'; did you mean 'tpe'? known: cmaes, gp, grid" in text
    assert "did you mean 'n_startup_trials'?" in text
    assert "budget.n_trials: must be greater than or equal to 1, got 0" in text
    assert "data.subset: must be a share between 0 and 1 or a whole number of rows" in text


def test_a_mistake_of_the_trial_has_the_path_that_the_file_has(tree: Tree) -> None:
    wrong = tree(
        adapter={"r": 0, "rr": 8},
        task={"type": "causal_lm", "prompt": None, "response": "{trial.x"},
        data={"train": {"path": "demo", "spilt": "x"}},
        trail=1,
    )
    wrong["adapter.r"] = 8
    lines = problems_of(wrong)
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "adapter.r",
        "adapter.r",
        "adapter.rr",
        "data.train.spilt",
        "task.response",
        "trail",
    ]
    text = "\n".join(lines)
    assert "adapter.r: must be greater than or equal to 1, got 0" in text
    assert "adapter.rr: unknown key 'rr' in adapter; " in text
    assert "data.train.spilt: unknown key 'spilt' in data.train; did you mean 'split'?" in text
    assert "adapter.r: unknown key 'adapter.r'; did you mean 'adapter'? known: adapter, " in text


def test_a_section_trial_is_the_file_s_own(tree: Tree) -> None:
    whole = {"name": "own", "space": tree()["space"], "budget": {"n_trials": 1, "max_samples": 9}}
    assert problems_of({**whole, "trial": 3}) == [
        "trial: must be a mapping of keys to values, got 3"
    ]
    lines = problems_of({**whole, "trial": {"trail": 1, "model": "demo"}})
    assert lines[:2] == ["task: is required, and missing", "data: is required, and missing"]
    assert lines[2].startswith(
        "trail: unknown key 'trail'; did you mean 'training' or 'tracking'? known: "
    )


def test_a_mistake_of_many_points_is_told_once_with_one_of_its_values(tree: Tree) -> None:
    parameters = {"adapter.target_r": {"type": "int", "low": 13, "high": 40}}
    (line,) = problems_of(tree(adapter={"method": "adalora"}, space={"parameters": parameters}))
    assert re.fullmatch(r"space: adapter: target_r must be <= init_r, got \d+ > 12", line)


def test_a_misspelled_when_of_a_parameter_has_its_path(tree: Tree) -> None:
    parameters = {"adapter.r": {"type": "int", "low": 1, "high": 8, "whne": "seed > 0"}}
    assert problems_of(tree(space={"parameters": parameters})) == [
        "space.parameters.adapter.r.whne: unknown key 'whne'; did you mean 'when'? "
        "known: high, log, low, step, type, when"
    ]


def test_missing_sections_are_each_named(tree: Tree) -> None:
    small = tree()
    for name in ("model", "task", "data", "space", "budget"):
        del small[name]
    lines = problems_of(small)
    assert sorted(line.partition(":")[0] for line in lines) == [
        "budget",
        "data",
        "model",
        "space",
        "task",
    ]


def test_mistakes_beyond_single_fields_are_reported_together(tree: Tree, tmp_path: Path) -> None:
    lines = problems_of(
        tree(
            training={"max_steps": 10},
            evaluation={"rungs": [100]},
            objective={"metric": "validation/acuracy"},
            constraints={"memory/peak_alocated_bytes": 1e9},
            budget={"rungs": [500, 300, 1000]},
            data={"train": str(tmp_path / "none.jsonl")},
            study_url="not a url",
            name="cache",
        )
    )
    text = "\n".join(lines)
    assert "training.max_steps: the horizon of a sweep is set by budget.max_steps" in text
    assert "evaluation.rungs: the rungs of a sweep are set by budget.rungs" in text
    assert "'validation/acuracy' is not measured by causal_lm" in text
    assert "did you mean 'memory/peak_allocated_bytes' or 'memory/peak_reserved_bytes'?" in text
    assert "budget.rungs: must ascend without repeats, got [500, 300, 1000]" in text
    assert "budget.rungs: must lie below max_samples, got [1000]" in text
    assert "data.train: no such file:" in text
    assert "study_url: is no SQLAlchemy URL" in text
    assert "name: 'cache' is a file of the storage" in text
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("validation/loss", "minimize"),
        ("validation/perplexity", "minimize"),
        ("validation/macro_f1", "maximize"),
        ("validation/accuracy", "maximize"),
    ],
)
def test_an_objective_is_better_the_way_its_metric_is(metric: str, direction: str) -> None:
    assert ObjectiveSpec.model_validate({"metric": metric}).direction == direction
    assert ObjectiveSpec(metric=metric, direction="minimize").direction == "minimize"
    assert ObjectiveSpec().direction == "minimize"


def test_every_metric_of_a_task_is_known_to_be_better_one_way() -> None:
    labels = SequenceClassificationSpec(
        type="sequence_classification", text="{a}", labels=["b", "c"]
    )
    tasks = (QuestionAnsweringSpec, Seq2SeqSpec, TokenClassificationSpec)
    written = GenerationSpec(metrics=("exact_match", "rouge", "bleu")).names
    names = {*labels.METRICS, *written, *(name for task in tasks for name in task.METRICS)}
    assert not [name for name in names if default_direction(name) is None]


def test_an_objective_of_ones_own_must_say_which_way_it_is_better(tree: Tree) -> None:
    own = {"evaluation": {"metrics": ["metrics:own"]}}
    (line,) = problems_of(tree(objective={"metric": "validation/own"}, **own))
    assert line == "objective.direction: must be given for a metric of your own, validation/own"
    for direction in ("minimize", "maximize"):
        objective = {"metric": "validation/own", "direction": direction}
        assert found_problems(tree(objective=objective, **own)) == []


def test_metrics_of_written_texts_can_be_the_objective(tree: Tree) -> None:
    written = {"evaluation": {"generation": {"metrics": ["rouge"]}}}
    objective = {"metric": "validation/rougeL", "direction": "maximize"}
    task = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
    assert found_problems(tree(objective=objective, task=task, **written)) == []
    (line,) = problems_of(tree(objective=objective, task=task))
    assert "'validation/rougeL' is not measured by causal_lm" in line
    (line,) = problems_of(tree(objective={"metric": "validation/bleu"}, task=task, **written))
    assert "'validation/bleu' is not measured" in line
    (line,) = problems_of(tree(task={"prompt": None, "response": "{a}"}, **written))
    assert "evaluation.generation needs a task that answers a prompt" in line


def test_points_of_the_space_are_checked_against_the_trial(tree: Tree) -> None:
    def space(**parameters: Any) -> list[str]:
        return problems_of(tree(space={"parameters": parameters}))

    assert "did you mean 'adapter.r'" in space(**{"adapter.rr": {"choices": [4, 8]}})[0]
    (line,) = space(**{"adapter.r": {"choices": [0, 8]}})
    assert line == "space: adapter.r: must be greater than or equal to 1, got 0"
    (line,) = space(**{"data.seed": {"choices": [0, 1]}})
    assert "must be the same for all trials" in line
    files = {"data.train": {"choices": ["demo", "other"]}}
    held_out = tree(space={"parameters": files}, data={"validation": 0.1})
    assert any("a share of each would be held out" in line for line in problems_of(held_out))
    lines = problems_of(
        tree(
            space={"parameters": {"training.per_device_train_batch_size": {"choices": [4, 8]}}},
            budget={"max_samples": None, "max_steps": 10},
        )
    )
    assert lines == [
        "budget.max_steps: training.per_device_train_batch_size is sampled, "
        "so give budget.max_samples"
    ]
    never = {"constraints": ["training.learning_rate > 1"]}
    assert "none of 8,192 random points" in problems_of(tree(space=never))[0]


def test_given_points_that_can_never_run_are_mistakes(tree: Tree) -> None:
    parameters = {
        "adapter.r": {"choices": [4, 32]},
        "adapter.lora_alpha": {"choices": [8, 16], "when": "quantization.scheme == 'none'"},
    }
    points = [{"adapter.r": 4}, {"adapter.r": 32}, {"adapter.lora_alpha": 16}]
    space = {
        "parameters": parameters,
        "constraints": ["adapter.r <= 16"],
        "points_to_evaluate": points,
    }
    assert problems_of(tree(space=space, quantization="nf4")) == [
        "space.points_to_evaluate.1: must satisfy the constraint adapter.r <= 16",
        "space.points_to_evaluate.2: adapter.lora_alpha: has no value here, as its `when` is false",
    ]


def test_a_grid_takes_all_points_and_is_given_none(tree: Tree) -> None:
    space = {"parameters": {"adapter.r": {"choices": [4, 8]}}, "points_to_evaluate": [{}]}
    (line,) = problems_of(tree(space=space, sampler="grid"))
    assert line.startswith("space.points_to_evaluate: must be [] with grid")


def test_grid_needs_a_finite_space(tree: Tree) -> None:
    (line,) = problems_of(tree(sampler="grid"))
    assert line.startswith("sampler: training.learning_rate must be finite for a grid")


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        ({"type": "tpe", "n_startup": 3}, "tpe has no argument 'n_startup'; did you mean"),
        ({"type": "tpe", "seed": 3}, "tpe has no argument 'seed'"),
        ({"type": "tpe", "n_startup_trials": "many"}, "tpe.n_startup_trials must be"),
        ({"type": "tpe", "n_startup_trials": True}, "tpe.n_startup_trials must be"),
        ({"type": "tpe", "n_ei_candidates": [3]}, "tpe.n_ei_candidates must be"),
        ({"type": "tpe", "gamma": "lambda n: 1"}, "tpe.gamma must be"),
        ({"type": "tpe", "multivariate": False, "group": True}, "group"),
        ({"type": "cmaes", "sigma0": "wide"}, "cmaes.sigma0 must be"),
        ({"type": "cmaes", "popsize": {"a": 1}}, "cmaes.popsize must be"),
        ({"type": "qmc", "qmc_type": "latin"}, "latin"),
        ({"type": "random", "anything": 1}, "random has no argument 'anything'; it has none"),
        ({"type": "gp", "n_startup_trials": None}, "gp.n_startup_trials must be"),
        ({"type": 7}, "must be text"),
        (7, "must be a mapping"),
    ],
)
def test_a_wrong_sampler_argument_is_one_clear_line(tree: Tree, sampler: Any, says: str) -> None:
    (line,) = problems_of(tree(sampler=sampler))
    assert line.startswith("sampler")
    assert says in line


@pytest.mark.parametrize(
    ("pruner", "says"),
    [
        ("wilcoxon", "cannot share a study with rungs (step = samples)"),
        ("meadian", "unknown pruner 'meadian'; did you mean 'median'?"),
        ("percentile", "percentile needs the argument 'percentile', and it is missing"),
        ({"type": "percentile", "percentile": "half"}, "percentile.percentile must be"),
        ({"type": "percentile", "percentile": 200}, "Percentile must be between 0 and 100"),
        ("threshold", "Either lower or upper"),
        ({"type": "threshold", "lower": "low"}, "threshold.lower must be"),
        ({"type": "median", "n_startup_trials": -1}, "n_startup_trials"),
        ({"type": "median", "n_warmup_steps": "1.5"}, "median.n_warmup_steps must be"),
        ({"type": "successive_halving", "reduction_factor": 1}, "reduction_factor >= 2"),
        ({"type": "successive_halving", "reduction_factor": "x"}, "reduction_factor must be"),
        ({"type": "successive_halving", "reduction_factor": 2.5}, "reduction_factor must be"),
        ({"type": "hyperband", "max_resource": [9]}, "hyperband.max_resource must be"),
        ({"type": "none", "patience": 1}, "none has no argument 'patience'; it has none"),
        ("patient", "patient needs `wrapped_pruner`"),
        ({"type": "patient", "wrapped_pruner": "median"}, "needs the argument 'patience'"),
        ({"type": "patient", "wrapped_pruner": 3, "patience": 1}, "patient needs `wrapped_pruner`"),
        ({"type": "patient", "wrapped_pruner": "hyperband", "patience": 1}, "cannot wrap"),
        ({"type": "patient", "wrapped_pruner": "wilcoxon", "patience": 1}, "per example"),
        ({"type": "patient", "wrapped_pruner": {}, "patience": 1}, "unknown pruner 'None'"),
        ({"type": "patient", "wrapped_pruner": "median", "patience": "long"}, "patience must be"),
        (
            {"type": "patient", "wrapped_pruner": {"type": "median", "x": 1}, "patience": 1},
            "median has no argument 'x'",
        ),
    ],
)
def test_a_wrong_pruner_argument_is_one_clear_line(tree: Tree, pruner: Any, says: str) -> None:
    (line,) = problems_of(tree(pruner=pruner))
    assert line.startswith("pruner")
    assert says in line


def test_numbers_written_as_yaml_text_become_numbers(tree: Tree) -> None:
    spec = build_sweep(
        tree(
            sampler={"type": "tpe", "n_startup_trials": "5"},
            pruner={"type": "threshold", "upper": "1e-4"},
            training={"weight_decay": "1e-4"},
        )
    )
    assert spec.sampler.arguments == {"n_startup_trials": 5}
    assert spec.pruner.arguments == {"upper": 1e-4}
    assert spec.trial.training.weight_decay == 1e-4


def test_sizes_and_durations_are_taken_as_people_write_them(tree: Tree) -> None:
    written = tree(constraints={"memory/peak_allocated_bytes": "22GB", "minutes": "1h30m"})
    written["budget"] |= {"timeout": "2h", "trial_timeout": 90}
    written["checkpoints"] = {"every_seconds": "5m"}
    spec = build_sweep(written)
    assert spec.constraints == {"memory/peak_allocated_bytes": 22e9, "minutes": 90.0}
    assert (spec.budget.timeout, spec.budget.trial_timeout) == (7200.0, 90.0)
    assert spec.checkpoints.every_seconds == 300.0
    assert build_sweep(spec.model_dump(mode="json")) == spec, "as numbers they mean the same"


def test_sizes_and_durations_that_are_none_are_clear_lines(tree: Tree) -> None:
    wrong = tree(constraints={"memory/peak_allocated_bytes": "22 gigs"})
    wrong["budget"] |= {"timeout": "soon"}
    told = "\n".join(problems_of(wrong))
    assert "constraints: memory/peak_allocated_bytes: must be a number of bytes, or a size" in told
    assert "budget.timeout: must be a number of seconds, or a duration such as 45s" in told


def test_a_limit_in_dollars_needs_the_price_of_an_hour(tree: Tree) -> None:
    wrong = tree()
    wrong["budget"] |= {"usd": 20}
    assert problems_of(wrong) == [
        "budget: usd needs usd_per_gpu_hour, what an hour of one GPU costs"
    ]
    wrong["budget"] |= {"usd_per_gpu_hour": 2.5, "gpu_hours": 10}
    assert build_sweep(wrong).budget.most_gpu_hours == 8.0


def test_patient_wraps_another_pruner_with_its_arguments(tree: Tree) -> None:
    inner = {"type": "successive_halving", "reduction_factor": "4"}
    pruner = {"type": "patient", "patience": 1, "wrapped_pruner": inner}
    spec = build_sweep(tree(pruner=pruner))
    assert spec.pruner.arguments["wrapped_pruner"]["reduction_factor"] == 4
    assert build_sweep(tree(pruner={**pruner, "wrapped_pruner": "median"})).pruner.arguments == {
        "patience": 1,
        "wrapped_pruner": {"type": "median"},
    }


def test_sections_have_shorthands(tree: Tree) -> None:
    spec = build_sweep(tree(sampler="random", pruner="median", quantization="fp4"))
    assert (spec.sampler.type, spec.pruner.type) == ("random", "median")
    assert spec.trial.quantization.scheme == "fp4"
    assert spec.trial.model.name_or_path == "demo"
    assert spec.trial.data.train.path == "demo"
    assert not spec.tracking.enabled


@pytest.mark.parametrize("name", ["../up", "..", "a/b", "/etc", "a\\b", ".hidden", "", "a" * 101])
def test_names_that_climb_are_refused(tree: Tree, name: str) -> None:
    (line,) = problems_of(tree(name=name))
    assert line.startswith("name: ")


def test_ray_client_addresses_are_refused(tree: Tree) -> None:
    (line,) = problems_of(tree(resources={"backend": "ray", "address": "ray://head:10001"}))
    assert "ray:// addresses (Ray Client) would move the driver to the cluster's head" in line


def test_local_paths_become_absolute(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "base").mkdir()
    spec = build_sweep(tree(data={"train": "train.jsonl"}, model="base", storage="here"))
    assert spec.trial.data.train.path == str(tmp_path / "train.jsonl")
    assert spec.trial.model.name_or_path == str(tmp_path / "base")
    assert spec.storage == str(tmp_path / "here")
    assert spec.trial.data.validation == build_sweep(tree()).trial.data.validation  # still `demo`


def test_a_file_is_named_after_itself_and_takes_overrides(tree: Tree, tmp_path: Path) -> None:
    given = tree()
    del given["name"]
    path = write(tmp_path / "ranks.yaml", given)
    spec = load_sweep(
        path,
        [
            "budget.n_trials=64",
            "sampler.type=random",
            "quantization.bnb_4bit_use_double_quant=true",
            "resources.engine_options={num_slots: 3}",
            "space.parameters.adapter.r={choices: [2, 4]}",
            "training.weight_decay=1e-3",
        ],
    )
    assert isinstance(spec, SweepSpec)
    assert spec.name == "ranks"
    assert spec.budget.n_trials == 64
    assert spec.sampler.type == "random"
    assert spec.trial.quantization.scheme == "nf4"
    assert spec.trial.quantization.bnb_4bit_use_double_quant
    assert spec.resources.engine_options == {"num_slots": 3}
    assert spec.trial.training.weight_decay == 1e-3
    assert "adapter.r: one of 2, 4" in spec.space.describe()


@pytest.mark.parametrize(
    "text",
    ["budget.n_trials", "=3", "budget.n_trials.x=1", "a={", "a=*b", "a=2024-99-01"],
)
def test_an_override_that_cannot_be_taken_is_a_clear_error(tree: Tree, text: str) -> None:
    with pytest.raises(SweepFileError) as caught:
        override(tree(), text)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n", "the key 'name' is given twice, line 2"),
        ("budget: {n_trials: 1, n_trials: 2}\n", "'n_trials' is given twice, line 1"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases (*name) are not allowed"),
        ("[" * 100_000, "is no YAML"),
        ("name: 2024-13-41\n", "is no YAML"),
        ("name: !!bool maybe\n", "is no YAML"),
        ("name: !!timestamp soon\n", "is no YAML"),
        ("name: !!python/object/apply:os.system [true]\n", "is no YAML"),
        ("a: [1,\n", "is no YAML"),
        ("\x00", "is no YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("? [a, b]\n: c\n", "is no YAML"),
    ],
)
def test_unsafe_or_broken_yaml_is_a_clear_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SweepFileError) as caught:
        load_sweep(path)
    (line,) = caught.value.problems
    assert says in line
    assert str(path) in str(caught.value)


def test_files_that_are_too_large_absent_or_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(SweepFileError, match="at most 100000 bytes"):
        load_sweep(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(SweepFileError, match="is no YAML"):
        load_sweep(path)
    with pytest.raises(SweepFileError, match="no such file"):
        load_sweep(tmp_path / "absent.yaml")


VALUES = [
    None,
    True,
    False,
    -1,
    0,
    2.5,
    float("nan"),
    10**30,
    "",
    "x",
    "1e-4",
    [],
    [1],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_no_value_anywhere_gives_anything_but_a_spec_or_clear_lines(tree: Tree, value: Any) -> None:
    sections = SweepSpec.model_fields["trial"].annotation
    names = {*SweepSpec.model_fields, *sections.model_fields} - {"trial", "storage"}  # type: ignore[union-attr]
    fields = [(name,) for name in names]
    whole = tree(sampler={"type": "tpe"}, pruner={"type": "median"}, adapter={"r": 4})
    for name, section in whole.items():
        fields += [(name, key) for key in section] if isinstance(section, dict) else []
    assert len(fields) > 25
    for path in fields:
        given = {name: dict(v) if isinstance(v, dict) else v for name, v in whole.items()}
        node = given if len(path) == 1 else given[path[0]]
        node[path[-1]] = value
        lines = found_problems(given)
        assert all(": " in line for line in lines), (path, lines)
