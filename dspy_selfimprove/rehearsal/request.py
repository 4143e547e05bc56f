"""What a chat-completion request must be, checked as the real service checks it, as far as an honest client can notice.

A parameter that is not known is let through, as most compatible servers do. Not covered: whether a strict schema is
strict, and limits that depend on the model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from dspy_selfimprove.message import canonical, text_of

_ROLES = ("system", "developer", "user", "assistant", "tool")
_PARTS = ("text", "image_url", "input_audio", "file", "refusal")
_FLAGS = ("stream", "logprobs", "parallel_tool_calls", "store")
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_WHOLE: Mapping[str, tuple[float, float]] = {
    "n": (1, 128),
    "max_tokens": (1, math.inf),
    "max_completion_tokens": (1, math.inf),
    "seed": (-(2**63), 2**63 - 1),
    "top_logprobs": (0, 20),
}
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Refusal(Exception):
    """A request the service will not answer, in the words of OpenAI's errors."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


def parse(raw: bytes) -> dict[str, Any]:
    """The body of a chat-completion request, or a Refusal."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
        # Infinity by overflow and half characters get through the parser, and through no encoder.
        canonical(body).encode()
    except (ValueError, RecursionError):
        raise Refusal("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal("The body must be a JSON object.", code="invalid_type")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refusal("A request names a model.", param="model", code="missing_required_parameter")
    _check_parameters(body)
    _check_messages(body.get("messages"))
    _check_tools(body)
    _check_format(body)
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_parameters(body: Mapping[str, Any]) -> None:
    for name in _FLAGS:
        _require(body.get(name) is None or isinstance(body[name], bool), name, "must be true or false")
    for name, (low, high) in {**_RANGES, **_WHOLE}.items():
        value = body.get(name)
        if value is None:
            continue
        whole = name in _WHOLE
        _require(
            _is_int(value) if whole else _is_number(value), name, f"must be {'an integer' if whole else 'a number'}"
        )
        _require(low <= value <= high, name, f"must be from {low} to {high}", code="invalid_value")
    stop = body.get("stop")
    several = isinstance(stop, list) and len(stop) <= 4 and all(isinstance(mark, str) for mark in stop)
    _require(stop is None or isinstance(stop, str) or several, "stop", "must be a string or up to four")
    options = body.get("stream_options")
    if options is not None:
        _require(isinstance(options, dict), "stream_options", "must be an object")
        _require(body.get("stream") is True, "stream_options", "goes with stream only", code="invalid_value")
        flag = options.get("include_usage")
        _require(flag is None or isinstance(flag, bool), "stream_options.include_usage", "must be true or false")


def _check_messages(messages: Any) -> None:
    _require(messages is not None, "messages", "is missing", code="missing_required_parameter")
    _require(isinstance(messages, list), "messages", "must be a list")
    _require(bool(messages), "messages", "must hold at least one message", code="empty_array")
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        _require(isinstance(message, dict), at, "must be an object")
        role = message.get("role")
        _require(isinstance(role, str), f"{at}.role", "must be a string")
        _require(role in _ROLES, f"{at}.role", f"must be one of {', '.join(_ROLES)}", code="invalid_value")
        if role == "tool":
            answered = message.get("tool_call_id")
            _require(isinstance(answered, str), f"{at}.tool_call_id", "must be a string")
            _require(answered in open_calls, at, "answers no tool call of the message before it", code="invalid_value")
            open_calls.remove(answered)
        else:
            _require(not open_calls, at, "comes before every tool call was answered", code="invalid_value")
        calls = message.get("tool_calls")
        if calls is not None:
            _require(role == "assistant", f"{at}.tool_calls", "belongs to the assistant only", code="invalid_value")
            open_calls = _called(calls, f"{at}.tool_calls")
        spoke = message.get("content") is not None
        _require(spoke or role == "assistant", f"{at}.content", "is missing", code="missing_required_parameter")
        if spoke:
            _check_content(message["content"], f"{at}.content")
    _require(not open_calls, "messages", "end before every tool call was answered", code="invalid_value")


def _check_content(content: Any, at: str) -> None:
    if isinstance(content, str):
        return
    _require(isinstance(content, list), at, "must be a string or a list of parts")
    for index, part in enumerate(content):
        here = f"{at}[{index}]"
        _require(isinstance(part, dict), here, "must be an object")
        _require(
            part.get("type") in _PARTS, f"{here}.type", f"must be one of {', '.join(_PARTS)}", code="invalid_value"
        )
        if part["type"] == "text":
            _require(isinstance(part.get("text"), str), f"{here}.text", "must be a string")


def _called(calls: Any, at: str) -> list[str]:
    _require(isinstance(calls, list), at, "must be a list")
    _require(bool(calls), at, "must hold at least one call", code="empty_array")
    for index, call in enumerate(calls):
        here = f"{at}[{index}]"
        function: Any = call.get("function") if isinstance(call, dict) else None
        _require(isinstance(function, dict) and call.get("type") == "function", here, "must be a function's call")
        for name, value in (
            ("id", call.get("id")),
            ("name", function.get("name")),
            ("arguments", function.get("arguments")),
        ):
            _require(isinstance(value, str), f"{here}.{name}", "must be a string")
    return [call["id"] for call in calls]


def _check_tools(body: Mapping[str, Any]) -> None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    names: list[str] = []
    if tools is not None:
        _require(isinstance(tools, list), "tools", "must be a list")
        _require(bool(tools), "tools", "must hold at least one tool", code="empty_array")
        for index, tool in enumerate(tools):
            function: Any = tool.get("function") if isinstance(tool, dict) else None
            _require(
                isinstance(function, dict) and tool.get("type") == "function", f"tools[{index}]", "must be a function"
            )
            _check_named_schema(function, "parameters", f"tools[{index}].function")
            names.append(function["name"])
    if choice is None:
        return
    _require(bool(names), "tool_choice", "goes with tools only", code="invalid_value")
    if isinstance(choice, str):
        _require(choice in ("none", "auto", "required"), "tool_choice", "must be none, auto, required or a function")
        return
    chosen: Any = choice.get("function") if isinstance(choice, dict) else None
    _require(isinstance(chosen, dict) and choice.get("type") == "function", "tool_choice", "must name a function")
    _require(chosen.get("name") in names, "tool_choice.function.name", "is none of the tools", code="invalid_value")


def _check_format(body: Mapping[str, Any]) -> None:
    wanted = body.get("response_format")
    if wanted is None:
        return
    _require(isinstance(wanted, dict), "response_format", "must be an object")
    kinds = ("text", "json_object", "json_schema")
    _require(
        wanted.get("type") in kinds, "response_format.type", f"must be one of {', '.join(kinds)}", code="invalid_value"
    )
    if wanted["type"] == "json_schema":
        schema: Any = wanted.get("json_schema")
        _require(isinstance(schema, dict), "response_format.json_schema", "must be an object")
        _check_named_schema(schema, "schema", "response_format.json_schema")
    elif wanted["type"] == "json_object":
        # The real service refuses too: a model that is not told to write JSON may write blanks for ever.
        told = any("json" in text_of(message).lower() for message in body["messages"])
        _require(told, "messages", "must mention JSON to get a json_object", code="invalid_value")


def _check_named_schema(holder: Mapping[str, Any], key: str, at: str) -> None:
    name = holder.get("name")
    _require(isinstance(name, str), f"{at}.name", "must be a string")
    fits = _NAME.fullmatch(str(name)) is not None
    _require(fits, f"{at}.name", "must be 1 to 64 letters, digits, _ or -", code="invalid_value")
    if holder.get(key) is not None:
        _require(isinstance(holder[key], dict), f"{at}.{key}", "must be an object")
        _check_schema(holder[key], f"{at}.{key}")
    _require(
        holder.get("strict") is None or isinstance(holder["strict"], bool), f"{at}.strict", "must be true or false"
    )


def _check_schema(schema: Any, at: str) -> None:
    """That it is a JSON Schema at all; not that strict mode would take it."""
    _require(isinstance(schema, dict), at, "must be a schema")
    for key, value in schema.items():
        here = f"{at}.{key}"
        if key in ("properties", "$defs", "definitions"):
            _require(isinstance(value, dict), here, "must be an object")
            for name, entry in value.items():
                _check_schema(entry, f"{here}.{name}")
        elif key in ("anyOf", "oneOf", "allOf"):
            _require(isinstance(value, list) and bool(value), here, "must be a list of schemas")
            for index, entry in enumerate(value):
                _check_schema(entry, f"{here}[{index}]")
        elif key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
            _check_schema(value, here)
        elif key == "enum":
            _require(isinstance(value, list) and bool(value), here, "must be a list of values")
        elif key == "required":
            _require(isinstance(value, list) and all(isinstance(name, str) for name in value), here, "must be names")
        elif key == "type":
            kinds = value if isinstance(value, list) else [value]
            _require(bool(kinds) and all(kind in _TYPES for kind in kinds), here, "must be a type of JSON")
        elif key in ("$ref", "description", "title"):
            _require(isinstance(value, str), here, "must be a string")


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_int(value) or isinstance(value, float)


def _require(holds: bool, param: str, what: str, *, code: str = "invalid_type") -> None:
    if not holds:
        raise Refusal(f"`{param}` {what}.", param=param, code=code)
