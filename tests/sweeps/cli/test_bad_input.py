"""A person's mistake: exit code 2, a clear line on stderr, nothing on stdout, no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import Result

from peft_jobs import TrialResult
from sweeps.cli.exit_codes import bad_input

Cli = Callable[..., Result]
Start = Callable[..., object]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "nowhere.yaml"], "no such file"),
        (["run", "torn.yaml"], "is no YAML"),
        (["run", "list.yaml"], "must be a mapping"),
        (["run", "."], "no such file"),
        (["run", "waves.yaml", "budget.n_trials"], "must look like"),
        (["run", "waves.yaml", "budget.n_trails=3"], "did you mean 'n_trials'?"),
        (["run", "waves.yaml", "adapter.r=-1"], "adapter.r"),
        (["run", "waves.yaml", "data.train=gone.jsonl"], "no such file: "),
        (["run", "waves.yaml", "sampler=tpee"], "did you mean 'tpe'?"),
        (["run", "waves.yaml", "space.parameters.adapter.rank={choices: [1]}"], "adapter.r"),
        (["run", "waves.yaml", "storage=waves.yaml/runs"], "Not a directory"),
        (["run", "waves.yaml", "--study-url", "nosuchdb://x/y"], "study_url"),
        (["run", "waves.yaml", "--study-url", "no url"], "study_url"),
        (["run", "waves.yaml", "--study-url", "sqlite:////nowhere/at/all.db"], "cannot be opened"),
        (["run", "waves.yaml", "--address", "ray://head:10001"], "HOST:PORT"),
        (["validate", "waves.yaml", "pruner=wilcoxon"], "wilcoxon"),
        (["leaderboard", "waves"], "there is no sweep in runs"),
        (["leaderboard", "waves", "--storage", "nowhere"], "there is no sweep in nowhere"),
        (["show", "waves", "0"], "there is no sweep"),
        (["show", "waves", "minus"], "NUMBER"),
        (["list", "--storage", "nowhere"], "there is no folder nowhere"),
        (["export", "waves"], "there is no sweep"),
        (["ui"], "no sweep was tracked here"),
        (["report", "waves"], "there is no sweep"),
        (["init", "--out", "nowhere/sweep.yaml"], "No such file or directory"),
        (["fly"], "fly"),
    ],
)
def test_a_mistake_is_one_clear_message(
    cli: Cli, folder: Path, words: list[str], told: str
) -> None:
    (folder / "torn.yaml").write_text("a: [1,")
    (folder / "list.yaml").write_text("- a\n- b\n")
    result = cli(*words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_all_mistakes_of_a_file_are_told(cli: Cli) -> None:
    result = cli("run", "waves.yaml", "adapter.r=0", "smpler=tpe", "budget.n_trials=no")
    lines = result.stderr.splitlines()
    assert lines[0] == "waves.yaml: 3 mistakes"
    assert len(lines) == 4


def test_a_misspelled_sweep_is_answered_with_the_nearest(ended: Cli) -> None:
    for words in (["leaderboard", "wave"], ["show", "wave", "0"], ["export", "wave"]):
        result = ended(*words)
        assert result.exit_code == 2
        assert "did you mean 'waves'?" in result.stderr


def test_a_trial_that_is_not_there(ended: Cli) -> None:
    result = ended("show", "waves", 4000)
    assert result.exit_code == 2
    assert "has no trial 4000" in result.stderr


def test_another_specification_under_the_same_name(ended: Cli) -> None:
    result = ended("run", "waves.yaml", "seed=2", "budget.max_samples=800")
    assert result.exit_code == 2
    assert "seed: was 1, is 2" in result.stderr


def test_secrets_are_not_repeated(cli: Cli) -> None:
    url = "postgresql+nosuch://user:hunter2@db.example/optuna"
    result = cli("run", "waves.yaml", "--study-url", url)
    assert result.exit_code == 2
    assert "hunter2" not in result.output


def test_a_mistake_found_on_a_ray_host_is_one_line_too(cli: Cli) -> None:
    nothing = "space.parameters.adapter.target_modules=nothing"
    result = cli("run", "waves.yaml", "resources.backend=ray", nothing, "--no-supervise")
    assert result.exit_code == 2
    assert "'nothing' matches no module" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output


def test_a_record_of_another_version_is_told_as_a_file_is() -> None:
    with pytest.raises(ValidationError) as caught:
        TrialResult.model_validate({"state": "COMPLETE", "seconds": {"train": "x"}})
    assert bad_input(caught.value) == "seconds.train: must be a number, got 'x'"


def test_a_wrong_value_is_told_without_its_secrets() -> None:
    with pytest.raises(ValidationError) as caught:
        TrialResult.model_validate({"state": "postgresql://user:hunter2@db.example/optuna"})
    text = bad_input(caught.value)
    assert text is not None
    assert "db.example" in text
    assert "hunter2" not in text


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    assert bad_input(RuntimeError("a bug")) is None
    assert bad_input(KeyError("a bug")) is None
    assert bad_input(BrokenPipeError()) is None
