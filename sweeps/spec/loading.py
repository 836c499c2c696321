"""From a YAML file and `key=value` overrides to a SweepSpec; all mistakes of a file at once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO, Source
from peft_jobs.spec.mistakes import Mistake, mistakes, suggest
from peft_jobs.storage.object_store import MAX_URL_CHARACTERS, is_url
from sweeps.file_names import ID_FILE
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.spec.checks import problems
from sweeps.spec.other_names import meant
from sweeps.spec.yaml_file import SweepFileError, override, read_yaml

_OF_DATA = ("model", "task", "data", "resources", "storage")


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The sweep that `path` describes, with `key=value` overrides; paths in it made absolute.

    Relative data, model and storage paths are taken from the current folder, as everywhere on a
    command line. Raises SweepFileError with every mistake of the file.
    """
    tree = _tree(path, overrides)
    tree.setdefault("name", path.stem)
    folder = path.absolute().parent
    if "storage" not in tree and (folder / ID_FILE).is_file():
        tree["storage"] = str(folder.parent)  # a sweep's own file, see `as_file`
    return build_sweep(tree, str(path))


def load_data_alone(path: Path, overrides: Sequence[str] = ()) -> SweepSpec | None:
    """A sweep with the base, task and data of a file that has mistakes elsewhere; None if they are
    in these."""
    tree = _tree(path, overrides)
    kept = {name: tree[name] for name in _OF_DATA if name in tree}
    others = {
        "name": "data",
        "space": {"parameters": {"training.learning_rate": {"choices": [1e-4]}}},
        "budget": {"n_trials": 1, "max_steps": 1},
    }
    try:
        return build_sweep({**kept, **others})
    except SweepFileError:
        return None


def _tree(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    tree = read_yaml(path)
    for text in overrides:
        override(tree, text)
    return tree


def as_file(spec: SweepSpec) -> str:
    """The text of a sweep file that is `spec`, overrides and all, without credentials.

    In the sweep's folder it runs again, also after the storage has moved: it names a storage only
    if that is an object store.
    """
    tree = spec.without_credentials().model_dump(mode="json")
    trial = tree.pop("trial")
    trial["evaluation"].pop("rungs")  # both follow from the budget
    trial["training"].pop("max_samples")
    if not is_url(spec.storage):
        del tree["storage"]
    about = "# What ran, with all defaults and overrides; `peft-sweep run` takes it.\n"
    text = yaml.dump({"name": tree.pop("name"), **trial, **tree}, Dumper=_Plain, sort_keys=False)
    return about + text


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def build_sweep(tree: Mapping[str, Any], source: str = "sweep") -> SweepSpec:
    """A SweepSpec from the mapping of a sweep file; SweepFileError with every mistake."""
    if both := sorted(TrialSpec.model_fields.keys() & tree.keys()) if "trial" in tree else []:
        told = f"trial: must be left out, its sections stand at the top level ({', '.join(both)})"
        raise SweepFileError(source, [told])
    try:
        spec = SweepSpec.model_validate(tree)
    except ValidationError as error:
        lines = [str(_in_file(mistake)) for mistake in mistakes(error, SweepSpec)]
        raise SweepFileError(source, lines) from None
    if found := _bad_paths(spec):
        raise SweepFileError(source, found)
    found = _bad_store(spec)
    spec = _absolute(spec)
    found += problems(spec)
    if found:
        raise SweepFileError(source, found)
    return spec


def _in_file(mistake: Mistake) -> Mistake:
    """The mistake as the file has it, where the trial's sections stand at the top level."""
    path = mistake.path
    if len(path) > 1 and path[0] == "trial":
        path = path[1:]
    if mistake.known is None:
        return replace(mistake, path=path)
    if len(path) > 1:
        return replace(mistake, path=path, meant=meant(path, mistake.known))
    known = {*TrialSpec.model_fields, *SweepSpec.model_fields} - {"trial"}
    return Mistake(path, f"{mistake.must}{suggest(path[0], known, meant(path, known))}")


def _bad_paths(spec: SweepSpec) -> list[str]:
    """What no file system could hold, and a storage that is no folder's path."""
    found = []
    if not spec.storage:
        found.append("storage: must be a folder or an object store's URL, got ''")
    paths = {f"data.{name}": source.path for name, source in spec.trial.data.sources.items()}
    paths |= {} if is_url(spec.storage) else {"storage": spec.storage}
    paths |= {"model.name_or_path": spec.trial.model.name_or_path}
    for name, text in paths.items():
        try:
            Path(text).expanduser().exists()
        except PermissionError:
            continue
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null, no such user
            reason = error.strerror if isinstance(error, OSError) else error
            found.append(f"{name}: is no path that can be used ({reason}), got {text[:80]!r}")
    return found


def _bad_store(spec: SweepSpec) -> list[str]:
    """What keeps a sweep from an object store: its URL, and databases that would be files there."""
    found, url = [], spec.storage
    if not is_url(url):
        return []
    parts = urlsplit(url)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", parts.scheme) or not f"{parts.netloc}{parts.path}":
        found.append(f"storage: must look like s3://bucket/prefix, got {redact(url)!r}")
    elif parts.query or parts.fragment or parts.password or redact(url) != url:
        found.append(
            "storage: must be a plain URL; credentials and endpoint come from the environment of "
            "every node (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...), and of "
            "Azure's, abfs://ACCOUNT.blob.core.windows.net/CONTAINER/prefix will do"
        )
    if len(url) > MAX_URL_CHARACTERS:
        found.append(f"storage: a URL has at most {MAX_URL_CHARACTERS} characters, got {len(url)}")
    if spec.study_url is None or spec.study_url.startswith("sqlite"):
        found.append(
            "study_url: a sweep in an object store needs a database server, such as "
            "postgresql+psycopg://USER@HOST/NAME"
        )
    uri = spec.tracking.uri
    if spec.tracking.enabled and (uri is None or not uri.startswith(("http", "databricks"))):
        found.append(
            "tracking.uri: a sweep in an object store needs an MLflow server, such as "
            "http://HOST:5000 (or `tracking: none`)"
        )
    return found


def _absolute(spec: SweepSpec) -> SweepSpec:
    """The spec with local paths made absolute: trials run in other folders."""
    trial = spec.trial
    data = trial.data
    update = {name: _absolute_source(source) for name, source in data.sources.items()}
    model = trial.model
    if model.name_or_path != DEMO and Path(model.name_or_path).expanduser().is_dir():
        folder = Path(model.name_or_path).expanduser().resolve()
        model = model.model_copy(update={"name_or_path": str(folder)})
    trial = trial.model_copy(update={"data": data.model_copy(update=update), "model": model})
    storage = spec.storage.rstrip("/")
    if not is_url(spec.storage):
        storage = str(Path(spec.storage).expanduser().resolve())
    return spec.model_copy(update={"trial": trial, "storage": storage})


def _absolute_source(source: Source) -> Source:
    if not source.is_file or is_url(source.path):
        return source
    return source.model_copy(update={"path": str(Path(source.path).expanduser().resolve())})
