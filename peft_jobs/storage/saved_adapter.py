"""An adapter that was saved before, read without torch: settings, shapes, and a hash of its files.

What PEFT writes (`adapter_config.json`, `adapter_model.safetensors`), in a folder, in a store, or
on the Hugging Face Hub. Pickled weights are refused. `AdapterError` names no field: whoever asked
for the adapter knows it.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft_jobs.errors import SpecError
from peft_jobs.storage.attempt_folder import LABELS_FILE
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.storage.object_store import fetch, is_url, local_folder
from peft_jobs.storage.retry import retry

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, LABELS_FILE)
"""All that counts of an adapter's folder; the names of classes need not be there."""
_MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


class AdapterError(SpecError):
    """There is no such adapter, or its files cannot be used."""


@dataclass(frozen=True)
class SavedAdapter:
    """The files of an adapter, as far as they are read without torch."""

    folder: Path
    settings: dict[str, Any]
    """`adapter_config.json`."""
    shapes: dict[str, tuple[int, ...]]
    """Of the weights, by their names in the file."""


def adapter_folder(name_or_path: str, revision: str | None = None) -> Path:
    """The folder of this machine that holds the adapter's files; absolute.

    A store's is fetched, and so is the Hub's, unless they are here already. Raises AdapterError.
    """
    if is_url(name_or_path):
        return _fetched(name_or_path)
    try:
        path = Path(name_or_path).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not allowed, no such user
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterError(f"{name_or_path[:80]} is no path that can be used ({reason})") from error
    if is_folder:
        return path.resolve()
    if is_file:
        raise AdapterError(f"{path} is a file; give the folder that holds the adapter")
    if path.is_absolute() or name_or_path.startswith((".", "~")):
        raise AdapterError(f"there is no folder {path}")
    return _downloaded(name_or_path, revision)


def read_adapter(folder: Path) -> SavedAdapter:
    """The adapter in a folder. Raises AdapterError if that holds none, or one that is damaged."""
    return SavedAdapter(folder, _settings(folder), _shapes(folder))


def adapter_digest(folder: Path) -> str:
    """sha256 of the adapter's files, in hex. Raises AdapterError."""
    try:
        files = [folder / name for name in FILES if (folder / name).is_file()]
        digests = {
            file.name: _file_digest(str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
        }
        return sha256(canonical_json(digests))
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=64)
def _file_digest(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise AdapterError(
                f"{folder} holds a whole model and no {CONFIG_FILE}: give it as `model` instead"
            )
        raise AdapterError(f"{folder} holds no adapter: it has no {CONFIG_FILE}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise AdapterError(f"{path} does not say what it is: it has no `peft_type`")
    return settings


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if any(folder.glob("*.bin")):
            raise AdapterError(
                f"{folder} holds pickled weights, which can run code and are refused; save the "
                "adapter again with save_pretrained, which writes safetensors"
            )
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}")
    try:
        header, length = _header(path)
        shapes = {
            name: tuple(map(int, entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
        ends = [int(e["data_offsets"][1]) for n, e in header.items() if n != "__metadata__"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise AdapterError(f"{path} is no safetensors file: {error}") from error
    size = path.stat().st_size
    if length + max(ends, default=0) != size:
        raise AdapterError(
            f"{path} is not whole: {length + max(ends, default=0):,} bytes are announced, and it "
            f"has {size:,}"
        )
    if not sum(map(math.prod, shapes.values())):
        raise AdapterError(f"{path} holds no weights")
    return shapes


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError("its header has no sensible length")
        return dict(json.loads(file.read(length))), 8 + length


def _fetched(url: str) -> Path:
    """A folder of a sweep's storage, whose name says what is in it: it does not change."""
    local = local_folder(url)
    if not local.is_dir():
        try:
            retry(lambda: fetch(url, local))
        except FileNotFoundError as error:
            raise AdapterError(f"there is no {url}") from error
    return local


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionResolutionError

    at = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, RevisionResolutionError) as error:
        reason = str(error).strip().partition("\n")[0]
        told = "is neither a folder here nor an adapter that the Hugging Face Hub gives"
        raise AdapterError(f"{at} {told}: {reason}") from error
