"""Production out of Phoenix, onto the disk: streaming, resumable, and never the same span twice.

    pull("support", since, into=folder)       # what is not held yet; again tomorrow, with the same folder
    for each in Pull(folder).exchanges(): ...  # without Phoenix

Phoenix's own way to get a window of spans takes it whole: every attribute, twice over, in one answer that both sides
hold in memory. Here the window is *listed* first, a slice of time at a time, by id, kind and name alone. What the
folder holds already is subtracted. The rest is fetched, some hundred spans and a few megabytes at a time, only
the attributes that are read (`rows.COLUMNS`) and only of spans that can give an exchange or a step; OpenInference's
copy of the messages only where the body of the call does not say them. Each page is written before the next but two is
asked for, and forgotten. Killed at any moment, or left alone by a Phoenix that goes away, a pull leaves whole pages,
and the next one goes on from there.

The folder is the memory, not a date: each pull lists its window anew, so a span that began early and arrived late is
found by the next one. What people and judges say of a span changes, so annotations are read again at each pull, for
every span of the window that they can matter for.

What Phoenix lists it must give: rows that stay away though they still exist are an error, and rows that were deleted
in between are counted. One process at a time pulls into a folder.

Not covered: annotations of traces, sessions and documents; a change to a span that is held; a marker of our own runs
(`rows.RUN_ATTRIBUTE`) on spans of which only the outline is fetched, that is neither models nor DSPy modules; a
model's call inside another one that begins at or after `until` (the outer one then counts, in this window).
"""

from __future__ import annotations

import difflib
import json
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import httpx

from dspy_selfimprove import files
from dspy_selfimprove.errors import TelemetryError, UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.telemetry.annotations import fetch, names
from dspy_selfimprove.telemetry.client import connect, line, project_name, refused
from dspy_selfimprove.telemetry.openinference import is_call, lacks_body, module_name, said_by_body
from dspy_selfimprove.telemetry.pages import (
    Page,
    Pages,
    above,
    clear_parts,
    columns_in,
    pages_in,
    utc,
    write_page,
    write_readings,
)
from dspy_selfimprove.telemetry.rows import (
    ANSWERED,
    ASKED,
    COLUMNS,
    DOLLARS,
    END,
    FINISH,
    ID,
    INPUT,
    KIND,
    METADATA,
    MODEL,
    NAME,
    OUTPUT,
    PARAMETERS,
    PARENT,
    RUN,
    RUN_ATTRIBUTE,
    SESSION,
    START,
    STATUS,
    SYSTEM,
    TAGS,
    TEMPLATE,
    TEMPLATE_VARIABLES,
    TEMPLATE_VERSION,
    TOKENS_CACHED,
    TOKENS_IN,
    TOKENS_OUT,
    TOOLS,
    TRACE,
    USER,
    Row,
    as_json,
    as_text,
    number,
    run_of,
)
from dspy_selfimprove.telemetry.server import locate

if TYPE_CHECKING:
    import pandas as pd
    from phoenix.client import Client

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT: Final = timedelta(microseconds=1)  # Phoenix knows none shorter
_ALL: Final = 2**31 - 1

T = TypeVar("T")
S = TypeVar("S")
Advance: TypeAlias = Callable[[int, int], None]
"""Told how many spans have been read, and of how many that are known of by now."""

FORMAT: Final = 1
LISTED: Final = 50_000  # spans in one answer of the listing
FIRST_SLICE: Final = timedelta(hours=1)  # the next ones are as wide as suits what this one held
FEWEST, MOST, FIRST = 10, 5_000, 500  # spans in one page
PAGE_BYTES: Final = 8_000_000
SLACK: Final = 100  # spans that may have arrived in a page's time since it was listed
JOINED: Final = 10  # names of annotations in one query; each is a join
TOGETHER: Final = 8  # pages whose annotations are looked for at once
AHEAD: Final = 2  # pages asked for while one is written
TIMEOUT: Final = 120
REACH: Final = timedelta(hours=1)
"""How long before its call an evaluation may have begun and still be found, when the window cuts between the two."""


class Pull(Pages):
    """The spans of a project in a folder, from `since` on and before `until`; made by `pull`, opened again by its name.

    `new` is how many spans the pull that made it fetched, `gone` how many were deleted in Phoenix while it ran.
    """

    def __init__(
        self,
        folder: str | Path,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        new: int = 0,
        gone: int = 0,
    ) -> None:
        folder = Path(folder)
        self.project = _project_of(folder)
        if self.project is None:
            raise UsageError(f"{folder} holds no spans.", remedy="Pull some into it first.")
        super().__init__(folder, since and utc("since", since), until and utc("until", until))
        self.new, self.gone = new, gone


def pull(
    project: str,
    since: datetime,
    until: datetime | None = None,
    *,
    into: str | Path,
    endpoint: str | None = None,
    api_key: str | None = None,
    progress: Advance | None = None,
) -> Pull:
    """Fetch the spans of `project` that the folder `into` does not hold yet, and read their annotations again.

    The window is `since` (with it) to `until` (without it; None means now). The Phoenix is the one `server.locate`
    finds. An empty window is no error. When Phoenix stays away, what was pulled by then stands.
    """
    since, until = _window(since, until)
    project, folder = project_name(project), Path(into)
    address = locate(endpoint, api_key)
    with connect(address, timeout=TIMEOUT) as phoenix, line(address, timeout=TIMEOUT) as plain_line:
        project_id = _project_id(phoenix, project)
        with _alone(folder):
            _claim(folder, project)
            clear_parts(folder)
            reader = _Reader(phoenix, project, folder, progress or (lambda count, total: None))
            reader.read(since, until)
            reader.read_ancestors(since)
            reader.read_annotations(plain_line, project_id, since, until)
    return Pull(folder, since, until, new=reader.new, gone=reader.gone)


def _window(since: datetime, until: datetime | None) -> tuple[datetime, datetime | None]:
    since, until = utc("since", since), until and utc("until", until)
    if since > datetime.now(UTC):
        raise UsageError("`since` lies in the future.", remedy="Name a moment that has passed.")
    if until is not None and until <= since:
        raise UsageError("`until` is not after `since`.", remedy="Exchange them, or leave `until` out.")
    return since, until


def _project_id(phoenix: Client, project: str) -> str:
    try:
        return str(phoenix.projects.get(project_name=project)["id"])
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 404:
            raise refused(error) from None
    there = [each["name"] for each in phoenix.projects.list()]
    folded = {name.casefold(): name for name in there}
    near = [folded[name] for name in difflib.get_close_matches(project.casefold(), folded, n=3, cutoff=0.5)]
    known = ", ".join(repr(name) for name in near or sorted(there)[:5])
    remedy = f"Did you mean {known}?" if near else f"It has {known}." if there else "It has none yet."
    raise UsageError(f"Phoenix has no project {project!r}.", remedy=remedy)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    files.writable(folder)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"Another process is pulling into {folder}.", remedy="Wait for it, or name another folder."
        ) from None


def _project_of(folder: Path) -> str | None:
    note = folder / "pull.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        written, project = int(found["format"]), str(found["project"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{note} is damaged.", remedy="Pull into an empty folder.") from None
    if written > FORMAT:
        raise UsageError(f"{folder} was written by a newer dspy-selfimprove.", remedy="Upgrade this one.")
    return project


def _claim(folder: Path, project: str) -> None:
    """Note whose spans the folder holds; another project's never join them."""
    held = _project_of(folder)
    if held is None:
        files.write_text(folder / "pull.json", json.dumps({"format": FORMAT, "project": project}) + "\n")
    elif held != project:
        raise UsageError(f"{folder} holds spans of the project {held!r}.", remedy="Name another folder.")


# Asking Phoenix.

# Phoenix's names for our columns, in a query. A whole branch costs no more than a leaf of it.
_LISTING: Final = ("start_time", KIND, NAME)
_REST: Final = ("trace_id", PARENT, STATUS, "latency_ms")  # a number costs Phoenix a fifth of what a time does
_CONTENT: Final = {
    INPUT: "input.value",
    OUTPUT: "output.value",
    SYSTEM: "llm.system",
    SESSION: "session.id",
    USER: "user.id",
    METADATA: "metadata",
    TAGS: "tag.tags",
}
_TEXTS: Final = tuple(each for each in _CONTENT.items() if each[0] not in (METADATA, TAGS))
_MAY_HAVE_CONTENT: Final = "span_kind == 'LLM' or span_kind == 'CHAIN'"
_BRANCHES: Final = ("llm.cost", "llm.prompt_template", RUN_ATTRIBUTE)
# What the body of a call says too, if it is there: each column less is a twentieth of the time.
_SAID: Final = {MODEL: "llm.model_name", FINISH: "llm.finish_reason", PARAMETERS: "llm.invocation_parameters"}
_COUNTS: Final = "llm.token_count"
_MESSAGES: Final = {ASKED: "llm.input_messages", ANSWERED: "llm.output_messages", TOOLS: "llm.tools"}

Found: TypeAlias = dict[str, dict[str, Any]]  # by span id, the columns Phoenix gave


@dataclass(frozen=True, slots=True)
class _Listed:
    """A span as the listing shows it: enough to know when it was, and how much of it to fetch."""

    id: str
    start: datetime
    kind: str
    name: str

    @classmethod
    def of(cls, span_id: str, given: dict[str, Any]) -> _Listed:
        return cls(span_id, given["start_time"], given[KIND] or "UNKNOWN", given[NAME] or "")

    @property
    def has_content(self) -> bool:
        """Whether it can give an exchange or a step, or says what a step was told."""
        return self.kind == "LLM" or (self.kind == "CHAIN" and bool(module_name(self.name) or is_call(self.name)))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Listed spans to fetch as one page, in the order of time. `around` counts all that are listed in their time."""

    listed: list[_Listed]
    around: int

    @property
    def time(self) -> tuple[datetime, datetime]:
        return self.listed[0].start, self.listed[-1].start + _MOMENT


class _Reader:
    """One pull, under way."""

    def __init__(self, phoenix: Client, project: str, folder: Path, progress: Advance) -> None:
        self._phoenix, self._project, self._folder, self._progress = phoenix, project, folder, progress
        self.new = self.gone = 0
        self._known = 0
        self._size = FIRST

    def read(self, since: datetime, until: datetime | None) -> None:
        for rows, gone in _ahead(self._chunks(since, until), self._fetch):
            self.gone += gone
            if rows:
                write_page(self._folder, rows)
                self.new += len(rows)
                self._size = _next_size(rows)
            self._progress(self.new, self._known)

    def read_ancestors(self, since: datetime) -> None:
        """The spans that began before the window and hold some of its first ones: one may be an evaluator."""
        asked: set[str] = set()
        apart = above(self._folder)
        held = {each for page in pages_in(apart) for each in columns_in(page.path, (ID,))[ID]}
        parents: set[str | None] = set()
        for page in pages_in(self._folder, None, since + REACH):
            columns = columns_in(page.path, (ID, PARENT))
            held |= set(columns[ID])
            parents |= set(columns[PARENT])
        while wanted := {each for each in parents if each} - held - asked:
            asked |= wanted
            found = self._by_id((*_LISTING, *_REST), sorted(wanted), None)
            rows = {each: _outline(_Listed.of(each, given), given) for each, given in found.items()}
            if rows:
                write_page(apart, list(rows.values()))
            parents = {row[PARENT] for row in rows.values()}
            held |= set(rows)

    def read_annotations(self, asking: httpx.Client, project_id: str, since: datetime, until: datetime | None) -> None:
        """Read what is said of the window's models and modules again, page by page."""
        judged_on = names(asking, project_id)

        def of(pages: list[Page]) -> list[tuple[Path, list[Reading]]]:
            judged = None if judged_on is None else self._judged(judged_on, pages)
            return [(page.path, fetch(asking, self._project, _judgeable(page, judged))) for page in pages]

        pages = pages_in(self._folder, since, until)
        for found in _ahead((pages[at : at + TOGETHER] for at in range(0, len(pages), TOGETHER)), of):
            for path, readings in found:
                by_span: dict[str, list[Reading]] = {}
                for reading in readings:
                    by_span.setdefault(reading.span_id, []).append(reading)
                write_readings(path, by_span)

    def _judged(self, judged_on: list[str], pages: list[Page]) -> set[str]:
        """The spans that somebody has judged, in the time that some pages cover."""
        first, last = min(page.first for page in pages), max(page.last for page in pages)
        start, end = (_EPOCH + timedelta(microseconds=time) for time in (first, last + 1))
        found: set[str] = set()
        for at in range(0, len(judged_on), JOINED):
            # Every annotation has an identifier, if only an empty one.
            named = (f"annotations[{json.dumps(name)}].identifier is not None" for name in judged_on[at : at + JOINED])
            where = " or ".join(named)
            found |= self._select(("start_time",), where=where, start=start, end=end, limit=_ALL).keys()
        return found

    def _chunks(self, since: datetime, until: datetime | None) -> Iterator[_Chunk]:
        """What is listed and not held, in the order of time, a page's worth at a time."""
        for listed in self._slices(since, until):
            if not listed:
                continue
            held = self._held(listed[0].start, listed[-1].start)
            missing = [each for each in listed if each.id not in held]
            times = [each.start for each in listed]
            self._known += len(missing)
            at = 0
            while at < len(missing):
                part = missing[at : at + self._size]
                yield _Chunk(part, bisect_right(times, part[-1].start) - bisect_left(times, part[0].start))
                at += len(part)

    def _held(self, first: datetime, last: datetime) -> set[str]:
        pages = pages_in(self._folder, first, last + _MOMENT)
        return {each for page in pages for each in columns_in(page.path, (ID,))[ID]}

    def _slices(self, since: datetime, until: datetime | None) -> Iterator[list[_Listed]]:
        """The window's listing in slices that follow each other, none longer than an answer may be.

        Phoenix does not order what it lists, so an answer that is cut short says only that the slice was too wide.
        """
        end = until or max(datetime.now(UTC), since + _MOMENT)
        start, width = since, FIRST_SLICE
        while start < end:
            stop = min(start + width, end)
            limit = LISTED if width > _MOMENT else _ALL  # a tie cannot be cut
            listed = self._listing(start, stop, limit)
            if len(listed) >= limit:
                width = max(width / 4, _MOMENT)
                continue
            yield listed
            start = stop
            # Aim at most of an answer next time; where nothing was, look at all that is left.
            width *= min(8.0, max(0.25, 0.6 * LISTED / max(1, len(listed))))
            width = min(max(width, _MOMENT), end - since) if listed else max(end - start, _MOMENT)
        if until is None:  # clocks differ: what began "after now" belongs to it too
            yield self._listing(end, None, _ALL)

    def _listing(self, start: datetime, stop: datetime | None, limit: int) -> list[_Listed]:
        found = self._select(_LISTING, start=start, end=stop, limit=limit)
        listed = [_Listed.of(each, given) for each, given in found.items()]
        return sorted(listed, key=lambda each: (each.start, each.id))

    def _fetch(self, chunk: _Chunk) -> tuple[list[Row], int]:
        """The rows of listed spans, and how many of them were deleted since."""
        rows = self._rows(chunk)
        if lacking := [each for each in chunk.listed if each.id not in rows]:
            rows |= self._rows(_Chunk(lacking, _ALL))
            lacking = [each for each in lacking if each.id not in rows]
            if lacking and self._by_id(("start_time",), [each.id for each in lacking], None):
                raise TelemetryError(
                    f"Phoenix lists {len(lacking)} spans that it does not give.",
                    remedy="Pull again; what was pulled stands. If it stays so, Phoenix's log may say why.",
                )
        return [rows[each.id] for each in chunk.listed if each.id in rows], len(lacking)

    def _rows(self, chunk: _Chunk) -> Found:
        listed = {each.id: each for each in chunk.listed}
        full = [each.id for each in chunk.listed if each.has_content]
        rest = [each.id for each in chunk.listed if not each.has_content]
        content = self._contents(chunk, full)
        rows = {each: _outline(listed[each], given) for each, given in self._by_id(_REST, rest, chunk.time).items()}
        rows |= {each: _content(listed[each], content[each]) for each in full if each in content}
        self._complete([rows[each] for each in full if each in rows and listed[each].kind == "LLM"], chunk.time)
        return rows

    def _complete(self, rows: list[dict[str, Any]], time: tuple[datetime, datetime]) -> None:
        """Add to rows of models what their bodies do not say."""
        unsaid: dict[bool, dict[str, dict[str, Any]]] = {False: {}, True: {}}
        for row in rows:
            if row[STATUS] == "ERROR":
                continue
            if (said := said_by_body(row)) is not None:
                row |= said
            else:
                unsaid[lacks_body(row)][row[ID]] = row
        for lacks_messages, waiting in unsaid.items():
            columns = (*_SAID.values(), _COUNTS, *(_MESSAGES.values() if lacks_messages else ()))
            for each, given in self._by_id(columns, list(waiting), time).items():
                waiting[each] |= _said(given)

    def _contents(self, chunk: _Chunk, ids: list[str]) -> Found:
        """The contents of spans: asked for by time where most of what is there is wanted, since a long list of ids
        costs Phoenix almost as much as the spans do; else, and for what that lacks, by id."""
        columns = (*_REST, *_CONTENT.values(), *_BRANCHES)
        if 2 * len(ids) < chunk.around:
            return self._by_id(columns, ids, chunk.time)
        start, end = chunk.time
        return self._select(columns, where=_MAY_HAVE_CONTENT, start=start, end=end, limit=chunk.around + SLACK)

    def _by_id(self, columns: tuple[str, ...], ids: list[str], span: tuple[datetime, datetime] | None) -> Found:
        found: Found = {}
        start, end = span or (None, None)
        for at in range(0, len(ids), MOST):
            some = ids[at : at + MOST]
            found |= self._select(
                columns, where=f"span_id in {json.dumps(some)}", start=start, end=end, limit=len(some)
            )
        return found

    def _select(
        self,
        columns: tuple[str, ...],
        *,
        where: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int,
    ) -> Found:
        """Columns of spans, by id."""
        from phoenix.client.types.spans import SpanQuery

        query = SpanQuery().select("span_id", *columns)
        try:
            frame = self._phoenix.spans.get_spans_dataframe(
                query=query.where(where) if where else query,
                start_time=start,
                end_time=end,
                limit=limit,
                project_identifier=self._project,
                timeout=TIMEOUT,
            )
        except httpx.HTTPStatusError as error:
            raise refused(error) from None
        # Phoenix has its own name for one column that was asked for by another.
        given = [_cells(frame[TRACE if name == "trace_id" else name]) for name in columns] if len(frame) else []
        return {each: dict(zip(columns, row, strict=True)) for each, *row in zip(frame.index, *given, strict=True)}


def _cells(column: pd.Series[Any]) -> list[Any]:
    """A column's values; what pandas puts where there is nothing becomes None."""
    if column.dtype.kind == "M":  # times, of which none is missing
        import pandas as pd

        return list(pd.DatetimeIndex(column).to_pydatetime())
    return [value if isinstance(value, str | list | dict) or value == value else None for value in column.tolist()]


def _outline(listed: _Listed, given: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {ID: listed.id, START: listed.start, KIND: listed.kind, NAME: listed.name}
    row |= {TRACE: given["trace_id"], PARENT: given[PARENT], STATUS: given[STATUS]}
    row[END] = listed.start + timedelta(microseconds=round(1000 * given["latency_ms"]))
    return row


def _content(listed: _Listed, given: dict[str, Any]) -> dict[str, Any]:
    row = _outline(listed, given)
    for column, name in _TEXTS:
        row[column] = as_text(given[name])
    cost, template = _branch(given["llm.cost"]), _branch(given["llm.prompt_template"])
    row |= {
        METADATA: as_json(given["metadata"]),
        TAGS: as_json(given["tag.tags"]),
        DOLLARS: number(cost.get("total"), whole=False),
        TEMPLATE: as_text(template.get("template")),
        TEMPLATE_VARIABLES: as_json(template.get("variables")),
        TEMPLATE_VERSION: as_text(template.get("version")),
    }
    row[RUN] = as_text(given[RUN_ATTRIBUTE]) or run_of(row[METADATA])
    return row


def _said(given: dict[str, Any]) -> dict[str, Any]:
    tokens = _branch(given[_COUNTS])
    found: dict[str, Any] = {column: as_text(given[name]) for column, name in _SAID.items()}
    found |= {column: as_json(given[name]) for column, name in _MESSAGES.items() if name in given}
    found |= {
        TOKENS_IN: number(tokens.get("prompt"), whole=True),
        TOKENS_OUT: number(tokens.get("completion"), whole=True),
        TOKENS_CACHED: number(_branch(tokens.get("prompt_details")).get("cache_read"), whole=True),
    }
    return found


def _branch(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _judgeable(page: Page, judged: set[str] | None) -> list[str]:
    """The spans of a page that records come from and, where that is known, that somebody has judged."""
    columns = columns_in(page.path, (ID, KIND))
    ids = (each for each, kind in zip(columns[ID], columns[KIND], strict=True) if kind in ("LLM", "CHAIN"))
    return [each for each in ids if judged is None or each in judged]


def _next_size(rows: Sequence[Row]) -> int:
    """How many spans such as these make a page of a few megabytes."""
    size = sum(len(row[column] or "") for row in rows for column in (INPUT, OUTPUT, ASKED, ANSWERED))
    return int(min(MOST, max(FEWEST, PAGE_BYTES * len(rows) / max(1, size))))


def _ahead(items: Iterable[T], work: Callable[[T], S]) -> Iterator[S]:
    """The results of `work` in order; the next two are under way while one is used, so that Phoenix always has one."""
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="pull") as pool:
        under_way: deque[Future[S]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
