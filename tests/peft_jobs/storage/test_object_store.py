"""A real S3-compatible server: what is put, fetched and removed, and what half an upload is."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from peft_jobs.storage import object_store as store
from peft_jobs.storage.retry import retry
from tests.support.object_store import BUCKET, ObjectStore, object_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(autouse=True)
def _staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / "staging"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files, one of them in a folder of its own."""
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    (made / "small.txt").write_text("ä small one")
    (made / "inner" / "large.bin").write_bytes(bytes(range(256)) * 50_000)
    return made


def test_a_folder_comes_back_as_it_was(server: ObjectStore, folder: Path, tmp_path: Path) -> None:
    url = f"{server.url}/whole"
    store.put(folder, url)
    assert server.keys("whole/") == [
        "whole/inner/large.bin",
        "whole/manifest.json",
        "whole/small.txt",
    ]
    assert server.read("whole/small.txt").decode() == "ä small one"
    store.fetch(url, tmp_path / "back")
    assert (tmp_path / "back" / "small.txt").read_text() == "ä small one"
    large = (tmp_path / "back" / "inner" / "large.bin").read_bytes()
    assert large == (folder / "inner" / "large.bin").read_bytes()
    assert store.exists(url)
    assert store.exists(f"{url}/small.txt")
    assert store.children(url) == ["inner", "manifest.json", "small.txt"]


def test_half_a_folder_is_not_there(server: ObjectStore, folder: Path, tmp_path: Path) -> None:
    url = f"{server.url}/half"
    store.put(folder, url)
    server.client.delete_object(Bucket=BUCKET, Key="runs/half/manifest.json")
    assert not store.exists(url)
    with pytest.raises(FileNotFoundError):
        store.fetch(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    store.put(folder, url)
    server.client.put_object(Bucket=BUCKET, Key="runs/half/small.txt", Body=b"torn")
    with pytest.raises(OSError, match="changed while it was fetched"):
        store.fetch(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_manifest_names_the_files_and_is_no_part_of_what_was_put(
    server: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    store.put(folder, f"{server.url}/once")
    sizes = json.loads(server.read("once/manifest.json"))["files"]
    assert sizes == {"inner/large.bin": 12_800_000, "small.txt": 12}
    store.fetch(f"{server.url}/once", tmp_path / "back")
    assert not (tmp_path / "back" / "manifest.json").exists()


def test_what_is_removed_leaves_its_neighbours(server: ObjectStore, folder: Path) -> None:
    for name in ("trial-1", "trial-10"):
        store.put(folder, f"{server.url}/rows/{name}")
    store.put(folder / "small.txt", f"{server.url}/rows/note.txt")
    store.remove(f"{server.url}/rows/trial-1")
    store.remove(f"{server.url}/rows/nothing")
    assert {key.split("/")[1] for key in server.keys("rows/")} == {"trial-10", "note.txt"}
    store.remove(f"{server.url}/rows/note.txt")
    assert store.children(f"{server.url}/rows") == ["trial-10"]
    assert store.read(f"{server.url}/rows/note.txt") is None


def test_a_staged_path_stands_for_its_url_and_is_read_through(
    server: ObjectStore, folder: Path
) -> None:
    staged = store.staged(server.url)
    assert store.origin(staged / "demo" / "adapter") == f"{server.url}/demo/adapter"
    assert store.origin(folder) is None
    assert store.origin(store.local_folder(server.url)) is None, "a host's files are its own"
    store.put(folder, f"{server.url}/demo/adapter")
    with store.local_copy(staged / "demo" / "adapter") as there:
        assert (there / "small.txt").read_text() == "ä small one"
    assert not there.exists()
    with pytest.raises(FileNotFoundError), store.local_copy(staged / "demo" / "other"):
        pass


def test_a_store_that_is_away_is_waited_for(server: ObjectStore, folder: Path) -> None:
    url = f"{server.url}/late"
    waited = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            server.gate.open()
        time.sleep(0.1)

    server.gate.close()
    retry(lambda: store.put(folder / "small.txt", url), pause=pause)
    assert len(waited) == 2
    assert server.read("late").decode() == "ä small one"
    server.gate.close()
    try:
        assert (
            retry(lambda: store.exists(url), is_wanted=lambda: len(waited) < 3, pause=pause) is None
        )
        with pytest.raises(OSError, match=r"\w"):
            store.put(folder, url)
    finally:
        server.gate.open()


def test_what_breaks_off_in_the_middle_is_not_there(server: ObjectStore, tmp_path: Path) -> None:
    large, url = tmp_path / "large.bin", f"{server.url}/broken-off"
    large.touch()
    os.truncate(large, 40 << 20)
    copied: list[int] = []

    def copy(source: Any, target: Any, length: int) -> None:
        for _ in range(3):  # more than one part of an upload
            copied.append(target.write(source.read(length)))
        raise KeyboardInterrupt

    with patch.object(store.shutil, "copyfileobj", copy), pytest.raises(KeyboardInterrupt):
        store.put(large, url)
    assert sum(copied) == 24 << 20
    assert store.size(url) is None
    assert not store.exists(url)


def test_an_url_of_azure_leads_to_its_container() -> None:
    system, path = store._reach("abfs://account.blob.core.windows.net/container/runs")
    assert (system.type_name, path) == ("abfs", "container/runs")


def test_any_file_system_of_fsspec_will_do(folder: Path, tmp_path: Path) -> None:
    for url in ("memory://box/run", f"file://{tmp_path}/shared/run"):
        store.put(folder, url)
        store.fetch(url, tmp_path / "back")
        assert (tmp_path / "back" / "small.txt").read_text() == "ä small one"
        store.remove(url)
        assert not store.exists(url)
        assert store.names(url) == []


@pytest.mark.parametrize("torn", [b"", b'{"files": {"small', b"[]", b'{"files": 3}', b"\xff"])
def test_a_folder_with_a_torn_manifest_is_not_there(
    server: ObjectStore, folder: Path, tmp_path: Path, torn: bytes
) -> None:
    url = f"{server.url}/torn"
    store.put(folder, url)
    server.client.put_object(Bucket=BUCKET, Key="runs/torn/manifest.json", Body=torn)
    with pytest.raises(FileNotFoundError, match=r"its manifest\.json cannot be read"):
        store.fetch(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "name", ["../out", "/out", "a/../../out", "..", "", "a\\..\\..\\out", "x\0"]
)
def test_a_manifest_that_names_what_is_not_below_it_writes_nothing(
    folder: Path, tmp_path: Path, name: str
) -> None:
    url = f"file://{tmp_path}/store/adapter"
    store.put(folder, url)
    (tmp_path / "store" / "out").write_text("forged")
    (tmp_path / "store" / "adapter" / "manifest.json").write_text(
        json.dumps({"files": {"small.txt": 12, name: 6}})
    )
    with pytest.raises(FileNotFoundError, match=r"names what is not below it"):
        store.fetch(url, tmp_path / "deep" / "here")
    assert list(tmp_path.rglob("out")) == [tmp_path / "store" / "out"]
    assert not (tmp_path / "deep" / "here").exists()


@pytest.mark.parametrize("name", ["a?b=1", "rows#1.jsonl", "100%25", "a;b c"])
def test_a_name_behind_a_url_is_that_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("content")
    url = f"file://{tmp_path}/store/{name}"
    store.put(tmp_path / "file", url)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [name]
    assert store.read(url) == "content"
    assert store.names(f"file://{tmp_path}/store") == [name]
    assert store.local_folder(url).name == name


def test_a_key_that_no_folder_could_hold_is_passed_over(server: ObjectStore) -> None:
    url = f"{server.url}/odd"
    store.put_text("1", f"{url}/a/../../b")
    store.put_text("2", f"{url}/c")
    assert store.names(url) == ["c"]


def test_a_folder_that_is_put_again_is_the_newer_one_or_none(
    server: ObjectStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/again/folder"
    store.put(folder, url)
    first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    first.write_bytes(b"x" * first.stat().st_size)
    (folder / "zzz").mkdir()
    (folder / "zzz" / "last").write_text("last")
    whole = store._put_file

    def torn(system: object, local: Path, path: str) -> None:
        if local.name == "last":
            raise OSError("the store is away")
        whole(system, local, path)

    monkeypatch.setattr(store, "_put_file", torn)
    with pytest.raises(OSError, match="is away"):
        store.put(folder, url)
    with pytest.raises(FileNotFoundError):
        store.fetch(url, tmp_path / "fetched")
    monkeypatch.undo()
    store.put(folder, url)
    store.fetch(url, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "zzz" / "last").read_text() == "last"
