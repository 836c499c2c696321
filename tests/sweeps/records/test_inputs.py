"""Local data of a sweep on a cluster lie in its storage, under a name that tells their content."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import SweepSpec
from sweeps.records.inputs import MAX_BYTES, with_inputs
from sweeps.records.layout import SweepFolder

Sweep = Callable[..., SweepSpec]


def placed(spec: SweepSpec) -> str:
    source = with_inputs(spec, SweepFolder.of(spec)).trial.data.train
    return source.path  # type: ignore[union-attr]


@pytest.fixture
def on_cluster(sweep: Sweep, tmp_path: Path) -> Callable[[Path], SweepSpec]:
    def build(train: Path) -> SweepSpec:
        data = {"train": str(train), "validation": 0.2}
        task = {"type": "causal_lm", "response": "{text}"}
        storage = str(tmp_path / "shared")
        return sweep(data=data, task=task, storage=storage, resources={"address": "auto"})

    return build


def test_equal_data_have_one_place_and_others_another(
    on_cluster: Callable[[Path], SweepSpec], tmp_path: Path
) -> None:
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.csv").write_text(f"text\n{text}\n")
    places = [placed(on_cluster(tmp_path / folder / "rows.csv")) for folder in "abca"]
    assert places[0] == places[1] == places[3] != places[2]
    for place, text in zip(places, ("one", "one", "two"), strict=False):
        assert Path(place).is_relative_to(tmp_path / "shared")
        assert Path(place).read_text() == f"text\n{text}\n"
    assert len(list(Path(places[0]).parent.iterdir())) == 2


def test_what_nodes_share_or_could_not_take_stays_where_it_is(
    on_cluster: Callable[[Path], SweepSpec], sweep: Sweep, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    shared, large = tmp_path / "shared" / "rows.csv", tmp_path / "large.csv"
    for file in (shared, large):
        file.write_text("text\none\n")
    os.truncate(large, MAX_BYTES + 1)  # without a byte on the disk
    for file in (shared, large):
        assert placed(on_cluster(file)) == str(file)


def test_a_sweep_of_this_machine_reads_its_data_where_they_are(
    sweep: Sweep, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\none\n")
    task = {"type": "causal_lm", "response": "{text}"}
    assert placed(sweep(data={"train": str(file), "validation": 0.2}, task=task)) == str(file)
