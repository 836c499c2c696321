"""What a host wants before it starts, and what ends it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from peft_jobs import SpecError, TrialSpec
from sweeps.backends.ray import host_actor
from sweeps.backends.ray.host_actor import HostActor
from sweeps.records.layout import SweepFolder


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


PROMISED = """
from sweeps.backends.ray.host_actor import HostActor

HostActor("simulated", {}, "0")._host.close(10)
print("simulated starts")
HostActor("solo", {"cache_dir": "never-made"}, "0")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_host_that_was_promised_a_gpu_never_trains_on_the_cpu() -> None:
    """A simulated trial needs no GPU, so pretend ones do for it."""
    done = subprocess.run(
        [sys.executable, "-c", PROMISED], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "simulated starts\n"
    assert "SpecError: torch " in done.stderr.splitlines()[-1]
    assert "cannot use the GPU" in done.stderr.splitlines()[-1]
