"""What a host wants before it starts, and what ends it."""

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from peft_jobs import SpecError, TrialSpec
from sweeps.backends.ray import host_actor
from sweeps.backends.ray.host_actor import HostActor
from sweeps.records.layout import SweepFolder
from tests.support.repository import REPOSITORY


@pytest.mark.parametrize(
    ("here", "seen"),
    [(None, "nothing"), ("of an earlier driver", "another machine's file")],
)
def test_a_host_that_does_not_see_the_storage_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, seen: str
) -> None:
    monkeypatch.setattr(host_actor, "MARKER_SECONDS", 0.0)
    place, text = SweepFolder(tmp_path, "sweep").write_shared_marker()
    if here is None:
        Path(place).unlink()
    else:
        Path(place).write_text(here)
    with pytest.raises(SpecError, match=rf"^storage: must be .*{place} and found {seen}$"):
        HostActor("simulated", {}, None, (place, text))


def test_a_host_waits_for_the_storage(tmp_path: Path) -> None:
    place, text = SweepFolder(tmp_path, "sweep").write_shared_marker()
    Path(place).unlink()
    threading.Timer(0.3, lambda: Path(place).write_text(text)).start()
    host = HostActor("simulated", {}, None, (place, text))
    assert host._host.close(10)


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [
        ("0", {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        (None, {}, {}),
        ("0", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),
        ("0", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
    ids=["a GPU", "no GPU", "the user's", "the user's by its other name"],
)
def test_a_gpus_memory_grows_in_segments_unless_the_user_says_otherwise(
    gpus: str | None, given: dict[str, str], expected: dict[str, str] | None
) -> None:
    names = host_actor.ALLOCATOR_VARIABLES
    plain = {name: value for name, value in os.environ.items() if name not in names}
    told = "import os; from sweeps.backends.ray.host_actor import HostActor\n" + (
        f"HostActor('simulated', {{}}, {gpus!r})._host.close(10)\n"
        f"print({{name: os.environ[name] for name in {names} if name in os.environ}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=REPOSITORY,
        env=plain | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout) == (given if expected is None else expected)


LOSING = """
import asyncio, sys
from pathlib import Path
from sweeps.backends.ray.host_actor import HostActor

async def main(spec, directory):
    host = HostActor("simulated", {"faults": {"0": "device"}}, None)
    await host.submit({"trial": 0, "attempt": 1, "spec_json": spec, "directory": directory})
    print("heard", await host.next_report(0, 1, 0))

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_host_that_loses_its_device_ends_its_process(tmp_path: Path) -> None:
    trial = {
        "model": "demo",
        "task": {"type": "causal_lm", "response": "{sentence}"},
        "data": {"train": "demo"},
    }
    spec = TrialSpec.model_validate(trial).to_json()
    words = [sys.executable, "-c", LOSING, spec, str(tmp_path / "attempts" / "1")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "simulated device" in ended.stderr
