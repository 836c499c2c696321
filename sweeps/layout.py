"""Where things lie: `<storage>/<sweep>/trials/0007/...`, and the names of a trial."""

import re
from dataclasses import dataclass
from pathlib import Path

from search_spaces import Params
from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep in its storage."""

    storage: Path
    name: str

    @classmethod
    def of(cls, spec: SweepSpec) -> "SweepFolder":
        return cls(Path(spec.storage), spec.name)

    @property
    def option(self) -> str:
        """What a command needs to find this storage from here; empty for `runs`."""
        return "" if self.storage == Path("runs").absolute() else f" --storage {self.storage}"

    @property
    def path(self) -> Path:
        return self.storage / self.name

    @property
    def outbox(self) -> Path:
        return self.path / "tracking.db"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def study_url(self) -> str:
        return f"sqlite:///{self.storage / 'optuna.db'}"

    @property
    def tracking_url(self) -> str:
        return f"sqlite:///{self.storage / 'mlflow.db'}"

    @property
    def cache(self) -> Path:
        """Tokenized data, shared by all sweeps of the storage."""
        return self.storage / "cache"

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def attempt(self, number: int, attempt: int) -> Path:
        return self.trial(number) / "attempts" / str(attempt)

    def result(self, number: int) -> Path:
        """There if and only if the trial has ended."""
        return self.trial(number) / "result.json"

    def checkpoints(self, number: int) -> list[Path]:
        """All checkpoints of a trial, the newest last: by step, then by attempt."""
        found = self.trial(number).glob("attempts/*/checkpoints/step-*")
        return sorted(found, key=lambda path: (path.name, int(path.parts[-3])))


def run_name(number: int, params: Params) -> str:
    """`trial-0007-r16-a32-attention`: what tells trials apart in a list, in MLflow above all."""
    parts = [f"trial-{number:04d}"]
    for name, letter in (("adapter.r", "r"), ("adapter.lora_alpha", "a")):
        if name in params:
            parts.append(f"{letter}{float(params[name]):g}")  # type: ignore[arg-type]
    targets = params.get("adapter.target_modules")
    if targets is not None:
        text = targets if isinstance(targets, str) else "+".join(map(str, targets))  # type: ignore[arg-type]
        parts.append(re.sub(r"[^A-Za-z0-9+_.-]+", "_", text)[:40])
    return "-".join(parts)
