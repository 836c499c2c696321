"""Sweeps whose storage is an object store: refused in time, or kept there as in a folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from peft_jobs import Progress, SpecError
from peft_jobs.storage import object_store as store
from peft_jobs.storage.files import write_json
from sweeps import SweepSpec
from sweeps.errors import Unavailable
from sweeps.housekeeping.archive import archive_sweep, restore_sweep
from sweeps.housekeeping.deletion import delete_sweep
from sweeps.housekeeping.remains import remains_of
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.records.mirror import Mirror, mirrored
from sweeps.records.reader import recorded_names
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch
from sweeps.spec.loading import build_sweep
from tests.support.object_store import ObjectStore, object_store

Sweep = Callable[..., SweepSpec]
SERVERS = {"study_url": "postgresql+psycopg://db/x", "tracking": {"uri": "http://mlflow:5000"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(autouse=True)
def _staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / "staging"))


def in_store(spec: SweepSpec, url: str, tmp_path: Path) -> SweepSpec:
    """The sweep in a store, with its study in a file of this machine."""
    study = f"sqlite:///{tmp_path / 'study.db'}"
    return spec.model_copy(update={"storage": url, "study_url": study})


def test_all_that_keeps_a_sweep_from_a_store_is_told_at_once(tree: Callable[..., Any]) -> None:
    with pytest.raises(SpecError) as refused:
        build_sweep(
            tree(
                storage="s3://key:secret@bucket/runs",
                study_url="sqlite:////x.db",
                tracking={"enabled": True},
                objective={"metric": "validation/los"},
            )
        )
    told = str(refused.value)
    assert "storage: must be a plain URL; credentials and endpoint come from" in told
    assert "study_url: a sweep in an object store needs a database server" in told
    assert "tracking.uri: a sweep in an object store needs an MLflow server" in told
    assert "objective.metric: 'validation/los' is not measured" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://", "storage: must look like s3://bucket/prefix"),
        ("s3://bucket/x?secret_key=abc", "storage: must be a plain URL"),
        ("s3://bucket/" + "x" * 200, "storage: a URL has at most 120 characters"),
    ],
)
def test_urls_that_cannot_be_a_storage_are_refused(
    tree: Callable[..., Any], url: str, told: str
) -> None:
    with pytest.raises(SpecError, match=told.replace("?", r"\?")):
        build_sweep(tree(storage=url, **SERVERS))


def test_a_store_s_url_is_kept_as_it_is(tree: Callable[..., Any]) -> None:
    spec = build_sweep(tree(storage="s3://bucket/runs/", **SERVERS))
    assert spec.storage == "s3://bucket/runs"
    folder = SweepFolder.of(spec)
    assert folder.location == "s3://bucket/runs"
    assert folder.option == " --storage s3://bucket/runs"
    assert (
        folder.location_of(folder.attempt(7, 2))
        == f"s3://bucket/runs/{spec.name}/trials/0007/attempts/2"
    )
    assert folder.path_of(folder.location_of(folder.attempt(7, 2))) == folder.attempt(7, 2)


def test_a_sweep_in_a_store_has_the_records_of_one_in_a_folder(
    sweep: Sweep, server: ObjectStore, tmp_path: Path
) -> None:
    plain = sweep(tracking="none")
    stored = in_store(plain, f"{server.url}/same", tmp_path)
    boards = [launch(spec).leaderboard for spec in (plain, stored)]
    assert [r.value for r in boards[0].rows] == [r.value for r in boards[1].rows]
    prefix = f"same/{stored.name}"
    keys = {key.removeprefix(f"{prefix}/") for key in server.keys(f"{prefix}/")}
    folder = SweepFolder.of(plain).path
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert keys == files
    for number in range(len(boards[0].rows)):
        name = f"trials/{number:04d}/result.json"
        one, other = (
            json.loads((folder / name).read_text()),
            json.loads(server.read(f"{prefix}/{name}")),
        )
        assert (one["state"], one["metrics"]) == (other["state"], other["metrics"])


def test_a_sweep_is_read_and_gone_on_with_on_another_machine(
    sweep: Sweep, server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/moving"
    spec = in_store(sweep(tracking="none"), url, tmp_path)
    before = launch(spec).leaderboard
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / "other"))
    assert recorded_names(storage_folder(url)) == [spec.name]
    found = open_sweep(url, spec.name, spec.study_url)
    assert found.spec.storage == url
    assert found.leaderboard() == before
    assert found.curves().rows == ()
    report = Progress(step=1, samples=2, tokens=3, metrics={"train/loss": 0.5})
    metrics = f"{url}/{spec.name}/trials/0000/attempts/1/metrics.jsonl"
    store.put_text(report.model_dump_json(), metrics)
    assert [(row.trial, row.progress) for row in found.curves().rows] == [(0, report)]
    gone = server.keys(f"moving/{spec.name}/trials/0000/result.json")
    server.client.delete_object(Bucket="sweeps", Key=f"runs/{gone[0]}")
    more = spec.model_copy(
        update={"budget": spec.budget.model_copy(update={"n_trials": spec.budget.n_trials + 2})}
    )
    after = launch(more).leaderboard
    assert len(after.rows) == len(before.rows) + 2
    assert server.keys(f"moving/{spec.name}/trials/0000/result.json") == gone, "it is put again"


def test_a_store_that_takes_nothing_is_told_before_anything_starts(
    sweep: Sweep, server: ObjectStore, tmp_path: Path
) -> None:
    spec = in_store(sweep(tracking="none"), "s3://no-such-bucket/runs", tmp_path)
    with pytest.raises(Unavailable, match="nothing can be put to s3://no-such-bucket/runs"):
        launch(spec)
    assert not (tmp_path / "study.db").exists()


def test_a_mirror_puts_what_was_written_while_the_store_was_away(server: ObjectStore) -> None:
    folder = SweepFolder(storage_folder(f"{server.url}/late"), "one")
    with mirrored(folder.path, 30.0) as mirror:
        assert mirror is not None
        folder = folder.with_mirror(mirror)
        server.gate.close()
        try:
            for number in range(3):
                write_json(folder.result(number), {"number": number})
                folder.keep(folder.result(number))
            write_json(folder.result(0), {"number": "last"})
            folder.keep(folder.result(0))
            assert server.keys("late/") == [], "nobody has waited for the store"
        finally:
            server.gate.open()
    assert json.loads(server.read("late/one/trials/0000/result.json")) == {"number": "last"}
    assert folder.results() == {0, 1, 2}


def test_a_mirror_says_what_has_not_reached_the_store(server: ObjectStore) -> None:
    folder = SweepFolder(storage_folder(f"{server.url}/never"), "one")
    mirror = Mirror()
    server.gate.close()
    try:
        write_json(folder.result(0), {})
        folder.with_mirror(mirror).keep(folder.result(0))
        assert mirror.close(0.5) == 1
    finally:
        server.gate.open()


def test_no_record_holds_the_store_s_credentials(
    sweep: Sweep, server: ObjectStore, tmp_path: Path
) -> None:
    spec = in_store(sweep(tracking="none"), f"{server.url}/secret", tmp_path)
    launch(spec)
    optuna.load_study(study_name=spec.name, storage=spec.study_url)
    secret = server.environment["AWS_SECRET_ACCESS_KEY"].encode()
    keys = server.keys("secret/")
    assert keys
    assert not [key for key in keys if secret in server.read(key)]
    assert secret not in (tmp_path / "study.db").read_bytes()
    assert store.origin(storage_folder(spec.storage)) == spec.storage


def test_a_sweep_in_a_store_is_archived_deleted_and_restored_into_a_folder(
    sweep: Sweep, server: ObjectStore, tmp_path: Path
) -> None:
    url = f"{server.url}/over"
    spec = in_store(sweep(tracking="none"), url, tmp_path)
    board = launch(spec).leaderboard
    with pytest.raises(SpecError, match=f"keeps its files in {url} "):
        launch(spec.model_copy(update={"storage": str(tmp_path / "other")}))
    remains = remains_of(url, spec.name, spec.study_url)
    assert remains.num_bytes > 1000
    archive_sweep(remains, tmp_path / "over.tar")
    delete_sweep(remains)
    assert server.keys("over/") == []
    assert not SweepFolder.of(spec).path.exists()
    with pytest.raises(SpecError, match="there is no sweep"):
        remains_of(url, spec.name, spec.study_url)
    restore_sweep(tmp_path / "over.tar", tmp_path / "here")
    assert open_sweep(tmp_path / "here", spec.name).leaderboard() == board
