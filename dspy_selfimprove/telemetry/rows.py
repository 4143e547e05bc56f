"""One span as a row: the names its facts go by here, and how every way of writing them down becomes that.

OpenInference says what a span's attributes are called, not how a table holds them. The same message list reaches us as
a column of dicts with dotted keys (`{"message.role": ...}`, a frame or an export), as nested dicts (`{"message":
{"role": ...}}`, a query's selection) or as one attribute per leaf (`llm.input_messages.0.message.role`, a span as it
was sent). `normalize` takes each of them, with or without the `attributes.` in front, and numpy's arrays and NaN, which
Parquet and pandas put in the place of lists and of nothing, and gives the row that everything after it reads: plain
values under the names in `COLUMNS`, lists and dicts as JSON text.

Not covered: events; attributes that nothing here reads; a metadata key with a dot in it, where the source has one
attribute per leaf.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from dspy_selfimprove.telemetry.client import clean_text

Row: TypeAlias = Mapping[str, Any]

ID: Final = "context.span_id"
TRACE: Final = "context.trace_id"
PARENT: Final = "parent_id"
NAME: Final = "name"
KIND: Final = "span_kind"
STATUS: Final = "status_code"
START: Final = "start_time"
END: Final = "end_time"
INPUT: Final = "attributes.input.value"
OUTPUT: Final = "attributes.output.value"
MODEL: Final = "attributes.llm.model_name"
SYSTEM: Final = "attributes.llm.system"
FINISH: Final = "attributes.llm.finish_reason"
PARAMETERS: Final = "attributes.llm.invocation_parameters"
ASKED: Final = "attributes.llm.input_messages"
ANSWERED: Final = "attributes.llm.output_messages"
TOOLS: Final = "attributes.llm.tools"
TOKENS_IN: Final = "attributes.llm.token_count.prompt"
TOKENS_OUT: Final = "attributes.llm.token_count.completion"
TOKENS_CACHED: Final = "attributes.llm.token_count.prompt_details.cache_read"
DOLLARS: Final = "attributes.llm.cost.total"
SESSION: Final = "attributes.session.id"
USER: Final = "attributes.user.id"
METADATA: Final = "attributes.metadata"
TAGS: Final = "attributes.tag.tags"
TEMPLATE: Final = "attributes.llm.prompt_template.template"
TEMPLATE_VARIABLES: Final = "attributes.llm.prompt_template.variables"
TEMPLATE_VERSION: Final = "attributes.llm.prompt_template.version"
RUN: Final = "attributes.dspy_selfimprove.run"

RUN_ATTRIBUTE: Final = "dspy_selfimprove.run"
"""Marks a span as one of this package's own runs, as an attribute of the span or a key of its metadata. The whole trace
is then no production, and is left out."""

TIMES: Final = (START, END)
WHOLE: Final = (TOKENS_IN, TOKENS_OUT, TOKENS_CACHED)
REAL: Final = (DOLLARS,)
STRUCTURED: Final = (ASKED, ANSWERED, TOOLS, METADATA, TAGS, TEMPLATE_VARIABLES)  # JSON text in a row
LIGHT: Final = (ID, TRACE, PARENT, NAME, KIND, STATUS, START, END)
COLUMNS: Final = (
    *LIGHT, INPUT, OUTPUT, MODEL, SYSTEM, FINISH, PARAMETERS, ASKED, ANSWERED, TOOLS, *WHOLE, *REAL, SESSION, USER,
    METADATA, TAGS, TEMPLATE, TEMPLATE_VARIABLES, TEMPLATE_VERSION, RUN,
)  # fmt: skip

_PREFIX: Final = "attributes."
_OPAQUE: Final = frozenset({"input.value", "output.value", "metadata", "llm.prompt_template.variables"})
_OTHER_NAMES: Final = {
    ID: ("span_id", "context.span_id", "spanId"),
    TRACE: ("trace_id", "context.trace_id", "traceId"),
    PARENT: ("parent_id", "parent_span_id", "parentSpanId"),
    STATUS: ("status_code", "status.status_code", "status.code"),
    START: ("start_time", "startTimeUnixNano", "start_time_unix_nano"),
    END: ("end_time", "endTimeUnixNano", "end_time_unix_nano"),
    KIND: ("openinference.span.kind", "span_kind"),
}
_ENCODE: Final = json.JSONEncoder(default=str).encode
_STATUS: Final = {"0": "UNSET", "1": "OK", "2": "ERROR"}


def normalize(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a span that was written down in any of the ways known here; what is not there is None."""
    tree = _tree(record)
    row: dict[str, Any] = {}
    for column in COLUMNS:
        names = _OTHER_NAMES.get(column, (column.removeprefix(_PREFIX),))
        value = next((found for name in names if (found := _at(tree, name)) is not None), None)
        if column in TIMES:
            row[column] = moment(value)
        elif column in (*WHOLE, *REAL):
            row[column] = number(value, whole=column in WHOLE)
        elif column in STRUCTURED:
            row[column] = as_json(value)
        else:
            row[column] = as_text(value)
    for column in (ID, TRACE, PARENT):
        row[column] = (row[column] or "").removeprefix("0x") or None
    row[STATUS] = _status(row[STATUS])
    row[KIND] = (row[KIND] or "UNKNOWN").upper()
    row[RUN] = row[RUN] or run_of(row[METADATA])
    return row


def run_of(metadata: str | None) -> str | None:
    """The run that a span's metadata, as JSON text, says it belongs to."""
    if not metadata or "dspy_selfimprove" not in metadata:
        return None
    found = parsed(metadata)
    return as_text(_at(_tree(found), RUN_ATTRIBUTE)) if isinstance(found, dict) else None


# Values, whoever wrote them.


def plain(value: Any) -> Any:
    """`value` as JSON knows it: numpy's arrays and numbers as Python's, NaN and NaT as None. Times stay."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, datetime):
        return None if value != value else value  # NaT is no equal of itself
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if type(value).__name__ == "NAType" else str(value)  # pandas' own word for missing


def as_text(value: Any) -> str | None:
    if value is None:
        return None
    return clean_text(value) if isinstance(value, str) else _ENCODE(plain(value))


def as_json(value: Any) -> str | None:
    """JSON text of a list or dict; text that holds one already stays as it is. Empty says nothing, so it is None."""
    if isinstance(value, str):
        return clean_text(value) or None
    # In ASCII: half of an emoji is JSON, but no text that a file could hold.
    return None if value is None or value in ([], {}) else _ENCODE(value)


def parsed(text: Any) -> Any:
    """What JSON text holds; None if it is no JSON. What is no text is given back as it is."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def number(value: Any, *, whole: bool) -> int | float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(found):
        return None
    if whole:
        return int(found) if abs(found) < 2**63 else None
    return found


def moment(value: Any) -> datetime | None:
    """A time from a datetime, ISO text, or a count of (nano)seconds since 1970; without a zone it is taken as UTC."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,30}", value):
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # What people mean shows in the size: 1e11 seconds are the year 5138, 1e11 milliseconds are 1973.
        unit = next((unit for most, unit in ((1e11, 1), (1e14, 10**3), (1e17, 10**6)) if abs(value) < most), 10**9)
        whole, rest = divmod(value, unit)
        try:
            return datetime.fromtimestamp(whole, UTC).replace(microsecond=int(rest * 10**6 // unit))
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.strip()))
        except ValueError:
            return None
    if not isinstance(value, datetime) or value != value:
        return None
    if hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime(warn=False)
    assert isinstance(value, datetime)
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        return None


def _status(written: str | None) -> str:
    code = (written or "UNSET").upper().removeprefix("STATUSCODE.").removeprefix("STATUS_CODE_")
    return _STATUS.get(code, code)


# Dotted names and what they mean: a tree.


def nest(value: Any) -> Any:
    """`value` with dotted keys opened into dicts, and dicts whose keys count from 0 into lists."""
    if isinstance(value, list):
        return [nest(item) for item in value]
    return _listed(_tree(value)) if isinstance(value, Mapping) else value


def _tree(record: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a record under their full names, as a tree; the `attributes` level is dissolved."""
    tree: dict[str, Any] = {}
    for name, value in leaves(record):
        *path, last = name.split(".")
        here = tree
        for step in path:
            below = here.get(step)
            if not isinstance(below, dict):
                below = here[step] = {}
            here = below
        if not isinstance(here.get(last), dict):  # a leaf says less than the branch that is there already
            here[last] = value
    return tree


def leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a record says, each thing under its full name, however the record is nested; without what is missing."""
    for key, value in record.items():
        value = plain(value)
        name = f"{prefix}{key}".removeprefix(_PREFIX)
        if value is None or name == "":
            continue
        if not isinstance(value, dict):
            yield name, value
        elif name in _OPAQUE:
            yield name, as_json(value)  # whatever keys it has are the application's own
        else:
            yield from leaves(value, "" if name == "attributes" else f"{name}.")


def _at(tree: Mapping[str, Any], name: str) -> Any:
    here: Any = tree
    for step in name.split("."):
        if not isinstance(here, Mapping) or step not in here:
            return None
        here = here[step]
    return _listed(here)


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return nest(value)
    if not isinstance(value, dict):
        return value
    if value and all(key.isascii() and key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(item) for key, item in value.items()}


# OpenTelemetry's own JSON, as a collector writes it to a file.


def otlp(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The spans of an OTLP/JSON document, each with its attributes by name."""
    for resource in _each(document, "resourceSpans", "resource_spans"):
        for scope in _each(resource, "scopeSpans", "scope_spans", "instrumentationLibrarySpans"):
            for span in _each(scope, "spans"):
                yield {**span, "attributes": _attributes(span.get("attributes") or ())}


def _each(holder: Mapping[str, Any], *names: str) -> Iterable[Mapping[str, Any]]:
    return next((holder[name] for name in names if isinstance(holder.get(name), list)), ())


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {
        pair["key"]: _value(pair.get("value") or {}) for pair in pairs if isinstance(pair, Mapping) and "key" in pair
    }


def _value(wrapped: Mapping[str, Any]) -> Any:
    for kind, value in wrapped.items():
        if kind == "arrayValue":
            return [_value(item) for item in value.get("values", ())]
        if kind == "kvlistValue":
            return _attributes(value.get("values", ()))
        if kind == "intValue":
            return int(value)
        return value
    return None
