"""What comes from the Hub, told by a stand-in for it; nothing is fetched."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from peft_jobs import TrialSpec
from sweeps.planning.downloads import Download, downloads

COMMIT = "0" * 40
FILES = {
    "/api/models/someone/base": {
        "config.json": 600,
        "model-00001-of-00002.safetensors": 5_000_000_000,
        "model-00002-of-00002.safetensors": 1_000_000_000,
        "tokenizer.json": 9_000_000,
        "pytorch_model.bin": 6_000_000_000,
        "original/consolidated.00.pth": 6_000_000_000,
        "README.md": 5_000,
    },
    "/api/datasets/someone/rows": {"data/train.parquet": 70_000, "README.md": 1_000},
}


class Hub(BaseHTTPRequestHandler):
    """Answers with the files of a repository and their sizes."""

    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].partition("/revision/")[0]
        self.asked.append(path)
        known = FILES.get(path)
        siblings = [{"rfilename": name, "size": size} for name, size in (known or {}).items()]
        found = {"id": "someone/x", "sha": COMMIT, "siblings": siblings}
        body = json.dumps(found if known else {"error": "Repository not found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    huggingface_hub.close_session()
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.close_session()


def trial(model: str, rows: str = "demo") -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": model,
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": rows, "validation": 0.1},
        }
    )


def test_the_files_that_a_sweep_loads_are_counted_once(hub: type[Hub]) -> None:
    found = downloads([trial("someone/base", "someone/rows"), trial("someone/base")])
    assert found == [
        Download("base", "someone/base", 6_000_000_000 + 9_000_000 + 600),
        Download("data", "someone/rows", 70_000),
    ]
    assert [path for path in hub.asked if "/someone/" in path] == list(FILES)


def test_what_is_in_the_cache_is_not_downloaded(hub: type[Hub], tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--base"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
    [found] = downloads([trial("someone/base")])
    assert found.bytes == 1_000_000_000 + 9_000_000 + 600


def test_what_the_hub_does_not_tell_is_told(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = downloads([trial("someone/nothing")])
    assert (found.bytes, found.unknown) == (None, "the Hub answers 404")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    [found] = downloads([trial("someone/base")])
    assert (found.bytes, found.unknown) == (None, "the Hub does not answer")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    [found] = downloads([trial("someone/base")])
    assert (found.bytes, found.unknown) == (None, "HF_HUB_OFFLINE is set")


def test_what_is_here_is_nothing_of_the_hub(hub: type[Hub], tmp_path: Path) -> None:
    assert downloads([trial("demo"), trial(str(tmp_path))]) == []
    assert not any("/models/" in path or "/datasets/" in path for path in hub.asked)
