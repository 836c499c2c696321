import threading
from pathlib import Path

from sweeps.tracking.outbox import UPLOADS, NewOp, Outbox


def bodies(outbox: Outbox) -> list[object]:
    return [op.body["n"] for op in outbox.peek(1000)]


def test_operations_come_back_in_order_until_they_are_deleted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "new" / "outbox.db")
    for n in range(5):
        outbox.put(NewOp("1", "progress", {"n": n}))
    first = outbox.peek(2)
    assert [op.body["n"] for op in first] == [0, 1]
    assert bodies(outbox) == [0, 1, 2, 3, 4]
    outbox.delete([op.id for op in first])
    assert bodies(outbox) == [2, 3, 4]
    assert outbox.pending() == 3


def test_records_overtake_uploads(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.put(NewOp("1", "artifact", {"n": 0}, UPLOADS))
    outbox.put(NewOp("1", "progress", {"n": 1}))
    assert bodies(outbox) == [1, 0]


def test_a_reopened_outbox_has_what_was_left(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox.db").put(NewOp("1", "progress", {"n": 7, "text": "ä"}))
    (op,) = Outbox(tmp_path / "outbox.db").peek(10)
    assert (op.key, op.kind, op.body) == ("1", "progress", {"n": 7, "text": "ä"})


def test_dead_letters_leave_the_queue_and_keep_their_reason(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.put(NewOp("1", "start", {"n": 0}))
    outbox.put(NewOp("1", "progress", {"n": 1}))
    outbox.dead_letter([outbox.peek(1)[0].id], "no such experiment")
    assert bodies(outbox) == [1]
    assert outbox.dead_letters() == [("1", "start", "no such experiment")]


def test_threads_put_while_another_deletes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")

    def put(thread: int) -> None:
        for n in range(200):
            outbox.put(NewOp(str(thread), "progress", {"n": n}))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    seen: dict[str, list[object]] = {}
    while any(thread.is_alive() for thread in threads) or outbox.pending():
        ops = outbox.peek(50)
        for op in ops:
            seen.setdefault(op.key, []).append(op.body["n"])
        outbox.delete([op.id for op in ops])
    assert seen == {str(thread): list(range(200)) for thread in range(4)}
