"""`peft-sweep run` starts its driver again, whatever killed it or left it hanging."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.breaking import Broken, sweep_tree
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import Launched, ray_node, wait_for

pytestmark = pytest.mark.slow
Drive = Callable[..., Launched]


@pytest.fixture
def sweep(drive: Drive, tmp_path: Path) -> Broken:
    """A sweep on a cluster of its own, a trial at a time, slow enough to be broken."""
    tree = sweep_tree(tmp_path / "runs")
    tree["resources"]["engine_options"]["step_seconds"] = 0.05
    return Broken(tree, drive)


@pytest.mark.parametrize("part", ["--no-supervise", "raylet", "gcs_server"])
def test_a_supervised_sweep_survives_its_driver_and_its_head(
    sweep: Broken, unbroken: dict[int, TrialRecord], part: str
) -> None:
    whole = sweep.launch(supervised=True)
    wait_for(whole.reported)
    died = time.monotonic()
    whole.part(part).kill()
    wait_for(lambda: any(t.user_attrs.get("attempt", 1) > 1 for t in whole.trials()), 150)
    what = "driver" if part.startswith("--") else part
    sweep.note(f"supervised, kill -9 of the {what}", time.monotonic() - died)
    sweep.finish(whole)
    sweep.check_same(unbroken)


def test_a_supervised_sweep_goes_on_when_its_cluster_comes_back(
    sweep: Broken, unbroken: dict[int, TrialRecord], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with ray_node(tmp_path / "first", "--num-cpus=1") as head:
        sweep.tree["resources"]["address"] = head.address
        whole = sweep.launch(supervised=True)
        wait_for(whole.reported)
        head.kill()
        died = time.monotonic()
    port = int(head.address.rpartition(":")[2])
    with ray_node(tmp_path / "second", "--num-cpus=1", port=port):
        wait_for(lambda: any(t.user_attrs.get("attempt", 1) > 1 for t in whole.trials()), 150)
        what = "supervised, kill -9 of the head, which comes back"
        sweep.note(what, time.monotonic() - died)
        sweep.finish(whole)
    sweep.check_same(unbroken)
