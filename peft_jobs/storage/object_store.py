"""Object stores: `s3://bucket/prefix` and other URLs, reached through pyarrow's file systems.

An object is whole or not there; a folder is many objects, so its manifest is put last and removed
first: a folder without one is not there. Credentials, endpoint and region come from the machine's
environment (`AWS_*`), never from the URL. pyarrow is imported with the first call.

What a process works on lies on its own disk, under the staging folder (PEFT_SWEEPS_STAGING, by
default ~/.cache/peft-sweeps): a driver's copy of a storage, and apart from it a host's attempts.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from peft_jobs.storage.files import name_beside, sha256, whole_folder
from peft_jobs.storage.retry import retry

MANIFEST = "manifest.json"
MAX_URL_CHARACTERS = 120
_FLAT = ("s3", "gcs", "abfs")
"""Stores without folders."""


def is_url(text: str) -> bool:
    """Whether a storage is a store's URL, and no folder."""
    return "://" in text


def staged(url: str) -> Path:
    """The folder of this machine in which a driver keeps its copy of the storage at `url`."""
    return _staging() / "driver" / quote(url.rstrip("/"), safe="")


def origin(path: Path) -> str | None:
    """The URL that a driver's staged path belongs to; None for any other path."""
    root = _staging() / "driver"
    if not path.is_relative_to(root) or path == root:
        return None
    first, *rest = path.relative_to(root).parts
    return "/".join([unquote(first), *rest])


def local_folder(location: str) -> Path:
    """The folder itself, or where this machine's hosts keep a store's."""
    if not is_url(location):
        return Path(location)
    scheme, bucket, path = _parts(location)
    return _staging() / "host" / scheme / bucket / path.strip("/")


def put(local: Path, url: str) -> None:
    """Put a file, or a folder as a whole; replaces an older one, which is gone first. Raises
    OSError."""
    system, path = _reach(url)
    if not local.is_dir():
        _put_file(system, local, path)
        return
    remove(url)
    files = sorted(p for p in local.rglob("*") if p.is_file() and p.name != MANIFEST)
    sizes = {p.relative_to(local).as_posix(): p.stat().st_size for p in files}
    for name in sizes:
        _put_file(system, local / name, f"{path}/{name}")
    put_text(json.dumps({"files": sizes}), f"{url}/{MANIFEST}")


def put_text(text: str, url: str) -> None:
    """Put a small UTF-8 file."""
    system, path = _reach(url)
    _make_room(system, path)
    with system.open_output_stream(path) as file:
        file.write(text.encode())


def fetch(url: str, local: Path) -> None:
    """Bring a file, or a folder that was put as a whole; `local` is whole or not there.

    Raises FileNotFoundError if the store has no such thing, or its manifest is torn; OSError if it
    does not answer.
    """
    system, path = _reach(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    sizes = _manifest(url)
    if sizes is None:
        aside = name_beside(local)
        try:
            _fetch_file(system, path, aside)
            aside.replace(local)
        finally:
            aside.unlink(missing_ok=True)
        return
    with whole_folder(local) as folder:
        for name, size in sizes.items():
            _fetch_file(system, f"{path}/{name}", folder / name)
            if (folder / name).stat().st_size != size:
                raise OSError(f"{url}/{name} has changed while it was fetched")


def cached(url: str, folder: Path) -> Path:
    """A file on this disk, fetched into `folder` once for as long as it does not change.

    Waits for a store that is away. Raises FileNotFoundError, and GivenUp.
    """
    system, path = _reach(url)
    info = retry(lambda: system.get_file_info([path])[0])
    if info is None or not info.is_file:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    version = sha256(f"{url} {info.size} {info.mtime_ns}")
    local = folder / version[:16] / Path(path).name
    if not local.exists():
        retry(lambda: fetch(url, local))
    return local


def read(url: str) -> str | None:
    """The text of a small file; None if there is none."""
    content = _read(url)
    return None if content is None else content.decode()


def exists(url: str) -> bool:
    """Whether there is such a file, or a folder that was put as a whole."""
    system, path = _reach(url)
    found = system.get_file_info([path, f"{path}/{MANIFEST}"])
    return any(info.is_file for info in found)


def size(url: str) -> int | None:
    """Bytes of a file; None if there is none."""
    system, path = _reach(url)
    found: int | None = system.get_file_info([path])[0].size
    return found


def size_below(url: str) -> int:
    """Bytes of all files at any depth below `url`."""
    from pyarrow.fs import FileSelector

    system, path = _reach(url)
    found = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return sum(info.size for info in found if info.is_file)


def names(url: str) -> list[str]:
    """Files at any depth below `url`, as relative paths; none if nothing is there.

    A key such as `a/../b`, which no folder could hold, is passed over.
    """
    from pyarrow.fs import FileSelector

    system, path = _reach(url)
    found = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    root = path.strip("/")  # some systems list their paths with a slash in front
    files = [info.path.strip("/").removeprefix(f"{root}/") for info in found if info.is_file]
    return sorted(file for file in files if _is_below(file))


def children(url: str) -> list[str]:
    """Names directly below `url`."""
    from pyarrow.fs import FileSelector

    system, path = _reach(url)
    found = system.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def remove(url: str) -> None:
    """Remove a file or a folder, its manifest first; nothing happens if it is not there."""
    system, path = _reach(url)
    below = names(url)
    for name in below:
        if Path(name).name == MANIFEST:
            system.delete_file(f"{path}/{name}")
    if below:
        system.delete_dir(path)
    elif system.get_file_info([path])[0].is_file:
        system.delete_file(path)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """`path`, or for the block a copy of what a driver's staged path stands for.

    Raises FileNotFoundError if there is none.
    """
    url = origin(path)
    if path.exists():
        yield path
        return
    if url is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with tempfile.TemporaryDirectory(prefix="peft-sweeps-") as folder:
        fetch(url, Path(folder) / path.name)
        yield Path(folder) / path.name


def _read(url: str) -> bytes | None:
    system, path = _reach(url)
    try:
        with system.open_input_stream(path) as file:
            return bytes(file.read())
    except (FileNotFoundError, IsADirectoryError):
        return None


def _manifest(url: str) -> dict[str, int] | None:
    """The sizes of a folder's files, by name; None without a manifest."""
    content = _read(f"{url}/{MANIFEST}")
    if content is None:
        return None
    try:
        sizes = dict(json.loads(content)["files"])
        if outside := [name for name in sizes if not _is_below(name)]:
            raise ValueError(f"it names what is not below it, {outside[0]!r}")
    except (ValueError, LookupError, TypeError) as error:  # not put as a whole, or forged
        told = f"its {MANIFEST} cannot be read: {error}"
        raise FileNotFoundError(errno.ENOENT, told, url) from error
    return sizes


def _is_below(name: str) -> bool:
    """Whether a relative name stays below the folder that it is relative to, on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def _staging() -> Path:
    named = os.environ.get("PEFT_SWEEPS_STAGING") or "~/.cache/peft-sweeps"
    return Path(named).expanduser().absolute()


def _reach(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme, bucket, below = _parts(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    system, root = _system(scheme, bucket, endpoint)
    path = f"{root}{below}".rstrip("/")
    return system, path.lstrip("/") if system.type_name in _FLAT else path


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of a URL; what stands in the path is the name, `?`, `#` and `%` too.

    Names of files come behind a storage's URL as they are.
    """
    scheme, _, rest = url.partition("://")
    bucket, slash, path = rest.partition("/")
    return scheme, bucket, slash + path


@lru_cache(maxsize=32)
def _system(scheme: str, bucket: str, endpoint: str | None) -> tuple[Any, str]:
    """The file system, and where the path of a URL begins in it."""
    from pyarrow import fs

    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and endpoint is None:
            region = fs.resolve_s3_region(bucket)
        system = fs.S3FileSystem(
            region=region or "us-east-1",
            endpoint_override=endpoint,
            allow_delayed_open=True,  # one request for a small file
            request_timeout=60.0,
            connect_timeout=5.0,
        )
        return system, bucket
    if scheme == "file":
        return fs.LocalFileSystem(), ""
    try:
        system, root = fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    except ValueError:  # none of pyarrow's own
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), bucket
    return system, root.rstrip("/")


def _make_room(system: Any, path: str) -> None:
    if system.type_name not in _FLAT:
        system.create_dir(path.rpartition("/")[0], recursive=True)


def _put_file(system: Any, local: Path, path: str) -> None:
    _make_room(system, path)
    try:
        with local.open("rb") as source, system.open_output_stream(path) as target:
            shutil.copyfileobj(source, target, 8 << 20)
    except BaseException:  # pyarrow 25 completes the upload of what it has got
        with contextlib.suppress(Exception):  # the first error is the one to tell
            system.delete_file(path)
        raise


def _fetch_file(system: Any, path: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    with system.open_input_stream(path) as source, local.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
