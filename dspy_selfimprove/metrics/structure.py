"""Form: JSON against a schema, a pattern, tool calls. Credit for what is right, and the path of what is not.

A schema is counted in *places*: every value it asks for (each property, each item, down to the leaves) is one, and what
is missing counts as many places as it was required to fill. Full credit is given to what the JSON Schema validator
accepts, and to nothing else.

Not covered: references to other documents (`$ref` inside the schema is followed), and whether a value is true.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import canonical
from dspy_selfimprove.score import Score

DEEPEST: Final = 40  # a schema that refers to itself must end somewhere
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


def schema(output: Any, schema: Mapping[str, Any]) -> Score:
    """The share of places that a JSON answer fills as the schema asks.

    JSON inside other words or a code block earns half of that: who reads it as JSON fails. No JSON is 0.

    >>> person = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    >>> schema('{"name": "Ana", "age": "old"}', {**person, "required": ["name", "age"]}).value
    0.5
    """
    validator = _validator(canonical(schema))
    value, alone = (output, True) if not isinstance(output, str) else read_json(output)
    if value is _NOTHING:
        return Score(0.0, feedback="It cannot be read as JSON.")
    errors = list(validator.iter_errors(value))
    met, asked = _places(value, validator.schema, validator, validator.schema, 0)
    share = 1.0 if not errors else min(met / asked, 1.0 - 1.0 / (asked + 1))
    said = [f"{error.json_path} breaks the rule {error.validator!r}." for error in errors[:5]]
    said += [f"And {len(errors) - 5} more."] * (len(errors) > 5)
    if not alone:
        said.append("The JSON must stand alone, without words or a code block around it.")
    return Score(share if alone else share / 2, feedback=" ".join(said), details={"places": asked})


def matches(output: str, pattern: str) -> Score:
    """1 if the pattern is found in the text; write ^ and $ for the whole of it."""
    try:
        sought = re.compile(pattern)
    except re.error:
        raise UsageError(
            "The pattern is not a regular expression.", remedy="Correct it; escape what is literal."
        ) from None
    found = sought.search(output) is not None
    return Score(float(found), feedback="" if found else "The text does not have the form that was asked for.")


def tool_calls(message: Any, reference_message: Any) -> Score:
    """How near the tool calls of a message are to those expected, in whichever order they come.

    Half of a call is its name, half its arguments (F1 over their leaves); a call too many or too few is a call wrong.
    Either side is a message, or a list of calls, as the API has them or as `{"name": ..., "arguments": {...}}`.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    given, wanted = _calls(message), _calls(reference_message)
    if not given and not wanted:
        return Score(1.0)
    if not given or not wanted:
        return Score(0.0, feedback=f"{len(given)} tool calls; {len(wanted)} were expected.")
    near = np.array([[_nearness(call, other) for other in wanted] for call in given])
    rows, columns = linear_sum_assignment(near, maximize=True)
    value = min(1.0, float(near[rows, columns].sum()) / max(len(given), len(wanted)))
    said = [f"{len(given)} tool calls; {len(wanted)} were expected."] * (len(given) != len(wanted))
    for row, column in zip(rows, columns, strict=True):
        name, arguments = wanted[column]
        if given[row][0] != name:
            said.append(f"A call of {name} was expected.")
        elif near[row, column] < 1.0:
            wrong = sorted({path.split(".")[0] for path, _ in _leaves(arguments) ^ _leaves(given[row][1])} - {""})
            said.append(f"{name}: check {', '.join(wrong) or 'the arguments'}.")
    return Score(value, feedback=" ".join(said))


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    import jsonschema

    plain = json.loads(schema)
    kind = jsonschema.validators.validator_for(plain, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(plain)
    except jsonschema.SchemaError as wrong:
        raise UsageError(
            f"The schema is not a JSON Schema: {wrong.json_path} breaks the rule {wrong.validator!r}.",
            remedy="Correct it there.",
        ) from None
    return kind(plain)


_NOTHING: Final = object()


def read_json(text: str) -> tuple[Any, bool]:
    """The JSON value in a text, and whether it stands alone; `_NOTHING` if there is none."""
    try:
        return json.loads(text, parse_constant=_refuse), True
    except (ValueError, RecursionError):
        pass
    for block in (*(found.group(1) for found in _FENCE.finditer(text)), *_braced(text)):
        try:
            return json.loads(block, parse_constant=_refuse), False
        except (ValueError, RecursionError):
            continue
    return _NOTHING, False


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's


def _braced(text: str) -> Sequence[str]:
    """From the first opening bracket to the last closing one."""
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    ends = max(text.rfind("}"), text.rfind("]"))
    return [text[min(starts) : ends + 1]] if starts and ends > min(starts) else []


def _places(value: Any, schema: Any, validator: Any, root: Mapping[str, Any], depth: int) -> tuple[int, int]:
    """How many places are filled as asked, and how many there are."""
    schema = _followed(schema, root)
    inner = validator.evolve(schema=schema)
    if depth < DEEPEST and isinstance(schema, Mapping):
        parts = None
        if isinstance(value, Mapping) and isinstance(schema.get("properties"), Mapping):
            parts = _properties(value, schema, validator, root, depth)
        elif isinstance(value, list) and value and isinstance(schema.get("items"), Mapping):
            parts = [_places(item, schema["items"], validator, root, depth + 1) for item in value]
        if parts:
            return sum(met for met, _ in parts), sum(asked for _, asked in parts)
    if inner.is_valid(value):
        return 1, 1
    return 0, _required(schema, root, depth)


def _properties(
    value: Mapping[str, Any], schema: Mapping[str, Any], validator: Any, root: Mapping[str, Any], depth: int
) -> list[tuple[int, int]]:
    known = schema["properties"]
    parts = []
    for name in dict.fromkeys([*schema.get("required", ()), *(name for name in known if name in value)]):
        if name in value:
            parts.append(_places(value[name], known.get(name, True), validator, root, depth + 1))
        else:
            parts.append((0, _required(known.get(name, True), root, depth + 1)))
    if schema.get("additionalProperties") is False:
        parts += [(0, 1)] * len(set(value) - set(known))
    return parts


def _required(schema: Any, root: Mapping[str, Any], depth: int) -> int:
    """How many places something must at least fill."""
    schema = _followed(schema, root)
    if depth >= DEEPEST or not isinstance(schema, Mapping) or not isinstance(schema.get("properties"), Mapping):
        return 1
    known = schema["properties"]
    return max(1, sum(_required(known.get(name, True), root, depth + 1) for name in schema.get("required", ())))


def _followed(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        target: Any = root
        for part in filter(None, reference[1:].split("/")):
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if target is None:
            return schema
        schema = target
    return schema


def _calls(source: Any) -> list[tuple[str, Any]]:
    calls = source.get("tool_calls") if isinstance(source, Mapping) and "name" not in source else source
    if isinstance(calls, Mapping):
        calls = [calls]
    found = []
    for call in calls or ():
        inner = call.get("function", call)
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = {"": "these cannot be read as JSON"}
        found.append((str(inner.get("name")), arguments))
    return found


def _nearness(call: tuple[str, Any], other: tuple[str, Any]) -> float:
    if call[0] != other[0]:
        return 0.0
    given, wanted = _leaves(call[1]), _leaves(other[1])
    return 0.5 + 0.5 * (2 * len(given & wanted) / (len(given) + len(wanted)) if given or wanted else 1.0)


def _leaves(value: Any, path: str = "") -> set[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or path):
        inside = [(f"{path}.{name}" if path else str(name), item) for name, item in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(f"{path}.{at}", item) for at, item in enumerate(value)]
    else:
        return {(path, canonical(value))} if value != {} else set()
    found = set().union(*(_leaves(item, name) for name, item in inside))
    return found or {(path, canonical(value))}
