"""Spans from anywhere, without a server: a frame, a Parquet file, JSON lines, or a folder of those.

Whatever wrote them: a frame from Phoenix or Arize AX, spans as a tracer's exporter prints them, a collector's file of
OTLP/JSON. They become what a pull leaves (pages.py), in a temporary folder that goes with the `Export`, so that a
window of any size is read in the order of time, in the memory of a few pages. Verdicts that come along in columns are
readings: `eval.<name>.score|label|explanation`, by a model unless a `kind` beside them says otherwise, and
`annotation.<name>.…`, by people.

A file that cannot be read is refused with its name and the line. One thing is not: a last line that was cut off, as a
writer that was killed leaves it, is left out and counted. A span that comes twice counts once, as it came first.

Not covered: CSV; compressed JSON lines; files so broken that their format no longer shows.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, get_args

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.message import encodable
from dspy_selfimprove.sample import EvalKind
from dspy_selfimprove.telemetry.nesting import keys
from dspy_selfimprove.telemetry.pages import Pages, utc, write_page
from dspy_selfimprove.telemetry.rows import ID, as_text, leaves, moment, normalize, number, otlp

if TYPE_CHECKING:
    import pandas as pd

Record: TypeAlias = Mapping[str, Any]
Found: TypeAlias = Iterator[tuple[str, Record]]
"""Records, each with words for where it stands: "line 7", "row 12"."""

ROWS: Final = 500  # taken from a frame or a Parquet file at once
RUN_BYTES: Final = 16_000_000
RUN_ROWS: Final = 20_000
LINES: Final = (".jsonl", ".ndjson")
READ: Final = (".parquet", *LINES, ".json")
_SPAN_IDS: Final = ("context.span_id", "span_id")
_VERDICT: Final = re.compile(
    r"(?P<by>eval|annotation)\.(?P<name>.+)\.(?P<field>score|label|explanation|text|kind|annotator_kind|updated_at)",
    re.DOTALL,
)


class Export(Pages):
    """The spans of a file or a frame; made by `read`.

    `torn` counts last lines that were cut off, `repeated` spans that came again.
    """

    def __init__(self, since: datetime | None, until: datetime | None) -> None:
        # Removed when the export is let go.
        self._temporary = tempfile.TemporaryDirectory(prefix="dspy-selfimprove-")
        super().__init__(Path(self._temporary.name), since and utc("since", since), until and utc("until", until))
        self.torn = self.repeated = 0

    def left_out(self) -> Mapping[str, int]:
        """How many spans of models are no production of their own, and what of the file was not taken, by reason."""
        told = {"the last line was cut off": self.torn, "the span came again": self.repeated}
        return {**super().left_out(), **{reason: count for reason, count in told.items() if count}}


def read(source: str | Path | pd.DataFrame, since: datetime | None = None, until: datetime | None = None) -> Export:
    """The spans in a frame, a file (Parquet, JSON lines, OTLP/JSON) or a folder of such files.

    >>> import pandas as pd
    >>> call = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    >>> row = {"context.span_id": "a1", "span_kind": "LLM", "input.value": json.dumps(call), "output.value": "Hello!"}
    >>> [each.output["content"] for each in read(pd.DataFrame([row])).exchanges()]
    ['Hello!']
    """
    export = Export(since, until)
    seen: set[int] = set()
    if isinstance(source, str | Path):
        for path in _files(Path(source)):
            _take(export, _records(path, export), path.name, seen)
    else:
        _take(export, _frame_records(source), "the frame", seen)
    return export


def _take(export: Export, found: Found, source: str, seen: set[int]) -> None:
    """Write records as pages, each as large as may be sorted in memory."""
    rows: list[dict[str, Any]] = []
    readings: dict[str, list[Reading]] = {}
    size = 0
    for where, record in found:
        row = normalize(record)
        if not row[ID]:
            raise UsageError(
                f"{where} of {source} holds no span id.",
                remedy="Give spans as OpenInference names them: context.span_id, start_time, attributes.…",
            )
        key = int(keys([row[ID]])[0])
        if key in seen:
            export.repeated += 1
            continue
        seen.add(key)
        rows.append(row)
        if said := _readings(record, row[ID]):
            readings[row[ID]] = said
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size > RUN_BYTES or len(rows) >= RUN_ROWS:
            write_page(export.folder, rows, readings)
            rows, readings, size = [], {}, 0
    if rows:
        write_page(export.folder, rows, readings)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        if (path / "pull.json").exists():
            raise UsageError(f"{path} was written by a pull.", remedy="Open it with Pull(folder).")
        found = sorted(each for each in path.iterdir() if each.suffix in READ)
        if not found:
            raise UsageError(f"{path} holds no spans.", remedy=f"Put files there that end in {', '.join(READ)}.")
        return found
    if not path.exists():
        raise UsageError(f"{path} is not there.", remedy="Check the path.")
    if path.suffix not in READ:
        raise UsageError(
            f"{path.name} is of no kind known here.", remedy=f"Give a file that ends in {', '.join(READ)}."
        )
    return [path]


def _records(path: Path, export: Export) -> Found:
    if path.suffix == ".parquet":
        return _parquet_records(path)
    if path.suffix in LINES:
        return _line_records(path, export)
    return _document_records(path)


def _frame_records(frame: pd.DataFrame) -> Found:
    if not set(_SPAN_IDS) & set(frame.columns) and frame.index.name in _SPAN_IDS:
        frame = frame.reset_index()
    for start in range(0, len(frame), ROWS):
        for number_, record in enumerate(frame.iloc[start : start + ROWS].to_dict("records"), start):
            yield f"Row {number_}", {str(name): value for name, value in record.items()}


def _parquet_records(path: Path) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                for record in batch.to_pylist():
                    yield f"Row {row}", record
                    row += 1
    except (pa.ArrowException, OSError) as error:
        problem = f"{path.name} is no Parquet file that can be read ({type(error).__name__})."
        raise UsageError(problem, remedy="Export it again.") from None


def _line_records(path: Path, export: Export) -> Found:
    pending: tuple[int, str] | None = None  # a line is broken only if another one follows it
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if pending is not None:
                _refuse_line(path, pending[0])
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                pending = line_number, line
                continue
            for record in _spans(found):
                if not isinstance(record, Mapping):
                    _refuse_line(path, line_number)
                yield f"Line {line_number}", record
    if pending is not None:
        if pending[1].endswith("\n"):
            _refuse_line(path, pending[0])
        export.torn += 1


def _refuse_line(path: Path, line_number: int) -> NoReturn:
    raise UsageError(
        f"Line {line_number} of {path.name} is no JSON object.", remedy="Mend or remove that line, or export it again."
    )


def _document_records(path: Path) -> Found:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{path.name} is no JSON{line}.", remedy="Export it again.") from None
    for at, record in enumerate(_spans(found)):
        if not isinstance(record, Mapping):
            raise UsageError(f"Entry {at} of {path.name} is no JSON object.", remedy="Give a list of spans.")
        yield f"Entry {at}", record


def _spans(found: Any) -> Iterable[Any]:
    """The spans in a JSON value: itself, a list of them, Phoenix's answer with `data`, or an OTLP document."""
    if isinstance(found, list):
        return found
    if not isinstance(found, Mapping):
        return [found]
    if "resourceSpans" in found or "resource_spans" in found:
        return otlp(found)
    if isinstance(found.get("data"), list) and not {"name", "context", *_SPAN_IDS} & set(found):
        return list(found["data"])
    return [found]


# Verdicts that came along.


def _readings(record: Record, span_id: str) -> list[Reading]:
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for name, value in leaves(record):
        if name.startswith(("eval.", "annotation.")) and (part := _VERDICT.fullmatch(name)):
            said.setdefault((part["by"], part["name"]), {})[part["field"]] = value
    return [
        reading for (by, name), fields in said.items() if (reading := _verdict(span_id, by, name, fields)) is not None
    ]


def _verdict(span_id: str, by: str, name: str, fields: Mapping[str, Any]) -> Reading | None:
    score, label = number(fields.get("score"), whole=False), as_text(fields.get("label"))
    if name in ("note", "notes") or (score is None and label is None):
        return None
    usual: EvalKind = "LLM" if by == "eval" else "HUMAN"
    told = str(fields.get("annotator_kind") or fields.get("kind") or usual).upper()
    return Reading(
        span_id=span_id,
        name=encodable(name),
        kind=told if told in get_args(EvalKind) else usual,  # type: ignore[arg-type]
        score=score,
        label=label,
        explanation=as_text(fields.get("explanation") or fields.get("text")),
        time=moment(fields.get("updated_at")),
    )
