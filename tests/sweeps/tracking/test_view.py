import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sweeps.tracking import MlflowTracker
from sweeps.tracking.view import View, browse_url, tag_name, view_tag


def test_a_view_filters_sorts_and_shows_what_varies() -> None:
    view = View("validation/accuracy", "maximize", ["memory/peak_rss_bytes"], ["adapter.r"])
    ((key, value),) = view_tag("my sweep", view, 1000).items()
    assert key == "mlflow.sharedViewState.sweep-my-sweep"
    state = json.loads(json.loads(value)["state"])
    assert state["searchFilter"].startswith("tags.sweep = 'my sweep' AND ")
    assert state["orderByKey"] == "metrics.`validation/accuracy`"
    assert state["orderByAsc"] is False
    assert state["selectedColumns"][:3] == [
        "metrics.`validation/accuracy`",
        "metrics.`memory/peak_rss_bytes`",
        "params.`adapter.r`",
    ]


def test_the_charts_begin_with_the_objective() -> None:
    view = View("validation/loss", "minimize", ["memory/peak_rss_gib"], ["adapter.r"])
    ((_, value),) = view_tag("waves", view, 1000).items()
    state = json.loads(json.loads(value)["state"])
    (section,) = state["compareRunSections"]
    charts = state["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == {section["uuid"]}
    assert len({chart["uuid"] for chart in charts}) == len(charts) == 3
    line, parallel, scatter = charts
    assert (line["type"], line["metricKey"]) == ("LINE", "validation/loss")
    assert parallel["selectedParams"] == ["adapter.r"]
    assert parallel["selectedMetrics"] == ["validation/loss"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == (
        "memory/peak_rss_gib",
        "validation/loss",
    )


def test_the_view_finds_trials_and_neither_the_parent_nor_repeats(
    tmp_path: Path, database: str, look: Any
) -> None:
    view = View("validation/loss")
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "found", "waves", view=view)
    tracker.sweep_started({}, {}, [])
    tracker.trial_started(0, "trial-0000", {}, {}, 1)
    tracker.trial_started(1, "repeat-0001-of-0000", {}, {"trial.confirm_of": "0"}, 2)
    assert tracker.close(60) == 0
    store = look(database, "found")
    assert len(store.runs) == 3
    state = json.loads(json.loads(store.experiment.tags[tag_name("waves")])["state"])
    found = store.client.search_runs([store.experiment.experiment_id], state["searchFilter"])
    assert [run.info.run_name for run in found] == ["trial-0000"]


def test_without_a_recorded_sweep_the_link_is_to_the_experiments(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")):
        pass
    url = browse_url("http://127.0.0.1:5000", tmp_path / "mlflow.db")
    assert url == "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
