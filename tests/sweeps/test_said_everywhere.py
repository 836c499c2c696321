"""A confirmed sweep says the same numbers on the board, the page, the card, and in MLflow."""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from sweeps import build_sweep, open_sweep
from sweeps.cli.app import app
from sweeps.file_names import LEADERBOARD_JSON, REPORT_FILE
from sweeps.run import launch
from tests.support.mlflow_database import lay_out

ROWS = [{"question": f"who sees {i}?", "kind": ("cat", "dog")[i % 2]} for i in range(24)]
METRIC = "validation/loss"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a real sweep of two trials that was confirmed, then exported."""
    tmp_path = tmp_path_factory.mktemp("said")
    for name, rows in (("train", ROWS[:12]), ("validation", ROWS[12:18]), ("test", ROWS[18:])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    storage = tmp_path / "runs"
    lay_out(storage)
    sweep: dict[str, Any] = {
        "name": "one",
        "model": "demo",
        "task": {"type": "causal_lm", "prompt": "{question} ", "response": "{kind}"},
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")},
        "space": {
            "parameters": {
                "adapter.r": {"choices": [2, 4]},
                "adapter.target_modules": {"choices": ["attention-qv"]},
            }
        },
        "sampler": "grid",
        "pruner": "none",
        "budget": {"n_trials": 2, "max_samples": 16},
        "confirm": {"seeds": 2},
        "resources": {"backend": "inline", "slots_per_gpu": 2},
        "storage": str(storage),
    }
    outcome = launch(build_sweep(sweep))
    assert outcome.status == "complete"
    assert outcome.verdict.chosen is not None
    assert outcome.verdict.chosen.test is None, "nobody has read the test rows"
    result = CliRunner().invoke(app, ["export", "one", "--storage", str(storage)])
    assert result.exit_code == 0, result.output
    return storage


def tracked(storage: Path) -> tuple[Any, list[Any]]:
    """The sweep's run, and those of its repeats."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'peft-sweeps'")
    runs = client.search_runs([experiment.experiment_id])
    (found,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return found, [run for run in runs if "trial.confirm_of" in run.data.tags]


def plain(text: str) -> str:
    """Without markup, and in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text).replace("&#x27;", "'"))


def test_board_page_card_and_mlflow_say_the_same_numbers(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    sweep = open_sweep(exported, "one")
    verdict = sweep.verdict()
    chosen = verdict.chosen
    assert chosen is not None
    assert chosen.expected is not None
    assert chosen.test is not None
    run, repeats = tracked(exported)
    own = [r for r in repeats if r.data.tags["trial.confirm_of"] == str(chosen.number)]
    assert len(own) == chosen.num_seeds == 2
    values = {  # each from elsewhere than the verdict has it
        "expected": mean(r.data.metrics[METRIC] for r in own),
        "recorded": sweep.study.trials()[chosen.number].value,
        "test": json.loads(
            (exported / f"one/exports/trial-{chosen.number:04d}/export.json").read_text()
        )["test"]["test/loss"],
    }
    said = {
        "expected": f"expected {METRIC} {values['expected']:.4f} "
        f"({chosen.expected.low:.4f} to {chosen.expected.high:.4f}, 2 seeds)",
        "recorded": f"recorded {values['recorded']:.4f}",
        "test": f"On the test rows, read once, its adapter has {values['test']:.4f} "
        f"({chosen.test.low:.4f} to {chosen.test.high:.4f} on other rows of this kind)",
    }
    assert chosen.test.low < values["test"] < chosen.test.high
    board = CliRunner().invoke(app, ["leaderboard", "one", "--storage", str(exported)]).output
    card = (exported / f"one/exports/trial-{chosen.number:04d}/README.md").read_text()
    places: dict[str, str] = {
        "board": board,
        "page": (exported / "one" / REPORT_FILE).read_text().partition("<script")[0],
        "card": card,
        "MLflow": run.data.tags["verdict"],
        "MLflow's note": run.data.tags["mlflow.note.content"],
        "JSON": " ".join(
            json.loads((exported / "one" / LEADERBOARD_JSON).read_text())["verdict"]["sentences"]
        ),
    }
    for place, text in places.items():
        for what, words in said.items():
            assert words in plain(text), f"{place}: {what}"
    measured = run.data.metrics
    for name, value in (("expected", values["expected"]), ("test_of", values["test"])):
        assert measured[f"sweep/{name}_validation_loss"] == pytest.approx(value, abs=1e-12)
    assert measured["sweep/expected_validation_loss_high"] == pytest.approx(chosen.expected.high)
    assert run.data.tags["recommended.trial"] == str(chosen.number)
    assert run.info.status == "FINISHED"


def test_a_second_export_tells_nobody_anything(exported: Path) -> None:
    before = (exported / "one" / REPORT_FILE).stat().st_mtime_ns
    assert CliRunner().invoke(app, ["export", "one", "--storage", str(exported)]).exit_code == 0
    assert (exported / "one" / REPORT_FILE).stat().st_mtime_ns == before
