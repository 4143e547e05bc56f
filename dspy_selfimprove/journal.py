"""The run store: everything a run did, appended as it happens, so that a killed run goes on where it was.

One SQLite file per run (write-ahead log, so a reader never waits for the writer). Nothing is ever changed or removed;
a thing is written once under a key of its own, and writing it again gives back what was there first. That is what
makes "nothing is paid for twice" hold: before a call, ask for its entry; after it, append it. Each append is on disk
before it returns, whole or not at all; `kill -9` loses at most the calls in flight. Threads that append at the same
time share one commit, since a commit waits for the disk and a row does not.

An entry is a kind, a key and JSON: `candidate` by content hash, `score` by candidate, example and metric, `spend` and
`missing` as they come. The schema knows nothing of kinds, so a new one needs no migration.

One process writes to a run at a time and holds a lock for it; any number may read. Prompts and answers of the user's
own data are in here: the file stays in the git-ignored `.selfimprove/`, readable by its owner only. Not covered:
network file systems (SQLite's locks do not hold there).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import quote

from filelock import FileLock, Timeout

from dspy_selfimprove.budget import ROLES, Role, Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import JournalError, UsageError
from dspy_selfimprove.files import writable
from dspy_selfimprove.message import digest
from dspy_selfimprove.score import Score, Scorecard

SCHEMA = 1

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    time REAL NOT NULL,
    data TEXT NOT NULL,
    UNIQUE (kind, key)
);
CREATE TRIGGER IF NOT EXISTS entry_stays BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS entry_kept BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a run's history. `number` is its place in the order of events."""

    number: int
    kind: str
    key: str
    time: float
    data: Any


@dataclass(slots=True, eq=False)
class _Write:
    """Rows that wait for a commit."""

    put: Callable[[], Any]
    result: Any = None
    is_done: bool = False


class Journal:
    """One run's store. Open it with `Journal.open`; safe to use from any thread.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Journal.open(f"{folder}/run.db") as journal:
    ...     journal.add_candidate(Candidate({"answer": "Be kind."}))
    ...     paid = journal.append("verdict", "helpfulness/1/T0001", {"value": 0.75})
    ...     again = journal.append("verdict", "helpfulness/1/T0001", {"value": 0.0})
    ...     [entry.kind for entry in journal.entries()], again.data
    (['candidate', 'verdict'], {'value': 0.75})
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path = path
        self._connection = connection
        self._writing = lock
        self._turn = threading.RLock()
        self._waiting: dict[_Write, None] = {}  # in the order they came

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> Journal:
        """The run at `path`, made if it is not there. A second writer is refused; a reader never is."""
        path = Path(path).resolve()  # so that two names of one file share a lock
        if read_only:
            if not path.is_file():
                raise JournalError(f"There is no run at {path}.", remedy="Check the path.")
            # On read-only media SQLite cannot make its index beside the file, and needs none: nobody writes there.
            settled = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
            return cls._connected(path, None, "mode=ro&immutable=1" if settled else "mode=ro")
        writable(path.parent)
        # Held by the process and not by the thread that opened it: whoever closes the run gives it back.
        lock = FileLock(f"{path}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"Another process is writing to the run {path.name}.", remedy="Wait for it, or choose another run."
            ) from None
        try:
            return cls._connected(path, lock, "mode=rwc")
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _connected(cls, path: Path, lock: FileLock | None, how: str) -> Journal:
        connection: sqlite3.Connection | None = None
        try:
            if lock is not None:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            address = f"file:{quote(str(path))}?{how}"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=30)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "about" not in tables:
                raise sqlite3.DatabaseError("it is a database of something else")
            if lock is not None:
                # FULL: a commit is on disk when it returns. NORMAL would lose the last ones to a power cut.
                connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_TABLES}")
                connection.execute("INSERT OR IGNORE INTO about VALUES ('schema', ?)", (str(SCHEMA),))
            (found,) = connection.execute("SELECT value FROM about WHERE name = 'schema'").fetchone()
        except (sqlite3.Error, OSError, TypeError) as error:
            if connection is not None:
                connection.close()
            raise JournalError(f"{path} cannot be read as a run ({error}).", remedy="Start a new run.") from None
        if int(found) > SCHEMA:
            connection.close()
            raise JournalError(f"The run {path.name} was written by a newer version.", remedy="Upgrade to read it.")
        return cls(path, connection, lock)

    def append(self, kind: str, key: str, data: Any) -> Entry:
        """Write `data` under `key`, once. If the key was written before, the earlier entry is given back unchanged."""
        text = _encoded(data)
        return self._committed(lambda: self._put(kind, key, text))

    def log(self, kind: str, data: Any) -> Entry:
        """Write something that has no name of its own, such as an event: its key is its place."""
        text = _encoded(data)
        return self._committed(lambda: self._put_next(kind, text))

    def get(self, kind: str, key: str) -> Any | None:
        """What was written under this key, or None; null itself is never written."""
        with self._reading():
            row = self._connection.execute(_BY_KEY, (kind, _encoded(key))).fetchone()
        return None if row is None else _entry(row).data

    def entries(self, kind: str | None = None, *, after: int = 0) -> Iterator[Entry]:
        """The history in order, of one kind or all, in pages: memory stays flat however long the run was."""
        where, values = ("kind = ? AND ", (kind,)) if kind else ("", ())
        while True:
            with self._reading():
                rows = self._connection.execute(
                    f"{_SELECT} WHERE {where}number > ? ORDER BY number LIMIT 1000", (*values, after)
                ).fetchall()
            if not rows:
                return
            yield from map(_entry, rows)
            after = rows[-1][0]

    # What a run is made of, under the names the rest of the product uses.

    def add_candidate(self, candidate: Candidate) -> None:
        self.append("candidate", candidate.id, candidate.to_json())

    def candidates(self) -> Iterator[Candidate]:
        return (Candidate.from_json(entry.data) for entry in self.entries("candidate"))

    def add_scorecard(self, candidate: str, card: Scorecard) -> Scorecard:
        """Keep a scorecard. One with missing scores can be followed by a fuller one; a verdict is never replaced."""
        about = {"candidate": candidate, "example": card.example}
        rows = [
            (metric, score, _encoded({**about, "metric": metric, "score": score.to_json()}))
            for metric, score in card.items()
        ]

        def put() -> Scorecard:
            kept = dict(card)
            for metric, score, text in rows:
                if score.is_missing:
                    self._put_next("missing", text)
                else:
                    entry = self._put("score", _score_key(candidate, card.example, metric), text)
                    kept[metric] = Score.from_json(entry.data["score"])
            return Scorecard(card.example, kept)

        return self._committed(put)

    def scorecard(self, candidate: str, example: str, metrics: tuple[str, ...]) -> Scorecard:
        """The verdicts known so far for these metrics; the others are left out."""
        found = {metric: self.get("score", _score_key(candidate, example, metric)) for metric in metrics}
        return Scorecard(
            example, {metric: Score.from_json(data["score"]) for metric, data in found.items() if data is not None}
        )

    def add_spend(self, role: Role, spend: Spend) -> None:
        self.log("spend", {"role": role, **spend.to_json()})

    def spent(self) -> Mapping[Role, Spend]:
        """What the run has used in all its parts, by role."""
        total = {role: Spend() for role in ROLES}
        for entry in self.entries("spend"):
            total[entry.data["role"]] += Spend(**{name: entry.data[name] for name in ("calls", "tokens", "dollars")})
        return total

    def close(self) -> None:
        with self._turn:
            self._connection.close()
            if self._writing is not None:
                self._writing.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _put(self, kind: str, key: str, text: str) -> Entry:
        self._connection.execute(
            "INSERT OR IGNORE INTO entry (kind, key, time, data) VALUES (?, ?, ?, ?)",
            (kind, _encoded(key), time.time(), text),
        )
        return _entry(self._connection.execute(_BY_KEY, (kind, _encoded(key))).fetchone())

    def _put_next(self, kind: str, text: str) -> Entry:
        (last,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()
        return self._put(kind, f"#{last + 1}", text)

    def _committed(self, put: Callable[[], T]) -> T:
        """What `put` gives, once it is on disk. Whoever's turn it is writes what all who wait for theirs have to put.

        If that fails, each of them tries by itself and meets its own error.
        """
        if self._writing is None:
            raise JournalError(f"The run {self.path.name} was opened for reading.", remedy="Open it for writing.")
        write = _Write(put)
        self._waiting[write] = None
        try:
            with self._reading():
                if not write.is_done:
                    self._commit_for(write)
        finally:
            self._waiting.pop(write, None)
        return cast(T, write.result)

    def _commit_for(self, write: _Write) -> None:
        everybody = list(self._waiting)
        if len(everybody) > 1:
            with suppress(sqlite3.Error):
                return self._commit(everybody)
        return self._commit([write])

    def _commit(self, writes: Sequence[_Write]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [write.put() for write in writes]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        for write, result in zip(writes, results, strict=True):
            write.result, write.is_done = result, True
            self._waiting.pop(write, None)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._turn:
            try:
                yield
            except sqlite3.ProgrammingError:
                raise JournalError(f"The run {self.path.name} was closed.", remedy="Open it again.") from None
            except sqlite3.Error as error:
                raise JournalError(
                    f"The run store {self.path} failed ({error}).", remedy="Check the disk, then resume the run."
                ) from None


_SELECT = "SELECT number, kind, key, time, data FROM entry"
_BY_KEY = f"{_SELECT} WHERE kind = ? AND key = ?"


def _encoded(data: Any) -> str:
    """JSON in ASCII, so that text which no encoding holds (half of an emoji, as models do write) is kept as it is."""
    if data is None:
        raise UsageError("A journal keeps no null.", remedy="Write what there is to say.")
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Only JSON can be journalled ({error}).", remedy="Turn it into plain values first.") from None


def _entry(row: tuple[int, str, str, float, str]) -> Entry:
    return Entry(row[0], row[1], json.loads(row[2]), row[3], json.loads(row[4]))


def _score_key(candidate: str, example: str, metric: str) -> str:
    return digest([candidate, example, metric], 32)
