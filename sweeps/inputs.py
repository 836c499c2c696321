"""What a sweep needs from this machine, made reachable for nodes that share no disk with it.

Data go into the sweep's object store, under a name that says what is in them: the same data are the
same sweep wherever it is launched from. Code goes the way of Ray (`sweeps.cluster.backend`).
"""

import hashlib
import importlib.util
import re
import sysconfig
from pathlib import Path

from peft_jobs import store
from peft_jobs.spec import DEMO, Source
from sweeps.errors import Unavailable
from sweeps.layout import SweepFolder
from sweeps.spec import SweepSpec

INPUTS = "inputs"
_OURS = ("peft_jobs", "search_spaces", "sweeps")
_SPLITS = ("train", "validation", "test")


def with_inputs(spec: SweepSpec, folder: SweepFolder) -> SweepSpec:
    """The sweep with its local data in its object store, put there if they are not.

    A sweep in a folder is left as it is. Raises Unavailable if the store does not answer.
    """
    if not folder.in_store:
        return spec
    data, update = spec.trial.data, {}
    for split in _SPLITS:
        source = getattr(data, split)
        if isinstance(source, Source) and source.is_file and not _is_elsewhere(source):
            update[split] = source.model_copy(update={"path": _put(Path(source.path), folder)})
    trial = spec.trial.model_copy(update={"data": data.model_copy(update=update)})
    return spec.model_copy(update={"trial": trial})


def modules(spec: SweepSpec) -> list[Path]:
    """The person's own modules that trials import: files and folders of packages.

    Installed ones must be installed on the nodes too.
    """
    found = {}
    for top in {re.split("[.:]", name)[0] for name in spec.trial.evaluation.metrics}:
        module = importlib.util.find_spec(top)
        if module is not None and module.origin is not None:
            file = Path(module.origin).resolve()
            found[top] = file.parent if module.submodule_search_locations else file
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    own = {path for top, path in found.items() if top not in _OURS}
    return sorted(path for path in own if not any(path.is_relative_to(root) for root in roots))


def named_by_content(file: Path) -> str:
    """`train-0123456789abcdef.jsonl`."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', file.stem)[:60]}-{digest[:16]}{file.suffix}"


def _is_elsewhere(source: Source) -> bool:
    return source.path == DEMO or store.is_url(source.path)


def _put(file: Path, folder: SweepFolder) -> str:
    url = f"{folder.place(folder.path)}/{INPUTS}/{named_by_content(file)}"
    try:
        if not store.exists(url):
            store.put(file, url)
    except OSError as error:
        raise Unavailable(f"{file} cannot be put to {url}: {error}") from error
    return url
