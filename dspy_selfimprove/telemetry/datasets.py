"""Examples out, to a dataset in Phoenix, where people look at them and experiments run on them.

A dataset *is* its rows: pushing under the same name again makes a new version that holds exactly what was pushed, and
pushing the same again makes none. An earlier version stays as it was; keep `version_id` to speak of this one.

Not covered: reading a dataset back; a dataset too large for one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from dspy_selfimprove.errors import TelemetryError, UsageError
from dspy_selfimprove.message import thaw
from dspy_selfimprove.telemetry.client import clean_text, connect
from dspy_selfimprove.telemetry.server import locate

FIELDS: Final = ("input", "output", "metadata", "id", "span_id", "splits")
TIMEOUT: Final = 120


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the rows are now; `url` is the page that shows them."""

    id: str
    version_id: str
    url: str
    count: int


def push(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    description: str | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
) -> Pushed:
    """Make `rows` the content of the Phoenix dataset `name`.

    A row is a dict of `input` and `output` (dicts), and if you like `metadata` (a dict), `id` (kept from version to
    version), `span_id` (the span it came from, if this Phoenix has it) and `splits` (a name or several).
    """
    examples = [_example(number, row) for number, row in enumerate(rows)]
    if not name.strip():
        raise UsageError("A dataset needs a name.", remedy="Name it for what is in it, such as 'support'.")
    if not examples:
        raise UsageError("A dataset needs a row.", remedy="Push at least one.")
    ids = [example["id"] for example in examples if example.get("id")]
    if len(set(ids)) != len(ids):
        raise UsageError("Two rows have the same id.", remedy="Give each its own, or none.")
    address = locate(endpoint, api_key)
    with connect(address, timeout=TIMEOUT) as phoenix:
        from phoenix.client.resources.datasets import DatasetUploadError

        try:
            made = phoenix.datasets.create_dataset(
                name=name, examples=examples, dataset_description=description, timeout=TIMEOUT
            )
        except (DatasetUploadError, httpx.HTTPStatusError):
            # What it says may quote a row.
            raise TelemetryError(
                "Phoenix refused the dataset.", remedy="Its log says why; see whether the rows are plain JSON."
            ) from None
    assert address is not None
    return Pushed(made.id, made.version_id, f"{address.shown}/datasets/{made.id}/examples", len(examples))


def _example(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(row) - set(FIELDS)):
        raise UsageError(f"Phoenix keeps no `{unknown[0]}` (row {number}).", remedy=f"Use {', '.join(FIELDS)}.")
    for field in ("input", "output", "metadata"):
        if not isinstance(row.get(field, {}), Mapping) or (field == "input" and not row.get(field)):
            raise UsageError(f"Row {number} needs `{field}` as a dict.", remedy='For example {"question": "..."}.')
    example = {"output": {}, **{field: _clean(thaw(value)) for field, value in row.items() if value is not None}}
    if isinstance(example.get("splits"), list) and not example["splits"]:
        del example["splits"]
    return example


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value
