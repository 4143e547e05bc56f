"""Spans on disk, page by page: what a pull or an export leaves, and the records that are read from it.

A folder of Parquet files. A page holds some hundred rows (`rows.COLUMNS`) in the order of time, and its name says which
time and which spans, so a page that is there is whole and is never written again; beside it may lie the readings of its
spans, which are. Pages may overlap in time, since a span can arrive late; reading merges them. Memory is that of the
pages that overlap, and of some 40 bytes for every span (see nesting.py), however large the window.

Not covered: deleting; a span that changes after it was read (Phoenix takes in only spans that have ended).
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from dspy_selfimprove import files
from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.exchange import Aside, Exchange, Reading, Step
from dspy_selfimprove.message import digest, thaw
from dspy_selfimprove.telemetry import openinference
from dspy_selfimprove.telemetry.nesting import FACTS, Nesting
from dspy_selfimprove.telemetry.rows import (
    COLUMNS,
    END,
    ID,
    INPUT,
    KIND,
    LIGHT,
    MODEL,
    NAME,
    PARENT,
    REAL,
    SESSION,
    START,
    TIMES,
    TOKENS_IN,
    TOKENS_OUT,
    USER,
    WHOLE,
    Row,
    as_json,
    parsed,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Readings: TypeAlias = Mapping[str, Sequence[Reading]]

BATCH: Final = 256
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE = re.compile(r"(?P<first>-?\d+)_(?P<last>-?\d+)_(?P<count>\d+)_[0-9a-f]{16}\.parquet")
_SHOWN: Final = (*LIGHT, MODEL, TOKENS_IN, TOKENS_OUT, SESSION, USER)
_SHOWN_AS: Final = ("id", "trace", "parent", "name", "kind", "status", "start", "seconds", "model", "input_tokens",
                    "output_tokens", "session", "user")  # fmt: skip
_READING: Final = ("span_id", "name", "kind", "identifier", "score", "label", "explanation", "metadata", "time")


class Source(Protocol):
    """Where spans come from, once they are here: looked at as a table, read as records, in the order of time."""

    def frame(self) -> pd.DataFrame:
        """One line for each span, without its texts: for looking and for counting."""
        ...

    def exchanges(self) -> Iterator[Exchange | Aside]:
        """Each call of a model in production, or why its span gives none."""
        ...

    def steps(self) -> Iterator[Step]:
        """Each call of a DSPy module that ended well."""
        ...

    def left_out(self) -> Mapping[str, int]:
        """How many spans of models are no production of their own, by reason (`nesting.LeftOut`)."""
        ...

    def __len__(self) -> int:
        """How many spans there are, of whatever kind."""
        ...

    @property
    def version(self) -> str | None:
        """A hash of which spans there are and how they were judged; None if that is not known."""
        ...


class Pages:
    """The spans in a folder that began from `since` on and before `until`; a `Source`.

    What is inside what is settled over the whole folder, so a span counts the same in every window of it.
    """

    def __init__(self, folder: Path, since: datetime | None = None, until: datetime | None = None) -> None:
        self.folder = folder
        self._since, self._until = since, until
        self._settled: tuple[tuple[Path, ...], Nesting] | None = None

    def frame(self) -> pd.DataFrame:
        """One line for each span, without its texts: for looking and for counting."""
        import pandas as pd

        tables = [self._table(page, _SHOWN) for page in self._pages()]
        columns = {name: _joined(tables, name) for name in _SHOWN}
        found = pd.DataFrame({START: pd.to_datetime(pd.Series(columns[START], dtype="object"), utc=True)})
        ended = pd.to_datetime(pd.Series(columns[END], dtype="object"), utc=True)
        for name in _SHOWN:
            if name not in TIMES:
                kind = "Int64" if name in WHOLE else "object"
                found[name] = pd.Series(columns[name], dtype=kind)
        found[END] = (ended - found[START]).dt.total_seconds()
        shown = found[list(_SHOWN)].set_axis(list(_SHOWN_AS), axis=1)
        return shown.sort_values("start", kind="stable", ignore_index=True)

    def exchanges(self) -> Iterator[Exchange | Aside]:
        """Each call of a model in production, or why its span gives none."""
        for row, readings in self._read("LLM", self._nesting()):
            yield openinference.exchange(row, readings)

    def steps(self) -> Iterator[Step]:
        """Each call of a DSPy module that ended well."""
        nesting = self._nesting()
        instructions = self._instructions(nesting)
        for row, readings in self._read("CHAIN", nesting):
            if path := nesting.path(row[ID]) if openinference.module_name(row[NAME]) else ():
                found = openinference.step(row, path, instructions.get(nesting.predictor(row[ID])), readings)
                if found is not None:
                    yield found

    def left_out(self) -> Mapping[str, int]:
        """How many spans of models are no production of their own, by reason (`nesting.LeftOut`)."""
        nesting = self._nesting()
        counts: Counter[str] = Counter()
        for page in self._pages():
            table = self._table(page, (ID, KIND))
            models = [each for each, kind in zip(table[ID], table[KIND], strict=True) if kind == "LLM"]
            counts.update(verdict for verdict in nesting.verdicts(models) if verdict is not None)
        return dict(counts)

    @property
    def version(self) -> str:
        """A hash of what there is and how it was judged: the same version, the same records."""
        read = hashlib.sha256()
        for page in self._pages():
            read.update(page.path.read_bytes())
            for span_id in sorted(self._table(page, (ID,))[ID]):
                read.update(f"{span_id}\n".encode())
            if (judged := _readings_path(page.path)).is_file():
                read.update(judged.read_bytes())
        return read.hexdigest()[:16]

    def __len__(self) -> int:
        """How many spans there are, of whatever kind."""
        return sum(len(self._table(page, (ID,))[ID]) for page in self._pages())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} spans in {self.folder}>"

    def _nesting(self) -> Nesting:
        pages = tuple(page.path for page in (*pages_in(self.folder), *pages_in(above(self.folder))))
        if self._settled is None or self._settled[0] != pages:
            self._settled = pages, Nesting(columns_in(path, FACTS) for path in pages)
        return self._settled[1]

    def _instructions(self, nesting: Nesting) -> dict[int, str]:
        """What each predictor was told, by its number, from the adapters' spans; each text is held once."""
        texts: dict[str, str] = {}
        found: dict[int, str] = {}
        for page in pages_in(self.folder, self._since, None):
            for batch in _batches(page.path, (KIND, NAME, PARENT, INPUT), "CHAIN"):
                for row in batch:
                    predictor = nesting.predictor(row[PARENT]) if openinference.is_call(row[NAME]) else 0
                    if predictor and predictor not in found:
                        text = openinference.instructions_of(row[INPUT])
                        if text is not None:
                            found[predictor] = texts.setdefault(text, text)
        return found

    def _pages(self) -> list[Page]:
        return pages_in(self.folder, self._since, self._until)

    def _table(self, page: Page, columns: tuple[str, ...]) -> dict[str, list[Any]]:
        """Columns of a page's rows that lie in the window."""
        if self._holds(page.first) and self._holds(page.last):
            return columns_in(page.path, columns)
        table = columns_in(page.path, tuple(dict.fromkeys((*columns, START))))
        inside = [self._holds(_micros(start)) for start in table[START]]
        return {name: [v for v, kept in zip(table[name], inside, strict=True) if kept] for name in columns}

    def _holds(self, micros: int) -> bool:
        return (self._since is None or _micros(self._since) <= micros) and (
            self._until is None or micros < _micros(self._until)
        )

    def _read(self, kind: str, nesting: Nesting) -> Iterator[tuple[Row, Sequence[Reading]]]:
        """The rows of one kind that count, in the order of time, with their readings. A page is opened in its turn."""
        waiting = sorted(self._pages(), key=lambda page: page.first, reverse=True)
        # A page's number settles ties, so that two rows are never compared.
        open_pages: list[tuple[int, int, Row, Sequence[Reading], Iterator[tuple[Row, Sequence[Reading]]]]] = []

        def advance(number: int, rows: Iterator[tuple[Row, Sequence[Reading]]]) -> None:
            if (following := next(rows, None)) is not None:
                heapq.heappush(open_pages, (_micros(following[0][START]), number, *following, rows))

        while waiting or open_pages:
            while waiting and (not open_pages or waiting[-1].first <= open_pages[0][0]):
                advance(len(waiting), _rows(waiting.pop().path, kind, nesting))
            if open_pages:
                micros, number, row, readings, rows = heapq.heappop(open_pages)
                if self._holds(micros):
                    yield row, readings
                advance(number, rows)


# The files.


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and the times in microseconds of its first row and its last."""

    path: Path
    first: int
    last: int


def pages_in(folder: Path, since: datetime | None = None, until: datetime | None = None) -> list[Page]:
    """The pages of a folder that may hold rows of the window, in a fixed order."""
    found: list[Page] = []
    for path in folder.glob("*.parquet"):
        if name := _PAGE.fullmatch(path.name):
            page = Page(path, int(name["first"]), int(name["last"]))
            if (since is None or page.last >= _micros(since)) and (until is None or page.first < _micros(until)):
                found.append(page)
    return sorted(found, key=lambda page: page.path.name)


def above(folder: Path) -> Path:
    """Where the outlines are of spans that hold some of the folder's and are themselves not among them."""
    return folder / "above"


def write_page(folder: Path, rows: Sequence[Row], readings: Readings | None = None) -> Path:
    """Write rows as a page, sorted by time. What is there under the same name holds the same spans."""
    rows = sorted(rows, key=lambda row: (_micros(row[START]), row[ID]))
    name = digest([row[ID] for row in rows])
    path = folder / f"{_micros(rows[0][START])}_{_micros(rows[-1][START])}_{len(rows)}_{name}.parquet"
    if readings:
        write_readings(path, readings)  # first: a page that is there has its readings
    _write(path, {column: [row.get(column) for row in rows] for column in COLUMNS}, _schema())
    return path


def columns_in(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Columns of a page, whole."""
    with _opened(path) as file:
        found: dict[str, list[Any]] = file.read(columns=list(columns)).to_pydict()
    return found


def write_readings(page: Path, readings: Readings) -> None:
    """Replace what is known of how the spans of a page were judged."""
    flat = [reading for each in readings.values() for reading in each]
    columns: dict[str, list[Any]] = {name: [getattr(reading, name) for reading in flat] for name in _READING}
    columns["metadata"] = [as_json(thaw(metadata)) for metadata in columns["metadata"]]
    _write(_readings_path(page), columns, _reading_schema())


def read_readings(page: Path) -> dict[str, list[Reading]]:
    """The readings of a page's spans; of several with one name, identifier and kind, the latest."""
    path = _readings_path(page)
    if not path.exists():
        return {}
    columns = columns_in(path, _READING)
    latest: dict[tuple[str, ...], Reading] = {}
    for values in zip(*(columns[name] for name in _READING), strict=True):
        fields = dict(zip(_READING, values, strict=True))
        reading = Reading(**{**fields, "metadata": parsed(fields["metadata"]) or {}})
        key = (reading.span_id, reading.name, reading.identifier, reading.kind)
        if key not in latest or _micros(latest[key].time) <= _micros(reading.time):
            latest[key] = reading
    found: dict[str, list[Reading]] = {}
    for reading in latest.values():
        found.setdefault(reading.span_id, []).append(reading)
    return found


def clear_parts(folder: Path) -> None:
    """Remove what writers that were killed have left."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def _readings_path(page: Path) -> Path:
    return page.with_suffix(".readings.parquet")


def _micros(time: datetime | None) -> int:
    return 0 if time is None else (time - _EPOCH) // timedelta(microseconds=1)


def _joined(tables: Iterable[Mapping[str, list[Any]]], column: str) -> list[Any]:
    return [value for table in tables for value in table[column]]


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(TIMES, pa.timestamp("us", tz="UTC")),
        **dict.fromkeys(WHOLE, pa.int64()),
        **dict.fromkeys(REAL, pa.float64()),
    }
    return pa.schema([(column, kinds.get(column, pa.string())) for column in COLUMNS])


def _reading_schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"score": pa.float64(), "time": pa.timestamp("us", tz="UTC")}
    return pa.schema([(column, kinds.get(column, pa.string())) for column in _READING])


def _write(path: Path, columns: dict[str, list[Any]], schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.replacing(path) as part:
        pq.write_table(pa.table(columns, schema=schema), part, compression="zstd", row_group_size=BATCH)


def _rows(page: Path, kind: str, nesting: Nesting) -> Iterator[tuple[Row, Sequence[Reading]]]:
    readings = read_readings(page)
    for batch in _batches(page, COLUMNS, kind):
        for row, left_out in zip(batch, nesting.verdicts([row[ID] for row in batch]), strict=True):
            if left_out is None:
                yield row, readings.get(row[ID], ())


def _batches(path: Path, columns: tuple[str, ...], kind: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of one kind, a few at a time."""
    import pyarrow.compute as pc

    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=list(columns)):
            chosen: pa.RecordBatch = batch.filter(pc.equal(batch.column(KIND), kind))
            yield chosen.to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        problem = f"{path} cannot be read ({type(error).__name__})."
        raise SetupError(problem, remedy="Remove that file and pull again.") from None


def utc(name: str, time: datetime) -> datetime:
    """`time` in UTC; one without a zone is refused, since it means another moment on another machine."""
    if time.tzinfo is None or time.utcoffset() is None:
        raise UsageError(f"`{name}` has no time zone.", remedy="Say which: datetime(2026, 11, 1, tzinfo=timezone.utc).")
    return time.astimezone(UTC)
