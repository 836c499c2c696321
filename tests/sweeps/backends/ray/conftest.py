"""Real Ray: clusters of this machine, and drivers in processes of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ray_nodes import Launched, Node, drivers, ray_node


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """See `tests.support.ray_nodes.drivers`."""
    with drivers(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one node with two cores and two pretend GPUs."""
    with ray_node(tmp_path_factory.mktemp("ray"), "--num-cpus=2", "--num-gpus=2") as head:
        yield head


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two nodes with one core each."""
    with (
        ray_node(tmp_path_factory.mktemp("head"), "--num-cpus=1") as head,
        ray_node(tmp_path_factory.mktemp("other"), "--num-cpus=1", address=head.address),
    ):
        yield head.address
