"""A queue of tracking operations on disk, which a killed driver leaves for the next one.

One SQLite file, in WAL mode with synchronous=NORMAL: a put costs well under 0.1 ms and survives
the death of the process; a power cut may take the last few. The file belongs on a local disk of the
driver's machine, because WAL does not work between machines.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_jobs import faults

SWEEP = "sweep"
"""The key of the sweep's own operations; a trial's are under its number."""
RECORDS, UPLOADS = 0, 1
"""Lanes: records are delivered first, so a slow or broken artifact store holds up only uploads."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS op (
    id INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL,
    key TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, ts REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS op_order ON op (lane, id);
CREATE TABLE IF NOT EXISTS dead_letter (
    id INTEGER PRIMARY KEY, lane INTEGER NOT NULL,
    key TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, ts REAL NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS ended (key TEXT PRIMARY KEY);
"""
_INSERT = "INSERT INTO op (lane, key, kind, body, ts) VALUES (?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class NewOp:
    """What is put: `kind` with its `body`, JSON, on the run that `key` names."""

    key: str
    kind: str
    body: Mapping[str, object]
    lane: int = RECORDS


@dataclass(frozen=True)
class Op:
    """One waiting operation: `kind` with its `body`, on the run that `key` names."""

    id: int
    lane: int
    key: str
    kind: str
    body: dict[str, object]


class Outbox:
    """The queue at `path`, created with its folder when absent. Thread-safe.

    Raises sqlite3.Error when the file cannot be opened or is no SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.absolute().parent
        """What paths in operations are relative to: the outbox may be moved with them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        # Autocommit: one statement, one transaction. The lock makes one connection safe to share.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=20)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def put(self, *ops: NewOp) -> None:
        """Append operations, all or none of them. Records overtake uploads."""
        now = time.time()
        with self._lock, self._db:  # commits, or rolls back on an error
            self._db.execute("BEGIN")
            for op in ops:
                self._db.execute(_INSERT, (op.lane, op.key, op.kind, json.dumps(op.body), now))
                if op.kind == "end":
                    self._db.execute("INSERT OR IGNORE INTO ended VALUES (?)", (op.key,))
            faults.passing("outbox.put")

    def has_ended(self, key: str) -> bool:
        """Whether the end of `key` was ever put."""
        with self._lock:
            found = self._db.execute("SELECT 1 FROM ended WHERE key = ?", (key,)).fetchone()
        return found is not None

    def peek(self, limit: int) -> list[Op]:
        """The first `limit` operations, by lane and then by age; they stay in the queue."""
        query = "SELECT id, lane, key, kind, body FROM op ORDER BY lane, id LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, (limit,)).fetchall()
        return [Op(i, lane, key, kind, json.loads(body)) for i, lane, key, kind, body in rows]

    def delete(self, ids: Sequence[int]) -> None:
        """Forget operations that were delivered."""
        with self._lock, self._db:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM op WHERE id = ?", [(i,) for i in ids])

    def dead_letter(self, ids: Sequence[int], reason: str) -> None:
        """Set aside, for a person to look at, operations that can never be delivered."""
        with self._lock, self._db:
            self._db.execute("BEGIN")
            for i in ids:
                self._db.execute(
                    "INSERT OR REPLACE INTO dead_letter SELECT *, ? FROM op WHERE id = ?",
                    (reason, i),
                )
                self._db.execute("DELETE FROM op WHERE id = ?", (i,))

    def pending(self, key: str | None = None) -> int:
        """How many operations wait, of `key` or of all; dead letters are not counted."""
        query = "SELECT COUNT(*) FROM op WHERE ?1 IS NULL OR key = ?1"
        with self._lock:
            return int(self._db.execute(query, (key,)).fetchone()[0])

    def dead_letters(self) -> list[tuple[str, str, str]]:
        """(key, kind, reason) of each operation set aside, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT key, kind, reason FROM dead_letter ORDER BY id")
            return [(str(key), str(kind), str(reason)) for key, kind, reason in rows]

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        with self._lock:
            self._db.close()
