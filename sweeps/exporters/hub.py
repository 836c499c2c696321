"""An export goes to the Hugging Face Hub, in one commit, and nothing of it that names this machine.

What leaves are the files of the export's own folder; its folders (rows, files for other programs,
the merged model) stay, and so do the records, and a `trial.json` that names local paths.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from peft_jobs import SpecError, TrialSpec
from peft_jobs.storage.attempt_folder import SAMPLES_FILE, TRIAL_FILE
from sweeps.errors import Unavailable
from sweeps.exporters.card.front_matter import CARD_FILE
from sweeps.exporters.names import local_paths
from sweeps.file_names import EXPORT_FILE

_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Parcel:
    """What of an export would leave for the Hub."""

    folder: Path
    files: tuple[str, ...]
    kept: dict[str, str]
    """Names of what stays, with the reason."""
    warnings: tuple[str, ...]
    """What of this machine, or of its data, is in the files all the same."""

    @property
    def num_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)


def parcel(folder: Path) -> Parcel:
    """What of the export in `folder` would leave; SpecError if there is none."""
    if not (folder / EXPORT_FILE).is_file():
        raise SpecError(f"{folder} holds no export")
    spec = TrialSpec.model_validate_json((folder / TRIAL_FILE).read_text(encoding="utf-8"))
    local = local_paths(spec)
    reasons = dict.fromkeys((EXPORT_FILE, SAMPLES_FILE), "a record of this product's")
    if local:
        reasons[TRIAL_FILE] = f"it names local paths: {', '.join(local)}"
    kept: dict[str, str] = {}
    files = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            kept[f"{path.name}/"] = "folders stay"
        elif path.name in reasons:
            kept[path.name] = reasons[path.name]
        else:
            files.append(path.name)
    return Parcel(folder, tuple(files), kept, tuple(_warnings(folder, list(kept))))


def _warnings(folder: Path, kept: list[str]) -> list[str]:
    found = []
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    if named := [name for name in kept if f"`{name}" in card]:
        found.append(f"{CARD_FILE} speaks of what stays: {', '.join(named)}")
    base = json.loads((folder / _CONFIG).read_text("utf-8")).get("base_model_name_or_path") or ""
    if Path(base).is_absolute():
        found.append(f"{_CONFIG} and {CARD_FILE} name the base by its local path, {base}")
    samples = folder / SAMPLES_FILE
    if samples.is_file() and (answers := json.loads(samples.read_text("utf-8"))["answers"]):
        found.append(f"{CARD_FILE} shows {len(answers)} rows of the validation data")
    return found


def push_to_hub(folder: Path, repo_id: str, private: bool = False) -> str:
    """Put the export in `folder` into the model repository `repo_id`; the commit's address.

    The repository is made if it is not there. The token is that of the environment (`HF_TOKEN`) or
    of `hf auth login`. The Hub checks the card before anything is committed. Raises SpecError
    without a token, for a card or a name that the Hub refuses, and for a public repository where a
    private one is asked for; Unavailable if the Hub does not answer.
    """
    from httpx2 import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    sent = parcel(folder)
    if get_token() is None:
        raise SpecError("--push-to-hub: no token; set HF_TOKEN, or run: hf auth login")
    api = HfApi()
    operations = [CommitOperationAdd(name, folder / name) for name in sent.files]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise SpecError(f"--private: {repo_id} is there already, and is public")
        done = api.create_commit(repo_id, operations, commit_message="Export of a sweep's adapter")
    except SpecError:
        raise
    except HFValidationError as error:
        raise SpecError(f"--push-to-hub: {error}") from error
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise Unavailable(f"--push-to-hub: the Hub is out of order: {error}") from error
        raise SpecError(f"--push-to-hub: the Hub refuses {repo_id}: {error}") from error
    except ValueError as error:
        raise SpecError(f"--push-to-hub: the Hub refuses {CARD_FILE}: {error}") from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise Unavailable(f"--push-to-hub: the Hub does not answer: {error}") from error
    return str(done.commit_url)
