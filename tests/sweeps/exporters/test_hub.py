"""An export on its way to the Hub: what leaves, what stays, against a stand-in for its HTTP API."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from peft_jobs import SpecError
from sweeps import Unavailable, push_to_hub
from sweeps.exporters.hub import parcel

Push = Callable[..., str]

CARD = "---\nlibrary_name: peft\nlicense: mit\n---\n\n# A card\n\nSee `trial.json`, `rows/x`.\n"
WEIGHTS = bytes(range(256)) * 8


class StandIn:
    """What the Hub would hold: repositories by id, and the files of their commits."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.tokens.add(token)
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"].split("---")[1]
            known = yaml.safe_load(text)
            wrong = [] if "license" in known else [{"message": "no license"}]
            return (400 if wrong else 200), {"errors": wrong, "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.private:
                return 409, {"url": f"{self.url}/{name}", "error": "is there"}
            self.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            found = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            return 200, {"files": found}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/store/"):
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/me/mine/commit/abc", "commitOid": "abc"}
        if method == "GET" and path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            return 200, {"id": name, "private": self.private[name], "siblings": []}
        return 404, {"error": path}


@pytest.fixture
def hub() -> Iterator[StandIn]:
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            token = self.headers.get("Authorization")
            status, answer = stand_in.answer(self.command, path, body, token)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, as far as the Hub sees it."""
    folder = tmp_path / "export"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "train.parquet").write_text("secret rows")
    trial = {
        "model": "/models/base",
        "task": {"type": "causal_lm", "response": "{a}"},
        "data": {"train": "/data/rows.jsonl"},
    }
    texts = {
        "README.md": CARD,
        "adapter_config.json": json.dumps({"base_model_name_or_path": "/models/base"}),
        "export.json": "{}",
        "samples.json": json.dumps({"examples": {}, "answers": [{}, {}]}),
        "tokenizer.json": "{}",
        "trial.json": json.dumps(trial),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def push(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Pushes to the Hub at an address, with a token, without Xet, which has servers of its own."""

    def run(url: str, private: bool = False, token: str = "hf_test") -> str:
        known = {"ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in {**known, "HF_TOKEN_PATH": str(folder / "none")}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", token)
        return push_to_hub(folder, "me/mine", private)

    return run


LEAVES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


def test_what_would_leave_is_listed_and_what_stays_has_a_reason(folder: Path) -> None:
    known = parcel(folder)
    assert set(known.files) == LEAVES
    assert known.num_bytes == sum((folder / name).stat().st_size for name in LEAVES)
    assert set(known.kept) == {"rows/", "export.json", "samples.json", "trial.json"}
    assert "/models/base, /data/rows.jsonl" in known.kept["trial.json"]
    stays, local, rows = known.warnings
    assert stays == "README.md speaks of what stays: rows/, trial.json"
    assert "local path, /models/base" in local
    assert "2 rows of the validation data" in rows


def test_a_trial_of_the_hub_s_own_names_leaves_too(folder: Path) -> None:
    trial = json.loads((folder / "trial.json").read_text())
    trial |= {"model": "org/base", "data": {"train": "org/rows"}}
    (folder / "trial.json").write_text(json.dumps(trial))
    assert set(parcel(folder).files) == LEAVES | {"trial.json"}


def test_one_commit_holds_the_files_alone(folder: Path, hub: StandIn, push: Push) -> None:
    assert push(hub.url, private=True) == f"{hub.url}/me/mine/commit/abc"
    assert hub.private == {"me/mine": True}
    assert set(hub.files) == LEAVES
    assert hub.files["adapter_model.safetensors"] == WEIGHTS
    assert set(hub.large) == {hashlib.sha256(WEIGHTS).hexdigest()}
    assert hub.files["README.md"] == CARD.encode()
    assert "Bearer hf_test" in hub.tokens


def test_a_public_repository_is_no_private_one(folder: Path, hub: StandIn, push: Push) -> None:
    hub.private["me/mine"] = False
    with pytest.raises(SpecError, match=r"^--private: me/mine is there already, and is public$"):
        push(hub.url, private=True)
    assert hub.files == {}


def test_a_card_that_the_hub_refuses_sends_nothing(folder: Path, hub: StandIn, push: Push) -> None:
    (folder / "README.md").write_text(CARD.replace("license: mit\n", ""))
    with pytest.raises(SpecError, match=r"^--push-to-hub: the Hub refuses README(.|\n)*no license"):
        push(hub.url)
    assert hub.files == {}


def test_without_a_token_nothing_is_asked(folder: Path, hub: StandIn, push: Push) -> None:
    with pytest.raises(SpecError, match="no token; set HF_TOKEN, or run: hf auth login"):
        push(hub.url, token="")
    assert hub.tokens == set()


def test_a_hub_that_is_away_is_told(push: Push) -> None:
    with pytest.raises(Unavailable, match="the Hub does not answer"):
        push("http://127.0.0.1:9")


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no export"):
        parcel(tmp_path)
