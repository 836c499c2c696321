import json
import sqlite3
from contextlib import closing
from pathlib import Path

from sweeps.tracking.view import View, browse_url, view_tag


def test_a_view_filters_sorts_and_shows_what_varies() -> None:
    view = View("validation/accuracy", "maximize", ["memory/peak_rss_bytes"], ["adapter.r"])
    ((key, value),) = view_tag("my sweep", view, 1000).items()
    assert key == "mlflow.sharedViewState.sweep-my-sweep"
    state = json.loads(json.loads(value)["state"])
    assert state["searchFilter"] == "tags.sweep = 'my sweep'"
    assert state["orderByKey"] == "metrics.`validation/accuracy`"
    assert state["orderByAsc"] is False
    assert state["selectedColumns"][:3] == [
        "metrics.`validation/accuracy`",
        "metrics.`memory/peak_rss_bytes`",
        "params.`adapter.r`",
    ]


def test_without_a_recorded_sweep_the_link_is_to_the_experiments(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")):
        pass
    url = browse_url("http://127.0.0.1:5000", tmp_path / "mlflow.db")
    assert url == "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
