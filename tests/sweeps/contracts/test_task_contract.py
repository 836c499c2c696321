"""What every task must say of itself in its section, so that nothing else has to know its name."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pytest
import transformers
from typer.testing import CliRunner

from peft_jobs.spec import TASK_SPECS, TrialSpec
from peft_jobs.spec.tasks import Direction, TaskSection
from peft_jobs.tasks import TASKS
from sweeps import load_sweep
from sweeps.cli.app import app
from sweeps.exporters.loading_code import loading
from sweeps.spec.metrics import default_direction


class RankingSpec(TaskSection):
    """A task that nobody has."""

    METRICS: ClassVar[Mapping[str, Direction]] = {"validation/ndcg": "maximize"}
    AUTO_CLASS = "AutoModelForMultipleChoice"
    HAS_HEAD = True
    NUM_LABELS = 3
    STARTER = "start-ranking.yaml"

    type: Literal["ranking"]


def test_a_section_and_an_implementation_go_together() -> None:
    assert TASK_SPECS.keys() == TASKS.keys()
    for name, section in TASK_SPECS.items():
        assert get_args(section.model_fields["type"].annotation) == (name,)
        assert section.__module__ == f"peft_jobs.spec.tasks.{name}"
        assert type(TASKS[name]).__module__ == f"peft_jobs.tasks.{name}"


@pytest.mark.parametrize("name", TASK_SPECS)
def test_a_section_says_what_others_derive(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = TASK_SPECS[name]
    assert hasattr(transformers, section.AUTO_CLASS)
    assert "validation/loss" in section.METRICS
    for metric, direction in section.METRICS.items():
        assert default_direction(metric) == direction, "another task has it the other way round"
    monkeypatch.chdir(tmp_path)
    for rows in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        (tmp_path / rows).touch()
    starter = files("sweeps") / "examples" / section.STARTER
    spec = load_sweep(Path(str(starter)))
    assert spec.trial.task.type == name
    assert set(spec.trial.task.metrics) <= section.METRICS.keys()


def test_two_entries_are_all_that_a_new_task_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASK_SPECS, "ranking", RankingSpec)
    monkeypatch.setitem(TASKS, "ranking", TASKS["causal_lm"])
    # init: its list and its help
    runner = CliRunner()
    told = runner.invoke(app, ["init", "--task", "rankin", "--out", str(tmp_path / "new.yaml")])
    assert told.exit_code == 2
    assert "did you mean 'ranking'? known: causal_lm, question_answering, ranking" in told.output
    helped = runner.invoke(app, ["init", "--help"], env={"COLUMNS": "200"})
    assert "ranking" in helped.output
    # the direction of its metric
    assert default_direction("test/ndcg") == "maximize"
    # the card's code
    trial = TrialSpec.model_validate(
        {
            "model": {"name_or_path": "demo"},
            "quantization": {"scheme": "none"},
            "task": {"type": "causal_lm", "text": "{text}"},
            "data": {"train": "demo", "validation": "demo"},
            "training": {"max_samples": 1},
        }
    )
    code = "\n".join(
        loading(trial.model_copy(update={"task": RankingSpec(type="ranking")}), tmp_path)
    )
    assert "base = AutoModelForMultipleChoice.from_pretrained(" in code
    assert "num_labels=3" in code
    assert "ignore_mismatched_sizes=True" in code
