"""The base and the data of a trial, as other programs and other machines find them."""

from pathlib import Path

from peft_jobs import TrialSpec
from peft_jobs.demo import BASE
from peft_jobs.spec import DEMO, Source


def base_name(spec: TrialSpec) -> str:
    """Hub id or folder of the base; that of the demo is in the package."""
    name = spec.model.name_or_path
    return str(BASE) if name == DEMO else name


def base_title(path: str) -> str:
    """A name for a base or data that tells nothing of this machine's folders."""
    return Path(path).name if Path(path).is_absolute() else path


def sources(spec: TrialSpec) -> dict[str, Source]:
    """The sources of rows, by split."""
    data = spec.data
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    return {split: source for split, source in given.items() if isinstance(source, Source)}


def local_paths(spec: TrialSpec) -> list[str]:
    """The paths of this machine that a trial names: of its base, and of its rows."""
    named = [spec.model.name_or_path, *(source.path for source in sources(spec).values())]
    return [path for path in dict.fromkeys(named) if Path(path).is_absolute()]
