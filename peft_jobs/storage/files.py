"""Files that are whole or not there: written beside the target, synced, renamed over it.

Who may read them is the umask's to say, as for any file that is simply opened; what libraries make
for its owner alone (safetensors) is given the usual permissions.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically; creates parent folders, replaces an older file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = name_beside(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def name_beside(path: Path) -> Path:
    """A hidden name in the same folder, for what is to be renamed to `path`; nobody else's."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill in the block; it becomes `target`, in place of an older one, at the end,
    when the disk has all of it.

    Nothing is left of it if the block raises.
    """
    aside = name_beside(target)
    aside.mkdir()
    try:
        yield aside
        follow_umask(aside)
        for path in (*aside.rglob("*"), aside):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(aside, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder and give it its name, unless another process was faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = name_beside(target)
    folder.mkdir()
    try:
        write(folder)
        follow_umask(folder)
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def follow_umask(folder: Path) -> None:
    """Give a folder, and all that is in it, the permissions of a folder and of files made anew."""
    probe = name_beside(folder)  # the umask itself cannot be read without being changed
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def sha256(content: str | bytes) -> str:
    """Of a text or of bytes, in hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def canonical_json(value: Any) -> str:
    """The one text that equal JSON values share: sorted keys, no spaces; what fingerprints hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
