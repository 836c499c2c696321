"""The host protocol, with simulated trials: calls that are repeated, lost, late or outdated."""

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import DataError, Diverged, Fenced, OutOfMemory, SpecError, TrialSpec
from peft_jobs.engines.simulated import SimulatedEngine, loss_at
from peft_jobs.host.job import Inbox, Prepared
from peft_jobs.host.messages import Assignment, End, Interrupted, Message, Report
from peft_jobs.host.trial_host import TrialHost

Hosts = Callable[..., TrialHost]
RUNGS = [80, 160, 240]
WAIT = 20.0


def spec(**params: Any) -> TrialSpec:
    base = TrialSpec.model_validate(
        {
            "model": "demo",
            "task": {"type": "causal_lm", "response": "{sentence}"},
            "data": {"train": "demo"},
        }
    )
    horizon = {"training.max_samples": 320, "evaluation.rungs": RUNGS}
    return base.with_params({**horizon, **params})


@pytest.fixture
def host() -> Iterator[Hosts]:
    """Engine options -> a host of two simulated slots, closed after the test."""
    made: list[TrialHost] = []

    def make(engine: Any = None, **options: Any) -> TrialHost:
        made.append(TrialHost(engine or SimulatedEngine(**{"num_slots": 2, **options})))
        return made[-1]

    yield make
    for one in made:
        assert one.close(WAIT)


def submit(host: TrialHost, folder: Path, trial: int, attempt: int = 1, **given: Any) -> None:
    checkpoint = given.pop("checkpoint", None)
    directory = folder / str(trial) / "attempts" / str(attempt)
    host.submit(Assignment(trial, attempt, spec(**given).to_json(), str(directory), checkpoint))


def follow(host: TrialHost, trial: int, attempt: int = 1) -> tuple[list[Message], Message]:
    """Acknowledge reports until the end; the reports, and the end."""
    reports: list[Message] = []
    seq = 0
    while True:
        message = host.next_report(trial, attempt, seq, WAIT)
        assert message is not None, "nothing came"
        if not isinstance(message, Report):
            return reports, message
        reports.append(message)
        seq = message.seq


def test_a_trial_reports_at_its_rungs_and_ends_with_a_result(host: Hosts, tmp_path: Path) -> None:
    one = host()
    submit(one, tmp_path, 0)
    reports, end = follow(one, 0)
    assert [m.seq for m in reports] == [1, 2, 3]
    assert [m.progress.rung for m in reports] == RUNGS
    assert [m.progress.metrics["validation/loss"] for m in reports] == [
        loss_at(spec(), rung) for rung in RUNGS
    ]
    assert (end.result.state, end.result.step) == ("COMPLETE", 40)
    json.dumps(
        [m.model_dump(mode="json") for m in (*reports, end)], allow_nan=False
    )  # plain JSON is all that crosses the wire


def test_submitting_again_does_nothing(host: Hosts, tmp_path: Path) -> None:
    one = host()
    for _ in range(3):
        submit(one, tmp_path, 0)
    follow(one, 0)
    submit(one, tmp_path, 0)
    assert one.next_report(0, 1, 3, WAIT).result.step == 40
    assert one.status()["steps"] == 40


def test_a_newer_attempt_replaces_the_older_which_is_fenced(host: Hosts, tmp_path: Path) -> None:
    one = host()
    submit(one, tmp_path, 7)
    first = one.next_report(7, 1, 0, WAIT)
    assert first is not None
    submit(one, tmp_path, 7, attempt=2, checkpoint=first.progress.checkpoint)
    for call in (
        lambda: one.poll(7, 1, 0),
        lambda: one.next_report(7, 1, 0, 1.0),
        lambda: one.request_cancel(7, 1, "weak"),
        lambda: one.cancel(7, 1, "weak", 1.0),
        lambda: submit(one, tmp_path, 7, attempt=1),
    ):
        with pytest.raises(Fenced) as caught:
            call()
        assert (caught.value.trial, caught.value.attempt, caught.value.current) == (7, 1, 2)
    assert one.current_attempt(7) == 2
    reports, end = follow(one, 7, 2)
    assert [m.progress.rung for m in reports] == RUNGS, "the last report came again"
    assert end.result.state == "COMPLETE"
    assert all("attempts/2/" in m.progress.checkpoint for m in reports[1:])


def test_an_orphan_writes_only_in_the_folder_of_its_attempt(host: Hosts, tmp_path: Path) -> None:
    cut_off, other = host(), host()
    submit(cut_off, tmp_path, 0)
    first = cut_off.next_report(0, 1, 0, WAIT)
    assert first is not None
    submit(other, tmp_path, 0, attempt=2, checkpoint=first.progress.checkpoint)
    before = follow(other, 0, 2)[1]
    written = {p: p.read_bytes() for p in (tmp_path / "0/attempts/2").rglob("*") if p.is_file()}
    assert written
    follow(cut_off, 0, 1)  # the orphan trains on to its end
    after = {p: p.read_bytes() for p in (tmp_path / "0/attempts/2").rglob("*") if p.is_file()}
    assert after == written
    assert other.poll(0, 2, 3) == before


def test_a_lost_answer_loses_nothing(host: Hosts, tmp_path: Path) -> None:
    one = host()
    submit(one, tmp_path, 0)
    first = one.next_report(0, 1, 0, WAIT)
    assert [one.next_report(0, 1, 0, WAIT) for _ in range(3)] == [first] * 3
    second = one.next_report(0, 1, 1, WAIT)
    assert second is not None
    assert second.seq == 2
    assert one.poll(0, 1, 1) == second
    assert one.poll(0, 1, 0) == second, "what was acknowledged is gone"
    end = follow(one, 0)[1]
    assert one.poll(0, 1, 3) == one.poll(0, 1, 3) == end, "the end may be asked for again"


def test_a_report_blocks_the_slot_until_it_is_acknowledged(host: Hosts, tmp_path: Path) -> None:
    one = host(num_slots=1)
    submit(one, tmp_path, 0)
    assert one.next_report(0, 1, 0, WAIT) is not None
    time.sleep(0.2)
    assert one.status()["steps"] == 10
    assert one.next_report(0, 1, 1, WAIT) is not None
    assert one.status()["steps"] == 20


def test_one_waiting_trial_does_not_block_the_other_slot(host: Hosts, tmp_path: Path) -> None:
    one = host()
    submit(one, tmp_path, 0)
    assert one.next_report(0, 1, 0, WAIT) is not None
    submit(one, tmp_path, 1)
    assert follow(one, 1)[1].result.state == "COMPLETE"


def test_next_report_returns_none_after_its_timeout(
    host: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host(step_seconds=1.0)  # ten steps to the first report
    submit(one, tmp_path, 0)
    waits: list[float | None] = []
    wait = threading.Condition.wait

    def noting(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            waits.append(timeout)
        return wait(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", noting)
    assert one.next_report(0, 1, 0, 0.2) is None
    assert waits, "it does wait"
    assert all(timeout is not None and timeout <= 0.2 for timeout in waits)


def test_jobs_queue_in_order(host: Hosts, tmp_path: Path) -> None:
    one = host(num_slots=1)
    for trial in (3, 1, 2):
        submit(one, tmp_path, trial)
    assert one.next_report(3, 1, 0, WAIT) is not None
    assert one.status()["queued"] == [1, 2]
    assert one.poll(1, 1, 0) is None
    follow(one, 3)
    assert one.next_report(1, 1, 0, WAIT) is not None
    assert one.status()["queued"] == [2]


def test_cancelling_a_queued_trial_ends_it_at_once(host: Hosts, tmp_path: Path) -> None:
    one = host(num_slots=1)
    for trial in (0, 1, 2):
        submit(one, tmp_path, trial)
    assert one.next_report(0, 1, 0, WAIT) is not None
    assert one.request_cancel(1, 1, "weak")
    assert one.poll(1, 1, 0).result.kind == "weak"
    assert one.request_cancel(2, 1, "interrupted")
    assert one.poll(2, 1, 0) == Interrupted()
    assert one.status()["queued"] == []


def test_cancelling_a_running_trial_frees_its_slot(host: Hosts, tmp_path: Path) -> None:
    one = host(num_slots=1)
    submit(one, tmp_path, 0)
    submit(one, tmp_path, 1)
    first = one.next_report(0, 1, 0, WAIT)
    assert first is not None
    assert one.cancel(0, 1, "weak", WAIT)
    end = one.poll(0, 1, 1)
    assert end is not None
    assert (end.result.state, end.result.kind) == ("PRUNED", "weak")
    assert end.result.step == 10
    assert one.next_report(1, 1, 0, WAIT) is not None


def test_cancelling_what_has_ended_changes_nothing(host: Hosts, tmp_path: Path) -> None:
    one = host()
    submit(one, tmp_path, 0)
    end = follow(one, 0)[1]
    assert one.cancel(0, 1, "weak", WAIT)
    assert one.request_cancel(0, 1, "interrupted")
    assert one.poll(0, 1, 3) == end
    with pytest.raises(KeyError, match="trial 5 was never submitted"):
        one.cancel(5, 1, "weak")


@pytest.mark.parametrize(
    ("fault", "state", "kind"),
    [
        ("bug", "FAIL", "bug"),
        ("data", "FAIL", "data"),
        ("diverged", "PRUNED", "diverged"),
        ("oom", "PRUNED", "out_of_memory"),
    ],
)
def test_an_error_in_a_trial_ends_that_trial_only(
    host: Hosts, tmp_path: Path, fault: str, state: str, kind: str
) -> None:
    one = host(faults={0: fault})
    submit(one, tmp_path, 0)
    submit(one, tmp_path, 1)
    result = follow(one, 0)[1].result
    assert (result.state, result.kind) == (state, kind)
    assert result.error == f"simulated {fault}"
    assert fault in result.traceback
    assert follow(one, 1)[1].result.state == "COMPLETE"


class Failing(SimulatedEngine):
    """Raises out of `serve`: the first time with its jobs aboard, `at_start` without any."""

    def __init__(self, at_start: int = 0) -> None:
        super().__init__(num_slots=2)
        self.served, self.at_start = 0, at_start

    def serve(self, inbox: Inbox) -> None:
        self.served += 1
        if self.served <= self.at_start:
            raise RuntimeError("cannot start")
        if self.served == 1:
            inbox.take()
            inbox.take()
            raise RuntimeError("the device fell off the bus")
        super().serve(inbox)


def test_an_engine_that_raises_ends_its_trials_as_bugs_and_the_host_goes_on(
    host: Hosts, tmp_path: Path
) -> None:
    one = host(Failing())
    for trial in (0, 1, 2):
        submit(one, tmp_path, trial)
    for trial in (0, 1):
        result = follow(one, trial)[1].result
        assert (result.state, result.kind) == ("FAIL", "bug")
        assert result.error == "the device fell off the bus"
        assert "Traceback" in result.traceback
    assert follow(one, 2)[1].result.state == "COMPLETE"


def test_an_engine_that_cannot_start_fails_one_trial_each_time_and_does_not_spin(
    host: Hosts, tmp_path: Path
) -> None:
    engine = Failing(at_start=2)
    one = host(engine)
    time.sleep(0.2)
    assert engine.served == 0, "without a trial nothing is started"
    submit(one, tmp_path, 0)
    submit(one, tmp_path, 1)
    submit(one, tmp_path, 2)
    assert follow(one, 0)[1].result.error == "cannot start"
    assert follow(one, 1)[1].result.error == "cannot start"
    assert follow(one, 2)[1].result.state == "COMPLETE"


class Preparing(SimulatedEngine):
    """Prepares for as long as `hold` is set, and keeps which threads it worked in."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []
        self.hold = threading.Event()

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        self.threads.append(threading.current_thread())
        self.hold.wait(WAIT)
        if spec.seed == 13:
            raise DataError("gone")
        return super().prepare(spec, variants)

    def serve(self, inbox: Inbox) -> None:
        self.threads.append(threading.current_thread())
        super().serve(inbox)


def test_an_engine_prepares_and_trains_in_one_thread(host: Hosts, tmp_path: Path) -> None:
    engine = Preparing()
    one = host(engine)
    prepared = one.prepare(spec().to_json(), [], engine.hold.set)  # a tick lets it end
    assert prepared == SimulatedEngine().prepare(spec(), [])
    submit(one, tmp_path, 0)
    follow(one, 0)
    assert len(engine.threads) == 2
    assert set(engine.threads) != {threading.current_thread()}
    assert len(set(engine.threads)) == 1


def test_what_is_wrong_with_a_preparation_reaches_who_asked(host: Hosts) -> None:
    engine = Preparing()
    engine.hold.set()
    one = host(engine)
    gone = spec(seed=13)
    with pytest.raises(DataError, match="gone"):
        one.prepare(gone.to_json(), [])
    assert one.prepare(spec().to_json(), []).train_rows > 0, "and it can be asked again"


def test_a_preparation_that_is_given_up_does_not_hold_the_host(host: Hosts) -> None:
    engine = Preparing()
    one = host(engine)

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.prepare(spec().to_json(), [], give_up)
    with pytest.raises(RuntimeError, match="one sweep at a time"):
        one.prepare(spec().to_json(), [])
    assert not one.close(100 * WAIT), "whoever waits for the preparation finds all ended"
    assert engine.threads[0].is_alive()
    engine.hold.set()
    engine.threads[0].join(WAIT)


def test_close_interrupts_everything(host: Hosts, tmp_path: Path) -> None:
    one = host()
    for trial in (0, 1, 2):
        submit(one, tmp_path, trial)
    assert one.next_report(0, 1, 0, WAIT) is not None
    assert one.close(WAIT)
    assert one.poll(0, 1, 1) == Interrupted()
    assert one.poll(2, 1, 0) == Interrupted()
    submit(one, tmp_path, 3)
    assert one.poll(3, 1, 0) == Interrupted()
    assert one.close(WAIT)


def test_a_trial_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(
    host: Hosts, tmp_path: Path
) -> None:
    first, second, whole = host(), host(), host()
    submit(first, tmp_path / "broken", 0)
    report = first.next_report(0, 1, 0, WAIT)
    assert report is not None
    first.close(WAIT)
    checkpoint = report.progress.checkpoint
    submit(second, tmp_path / "broken", 0, attempt=2, checkpoint=checkpoint)
    submit(whole, tmp_path / "whole", 0)
    rest, end = follow(second, 0, 2)
    reports, unbroken = follow(whole, 0)

    def seen(messages: list[Message]) -> list[Any]:
        return [m.progress.model_copy(update={"checkpoint": None}) for m in messages]

    assert seen(rest) == seen(reports), "the checkpoint's own report comes again, first"
    assert end.result.metrics == unbroken.result.metrics


def test_on_change_is_called_whenever_a_message_may_have_come(tmp_path: Path) -> None:
    news = threading.Event()
    one = TrialHost(SimulatedEngine(), on_change=news.set)
    submit(one, tmp_path, 0)
    seq, end = 0, None
    while end is None:
        assert news.wait(WAIT)
        news.clear()
        while (message := one.poll(0, 1, seq)) is not None:
            if isinstance(message, End):
                end = message.result
                break
            seq = message.seq
    assert one.close(WAIT)


@pytest.mark.parametrize(
    "error",
    [
        Fenced(3, 1, 2),
        SpecError("wrong"),
        DataError("empty"),
        Diverged("nan"),
        OutOfMemory("large"),
    ],
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_preparation_that_finds_the_host_closed_is_told() -> None:
    one = TrialHost(SimulatedEngine())
    assert one.close(WAIT)
    asked: Future[Prepared] = Future()  # between its wish and the thread's next look came `close`
    one._preparing = asked, lambda: Prepared(train_rows=1)
    one._serve()
    with pytest.raises(RuntimeError, match="the host is closed"):
        asked.result(WAIT)


def test_only_an_engine_that_could_get_on_is_silent(host: Hosts, tmp_path: Path) -> None:
    one = host(num_slots=1, faults={1: "hang"})
    assert one.silent_seconds() == 0.0, "nothing to do"
    submit(one, tmp_path, 0)
    assert isinstance(one.next_report(0, 1, 0, WAIT), Report)
    time.sleep(0.2)
    assert one.silent_seconds() == 0.0, "it waits for a decision"
    follow(one, 0)
    submit(one, tmp_path, 1)
    deadline = time.monotonic() + WAIT
    while one.silent_seconds() < 0.2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0.2 <= one.silent_seconds() < WAIT
    one.close = lambda *_: True  # type: ignore[method-assign]  # the thread never ends
