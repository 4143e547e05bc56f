"""The seal: the one way to the test, and a count of who took it.

A test that was looked at is no longer a test: choose by it twice, and it measures luck. So opening it is an act of its
own, with a purpose, written down before a row is given out; a report of any opening after the first says so. Nothing
that searches imports this module, and nothing it is given (`Dataset.search`) leads to the test.

The record is `openings.jsonl` beside the data, appended and on disk before `open_test` returns; the card keeps the
count, so that a record cut short still does not make an opening the first. Each opening checks the rows against the
card's hash.

Not covered: an adversary, who can read test.jsonl, or edit card and record together; a copy of the folder, which counts
on its own; and what a person remembers.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspy_selfimprove.dataset import Dataset, examples, find, read_card, rows_of, write_card, writing
from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.sample import Sample

if TYPE_CHECKING:
    import dspy

    from dspy_selfimprove.journal import Journal

_RECORD: Final = "openings.jsonl"


@dataclass(frozen=True, slots=True)
class Opening:
    """One line of the record. `test` is the hash of the rows as they were, which change when a dataset is extended."""

    number: int
    time: str
    purpose: str
    samples: int
    test: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The test, and the how-manieth opening this was.

    >>> import tempfile
    >>> from dspy_selfimprove.dataset import split
    >>> from dspy_selfimprove.sample import Sample
    >>> reply = {"role": "assistant", "content": "Yes."}
    >>> asked = [({"role": "user", "content": word},) for word in ("Hello", "Where is it", "Too late")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset = split((Sample(f"T{n}", turns, reply) for n, turns in enumerate(asked)), f"{folder}/tiny")
    ...     once = open_test(dataset, purpose="final proof")
    ...     again = open_test(dataset, purpose="a closer look")
    >>> once.first, again.first, again.standing
    (True, False, 'not first use: this is opening 2 of the test')
    """

    samples: tuple[Sample, ...]
    opening: Opening

    @property
    def number(self) -> int:
        return self.opening.number

    @property
    def first(self) -> bool:
        return self.opening.number == 1

    @property
    def standing(self) -> str:
        """What a report has to say of it."""
        return "first use" if self.first else f"not first use: this is opening {self.number} of the test"

    def to_examples(self) -> list[dspy.Example]:
        return examples(self.samples)


def open_test(dataset: Dataset | str | Path, *, purpose: str, journal: Journal | None = None) -> Opened:
    """The test rows. Counted, and written into the run's journal if one is given, before they are handed out.

    >>> import tempfile
    >>> from dspy_selfimprove.dataset import split
    >>> answer = {"role": "assistant", "content": "Yes."}
    >>> def ticket(n):
    ...     return Sample(f"T{n}", ({"role": "user", "content": f"Question {chr(97 + n)}"},), answer)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset = split(map(ticket, range(10)), f"{folder}/tickets")
    ...     opened = [open_test(dataset, purpose="final proof") for _ in range(2)]
    >>> len(opened[0].samples), opened[0].standing, opened[1].standing
    (3, 'first use', 'not first use: this is opening 2 of the test')
    """
    if not purpose.strip():
        raise UsageError("An opening of the test needs a purpose.", remedy='Pass purpose="final proof", or what it is.')
    folder = dataset.folder if isinstance(dataset, Dataset) else find(dataset)
    with writing(folder):
        card = read_card(folder)
        samples = tuple(rows_of(folder, card, "test"))
        number = max(len(_lines(folder)), card["openings"]) + 1
        about = card["splits"]["test"]
        opening = Opening(
            number, datetime.now(UTC).isoformat(timespec="seconds"), purpose, len(samples), about["sha256"]
        )
        _append(folder / _RECORD, json.dumps(asdict(opening)))
        write_card(folder, {**card, "openings": number})
    if journal is not None:
        journal.log("opening", {"dataset": folder.name, **asdict(opening)})
    return Opened(samples, opening)


def openings(dataset: Dataset | str | Path) -> tuple[Opening, ...]:
    """Who opened the test, in order: what the record still holds."""
    folder = dataset.folder if isinstance(dataset, Dataset) else find(dataset)
    names = {entry.name for entry in fields(Opening)}
    found = []
    for line in _lines(folder):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut by a crash; it counts, but says nothing
        if isinstance(row, dict) and names <= set(row):
            found.append(Opening(**{name: row[name] for name in names}))
    return tuple(found)


def _lines(folder: Path) -> list[bytes]:
    path = folder / _RECORD
    try:
        return [line for line in path.read_bytes().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unrecorded(path, error) from None


def _append(path: Path, line: str) -> None:
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+b", buffering=0) as record:
            size = record.seek(0, os.SEEK_END)
            cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # by a crash
            record.write(("\n" * cut + line + "\n").encode("ascii"))
            os.fsync(handle)
    except OSError as error:
        raise _unrecorded(path, error) from None


def _unrecorded(path: Path, error: OSError) -> SetupError:
    return SetupError(
        f"The opening cannot be recorded in {path} ({error.strerror or error}), so the test stays sealed.",
        remedy="Free space or change its permissions.",
    )
