"""The record of the packing benchmarks: every single measurement, as it was made, with its run.

A run is one call of `packing.py`: machine, versions, date, command, load. Measurements are appended
one at a time to what the file holds by then, so several calls may measure side by side, and the
file is whole after each of them.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs.provenance import environment
from peft_jobs.storage.files import write_json


@dataclass(frozen=True)
class Record:
    """`packing.json`: runs by number, and measurements that name their run."""

    path: Path

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds now."""
        if not self.path.exists():
            return {"runs": {}, "measurements": []}
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def begin(self, table: str, command: str, **machine: Any) -> str:
        """A new run; gives its number."""
        with self._changing() as content:
            number = str(1 + max(map(int, content["runs"]), default=0))
            content["runs"][number] = {
                "table": table,
                "command": command,
                "date": time.strftime("%Y-%m-%d %H:%M"),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "load_average": os.getloadavg(),
                "environment": environment(),
                **machine,
            }
        return number

    def add(self, run: str, setting: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Append one measurement; the setting is what its table has rows for."""
        load = round(os.getloadavg()[0], 2)
        with self._changing() as content:
            table = content["runs"][run]["table"]
            content["measurements"].append(
                {"table": table, "run": run, **setting, **measured, "load": load}
            )

    def forget(self, table: str, arms: Collection[str] | None = None) -> None:
        """Drop the measurements of a table, or of these arms in it, and the runs without any."""
        with self._changing() as content:
            before = {one["run"] for one in content["measurements"]}
            content["measurements"] = [
                one
                for one in content["measurements"]
                if one["table"] != table or (arms is not None and one["arm"] not in arms)
            ]
            empty = before - {one["run"] for one in content["measurements"]}
            content["runs"] = {key: run for key, run in content["runs"].items() if key not in empty}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # the file itself is replaced
            content = self.content
            yield content
            write_json(self.path, content)
        finally:
            os.close(folder)
