"""A mirror whose store fails in ways of its own."""

import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sweeps.records import mirror as module
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.records.mirror import MAX_TRIES, Mirror

SECONDS = 20.0


class _Moody(MemoryFileSystem):  # type: ignore[misc]
    """A store whose client raises what no store should, for some files or for a while."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    moods: ClassVar[dict[str, int]] = {}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        for name, left in self.moods.items():
            if name in path and "w" in mode and left > 0:
                self.moods[name] = left - 1
                raise RuntimeError("signature expired")
        return super()._open(path, mode, **options)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SweepFolder:
    fsspec.register_implementation("moody", _Moody, clobber=True)
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path))
    monkeypatch.setattr(module, "FAILED_PAUSE_SECONDS", 0.01)
    _Moody.store.clear()
    _Moody.moods.clear()
    folder = SweepFolder(storage_folder("moody://box/runs"), "one").with_mirror(Mirror())
    for number in range(4):
        folder.result(number).parent.mkdir(parents=True)
        folder.result(number).write_text(f"{number}")
    return folder


def put_all(folder: SweepFolder) -> int:
    assert folder.mirror is not None
    folder.keep(*(folder.result(number) for number in range(4)))
    deadline = time.monotonic() + SECONDS
    while folder.mirror._wishes and time.monotonic() < deadline:
        time.sleep(0.01)
    return folder.mirror.close(SECONDS)


def test_an_error_of_the_stores_own_kind_holds_up_nothing_else(
    folder: SweepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    _Moody.moods["0001"] = 2
    assert put_all(folder) == 0
    assert folder.results() == {0, 1, 2, 3}
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 1
    assert "the store fails in a way of its own" in told[0].message


def test_a_wish_that_always_fails_is_given_up_and_told(
    folder: SweepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    _Moody.moods["0001"] = 1000
    assert put_all(folder) == 0
    assert folder.results() == {0, 2, 3}
    assert f"0001/result.json is given up after {MAX_TRIES} tries" in caplog.text
