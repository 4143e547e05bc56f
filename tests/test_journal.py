import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.budget import Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import JournalError, UsageError
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.score import Score, Scorecard


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.db"


def test_what_is_written_once_stays(path):
    with Journal.open(path) as journal:
        first = journal.append("score", "k", {"value": 0.5})
        again = journal.append("score", "k", {"value": 0.9})
        assert again == first
        assert journal.get("score", "k") == {"value": 0.5}
        assert journal.get("score", "other") is None
        journal.log("event", "started")
        journal.log("event", "started")
    with Journal.open(path, read_only=True) as journal:
        assert [(entry.number, entry.kind, entry.data) for entry in journal.entries()] == [
            (1, "score", {"value": 0.5}),
            (2, "event", "started"),
            (3, "event", "started"),
        ]
        assert [entry.number for entry in journal.entries("event", after=2)] == [3]


def test_history_cannot_be_changed_even_by_hand(path):
    with Journal.open(path) as journal:
        journal.append("score", "k", 1)
    connection = sqlite3.connect(path)
    for change in ("UPDATE entry SET data = '2'", "DELETE FROM entry"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            connection.execute(change)
    connection.close()


any_text = st.text(st.characters(codec=None))  # halves of surrogate pairs included: models do write them


@given(
    any_text,
    st.recursive(st.integers(-9, 9) | any_text, lambda inner: st.lists(st.none() | inner), max_leaves=5),
)
def test_any_key_and_any_json_come_back(tmp_path_factory, key, data):
    with Journal.open(tmp_path_factory.mktemp("j") / "j.db") as journal:
        journal.append("any", key, data)
        assert journal.get("any", key) == data


def test_long_histories_are_read_in_pages_while_they_grow(path):
    with Journal.open(path) as journal:
        journal._connection.execute("BEGIN")
        journal._connection.executemany(
            "INSERT INTO entry (kind, key, time, data) VALUES ('x', ?, 0, ?)", ((str(n), str(n)) for n in range(2_500))
        )
        journal._connection.execute("COMMIT")
        seen = []
        for entry in journal.entries("x"):
            seen.append(entry.data)
            if entry.data == 2_400:
                journal.append("x", "late", 9_999)
        assert seen == [*range(2_500), 9_999]


def test_one_writer_and_any_number_of_readers(path):
    with Journal.open(path) as writer:
        with pytest.raises(JournalError, match="Another process is writing"):
            Journal.open(path)
        with Journal.open(path, read_only=True) as reader:
            writer.append("a", "1", 1)
            assert reader.get("a", "1") == 1
            with pytest.raises(JournalError, match="opened for reading"):
                reader.append("a", "2", 2)
    Journal.open(path).close()


def test_threads_append_together(path):
    with Journal.open(path) as journal:
        threads = [
            threading.Thread(
                target=lambda name=name: [journal.append("t", f"{name}-{n % 10}", name) for n in range(20)]
            )
            for name in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(journal.entries("t"))) == 60


def together(journal, works):
    """Run each in a thread of its own, all of which wait for their turn before any has it."""
    threads = [threading.Thread(target=work) for work in works]
    with journal._turn:
        for thread in threads:
            thread.start()
        while len(journal._waiting) < len(threads):
            time.sleep(0.01)
    for thread in threads:
        thread.join()


def test_threads_that_wait_share_a_commit(path):
    said = []
    with Journal.open(path) as journal:
        journal._connection.set_trace_callback(said.append)
        found = {}
        together(journal, [lambda n=n: found.update({n: journal.append("t", str(n % 20), n)}) for n in range(30)])
        assert said.count("COMMIT") == 1
        assert len(list(journal.entries("t"))) == 20
        assert all(found[n] == found[n + 20] for n in range(10))


def test_one_that_cannot_be_written_takes_no_other_along(path):
    with Journal.open(path) as journal:
        ends = []

        def commit(put):
            try:
                ends.append(journal._committed(put))
            except JournalError:
                ends.append("refused")

        puts = [lambda n=n: journal._put("t", str(n), "1").key for n in range(9)]
        puts.insert(5, lambda: journal._connection.execute("NO SQL"))
        together(journal, [lambda put=put: commit(put) for put in puts])
        assert sorted(ends) == [*map(str, range(9)), "refused"]
        assert len(list(journal.entries("t"))) == 9


def test_on_a_full_disk_each_thread_meets_its_own_error(path):
    kept, refused = [], []
    with Journal.open(path) as journal:
        (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
        journal._connection.execute(f"PRAGMA max_page_count = {pages + 6}")

        def append(n):
            try:
                kept.append(journal.append("big", str(n), f"{n}" * 1_000).key)
            except JournalError:
                refused.append(n)

        together(journal, [lambda n=n: append(n) for n in range(40)])
        assert kept
        assert refused
        assert not journal._waiting
    with Journal.open(path) as journal:
        assert sorted(entry.key for entry in journal.entries("big")) == sorted(kept)


def test_the_records_of_a_run(path):
    candidate = Candidate({"answer": "Be kind."})
    with Journal.open(path) as journal:
        journal.add_candidate(candidate)
        journal.add_candidate(candidate)
        assert list(journal.candidates()) == [candidate]
        partly = Scorecard("e1", {"good": Score(0.25), "brief": Score.missing("429")})
        assert journal.add_scorecard(candidate.id, partly) == partly
        full = journal.add_scorecard(candidate.id, Scorecard("e1", {"good": Score(1.0), "brief": Score(0.5)}))
        assert full == Scorecard("e1", {"good": Score(0.25), "brief": Score(0.5)}), "a verdict is never replaced"
        assert journal.scorecard(candidate.id, "e1", ("good", "brief", "other")) == full
        assert [entry.data["score"]["failure"] for entry in journal.entries("missing")] == ["429"]
        journal.add_spend("judge", Spend(2, 10, 0.5))
        journal.add_spend("judge", Spend(1, 5, 0.25))
        assert journal.spent() == {"worker": Spend(), "judge": Spend(3, 15, 0.75), "coach": Spend()}


WRITER = """
import sys
from pathlib import Path
from dspy_selfimprove.journal import Journal
with Journal.open(Path(sys.argv[1])) as journal:
    for n in range(int(sys.argv[2]), 100_000):
        journal.append("n", str(n), n)
        print(n, flush=True)
"""


def test_kill_9_loses_nothing_that_was_said_to_be_written(path):
    """Kill a writer at five moments; each next one must open the run at once and find every acknowledged entry."""
    acknowledged = -1
    for round_number in range(5):
        command = [sys.executable, "-c", WRITER, str(path), str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            for line in writer.stdout:
                acknowledged = int(line)
                if acknowledged % 37 == 30 + round_number:
                    writer.send_signal(signal.SIGKILL)
                    break
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        with Journal.open(path, read_only=True) as journal:
            found = [entry.data for entry in journal.entries("n")]
        assert found[: acknowledged + 1] == list(range(acknowledged + 1))
        assert len(found) <= acknowledged + 2, "at most the entry in flight beyond what was acknowledged"
        acknowledged = found[-1]
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


def test_only_the_owner_can_read_a_run(path):
    with Journal.open(path) as journal:
        journal.append("a", "b", "customer text")
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name


def test_what_is_no_json_is_refused_and_a_card_is_kept_whole_or_not_at_all(path):
    with Journal.open(str(path)) as journal:
        for data in (float("nan"), object(), None):
            with pytest.raises(UsageError):
                journal.append("x", "k", data)
        with pytest.raises(UsageError, match="Only JSON"):
            journal.add_scorecard("c", Scorecard("e", {"a": Score(1), "b": Score(1, details={"x": object()})}))
        assert list(journal.entries()) == []


def test_whoever_closes_a_run_gives_it_back(path):
    journal = Journal.open(path)
    closing = threading.Thread(target=journal.close)
    closing.start()
    closing.join()
    with pytest.raises(JournalError, match="was closed"):
        journal.get("a", "b")
    Journal.open(path).close()


def test_two_names_of_one_run_are_one_run(path):
    with Journal.open(path):
        link = path.with_name("link.db")
        link.symlink_to(path)
        with pytest.raises(JournalError, match="Another process is writing"):
            Journal.open(link)


def test_a_database_of_something_else_is_left_alone(tmp_path):
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE customers (name)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(JournalError, match="a database of something else"):
        Journal.open(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_what_is_no_run_is_refused(path, tmp_path):
    with pytest.raises(JournalError, match="There is no run"):
        Journal.open(path, read_only=True)
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(JournalError, match="cannot be read as a run"):
        Journal.open(path)
    newer = tmp_path / "newer.db"
    Journal.open(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("UPDATE about SET value = '99'")
    connection.commit()
    connection.close()
    with pytest.raises(JournalError, match="newer version"):
        Journal.open(newer)
    Journal.open(newer.with_name("other.db")).close()


def test_a_failing_disk_is_one_sentence(path):
    with Journal.open(path) as journal:
        (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
        journal._connection.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to fill a disk
        with pytest.raises(JournalError, match=r"failed \(database or disk is full\)\. Check the disk"):
            for n in range(1_000):
                journal.append("big", str(n), "x" * 1_000)
        kept = len(list(journal.entries("big")))
    with Journal.open(path) as journal:
        assert len(list(journal.entries("big"))) == kept
        journal.append("after", "the disk was mended", time.time())
