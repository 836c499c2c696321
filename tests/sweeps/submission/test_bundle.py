"""What a submitted sweep takes along, and what it must not."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_jobs import SpecError
from sweeps.records.inputs import MAX_BYTES
from sweeps.spec.yaml_file import SweepFileError
from sweeps.submission.bundle import Bundle, pack
from tests.support.saved_adapters import write_saved

SWEEP = """
model: demo
quantization: nf4
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: rows.jsonl, validation: 0.2}
space: {parameters: {training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}}
budget: {n_trials: 9, max_samples: 900}
storage: /shared/runs
"""
ROWS = '{"record": "a", "sentence": "b"}\n'
Pack = Callable[..., Bundle]


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """Overrides -> the bundle, in `packed/` of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "waves.yaml").write_text(SWEEP)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / ".env").write_text("PASSWORD=no business of the cluster's\n")
    (tmp_path / "packed").mkdir()
    return lambda *overrides: pack(tmp_path / "waves.yaml", overrides, tmp_path / "packed")


def files() -> set[str]:
    folder = Path("packed")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_file_and_its_data_travel_and_nothing_else(packed: Pack) -> None:
    made = packed("budget.n_trials=3")
    assert files() == {"waves.yaml", "inputs/train/rows.jsonl"}
    assert Path("packed/waves.yaml").read_text() == SWEEP
    assert Path("packed/inputs/train/rows.jsonl").read_text() == ROWS
    assert (made.name, made.storage, made.left) == ("waves", "/shared/runs", ())
    words = ["exec", "peft-sweep", "run", "waves.yaml", "budget.n_trials=3"]
    words += ["data.train='inputs/train/rows.jsonl'", "--address", "auto", "--plain"]
    assert shlex.split(made.entrypoint) == words


def test_a_source_that_is_spelled_out_keeps_its_form(packed: Pack) -> None:
    made = packed("data.validation={path: rows.jsonl}")
    assert "data.validation.path='inputs/validation/rows.jsonl'" in shlex.split(made.entrypoint)


def test_values_of_overrides_reach_no_shell(packed: Pack) -> None:
    evil = "task.prompt=\"{record} $(touch /tmp/x); `id` 'x'\""
    run = packed(evil).entrypoint
    assert evil in shlex.split(run)


def test_modules_and_packages_travel_whole_but_installed_ones_do_not(packed: Pack) -> None:
    Path("one.py").write_text("def draw(trial): return {'adapter.r': 8}\n")
    Path("many/inner").mkdir(parents=True)
    for name in ("__init__", "scores", "inner/rows"):
        Path(f"many/{name}.py").write_text("def exact(model, tokenizer, rows): return {}\n")
    Path("many/words.txt").write_text("read beside the module")
    Path("many/.secret").write_text("hidden")
    Path("many/__pycache__").mkdir()
    Path("many/__pycache__/scores.pyc").write_text("made again there")
    Path("loose").mkdir()  # a package without __init__.py
    Path("loose/rows.py").write_text("def exact(model, tokenizer, rows): return {}\n")
    functions = (
        "evaluation.metrics=[many.scores:exact, loose.rows:exact, statistics:mean, numpy:mean]"
    )
    packed("space={function: 'one:draw'}", functions)
    modules = {
        "one.py",
        "loose/rows.py",
        "many/__init__.py",
        "many/scores.py",
        "many/inner/rows.py",
    }
    assert {name for name in files() if name.endswith(".py")} == modules
    assert {name for name in files() if name.startswith("many/")} == {
        *(name for name in modules if name.startswith("many/")),
        "many/words.txt",
    }


def test_a_package_that_is_too_large_does_not_travel(packed: Pack) -> None:
    Path("many").mkdir()
    Path("many/scores.py").write_text("def exact(model, tokenizer, rows): return {}\n")
    Path("many/data.bin").touch()
    os.truncate("many/data.bin", 2 * MAX_BYTES)  # without a byte on the disk
    with pytest.raises(SpecError, match="200 MiB of files, and 100 travel"):
        packed("evaluation.metrics=['many.scores:exact']")


def test_a_module_that_is_not_here_is_named(packed: Pack) -> None:
    with pytest.raises(SpecError, match="no Python module 'elsewhere'"):
        packed("evaluation.metrics=['elsewhere:exact']")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("storage=runs", "all nodes of the cluster share"),
        ("model=.", "bases are not uploaded"),
        ("resources.backend=inline", "runs on Ray"),
        ("data.train=missing.jsonl", "no such file"),
        ("data.train=''", "data.train"),
        ("samplr=tpe", "did you mean 'sampler'"),
    ],
)
def test_what_the_cluster_could_not_run_is_refused(packed: Pack, override: str, hint: str) -> None:
    with pytest.raises(SpecError, match=hint):
        packed(override)


@pytest.mark.parametrize(
    "url",
    [
        "study_url=postgresql+psycopg://me:hunter2@db/optuna",
        "tracking.uri=https://hunter2@mlflow.example",
        "tracking.uri=https://mlflow.example/?api_key=hunter2",
    ],
)
def test_credentials_are_refused_unseen(packed: Pack, url: str) -> None:
    with pytest.raises(SpecError, match="PGPASSWORD") as refused:
        packed(url)
    assert "hunter2" not in str(refused.value)
    Path("waves.yaml").write_text(f"{SWEEP}# {url}\n")
    with pytest.raises(SpecError, match="PGPASSWORD"):
        packed()
    assert files() == set()


def test_data_of_the_cluster_stay_there(packed: Pack) -> None:
    made = packed("data.train=/shared/data/rows.jsonl")
    assert files() == {"waves.yaml"}
    assert made.entrypoint.startswith("exec peft-sweep run waves.yaml data.train=/shared/data/")


def test_data_too_large_to_upload_must_be_there_by_their_path(packed: Pack) -> None:
    os.truncate("rows.jsonl", MAX_BYTES + 1)  # without a byte on the disk
    with pytest.raises(SpecError, match="absolute path of a file that all nodes share"):
        packed()
    whole = str(Path("rows.jsonl").absolute())
    assert packed(f"data.train={whole}").left == (whole,)
    assert files() == {"waves.yaml"}


def test_the_adapter_that_trials_go_on_from_travels(packed: Pack) -> None:
    write_saved(Path("best"))
    made = packed("adapter={from: best}")
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert files() >= {f"inputs/adapter/{name}" for name in names}
    assert "adapter.from='inputs/adapter'" in shlex.split(made.entrypoint)
    made = packed("adapter={from: {name_or_path: best}}")
    assert "adapter.from.name_or_path='inputs/adapter'" in shlex.split(made.entrypoint)


def test_an_adapter_of_the_cluster_stays_there(packed: Pack) -> None:
    made = packed("adapter.from=/shared/best")
    assert files() == {"waves.yaml", "inputs/train/rows.jsonl"}
    assert "adapter.from=/shared/best" in shlex.split(made.entrypoint)
    with pytest.raises(SpecError, match=r"adapter.from: best is neither a folder here"):
        packed("adapter.from=best")


def test_an_adapter_too_large_to_upload_must_be_there_by_its_path(packed: Pack) -> None:
    write_saved(Path("best"))
    with Path("best/labels.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # without a byte on the disk
    with pytest.raises(SpecError, match="absolute path of a folder that all nodes share"):
        packed("adapter.from=best")
    whole = str(Path("best").absolute())
    assert packed(f"adapter.from={whole}").left == (whole,)


def test_all_mistakes_of_the_file_are_told_before_anything_is_copied(packed: Pack) -> None:
    with pytest.raises(SweepFileError) as found:
        packed("sampler=tpee", "budget.n_trials=0")
    assert len(found.value.problems) == 2
    assert files() == set()
