"""Files that are whole or not there."""

import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peft_jobs.storage.files import canonical_json, whole_folder, write_json, write_whole


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def permissions(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(of files, of folders) that are made under the umask of the test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param, 0o777 & ~request.param
    os.umask(before)


def test_the_umask_says_who_may_read_what_is_written(
    tmp_path: Path, permissions: tuple[int, int]
) -> None:
    write_json(tmp_path / "in" / "x.json", {})
    older = tmp_path / "older"
    older.mkdir(mode=0o700)
    (older / "copied").touch(mode=0o600)
    with whole_folder(tmp_path / "made") as aside:
        shutil.copytree(older, aside / "copy")
        shutil.copytree(older, aside, dirs_exist_ok=True)  # with the permissions of `older`
        (aside / "secret").touch(mode=0o600)
    shutil.rmtree(older)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files = {mode for path, mode in found.items() if path.is_file()}
    assert (files, len(found)) == ({permissions[0]}, 7)
    assert {mode for path, mode in found.items() if path.is_dir()} == {permissions[1]}


def test_a_file_is_written_with_its_folders_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_whole(path, "first ü\n")
    write_whole(path, "second\n")
    assert path.read_text(encoding="utf-8") == "second\n"
    assert [p.name for p in path.parent.iterdir()] == ["text.txt"]


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_whole(path, "older\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "older\n"
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_a_reader_sees_the_older_file_or_the_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    texts = {letter * 200_000 for letter in "ab"}
    write_whole(path, min(texts))

    def write() -> None:
        for number in range(60):
            write_whole(path, "ab"[number % 2] * 200_000)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text())
    assert seen
    assert seen <= texts


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_has_no_nan_and_no_infinity(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)
    assert list(tmp_path.iterdir()) == []


def test_equal_values_have_one_canonical_text(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert canonical_json({"a": [1.5, None], "b": 1}) == '{"a":[1.5,null],"b":1}'
    write_json(tmp_path / "x.json", {"b": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"b": 1}
