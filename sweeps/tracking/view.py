"""The table of a sweep's trials as the MLflow UI opens it: filtered, sorted, with telling columns.

By default the UI shows no params and no metrics. A saved view of the UI (MLflow 3.17) is a tag of
the experiment that holds the table's state as JSON; a link names the view. Others ignore the tag.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

_TAG_PREFIX = "mlflow.sharedViewState."  # viewStateShareKey in MLflow's JavaScript
_SECTION = "peft-sweeps"
_DEFAULTS: dict[str, dict[str, object]] = {
    "LINE": {
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
}
"""What the UI gives a new chart, by its type."""


@dataclass(frozen=True)
class View:
    """What the table shows of each trial beside its name, duration and state."""

    objective: str
    """The metric that sorts the trials, and the first column."""
    direction: Literal["minimize", "maximize"] = "minimize"
    metrics: Sequence[str] = ()
    params: Sequence[str] = ()
    """The ones that vary."""


def view_key(sweep: str) -> str:
    """The name of the sweep's view in links; tags and URLs take few characters."""
    return "sweep-" + re.sub(r"[^\w.-]", "-", sweep, flags=re.ASCII)


def tag_name(sweep: str) -> str:
    """The name of the experiment tag that is the sweep's view."""
    return _TAG_PREFIX + view_key(sweep)


def view_tag(sweep: str, view: View, time_ms: int) -> dict[str, str]:
    """The experiment tag that is the sweep's view."""
    metrics = dict.fromkeys([view.objective, *view.metrics])
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"params.`{name}`" for name in view.params]
    columns += ["tags.`trial.state`", "tags.`trial.kind`"]
    widths = {name: 40 + 7 * len(name.split("`")[1]) for name in columns}  # pixels; names in full
    widths = {"0": 73, "attributes.`Run Name`": 260, "runDateAndNestInfo": 140} | widths
    state = {
        "searchFilter": (
            f"tags.sweep = '{sweep}' AND tags.`trial.number` IS NOT NULL "
            "AND tags.`trial.confirm_of` IS NULL"
        ),
        "orderByKey": f"metrics.`{view.objective}`",
        "orderByAsc": view.direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Duration`"],
        "columnOrder": [*widths, "duration"],
        "columnWidths": widths,
        "compareRunSections": [_section()],
        "compareRunCharts": _charts(view),
        "isAccordionReordered": True,  # else the sections are sorted by name
    }
    envelope = {
        "name": f"{sweep}: trials by {view.objective}",
        "createdAt": time_ms,
        "updatedAt": time_ms,
        "state": json.dumps(state),
    }
    return {tag_name(sweep): json.dumps(envelope)}


def _section() -> dict[str, object]:
    return {"uuid": _SECTION, "name": "objective", "display": True, "isReordered": True}


def _charts(view: View) -> list[dict[str, object]]:
    """The charts that come first: the objective by step, by what varies, against the metrics.

    The UI adds a section for each group of metrics behind them; by itself it begins with memory.
    """
    objective = {"key": view.objective, "type": "METRIC"}
    charts: list[dict[str, object]] = [{"type": "LINE", "metricKey": view.objective}]
    if view.params:
        charts.append(
            {
                "type": "PARALLEL",
                "selectedParams": list(view.params),
                "selectedMetrics": [view.objective],
                "showAllRuns": True,
            }
        )
    charts += [
        {"type": "SCATTER", "xaxis": {"key": name, "type": "METRIC"}, "yaxis": objective}
        for name in view.metrics
    ]
    common = {"metricSectionId": _SECTION, "runsCountToCompare": 100, "deleted": False}
    return [
        {**_DEFAULTS.get(str(chart["type"]), {}), **chart, **common, "uuid": f"{_SECTION}-{number}"}
        for number, chart in enumerate(charts)
    ]


def view_url(server_url: str, experiment_id: str, sweep: str) -> str:
    """The link that opens a sweep's view."""
    path = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{server_url.rstrip('/')}/{path}&viewStateShareKey={quote(view_key(sweep))}"


def browse_url(server_url: str, database: Path, sweep: str | None = None) -> str:
    """The link to a sweep that is recorded in `database` (mlflow.db), by default the newest.

    Without such a sweep, the link to the list of experiments. Reads the file only.
    """
    pattern = _TAG_PREFIX + (view_key(sweep) if sweep else "sweep-*")
    query = (
        "SELECT experiment_id, key FROM experiment_tags WHERE key GLOB ? "
        "ORDER BY json_extract(value, '$.createdAt') DESC LIMIT 1"
    )
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as store:
        try:
            found = store.execute(query, (pattern,)).fetchone()
        except sqlite3.OperationalError:  # the tables are not laid out yet
            found = None
    if found is None:
        return f"{server_url.rstrip('/')}/#/experiments?workflowType=machine_learning"
    experiment_id, key = found
    return view_url(server_url, str(experiment_id), key.removeprefix(_TAG_PREFIX + "sweep-"))
