import json
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from sweeps.tracking import Artifact, MlflowTracker, View
from sweeps.tracking.ui import PortBusy, serve, ui_command
from sweeps.tracking.view import browse_url


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read())


def test_runs_written_straight_into_the_database_show_their_files(server, tmp_path, look) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    database = server.storage / "mlflow.db"
    view = View("validation/loss")
    tracker = MlflowTracker(
        tmp_path / "outbox.db", f"sqlite:///{database}", "direct", "s", view=view
    )
    tracker.sweep_started({}, {}, [Artifact(adapter, "best")])
    assert tracker.close(60) == 0
    store = look(server.url, "direct")
    assert store.parent.info.artifact_uri.startswith("file://")
    run_id = store.parent.info.run_id
    query = urllib.parse.urlencode({"run_id": run_id, "path": "best"})
    listed = json.loads(get(f"{server.url}/api/2.0/mlflow/artifacts/list?{query}"))
    assert [file["path"] for file in listed["files"]] == ["best/adapter_config.json"]
    query = urllib.parse.urlencode({"run_uuid": run_id, "path": "best/adapter_config.json"})
    assert get(f"{server.url}/get-artifact?{query}") == b'{"r": 16}'
    link = browse_url(server.url, database)
    assert link == browse_url(server.url, database, sweep="s")
    assert f"#/experiments/{store.experiment.experiment_id}/runs?" in link
    assert link.endswith("&viewStateShareKey=sweep-s")
    assert browse_url(server.url, database, sweep="t").endswith(
        "#/experiments?workflowType=machine_learning"
    )


def test_the_server_is_bound_to_this_machine_with_one_worker() -> None:
    command, environment = ui_command(Path("runs"))
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_busy_port_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortBusy, match=f"cannot listen on 127.0.0.1:{port} .*another port"):
            serve(tmp_path, port=port)


def test_a_storage_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sweep was tracked here"):
        serve(tmp_path)
