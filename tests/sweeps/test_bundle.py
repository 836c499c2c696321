"""What a submitted sweep takes along, and what it must not."""

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_jobs import SpecError
from sweeps.bundle import MAX_BYTES, Bundle, pack
from sweeps.staging import stage
from sweeps.sweep_file import SweepFileError

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
    name = f"rows-{hashlib.sha256(ROWS.encode()).hexdigest()[:16]}.jsonl"
    assert files() == {"waves.yaml", f"inputs/{name}"}
    assert Path("packed/waves.yaml").read_text() == SWEEP
    assert Path("packed/inputs", name).read_text() == ROWS
    assert (made.name, made.storage, made.left) == ("waves", "/shared/runs", ())
    staging, run = made.entrypoint.split(" && ")
    inputs = "/shared/runs/waves/inputs"
    assert shlex.split(staging) == ["python", "-m", "sweeps.staging", "inputs", inputs]
    words = ["exec", "peft-sweep", "run", "waves.yaml", "budget.n_trials=3"]
    words += [f"data.train='{inputs}/{name}'", "--address", "auto", "--plain"]
    assert shlex.split(run) == words


def test_the_same_data_have_the_same_place_and_others_another(packed: Pack) -> None:
    first = packed().entrypoint
    Path("rows.jsonl").rename("renamed.jsonl")
    Path("rows.jsonl").write_text(ROWS)
    assert packed().entrypoint == first
    Path("rows.jsonl").write_text(ROWS * 2)
    assert packed().entrypoint != first


def test_values_of_overrides_reach_no_shell(packed: Pack) -> None:
    evil = "task.prompt=\"{record} $(touch /tmp/x); `id` 'x'\""
    run = packed(evil).entrypoint.split(" && ")[1]
    assert evil in shlex.split(run)


def test_modules_and_packages_travel_whole_but_installed_ones_do_not(packed: Pack) -> None:
    Path("one.py").write_text("def draw(trial): return {'adapter.r': 8}\n")
    Path("many/inner").mkdir(parents=True)
    for name in ("__init__", "scores", "inner/rows"):
        Path(f"many/{name}.py").write_text("def exact(model, tokenizer, rows): return {}\n")
    Path("many/data.bin").write_text("large")
    functions = "evaluation.metrics=[many.scores:exact, statistics:mean, numpy:mean]"
    packed("space={function: 'one:draw'}", functions)
    modules = {"one.py", "many/__init__.py", "many/scores.py", "many/inner/rows.py"}
    assert {name for name in files() if name.endswith(".py")} == modules
    assert "many/data.bin" not in files()


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


def test_all_mistakes_of_the_file_are_told_before_anything_is_copied(packed: Pack) -> None:
    with pytest.raises(SweepFileError) as found:
        packed("sampler=tpee", "budget.n_trials=0")
    assert len(found.value.problems) == 2
    assert files() == set()


def test_staging_copies_what_is_missing_and_keeps_what_is_there(tmp_path: Path) -> None:
    source, target = tmp_path / "inputs", tmp_path / "shared" / "waves" / "inputs"
    source.mkdir()
    (source / "a-1.csv").write_text("a")
    assert stage(source, target) == [target / "a-1.csv"]
    (source / "b-2.csv").write_text("b")
    assert stage(source, target) == [target / "b-2.csv"]
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "a-1.csv": "a",
        "b-2.csv": "b",
    }
