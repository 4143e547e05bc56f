"""What a span says of a call: rows in, exchanges and steps out. Nothing is asked of anybody here.

A model's span holds its request twice: as the body that was sent (`input.value`, where the instrumentation recorded
that) and as OpenInference's own list of messages and parameters. The body is lossless and is taken wherever it is one
of the chat-completions API. Else the request is put together from what is recorded, and `exact` is False: that is so
for DSPy's own LM spans, for LangChain, Anthropic and their like, and for the Responses API, whose tools are rewritten
in chat form. The answer is read the same way: the completion if it is there, else the recorded messages.

A span that cannot give an exchange gives an `Aside` with a `Reason`, so that they can be counted and explained.

DSPy's instrumentation writes a span for each module (`ChainOfThought.forward`), a second one for a predictor
(`Predict(Signature).forward`, which says the same and is its twin) and one for the adapter below, which quotes the
signature; the instructions are read off that quotation.

Not covered: what the OpenAI client sends as `extra_body`, which its instrumentation does not record; audio; parts of a
message other than text and images where there is no body; requests to the old completions API.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, cast

from dspy_selfimprove.exchange import Aside, Exchange, Reading, Step
from dspy_selfimprove.message import Message
from dspy_selfimprove.telemetry.rows import (
    ANSWERED,
    ASKED,
    DOLLARS,
    END,
    FINISH,
    ID,
    INPUT,
    METADATA,
    MODEL,
    NAME,
    OUTPUT,
    PARAMETERS,
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
    nest,
    parsed,
)
from dspy_selfimprove.wire import Tokens

REDACTED: Final = "__REDACTED__"


class Reason(StrEnum):
    """Why a span of a model gives no exchange."""

    FAILED = "the call failed"
    REDACTED_REQUEST = "what was asked is redacted"
    REDACTED_ANSWER = "what was answered is redacted"
    NO_REQUEST = "what was asked was not recorded"
    NO_CONVERSATION = "what was asked is no conversation that can be read"
    NO_ANSWER = "no answer was recorded"
    BROKEN_OFF = "the answer was broken off"
    NO_TEXT = "the answer is no text"

    @property
    def remedy(self) -> str:
        """What can be done about it, where something can."""
        return _REMEDIES.get(self, "")


_REMEDIES: Final = {
    Reason.REDACTED_REQUEST: "Unset OPENINFERENCE_HIDE_INPUTS and its like where the application runs.",
    Reason.REDACTED_ANSWER: "Unset OPENINFERENCE_HIDE_OUTPUTS and its like where the application runs.",
    Reason.NO_REQUEST: "Let the application's instrumentation record inputs.",
    Reason.NO_ANSWER: "Let the application's instrumentation record outputs.",
}


def exchange(row: Row, readings: Iterable[Reading] = ()) -> Exchange | Aside:
    """The exchange that the span of a model records, or why there is none."""
    asked = _asked(row)
    answered = _answered(row)
    if row[STATUS] == "ERROR":
        return Aside(row[ID], Reason.FAILED)
    for found in (asked, answered):
        if isinstance(found, Reason):
            return Aside(row[ID], found)
    assert isinstance(asked, _Asked)
    assert isinstance(answered, _Answered)
    return Exchange(
        id=row[ID],
        request=asked.request,
        output=answered.messages[0],
        others=tuple(answered.messages[1:]),
        exact=asked.exact,
        model=row[MODEL] or asked.request.get("model"),
        finish_reason=row[FINISH] or answered.finish_reason,
        trace_id=row[TRACE],
        session_id=row[SESSION],
        user_id=row[USER],
        time=row[START],
        seconds=seconds(row[START], row[END]),
        tokens=_tokens(row, answered.usage),
        dollars=row[DOLLARS],
        metadata=_object(row[METADATA]) or {},
        tags=_tags(row[TAGS]),
        template=row[TEMPLATE],
        template_variables=_object(row[TEMPLATE_VARIABLES]) or {},
        template_version=row[TEMPLATE_VERSION],
        readings=tuple(readings),
    )


def said_by_body(row: Row) -> dict[str, Any] | None:
    """What a recorded body and its completion say that `llm.*` would say again; None if they do not say it all."""
    body, completion = _object(row[INPUT]), _object(row[OUTPUT])
    if body is None or completion is None or not _is_body(row, body) or not isinstance(completion.get("model"), str):
        return None
    found = _completed(row, completion)
    if not isinstance(found, _Answered):
        return None
    tokens = _tokens(None, found.usage)
    counts = (tokens.input, tokens.output, tokens.cached) if tokens else (None, None, None)
    names = (MODEL, FINISH, TOKENS_IN, TOKENS_OUT, TOKENS_CACHED)
    return dict(zip(names, (completion["model"], found.finish_reason, *counts), strict=True))


def lacks_body(row: Row) -> bool:
    """Whether the messages that OpenInference recorded are needed to understand this span of a model."""
    body = _object(row[INPUT])
    whole = body is not None and _conversation(body.get("messages")) and (_is_body(row, body) or _is_dspy(row))
    return not whole or not isinstance(_completed(row, parsed(row[OUTPUT])), _Answered)


def seconds(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end and end >= start else None


# The request.


@dataclass(frozen=True, slots=True)
class _Asked:
    request: dict[str, Any]
    exact: bool


_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_PARTS: Final = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
# Said to a client library, not to the model.
_NOT_SENT: Final = frozenset(
    {
        "api_base", "api_key", "api_version", "base_url", "cache", "extra_headers", "headers", "input", "instructions",
        "max_retries", "messages", "model_name", "num_retries", "prompt", "rollout_id", "timeout",
    }
)  # fmt: skip
_OTHER_ROLES: Final = {"model": "assistant", "ai": "assistant", "human": "user"}
_CHAT_NAMES: Final = {"max_output_tokens": "max_completion_tokens"}


def _asked(row: Row) -> _Asked | Reason:
    text = row[INPUT]
    body = _object(text)
    if body is not None and _is_body(row, body):
        return Reason.REDACTED_REQUEST if _hidden(body["messages"]) else _Asked(body, exact=True)
    messages = _recorded(row[ASKED])
    if body is not None and "system" not in body and (said := _conversation(body.get("messages"))):
        messages = said  # as it was given to the library, names and all
    if not messages and body is not None and isinstance(body.get("prompt"), str) and _is_dspy(row):
        messages = [{"role": "user", "content": body["prompt"]}]
    if not messages:
        if text == REDACTED:
            return Reason.REDACTED_REQUEST
        return Reason.NO_CONVERSATION if text or row[ASKED] else Reason.NO_REQUEST
    if _hidden(messages):
        return Reason.REDACTED_REQUEST
    if body is not None and isinstance(body.get("system"), str) and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": body["system"]}, *messages]
    sent = {
        _CHAT_NAMES.get(name, name): value
        for name, value in (_object(row[PARAMETERS]) or {}).items()
        if value is not None and name not in _NOT_SENT and not name.startswith("_")
    }
    model = {"model": row[MODEL]} if row[MODEL] and "model" not in sent else {}
    tools = {"tools": tools} if (tools := _tools(row[TOOLS])) else {}
    return _Asked({**model, **sent, **tools, "messages": messages}, exact=False)


def _is_body(row: Row, body: Mapping[str, Any]) -> bool:
    """Whether this is what the chat-completions API takes. Anthropic's looks alike, but says the system apart."""
    return (
        row[SYSTEM] in (None, "", "openai")
        and isinstance(body.get("model"), str)
        and "system" not in body
        and _conversation(body.get("messages")) is not None
    )


def _is_dspy(row: Row) -> bool:
    """Whether this is DSPy's own span of a model: it is named for a class and its call."""
    return (row[NAME] or "").endswith((".__call__", ".acall"))


def _conversation(value: Any) -> list[dict[str, Any]] | None:
    """`value` if it is a list of chat messages as the API takes them."""
    return value if isinstance(value, list) and value and all(map(_is_message, value)) else None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or _text(value.get("role")) not in _ROLES:
        return False
    content = value.get("content")
    return content is None or isinstance(content, str) or (isinstance(content, list) and all(map(_is_part, content)))


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("type")) in _PARTS


def _hidden(messages: Sequence[Mapping[str, Any]]) -> bool:
    def hidden(content: Any) -> bool:
        if isinstance(content, list):
            return any(REDACTED in (part.get("text"), _url(part)) for part in content if isinstance(part, dict))
        return bool(content == REDACTED)

    return any(hidden(message.get("content")) for message in messages)


def _url(part: Mapping[str, Any]) -> Any:
    image = part.get("image_url")
    return image.get("url") if isinstance(image, dict) else image


def _tools(value: Any) -> list[dict[str, Any]]:
    schemas = [parsed(_dict(item.get("tool")).get("json_schema")) for item in _dicts(nest(parsed(value)))]
    return [_tool(schema) for schema in schemas if isinstance(schema, dict)]


def _tool(schema: dict[str, Any]) -> dict[str, Any]:
    """A tool in chat form; the Responses API and Anthropic say the same without the inner level."""
    if "function" in schema or "name" not in schema:
        return schema
    renamed = {{"input_schema": "parameters"}.get(name, name): value for name, value in schema.items()}
    return {"type": "function", "function": {name: value for name, value in renamed.items() if name != "type"}}


# The answer.


@dataclass(frozen=True, slots=True)
class _Answered:
    messages: list[Message]
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None


def _answered(row: Row) -> _Answered | Reason:
    if row[OUTPUT] == REDACTED:
        return Reason.REDACTED_ANSWER
    found = _completed(row, parsed(row[OUTPUT]))
    if found is None and (messages := _recorded(row[ANSWERED])):
        found = _Answered([_answer(message) for message in messages])
    if found is None:
        text = row[OUTPUT]
        if not text or isinstance(parsed(text), dict | list):
            return Reason.NO_ANSWER
        found = _Answered([_answer({"content": text})])
    if isinstance(found, Reason):
        return found
    if _hidden(cast("list[dict[str, Any]]", found.messages)):
        return Reason.REDACTED_ANSWER
    if not _says_anything(found.messages[0]) and (found.finish_reason or row[FINISH]) is None:
        return Reason.NO_ANSWER
    return found


def _completed(row: Row, value: Any) -> _Answered | Reason | None:
    """The answer from the recorded output: a chat completion, whole or assembled from a stream, or DSPy's list."""
    if isinstance(value, list) and value and _is_dspy(row):
        texts = [item if isinstance(item, dict) else {"text": item} for item in value]
        return _Answered([_answer({**text, "content": text.get("text")}) for text in texts])
    choices = _dicts(value.get("choices")) if isinstance(value, dict) else []
    choices = sorted(choices, key=lambda choice: _count(choice.get("index")))
    messages = [choice["message"] for choice in choices if isinstance(choice.get("message"), dict)]
    if not messages or len(messages) != len(choices):
        return None
    finish = _text(choices[0].get("finish_reason")) or None
    if finish is None and str(value.get("object", "")).endswith(".chunk") and row[STATUS] != "OK":
        return Reason.BROKEN_OFF if messages[0].get("content") else Reason.NO_ANSWER
    answers = [_answer(message) for message in messages]
    if messages[0].get("audio") and not _says_anything(answers[0]):
        return Reason.NO_TEXT
    return _Answered(answers, finish, _dict(value.get("usage")) or None)


def _answer(message: Mapping[str, Any]) -> Message:
    """An assistant's message as the API would take it back: content always, the rest where there is any."""
    calls = message.get("tool_calls")
    kept = {
        "refusal": message.get("refusal"),
        "function_call": message.get("function_call"),
        "tool_calls": [_call(call) for call in calls] if isinstance(calls, list) else None,
    }
    given = {name: value for name, value in kept.items() if value}
    return cast("Message", {"role": "assistant", "content": message.get("content"), **given})


def _call(call: Any) -> Any:
    return {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call


def _says_anything(message: Mapping[str, Any]) -> bool:
    return message.get("content") is not None or any(name not in ("role", "content") for name in message)


def _tokens(row: Row | None, usage: Mapping[str, Any] | None) -> Tokens | None:
    if row is not None and not row[TOKENS_IN] is row[TOKENS_OUT] is None:
        return Tokens(row[TOKENS_IN] or 0, row[TOKENS_OUT] or 0, row[TOKENS_CACHED] or 0)
    if usage is None:
        return None
    details = _dict(usage.get("prompt_tokens_details"))
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
    return Tokens(*map(_count, counts))


# OpenInference's own messages.


def _recorded(value: Any) -> list[dict[str, Any]] | None:
    """The messages of `llm.input_messages` or `llm.output_messages` in the API's form; None if they are not one."""
    found = nest(parsed(value))
    if not isinstance(found, list) or not found:
        return None
    messages = [_message(item.get("message", item)) if isinstance(item, dict) else None for item in found]
    return None if None in messages else cast("list[dict[str, Any]]", messages)


def _message(said: Any) -> dict[str, Any] | None:
    if not isinstance(said, dict):
        return None
    role = _text(said.get("role")) or "assistant"
    content: Any = said.get("content")
    if content is None and (parts := said.get("contents")):
        content = _parts(parts)
    calls = [_recorded_call(call) for call in _dicts(said.get("tool_calls"))]
    message = {"role": _OTHER_ROLES.get(role, role), "content": content}
    if name := said.get("function_call_name"):
        message["function_call"] = {"name": name, "arguments": said.get("function_call_arguments_json") or "{}"}
    rest = {"name": said.get("name"), "tool_call_id": said.get("tool_call_id"), "tool_calls": calls}
    message |= {key: value for key, value in rest.items() if value}
    return message if _is_message(message) else None


def _parts(parts: Any) -> Any:
    listed = parts if isinstance(parts, list) else [parts]
    opened = [_dict(_dict(part).get("message_content", part)) for part in listed]
    return [_part(part) for part in opened if part.get("type") not in ("reasoning", "thinking")]


def _part(part: Mapping[str, Any]) -> Any:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text", "")}
    image = _dict(part.get("image"))
    url = _dict(image.get("image", image)).get("url")
    return {"type": "image_url", "image_url": {"url": url}} if url else None


def _recorded_call(call: Mapping[str, Any]) -> dict[str, Any]:
    call = _dict(call.get("tool_call", call))
    function = _dict(call.get("function"))
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    known = {"id": call["id"]} if call.get("id") else {}
    return {**known, "type": "function", "function": {"name": function.get("name", ""), "arguments": text}}


# What a trace holds may be anything: each of these gives its kind, or an empty one.


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _object(text: Any) -> dict[str, Any] | None:
    found = parsed(text)
    return found if isinstance(found, dict) else None


def _tags(value: Any) -> tuple[str, ...]:
    found = parsed(value)
    return tuple(map(str, found)) if isinstance(found, list) else ()


# DSPy's modules.

_MODULE = re.compile(r"(?P<module>\w+)(?P<signature>\(.*\))?\.a?forward", re.DOTALL)
_INSTRUCTIONS = re.compile(r"^    instructions=(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModuleName:
    """What a span's name says of a DSPy module. A twin is a predictor's second span, below its first."""

    module: str
    signed: bool


def module_name(span_name: str | None) -> ModuleName | None:
    """The DSPy module that a chain span is named for.

    >>> module_name("ChainOfThought.forward")
    ModuleName(module='ChainOfThought', signed=False)
    >>> module_name("Predict(StringSignature).aforward")
    ModuleName(module='Predict', signed=True)
    """
    found = _MODULE.fullmatch(span_name or "")
    return ModuleName(found["module"], found["signature"] is not None) if found else None


def is_call(span_name: str | None) -> bool:
    """Whether a chain span could be that of a DSPy adapter."""
    return (span_name or "").endswith((".__call__", ".acall"))


def step(
    row: Row, path: tuple[str, ...], instructions: str | None = None, readings: Iterable[Reading] = ()
) -> Step | None:
    """The step that the span of a DSPy module records; None if it failed or its fields are not there."""
    inputs, outputs = _object(row[INPUT]), _object(row[OUTPUT])
    if row[STATUS] == "ERROR" or inputs is None or outputs is None:
        return None
    if inputs.keys() == {"kwargs"} and isinstance(inputs["kwargs"], dict):  # of `forward(self, **kwargs)`
        inputs = inputs["kwargs"]
    return Step(
        id=row[ID],
        module=path[-1],
        path=path,
        inputs=inputs,
        outputs=outputs,
        instructions=instructions,
        trace_id=row[TRACE],
        session_id=row[SESSION],
        user_id=row[USER],
        time=row[START],
        seconds=seconds(row[START], row[END]),
        metadata=_object(row[METADATA]) or {},
        tags=_tags(row[TAGS]),
        readings=tuple(readings),
    )


def instructions_of(adapter_input: Any) -> str | None:
    """The instructions in what a DSPy adapter was called with, which quotes its signature as Python shows it."""
    signature = (_object(adapter_input) or {}).get("signature")
    quoted = _INSTRUCTIONS.search(signature) if isinstance(signature, str) else None
    try:
        found = ast.literal_eval(quoted[1]) if quoted else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, str) else None
