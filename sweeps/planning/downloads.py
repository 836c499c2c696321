"""What a sweep will download from the Hugging Face Hub, by its metadata: nothing is fetched."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO
from peft_jobs.storage.object_store import is_url

_OF_A_MODEL = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
"""Files of a repository's top folder that transformers loads, at most."""


@dataclass(frozen=True)
class Download:
    """A repository of the Hub."""

    what: Literal["base", "adapter", "data"]
    repo_id: str
    bytes: int | None
    """Of the files that a sweep needs and that are not in this machine's cache; of data, of all
    splits and configurations. None where the Hub did not tell."""
    unknown: str | None = None
    """Why it did not."""


def downloads(trials: Sequence[TrialSpec]) -> list[Download]:
    """Of the bases, saved adapters and data of the trials, each repository once."""
    return [_download(*asked) for asked in dict.fromkeys(_repositories(trials))]


Asked = tuple[Literal["base", "adapter", "data"], str, str | None]
"""What for, repository, and its revision."""


def _repositories(trials: Sequence[TrialSpec]) -> Iterator[Asked]:
    for trial in trials:
        if _is_of_hub(trial.model.name_or_path):
            yield "base", trial.model.name_or_path, trial.model.revision
        source = trial.adapter.source
        if source is not None and _is_of_hub(source.name_or_path):
            yield "adapter", source.name_or_path, source.revision
        for rows in trial.data.sources.values():
            if not rows.is_file and _is_of_hub(rows.path):
                yield "data", rows.path, rows.revision


def _is_of_hub(name: str) -> bool:
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith((".", "~")) or path.exists()
    return name != DEMO and not is_path and not is_url(name)


def _download(what: Literal["base", "adapter", "data"], repo_id: str, revision: Any) -> Download:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api, kind = HfApi(), "dataset" if what == "data" else "model"
    info = api.dataset_info if what == "data" else api.model_info
    try:
        found = info(repo_id, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:
        return Download(what, repo_id, None, "HF_HUB_OFFLINE is set")
    except HFValidationError:
        return Download(what, repo_id, None, "no such folder here, and no name of the Hub's")
    except HfHubHTTPError as error:
        return Download(what, repo_id, None, f"the Hub answers {error.response.status_code}")
    except (HTTPError, OSError):
        return Download(what, repo_id, None, "the Hub does not answer")

    def is_here(name: str) -> bool:
        cached = try_to_load_from_cache(repo_id, name, revision=revision, repo_type=kind)
        return isinstance(cached, str)

    is_needed: Callable[[str], bool] = _of_a_model if what != "data" else _of_data
    files = [file for file in found.siblings or () if is_needed(file.rfilename)]
    missing = (file.size or 0 for file in files if not is_here(file.rfilename))
    return Download(what, repo_id, sum(missing))


def _of_a_model(name: str) -> bool:
    return "/" not in name and name.endswith(_OF_A_MODEL) and not name.startswith("consolidated")


def _of_data(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".md")
