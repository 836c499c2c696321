"""Files that are whole or not there: written beside the target, synced, renamed over it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically; creates parent folders, replaces an older file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill in the block; it becomes `target`, in place of an older one, at the end.

    Nothing is left of it if the block raises.
    """
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield aside
        aside.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder and give it its name, unless another process was faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        write(folder)
        os.chmod(folder, 0o755)
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def canonical_json(value: Any) -> str:
    """The one text that equal JSON values share: sorted keys, no spaces; what fingerprints hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
