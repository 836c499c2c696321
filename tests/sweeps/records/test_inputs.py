"""Local data of a sweep on a cluster lie in its storage, under a name that tells their content."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_jobs import TrialSpec
from peft_jobs.spec.adapters import saved_adapter
from peft_jobs.storage.saved_adapter import FILES, adapter_digest
from sweeps import SweepSpec
from sweeps.records.inputs import MAX_BYTES, with_inputs
from sweeps.records.layout import SweepFolder
from tests.support.saved_adapters import write_saved

RATE = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}
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


def test_the_adapter_that_trials_go_on_from_lies_in_the_storage_too(
    sweep: Sweep, tmp_path: Path
) -> None:
    def place(folder: str, **sections: object) -> str:
        spec = sweep(
            adapter={"from": str(tmp_path / folder)},
            space={"parameters": RATE},
            storage=str(tmp_path / "shared"),
            **sections,
        )
        source = with_inputs(spec, SweepFolder.of(spec)).trial.adapter.source
        assert source is not None
        return source.name_or_path

    for folder, value in (("a/x", 1.0), ("b/x", 1.0), ("c/x", 2.0), ("shared/x", 1.0)):
        write_saved(tmp_path / folder, value=value)
        (tmp_path / folder / "README.md").write_text("stays")
    cluster = {"resources": {"address": "auto"}}
    places = [place(f"{name}/x", **cluster) for name in "abc"]
    assert places[0] == places[1] != places[2]
    for location, folder in zip(places, ("a/x", "b/x", "c/x"), strict=True):
        assert Path(location).is_relative_to(tmp_path / "shared")
        assert adapter_digest(Path(location)) == adapter_digest(tmp_path / folder)
        assert {p.name for p in Path(location).iterdir()} == set(FILES) - {"labels.json"}
    assert place("shared/x", **cluster) == str(tmp_path / "shared" / "x")
    assert place("a/x") == str(tmp_path / "a" / "x")


def test_a_store_takes_the_adapter_and_a_host_brings_it(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / "staging"))
    spec = sweep(adapter={"from": write_saved(tmp_path / "x")}, space={"parameters": RATE})
    spec = spec.model_copy(update={"storage": f"file://{tmp_path}/store"})
    sent = with_inputs(spec, SweepFolder.of(spec)).trial
    assert sent.adapter.source is not None
    location = sent.adapter.source.name_or_path
    assert location.startswith(f"file://{tmp_path}/store/")
    again = TrialSpec.model_validate_json(sent.to_json())  # on a host
    saved = saved_adapter(again.adapter)
    assert saved.folder.is_relative_to(tmp_path / "staging" / "host")
    assert len(saved.shapes) == 8
