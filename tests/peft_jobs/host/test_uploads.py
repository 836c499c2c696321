"""Attempts whose files belong into an object store, on hosts that share no disk."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from peft_jobs import Progress, State, TrialResult, TrialSpec
from peft_jobs.engines.simulated import SimulatedEngine
from peft_jobs.host.job import Inbox, Job, Prepared, serve_one_at_a_time
from peft_jobs.host.messages import Assignment, Interrupted, Message, Report
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.host.uploads import Uploads
from peft_jobs.storage import object_store as store
from peft_jobs.storage import retry
from tests.support.object_store import BUCKET, ObjectStore, object_store

WAIT = 30.0
RUNGS = [80, 160, 240]
SPEC = TrialSpec.model_validate(
    {
        "model": "demo",
        "task": {"type": "causal_lm", "response": "{sentence}"},
        "data": {"train": "demo"},
        "training": {"max_samples": 320},
        "evaluation": {"rungs": RUNGS},
    }
)
Machine = Callable[..., TrialHost]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A host on a disk of its own; engine options -> host."""
    made: list[TrialHost] = []

    def make(engine: Any = None, **options: Any) -> TrialHost:
        monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / f"disk-{len(made)}"))
        made.append(TrialHost(engine or SimulatedEngine(**options)))
        return made[-1]

    yield make
    for one in made:
        assert one.close(WAIT)


@pytest.fixture
def trial(server: ObjectStore, request: pytest.FixtureRequest) -> str:
    """URL of the attempts of a trial that no other test has."""
    return f"{server.url}/{request.node.name}/trials/0000/attempts"


def submit(host: TrialHost, trial: str, attempt: int = 1, checkpoint: str | None = None) -> None:
    host.submit(Assignment(0, attempt, SPEC.to_json(), f"{trial}/{attempt}", checkpoint))


def follow(host: TrialHost, attempt: int = 1, seq: int = 0) -> Iterator[Message]:
    """All messages, each acknowledged when the next one is asked for, up to the end."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        message = host.next_report(0, attempt, seq, 1.0)
        if message is not None:
            yield message
            if not isinstance(message, Report):
                return
            seq = message.seq
    raise TimeoutError("no end has come")


def files(disk: Path) -> list[str]:
    return [p.name for p in disk.rglob("*") if p.is_file()]


def test_a_checkpoint_is_named_when_the_store_has_it(
    machine: Machine, trial: str, tmp_path: Path
) -> None:
    host = machine(step_seconds=0.01)
    submit(host, trial)
    told = []
    for message in follow(host):
        if isinstance(message, Report) and (url := message.progress.checkpoint):
            assert store.exists(url)
            assert url.startswith(f"{trial}/1/checkpoints/step-")
            told.append(message.progress.rung)
    assert told
    assert told == sorted(set(told)), "one report of a rung names its checkpoint"
    assert message.result.state == "COMPLETE"
    assert not files(tmp_path / "disk-0"), "what the store has needs no room here"


def test_a_checkpoint_that_is_being_written_is_left_alone(
    trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path))
    directory = store.local_folder(f"{trial}/1")
    outlet = Uploads(f"{trial}/1", directory)
    outlet.open(None, "", lambda: None)
    folder = directory / "checkpoints"
    for name in ("step-00000010", "step-00000020", ".step-00000030.aside"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{}")
    named: Queue[Progress] = Queue()
    progress = Progress(step=20, samples=20, tokens=20, checkpoint=str(folder / "step-00000020"))
    outlet.report(progress, named.put)
    assert named.get(timeout=WAIT).checkpoint == f"{trial}/1/checkpoints/step-00000020"
    deadline = time.monotonic() + WAIT
    while (folder / "step-00000010").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    left = sorted(path.name for path in folder.iterdir())
    ended: Queue[Any] = Queue()
    outlet.end(None, ended.put)
    ended.get(timeout=WAIT)
    assert left == [".step-00000030.aside", "step-00000020"]


def test_every_report_goes_out_though_checkpoints_are_overtaken(
    machine: Machine, trial: str
) -> None:
    host = machine()
    submit(host, trial)
    rungs = [m.progress.rung for m in follow(host) if isinstance(m, Report)]
    assert set(rungs) == set(RUNGS)
    firsts = [rungs.index(rung) for rung in RUNGS]
    assert firsts == sorted(firsts)


def test_a_trial_goes_on_where_another_machine_left_it(machine: Machine, trial: str) -> None:
    first = machine(step_seconds=0.02)
    submit(first, trial)
    last, rungs = None, []
    for message in follow(first):
        if not isinstance(message, Report):
            break
        rungs.append(message.progress.rung)
        last = message.progress.checkpoint or last
        if last is not None:
            first.close(WAIT)
    assert message == Interrupted()
    assert last is not None
    second = machine()
    submit(second, trial, 2, last)
    *reports, end = follow(second, 2)
    assert end.result.provenance["resumed_from"] == int(last[-8:])
    unbroken = machine()
    submit(unbroken, f"{trial}-unbroken")
    *_, whole = follow(unbroken)
    assert end.result.metrics == whole.result.metrics
    assert {*rungs, *(m.progress.rung for m in reports)} >= set(RUNGS)


@pytest.mark.parametrize(
    "what", ["half of it is gone", "its content has changed", "its manifest is torn"]
)
def test_an_earlier_checkpoint_is_taken_where_the_last_one_is_damaged(
    machine: Machine, trial: str, server: ObjectStore, tmp_path: Path, what: str
) -> None:
    trial = trial.replace(" ", "-")
    first = machine(step_seconds=0.02)
    submit(first, trial)
    named = []
    for message in follow(first):
        if isinstance(message, Report) and (url := message.progress.checkpoint):
            store.fetch(url, tmp_path / "kept" / url[-13:])
            named.append(url)
            if len(named) == 2:
                first.close(WAIT)
    for url in named:
        store.put(tmp_path / "kept" / url[-13:], url)
    key = named[1].removeprefix(f"s3://{BUCKET}/")
    if what == "half of it is gone":
        server.client.delete_object(Bucket=BUCKET, Key=f"{key}/manifest.json")
    elif what == "its manifest is torn":
        server.client.put_object(Bucket=BUCKET, Key=f"{key}/manifest.json", Body=b'{"files"')
    else:
        body = server.client.get_object(Bucket=BUCKET, Key=f"{key}/state.json")["Body"].read()
        server.client.put_object(
            Bucket=BUCKET, Key=f"{key}/state.json", Body=body.replace(b'"step": ', b'"step":1')
        )
    second = machine()
    submit(second, trial, 2, named[1])
    *_, end = follow(second, 2)
    assert end.result.provenance["resumed_from"] == int(named[0][-8:])


def test_training_goes_on_while_the_store_is_away(
    machine: Machine, trial: str, server: ObjectStore
) -> None:
    host = machine(step_seconds=0.01)
    server.gate.close()
    try:
        submit(host, trial)
        heard, seq = [], 0
        while len(heard) < len(RUNGS):
            message = host.next_report(0, 1, seq, WAIT)
            assert message is not None
            heard.append(message.progress)
            seq = message.seq
        assert [p.rung for p in heard] == RUNGS
        assert [p.checkpoint for p in heard] == [None] * 3
    finally:
        server.gate.open()
    *_, end = follow(host, seq=seq)
    assert end.result.state == "COMPLETE"


class _Adapters:
    """An engine whose trials only leave an adapter and a log."""

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        return Prepared(train_rows=1)

    def serve(self, inbox: Inbox) -> None:
        serve_one_at_a_time(inbox, self._run)

    def status(self) -> dict[str, Any]:
        return {}

    def _run(self, job: Job) -> TrialResult:
        (job.directory / "adapter").mkdir(parents=True)
        (job.directory / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        (job.directory / "log.txt").write_text("a line")
        return TrialResult(state=State.COMPLETE, adapter="adapter")


def test_the_end_is_told_when_the_store_has_the_adapter(
    machine: Machine, trial: str, server: ObjectStore, tmp_path: Path
) -> None:
    host = machine(_Adapters())
    server.gate.close()
    try:
        submit(host, trial)
        assert host.next_report(0, 1, 0, 1.0) is None
        assert host.status()["running"] == [], "its slot does not wait"
    finally:
        server.gate.open()
    (end,) = follow(host)
    assert end.result.adapter == "adapter"
    below = trial.removeprefix(f"{server.url}/")
    assert server.read(f"{below}/1/adapter/adapter_model.safetensors") == b"weights"
    assert server.read(f"{below}/1/log.txt") == b"a line"
    assert store.exists(f"{trial}/1/adapter")
    assert not files(tmp_path / "disk-0")


def test_a_store_that_stays_away_costs_the_adapter_and_says_where_it_is(
    machine: Machine,
    trial: str,
    server: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.5)
    host = machine(_Adapters())
    server.gate.close()
    try:
        submit(host, trial)
        (end,) = follow(host)
    finally:
        server.gate.open()
    result = end.result
    assert (result.state, result.adapter) == ("COMPLETE", None)
    assert "its adapter is only in " in result.error
    kept = Path(result.error.partition("only in ")[2].partition(" on its")[0])
    assert (kept / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
    shutil.rmtree(kept)


class _Failing(MemoryFileSystem):  # type: ignore[misc]
    """A file system whose errors are no OSErrors."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def isfile(self, path: str) -> bool:
        raise ValueError("closed today")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        raise ValueError("closed today")


@pytest.fixture
def failing() -> str:
    """URL of a trial's attempts in a store that cannot be read or written."""
    fsspec.register_implementation("failing", _Failing, clobber=True)
    return "failing://box/trials/0000/attempts"


def test_a_trial_starts_whatever_a_store_raises(
    machine: Machine, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = machine()
    submit(host, failing, 2, f"{failing}/1/checkpoints/step-00000010")
    *reports, end = follow(host, 2)
    assert end.result.state == "COMPLETE"
    assert {report.progress.rung for report in reports} == set(RUNGS)
    assert all(report.progress.checkpoint is None for report in reports)
    told = [
        r.message for r in caplog.records if r.exc_info and "closed today" in str(r.exc_info[1])
    ]
    assert "no checkpoint can be fetched, the store fails in a way of its own" in told


def test_a_checkpoint_that_a_store_fails_over_stays_here(
    failing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path))
    directory = store.local_folder(f"{failing}/1")
    path = directory / "checkpoints" / "step-00000020"
    path.mkdir(parents=True)
    (path / "state.json").write_text("{}")
    outlet = Uploads(f"{failing}/1", directory)
    outlet.open(None, "", lambda: None)
    named: Queue[Progress] = Queue()
    outlet.report(Progress(step=20, samples=20, tokens=20, checkpoint=str(path)), named.put)
    deadline = time.monotonic() + WAIT
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (path / "state.json").exists()
    assert named.empty()
    assert f"checkpoint {path} stays on this machine" in caplog.text
    ended: Queue[Any] = Queue()
    outlet.end(None, ended.put)
    assert ended.get(timeout=WAIT) is None


def test_an_end_is_told_whatever_a_store_raises(machine: Machine, failing: str) -> None:
    host = machine(_Adapters())
    submit(host, failing)
    (end,) = follow(host)
    result = end.result
    assert (result.state, result.adapter) == ("COMPLETE", None)
    assert "its adapter is only in " in result.error
    assert "closed today" in result.error
    kept = Path(result.error.partition("only in ")[2].partition(" on its")[0])
    assert (kept / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"


class _FailsFirst(SimulatedEngine):
    """Fails as a whole with its first job; keeps the trials that it was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[int] = []

    def serve(self, inbox: Inbox) -> None:
        job = inbox.take()
        if job is None:
            return
        self.handed.append(job.trial)
        if len(self.handed) == 1:
            raise RuntimeError("the engine failed")
        job.end(TrialResult(state=State.COMPLETE, metrics={"validation/loss": 1.0}))


def test_a_trial_that_fetches_its_checkpoint_has_no_part_in_anothers_failure(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    fetch = store.fetch

    def slow(url: str, local: Path) -> None:
        gate.wait(WAIT)
        fetch(url, local)

    monkeypatch.setattr(store, "fetch", slow)
    engine = _FailsFirst()
    host = machine(engine)
    trial = f"file://{tmp_path}/store/trials/0000/attempts"
    submit(host, trial, 2, f"{trial}/1/checkpoints/step-00000010")  # it fetches
    host.submit(Assignment(1, 1, SPEC.to_json(), str(tmp_path / "1" / "1")))
    failed = host.next_report(1, 1, 0, WAIT)
    assert failed is not None
    assert failed.result.error == "the engine failed"
    assert host.poll(0, 2, 0) is None, "it goes on"
    gate.set()
    (*_, end) = follow(host, 2)
    assert end.result.state == "COMPLETE"
    assert engine.handed == [1, 0]


def test_a_trial_that_is_cancelled_while_it_fetches_is_never_run(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(store, "fetch", lambda url, local: gate.wait(WAIT))
    engine = _FailsFirst()
    host = machine(engine)
    trial = f"file://{tmp_path}/store/trials/0000/attempts"
    submit(host, trial, 2, f"{trial}/1/checkpoints/step-00000010")
    assert host.request_cancel(0, 2, "weak"), "its slot is free at once"
    gate.set()
    (end,) = follow(host, 2)
    assert (end.result.state, end.result.kind) == ("PRUNED", "weak")
    assert engine.handed == []
