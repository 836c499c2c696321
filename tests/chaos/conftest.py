"""One cluster and one unbroken run, shared; drivers in processes of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.breaking import Broken, in_parallel, sweep_tree
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import Launched, Node, drivers, ray_node


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """See `tests.support.ray_nodes.drivers`."""
    with drivers(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one node with two cores; no test harms the node itself."""
    with ray_node(tmp_path_factory.mktemp("ray"), "--num-cpus=2") as node:
        yield node


@pytest.fixture
def one_at_a_time(
    drive: Callable[..., Launched], tmp_path: Path, one_node: Node
) -> Callable[..., Broken]:
    """Sections -> a sweep that must end as `unbroken`."""
    return lambda **sections: Broken(
        sweep_tree(tmp_path / "runs", **{"address": one_node.address, **sections}),
        drive,
        nodes=(one_node,),
    )


@pytest.fixture
def two_at_a_time(
    drive: Callable[..., Launched], tmp_path: Path, one_node: Node
) -> Callable[..., Broken]:
    """Sections -> a sweep with two trials at a time."""
    return lambda **sections: Broken(
        in_parallel(tmp_path / "runs", **{"address": one_node.address, **sections}),
        drive,
        nodes=(one_node,),
    )


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, one_node: Node) -> dict[int, TrialRecord]:
    """The records of a sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    with drivers(folder) as start:
        sweep = Broken(sweep_tree(folder / "runs", one_node.address), start)
        output = sweep.launch().finish()
    assert "status: complete" in output, output
    sweep.check_whole()
    found: dict[int, Any] = sweep.read()
    assert {record.state for record in found.values()} == {"COMPLETE", "PRUNED"}
    return found
