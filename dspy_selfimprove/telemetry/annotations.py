"""Scores out, to the spans they judge; and back in.

A score becomes a span annotation. Phoenix keeps one annotation per (span, name, identifier) and replaces it when it is
written again, so writing twice, or again after a crash, leaves what writing once does. Our identifier is never empty:
the empty one belongs to people who annotate in Phoenix's own pages, and their verdict must not be replaced by ours.
Give one of your own (a version, a run) to keep several verdicts of one evaluator side by side.

Missing is not zero: a score without a verdict is not written at all, neither as 0 nor as an empty annotation that would
count in Phoenix's totals, and an earlier verdict stays. How many were missing is part of the answer. A label without a
number is a verdict and is written as just that.

Batches are written synchronously, because then Phoenix says which spans it does not know; asynchronously it would drop
those in silence. A span that is not there is a plain part of the answer, not an error: spans may still be on their way
in (Phoenix takes in about 200 a second), and writing again later is harmless.

Text is made safe for every database (see `clean_text`) and capped; what is not JSON in the details becomes text. Not
covered: annotations of traces, sessions and documents; deleting.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args
from urllib.parse import quote

import httpx

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.sample import EvalKind
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry.client import clean_text, connect, project_name, refused
from dspy_selfimprove.telemetry.server import locate

if TYPE_CHECKING:
    from phoenix.client import Client
    from phoenix.client.__generated__.v1 import SpanAnnotation, SpanAnnotationData

T = TypeVar("T")

IDENTIFIER: Final = "dspy-selfimprove"
BATCH: Final = 2_000
CHUNK, PAGE = 100, 10_000  # spans to ask about, annotations to get, in one request
MOST: Final = 1_000  # spans that Phoenix lets be asked about in one request
LONGEST_TEXT: Final = 20_000
LONGEST_LABEL: Final = 1_000


@dataclass(frozen=True, slots=True)
class Annotation:
    """One score of one span. `name` is what was measured, `kind` who judged."""

    span_id: str
    name: str
    score: Score
    kind: EvalKind = "LLM"
    identifier: str = IDENTIFIER

    def __post_init__(self) -> None:
        if not self.span_id or not self.name.strip():
            raise UsageError("An annotation needs a span and a name.", remedy="Say which span, and what was measured.")
        if self.name == "note":
            raise UsageError("Phoenix keeps the name 'note' for its notes.", remedy="Choose another name.")
        if self.kind not in get_args(EvalKind):
            raise UsageError(f"{self.kind!r} is no kind of annotator.", remedy="Use LLM, CODE or HUMAN.")
        if not self.identifier:
            raise UsageError(
                "The empty identifier belongs to annotations made in Phoenix's pages.",
                remedy="Leave ours, or name one.",
            )


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the annotations: how many stand in Phoenix, how many had no verdict, and the spans it lacks."""

    count: int
    missing: int = 0
    unknown: tuple[str, ...] = ()


def write(annotations: Iterable[Annotation], *, endpoint: str | None = None, api_key: str | None = None) -> Written:
    """Write `annotations`; of several with the same span, name and identifier the last one counts.

    The Phoenix is the one `server.locate` finds. An outage raises once waiting is no use; what was written by then
    stands, and the whole may be written again.
    """
    latest: dict[tuple[str, str, str], Annotation] = {}
    for each in annotations:
        latest[clean_text(each.span_id), clean_text(each.name), clean_text(each.identifier)] = each
    rows = [row for key, each in latest.items() if (row := _row(*key, each)) is not None]
    if not rows:
        return Written(0, missing=len(latest))
    unknown: dict[str, None] = {}  # a set that keeps its order
    count = 0
    with connect(locate(endpoint, api_key)) as phoenix:
        for batch in _batches(rows, BATCH):
            known, lacking = _write_known(phoenix, batch)
            count += known
            unknown |= dict.fromkeys(lacking)
    return Written(count, missing=len(latest) - len(rows), unknown=tuple(unknown))


def read(
    span_ids: Iterable[str],
    *,
    project: str,
    names: Iterable[str] | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
) -> tuple[Reading, ...]:
    """The annotations of spans of `project`, everybody's, without Phoenix's notes. Spans it lacks have none."""
    project, only = project_name(project), None if names is None else list(names)
    found: list[Reading] = []
    with connect(locate(endpoint, api_key)) as phoenix:
        for chunk in _batches(list(dict.fromkeys(span_ids)), CHUNK) if only != [] else ():
            try:
                page = phoenix.spans.get_span_annotations(
                    span_ids=chunk, project_identifier=project, include_annotation_names=only, limit=PAGE, timeout=30
                )
            except httpx.HTTPStatusError as error:
                # Phoenix says this of a chunk of which it has no span at all; of one span among others it says nothing.
                if error.response.status_code != 404:
                    raise refused(error) from None
                if "None of the supplied span_ids" not in error.response.text:
                    raise UsageError(f"Phoenix has no project {project!r}.", remedy="Check the name.") from None
            else:
                found += map(_reading, page)
    return tuple(found)


def names(line: httpx.Client, project_id: str) -> list[str] | None:
    """What spans of a project were judged on, without notes; None from a Phoenix that does not say.

    Only its own pages' interface (GraphQL) knows, so whoever asks must do without an answer too.
    """
    asked = f"{{node(id: {json.dumps(project_id)}) {{... on Project {{spanAnnotationNames}}}}}}"
    answer = line.post("graphql", json={"query": asked})
    try:
        found = answer.raise_for_status().json()["data"]["node"]["spanAnnotationNames"]
        return [str(name) for name in found if name != "note"]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        return None


def fetch(line: httpx.Client, project: str, span_ids: Sequence[str]) -> list[Reading]:
    """What `read` gives for spans that are there: by the thousand, where Phoenix's client asks by the hundred.

    Ask for spans that have annotations (`names`): of spans without any, Phoenix goes on to find out whether they exist,
    which takes the longer the more traces the project has.
    """
    found: list[Reading] = []
    for chunk in _batches(list(span_ids), MOST):
        cursor: dict[str, str] = {}
        while True:
            asked: dict[str, Any] = {
                "span_ids": chunk, "limit": PAGE, "exclude_annotation_names": ["note"], **cursor,
            }  # fmt: skip
            answer = line.get(f"v1/projects/{quote(project, safe='')}/span_annotations", params=asked)
            if answer.status_code == 404:  # these spans, or the whole project, were deleted meanwhile
                break
            try:
                page = answer.raise_for_status().json()
            except httpx.HTTPStatusError as error:
                raise refused(error) from None
            found += map(_reading, page["data"])
            if not page.get("next_cursor"):
                break
            cursor = {"cursor": page["next_cursor"]}
    return found


def _write_known(phoenix: Client, rows: list[SpanAnnotationData]) -> tuple[int, list[str]]:
    """Write the rows whose spans Phoenix has; how many those were, and the spans it lacks."""
    lacking: list[str] = []
    while rows:
        try:
            return len(phoenix.spans.log_span_annotations(span_annotations=rows, sync=True)), lacking
        except httpx.HTTPStatusError as error:
            # One unknown span refuses the batch, and the answer names all that are unknown.
            named = _named(error.response.text) if error.response.status_code == 404 else set()
            absent = {row["span_id"] for row in rows if named.issuperset(row["span_id"].split(_BETWEEN))}
            if not absent:
                raise refused(error) from None
            lacking += [row["span_id"] for row in rows if row["span_id"] in absent]
            rows = [row for row in rows if row["span_id"] not in absent]
    return 0, lacking


_BETWEEN: Final = ", "


def _named(answer: str) -> set[str]:
    named = re.search(r"Spans with IDs (.*) do not exist", answer, re.DOTALL)
    return set(named[1].split(_BETWEEN)) if named else set()


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _row(span_id: str, name: str, identifier: str, annotation: Annotation) -> SpanAnnotationData | None:
    """What Phoenix is told; None for a score without any verdict."""
    score = annotation.score
    if score.value is None and score.label is None:
        return None
    verdict = {
        "score": score.value,
        "label": score.label and _capped(score.label, LONGEST_LABEL),
        "explanation": _capped(score.feedback, LONGEST_TEXT) or None,
    }
    row: dict[str, Any] = {
        "span_id": span_id,
        "name": name,
        "annotator_kind": annotation.kind,
        "identifier": identifier,
        "result": {key: value for key, value in verdict.items() if value is not None},
        "metadata": _plain(score.details),
    }
    return cast("SpanAnnotationData", row)


def _capped(text: str, longest: int) -> str:
    text = clean_text(text)
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest]} [{left_out} more characters]"


def _plain(value: Any) -> Any:
    """`value` as strict JSON: what JSON does not have becomes text."""
    if isinstance(value, Mapping):
        return {clean_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _capped(str(value), LONGEST_TEXT)


def _reading(found: SpanAnnotation) -> Reading:
    result = found.get("result") or {}
    return Reading(
        span_id=found["span_id"],
        name=found["name"],
        kind=found["annotator_kind"],
        identifier=found.get("identifier", ""),
        score=result.get("score"),
        label=result.get("label"),
        explanation=result.get("explanation"),
        metadata=found.get("metadata") or {},
        time=_time(found.get("updated_at") or found.get("created_at")),
    )


def _time(written: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(written or "")
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
