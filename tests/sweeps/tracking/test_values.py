import json
import math

from sweeps.tracking.values import fit_params, fit_tags, split_metrics


def test_params_are_spelled_as_in_json_and_strings_stay_bare() -> None:
    params = {"adapter.r": 16, "adapter.use_rslora": True, "training.learning_rate": 2e-4}
    params |= {"adapter.target_modules": ["q_proj", "v_proj"], "adapter.method": "lora", "x": None}
    assert fit_params(params).values == {
        "adapter.r": "16",
        "adapter.use_rslora": "true",
        "training.learning_rate": "0.0002",
        "adapter.target_modules": '["q_proj", "v_proj"]',
        "adapter.method": "lora",
        "x": "null",
    }
    assert fit_params(params).artifacts == {}


def test_a_long_param_says_where_all_of_it_is() -> None:
    params = {"data.prompt_template": "x" * 6001, "seed": 7}
    texts = fit_params(params)
    assert len(texts.values["data.prompt_template"]) == 6000
    assert texts.values["data.prompt_template"].endswith("artifact config/params.json")
    assert texts.values["seed"] == "7"
    assert json.loads(texts.artifacts["config/params.json"]) == params


def test_a_param_of_exactly_the_limit_is_whole() -> None:
    texts = fit_params({"data.prompt_template": "x" * 6000})
    assert texts.values["data.prompt_template"] == "x" * 6000
    assert texts.artifacts == {}


def test_names_outside_mlflows_alphabet_are_adapted_and_stay_distinct() -> None:
    params = {"p.a|b": 1, "p.a*b": 2, "p.a_b": 3, "p/q": 4, "x" * 300: 5, "x" * 301: 6}
    texts = fit_params(params)
    assert texts.values == {
        "p.a_b_2": "1",
        "p.a_b_3": "2",
        "p.a_b": "3",
        "p/q": "4",
        "x" * 240: "5",
        "x" * 238 + "_2": "6",
    }
    assert json.loads(texts.artifacts["config/params.json"]) == params


def test_a_long_leaderboard_is_cut_between_rows() -> None:
    row = "| 1 | trial-0007 | 0.9134 |\n"
    texts = fit_tags({"mlflow.note.content": row * 1000, "trial.state": "COMPLETE"})
    note = texts.values["mlflow.note.content"]
    table, _, rest = note.partition("\n\n")
    assert len(note) <= 8000
    assert set(table.split("\n")) == {row.strip()}
    assert rest.endswith("artifact config/tags/mlflow.note.content.txt")
    assert texts.artifacts == {"config/tags/mlflow.note.content.txt": row * 1000}
    assert texts.values["trial.state"] == "COMPLETE"


def test_metrics_that_are_no_finite_number_become_tags() -> None:
    metrics = {"train/loss": math.nan, "validation/loss": math.inf, "memory/peak_rss_bytes": 7}
    finite, tags = split_metrics(metrics, step=40)
    assert finite == {"memory/peak_rss_bytes": 7.0}
    assert tags == {
        "not_finite.train/loss": "nan at step 40",
        "not_finite.validation/loss": "inf at step 40",
    }
