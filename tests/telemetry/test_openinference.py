"""What a span says of a call: one logical span, however it is written down, is one exchange."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.exchange import Aside, Exchange
from dspy_selfimprove.message import canonical, thaw
from dspy_selfimprove.telemetry import rows
from dspy_selfimprove.telemetry.openinference import (
    REDACTED,
    Reason,
    exchange,
    instructions_of,
    lacks_body,
    module_name,
    step,
)
from dspy_selfimprove.telemetry.rows import moment, normalize, otlp, parsed
from dspy_selfimprove.wire import Tokens

BEGAN = datetime(2026, 11, 3, 9, 30, 0, 125_000, tzinfo=UTC)
ENDED = BEGAN + timedelta(seconds=1.5)


# One logical span, three encodings.

texts = st.text(max_size=30) | st.sampled_from(
    ["", " ", "{}", "[[ ## x ## ]]", '{"a": 1}', "ü💥\u202e", "a\nb\t", "\x00"]
)
names = st.text(alphabet="abcXYZ_", min_size=1, max_size=8)
parts = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    names.map(lambda name: {"type": "image_url", "image_url": {"url": f"https://pictures.example/{name}.png"}}),
)
calls = st.builds(
    lambda number, name, arguments: {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    },
    st.integers(0, 99),
    names,
    st.dictionaries(names, texts, max_size=2),
)
messages = st.one_of(
    st.builds(
        lambda role, content, name: {"role": role, "content": content, **({"name": name} if name else {})},
        st.sampled_from(["system", "developer", "user"]),
        texts | st.lists(parts, min_size=1, max_size=3),
        st.none() | names,
    ),
    st.builds(
        lambda content, made: {"role": "assistant", "content": content, "tool_calls": made},
        st.none() | texts,
        st.lists(calls, min_size=1, max_size=3),
    ),
    st.builds(
        lambda text, number: {"role": "tool", "content": text, "tool_call_id": f"call_{number}"},
        texts,
        st.integers(0, 9),
    ),
)
tools = st.lists(
    st.builds(lambda name: {"type": "function", "function": {"name": name, "strict": True, "parameters": {}}}, names),
    max_size=2,
)


def nested(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenInference has it, before any encoding."""
    said = {name: message[name] for name in ("role", "name", "tool_call_id") if name in message}
    content = message.get("content")
    if isinstance(content, str):
        said["content"] = content
    elif content is not None:
        said["contents"] = [
            {"message_content": {"type": "text", "text": part["text"]}}
            if part["type"] == "text"
            else {"message_content": {"type": "image", "image": {"image": {"url": part["image_url"]["url"]}}}}
            for part in content
        ]
    if "tool_calls" in message:
        said["tool_calls"] = [
            {"tool_call": {"id": call["id"], "function": call["function"]}} for call in message["tool_calls"]
        ]
    return {"message": said}


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys down to the next list, whose items are dicts of their own: a frame's cell."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= dotted(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = [dotted(each) for each in item] if isinstance(item, list) else item
    return found


def leaves(name: str, value: Any) -> dict[str, Any]:
    """One attribute per leaf: a span as it was sent."""
    if isinstance(value, dict):
        return {key: item for below, part in value.items() for key, item in leaves(f"{name}.{below}", part).items()}
    if isinstance(value, list):
        return {key: item for at, part in enumerate(value) for key, item in leaves(f"{name}.{at}", part).items()}
    return {name: value}


SCALARS = {
    "llm.model_name": "m-2025",
    "llm.invocation_parameters": json.dumps({"model": "m", "temperature": 0.3, "api_base": "http://there"}),
    "llm.finish_reason": "stop",
    "llm.token_count.prompt": 30,
    "llm.token_count.completion": 4,
    "llm.token_count.prompt_details.cache_read": 7,
    "llm.cost.total": 0.25,
    "session.id": "s1",
    "user.id": "u1",
    "llm.prompt_template.template": "T {{x}}",
    "llm.prompt_template.version": "v2",
}
METADATA = {"v": 3, "nest": {"a": [1, 2]}}
VARIABLES = {"x": "1"}


def encodings(asked: list[Any], answered: list[Any], offered: list[Any]) -> dict[str, dict[str, Any]]:
    lists = {
        "llm.input_messages": [nested(message) for message in asked],
        "llm.output_messages": [nested(message) for message in answered],
        "llm.tools": [{"tool": {"json_schema": json.dumps(tool)}} for tool in offered],
    }
    lists = {name: value for name, value in lists.items() if value}
    about = {"name": "ChatCompletion", "span_kind": "LLM", "status_code": "OK", "parent_id": None}
    frame = {
        **about,
        "context.span_id": "a1",
        "context.trace_id": "t1",
        "start_time": BEGAN,
        "end_time": ENDED,
        **{f"attributes.{name}": float(value) if isinstance(value, int) else value for name, value in SCALARS.items()},
        **{f"attributes.{name}": [dotted(item) for item in value] for name, value in lists.items()},
        "attributes.metadata": METADATA,
        "attributes.tag.tags": ["a", "b"],
        "attributes.llm.prompt_template.variables": VARIABLES,
        "attributes.input.value": float("nan"),
        "attributes.llm.tools.absent": float("nan"),
    }
    arrays = {
        name: np.array(value, dtype=object) if isinstance(value, list) else value for name, value in frame.items()
    }
    select = {
        **{name: value for name, value in about.items() if name != "parent_id"},
        "context.span_id": "a1",
        "context.trace_id": "t1",
        "start_time": BEGAN.isoformat(),
        "end_time": ENDED.isoformat(),
        **SCALARS,
        **lists,
        "metadata": json.dumps(METADATA),
        "tag.tags": json.dumps(["a", "b"]),
        "llm.prompt_template.variables": json.dumps(VARIABLES),
    }
    flat = {
        **about,
        "id": "U3BhbjoxMA==",
        "context": {"span_id": "a1", "trace_id": "t1"},
        "start_time": int(BEGAN.timestamp() * 1e6) * 1000,
        "end_time": str(int(ENDED.timestamp() * 1e6) * 1000),
        "attributes": {
            **SCALARS,
            **{key: item for name, value in lists.items() for key, item in leaves(name, value).items()},
            "metadata.v": 3,
            "metadata.nest.a": [1, 2],
            "tag.tags": ["a", "b"],
            "llm.prompt_template.variables.x": "1",
        },
        "events": [],
    }
    tree: dict[str, Any] = {}
    for name, value in {**SCALARS, **lists}.items():
        here = tree
        *path, last = name.split(".")
        for step_ in path:
            here = here.setdefault(step_, {})
        here[last] = value
    tree["metadata"], tree["tag"] = METADATA, {"tags": ["a", "b"]}
    tree["llm"]["prompt_template"]["variables"] = VARIABLES
    return {"frame": frame, "arrays": arrays, "select": select, "flat": flat, "tree": {**flat, "attributes": tree}}


@given(st.lists(messages, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=3), tools)
def test_one_span_in_every_encoding_is_one_exchange(asked, answers, offered):
    answered = [{"role": "assistant", "content": text} for text in answers]
    found = {name: exchange(normalize(record)) for name, record in encodings(asked, answered, offered).items()}
    one = found["frame"]
    assert isinstance(one, Exchange)
    for name, each in found.items():
        assert each == one, name
    assert thaw(one.messages) == asked
    assert [one.output, *one.others] == answered
    assert one.parameters == {"model": "m", "temperature": 0.3, **({"tools": tuple(offered)} if offered else {})}
    assert (one.exact, one.model, one.finish_reason) == (False, "m-2025", "stop")
    assert (one.tokens, one.dollars, one.seconds) == (Tokens(30, 4, 7), 0.25, 1.5)
    assert (one.session_id, one.user_id, one.time, one.trace_id) == ("s1", "u1", BEGAN, "t1")
    assert (thaw(one.metadata), one.tags) == (METADATA, ("a", "b"))
    assert (one.template, one.template_variables, one.template_version) == ("T {{x}}", VARIABLES, "v2")


@given(st.lists(messages, min_size=1, max_size=4), messages.filter(lambda m: m["role"] == "assistant"))
def test_a_recorded_body_is_given_back_as_it_was(asked, answer):
    body = {"messages": asked, "model": "m", "stream": True, "response_format": {"type": "json_object"}, "n": None}
    completion = {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {**answer, "refusal": None, "audio": None}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    found = exchange(row(body, completion))
    assert isinstance(found, Exchange)
    assert found.exact
    assert canonical(found.request) == canonical(body)
    assert thaw(found.output) == {name: value for name, value in answer.items() if value or name == "content"}
    assert (found.finish_reason, found.tokens) == ("tool_calls", Tokens(5, 2, 1))


# What one span says, case by case.

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
BODY = {"model": "m", "messages": ASKED}
SAID = {"role": "assistant", "content": "Hello."}


def completion(*messages: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    made = [{"index": at, "finish_reason": finish, "message": message} for at, message in enumerate(messages)]
    return {"object": "chat.completion", "choices": made, **more}


def row(asked: Any = BODY, answered: Any = None, **attributes: Any) -> dict[str, Any]:
    written = {
        "input.value": asked if isinstance(asked, str | None) else json.dumps(asked),
        "output.value": answered if isinstance(answered, str | None) else json.dumps(answered),
    }
    about = {"context.span_id": "a1", "name": "ChatCompletion", "span_kind": "LLM", "status_code": "OK"}
    return normalize({**about, **written, **attributes})


def recorded(*messages: dict[str, Any]) -> list[Any]:
    return [nested(message) for message in messages]


@pytest.mark.parametrize(
    ("given_row", "reason"),
    [
        (row(answered=completion(SAID), status_code="ERROR"), Reason.FAILED),
        (row(None, None, status_code="STATUS_CODE_ERROR"), Reason.FAILED),
        (row(REDACTED, completion(SAID)), Reason.REDACTED_REQUEST),
        (row(REDACTED, REDACTED), Reason.REDACTED_REQUEST),
        (row({**BODY, "messages": [{"role": "user", "content": REDACTED}]}, completion(SAID)), Reason.REDACTED_REQUEST),
        (
            row(None, completion(SAID), **{"llm.input_messages": recorded({"role": "user", "content": REDACTED})}),
            Reason.REDACTED_REQUEST,
        ),
        (row(answered=REDACTED), Reason.REDACTED_ANSWER),
        (row(**{"llm.output_messages": recorded({**SAID, "content": REDACTED})}), Reason.REDACTED_ANSWER),
        (row(None, completion(SAID)), Reason.NO_REQUEST),
        (row({"model": "m", "messages": []}, completion(SAID)), Reason.NO_CONVERSATION),
        (row("no JSON", completion(SAID)), Reason.NO_CONVERSATION),
        (row({"model": "m", "prompt": "Once upon"}, completion(SAID)), Reason.NO_CONVERSATION),
        (
            row(None, completion(SAID), **{"llm.input_messages": [{"message": {"role": "alien"}}]}),
            Reason.NO_CONVERSATION,
        ),
        (row(answered=None), Reason.NO_ANSWER),
        (row(answered={"object": "error"}), Reason.NO_ANSWER),
        (row(answered=completion({"role": "assistant"}, finish=None)), Reason.NO_ANSWER),
        (
            row(answered={**completion(SAID, finish=None), "object": "chat.completion.chunk"}, status_code="UNSET"),
            Reason.BROKEN_OFF,
        ),
        (row(answered=completion({"role": "assistant", "content": None, "audio": {"id": "x"}})), Reason.NO_TEXT),
    ],
)  # fmt: skip
def test_what_gives_no_exchange_says_why(given_row, reason):
    assert exchange(given_row) == Aside("a1", reason)


def test_reasons_can_be_counted_and_hold_no_text_of_a_trace():
    found = [exchange(row("what a customer said", completion(SAID))), exchange(row(answered=None))]
    assert Counter(each.reason for each in found) == {"no answer was recorded": 1, str(Reason.NO_CONVERSATION): 1}
    assert all(isinstance(reason.remedy, str) for reason in Reason)
    assert "OPENINFERENCE_HIDE_INPUTS" in Reason.REDACTED_REQUEST.remedy


def test_an_empty_answer_is_an_answer_and_a_refusal_too():
    for said in ({"content": ""}, {"content": None, "refusal": "No."}, {"content": None}):
        found = exchange(row(answered=completion({"role": "assistant", **said})))
        assert thaw(found.output) == {"role": "assistant", **said}


def test_a_stream_that_ended_well_needs_no_finish_reason():
    chunk = {**completion(SAID, finish=None), "object": "chat.completion.chunk"}
    assert exchange(row(answered=chunk, status_code="OK")).output == SAID


def test_several_choices_come_in_their_order_and_calls_without_a_place():
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choices = [
        {"index": 1, "finish_reason": "stop", "message": SAID},
        {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}},
    ]
    found = exchange(row(answered={"object": "chat.completion", "choices": choices}))
    assert found.finish_reason == "tool_calls"
    assert thaw(found.output) == {
        "role": "assistant", "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }  # fmt: skip
    assert thaw(found.others) == [SAID]


def test_dspys_own_span_of_a_model():
    body = {"prompt": None, "messages": ASKED, "kwargs": {"temperature": 0.5}}
    sent = {"temperature": 0.5, "max_tokens": None, "api_base": "http://there", "n": 2}
    one = row(
        body, json.dumps(["first", {"text": "second", "reasoning_content": "so"}]), name="LM.acall",
        **{"llm.model_name": "m", "llm.invocation_parameters": json.dumps(sent)},
    )  # fmt: skip
    found = exchange(one)
    assert (found.exact, thaw(found.request)) == (False, {"model": "m", "temperature": 0.5, "n": 2, "messages": ASKED})
    assert [found.output["content"], found.others[0]["content"]] == ["first", "second"]
    assert not lacks_body(one)
    prompted = exchange(row({"prompt": "Say hi", "messages": None}, json.dumps(["hi"]), name="LM.__call__"))
    assert thaw(prompted.messages) == [{"role": "user", "content": "Say hi"}]


def test_the_responses_api_is_put_in_chat_form():
    body = {"input": "Hi", "instructions": "Be kind.", "model": "m", "max_output_tokens": 50}
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    one = row(
        body, {"object": "response", "output": []},
        **{
            "llm.system": "openai",
            "llm.input_messages": recorded(*ASKED),
            "llm.output_messages": recorded({"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}),
            "llm.invocation_parameters": json.dumps({"model": "m", "max_output_tokens": 50}),
            "llm.tools": [{"tool": {"json_schema": json.dumps(tool)}}],
        },
    )  # fmt: skip
    found = exchange(one)
    assert lacks_body(one)
    assert not found.exact
    assert thaw(found.request) == {
        "model": "m", "max_completion_tokens": 50, "messages": ASKED,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}],
    }  # fmt: skip
    assert thaw(found.output) == {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}


def test_anthropics_body_is_not_taken_for_a_chat_completion():
    body = {"model": "claude", "max_tokens": 9, "system": "Be kind.", "messages": ASKED[1:]}
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    attributes = {
        "llm.system": "anthropic",
        "llm.model_name": "claude",
        "llm.input_messages": recorded(*ASKED[1:]),
        "llm.output_messages": recorded(SAID),
        "llm.invocation_parameters": json.dumps({"model": "claude", "max_tokens": 9}),
        "llm.tools": [{"tool": {"json_schema": json.dumps(tool)}}],
    }
    found = exchange(row(body, {"type": "message"}, **attributes))
    assert not found.exact
    assert thaw(found.messages) == ASKED
    assert thaw(found.request["tools"]) == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    ]


def test_langchains_span_works_through_the_recorded_messages():
    body = {"messages": [[{"lc": 1, "kwargs": {"content": "Hi"}}]]}
    attributes = {
        "llm.input_messages": recorded(*ASKED),
        "llm.output_messages": recorded(SAID),
        "llm.invocation_parameters": json.dumps(
            {"model": "m", "_type": "openai-chat", "model_name": "m", "stop": None}
        ),
    }
    found = exchange(row(body, {"generations": []}, **attributes))
    assert thaw(found.request) == {"model": "m", "messages": ASKED}
    assert found.output == SAID


def test_plain_text_is_an_answer_too():
    assert exchange(row(answered="Hello.")).output == SAID


KEYS = (
    "messages", "model", "role", "content", "contents", "choices", "message", "text", "prompt", "kwargs", "system",
    "message_content", "type", "image", "image_url", "url", "tool_calls", "tool_call", "function", "arguments", "id",
    "index", "finish_reason", "usage", "prompt_tokens_details", "cached_tokens", "tool", "json_schema", "name", "0",
    "1", "audio", "refusal", "object", "message.role", "signature",
)  # fmt: skip
WORDS = ("user", "assistant", "text", "image_url", "function", REDACTED, "chat.completion.chunk", "{}", "[]", "")
odd = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=15,
)
shaped = st.one_of(
    odd,
    st.fixed_dictionaries({"model": odd, "messages": st.lists(st.fixed_dictionaries({"role": odd, "content": odd}))}),
    st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": odd, "index": odd}), min_size=1)}),
    st.fixed_dictionaries({"choices": st.just([{"message": {"content": None}}]), "usage": odd}),
    st.lists(st.fixed_dictionaries({"message": st.fixed_dictionaries({"role": st.just("user"), "contents": odd})})),
    st.lists(st.fixed_dictionaries({"message": st.fixed_dictionaries({"tool_calls": odd, "content": odd})})),
    st.lists(st.fixed_dictionaries({"tool": st.fixed_dictionaries({"json_schema": odd.map(json.dumps)})})),
)


@hypothesis.settings(max_examples=200)
@given(shaped, st.sampled_from(["LM.__call__", "ChatCompletion"]))
def test_no_recorded_value_is_too_odd(value, name):
    text = json.dumps(value)
    chain = {"name": "Prog.forward", "span_kind": "CHAIN"}
    assert step(row(text, text, **chain), ("Prog",)) is None or isinstance(parsed(text), dict)
    instructions_of(text)
    for one in (
        row(text, text, name=name),
        row(BODY, text, name=name, **{"llm.output_messages": value, "llm.tools": value}),
        row(None, completion(SAID), name=name, **{"llm.input_messages": value, "metadata": value, "tag.tags": text}),
    ):
        assert isinstance(exchange(one), Exchange | Aside)
        assert lacks_body(one) in (True, False)


# Rows.


@pytest.mark.parametrize(
    ("written", "time"),
    [
        (BEGAN, BEGAN),
        (BEGAN.replace(tzinfo=None), BEGAN),
        (BEGAN.isoformat(), BEGAN),
        ("2026-11-03T09:30:00.125000000Z", BEGAN),
        (np.datetime64("2026-11-03T09:30:00.125", "ns"), BEGAN),
        (int(BEGAN.timestamp() * 1000) * 10**6, BEGAN),
        (str(int(BEGAN.timestamp() * 1000) * 10**6), BEGAN),
        (int(BEGAN.timestamp() * 1000), BEGAN),
        (BEGAN.timestamp(), BEGAN),
        ("yesterday", None),
        (float("nan"), None),
        (None, None),
        (True, None),
    ],
)
def test_times_in_every_form(written, time):
    assert normalize({"span_id": "a", "start_time": written})["start_time"] == time


def test_moment_takes_what_pandas_has():
    import pandas as pd

    assert moment(pd.Timestamp(BEGAN)) == BEGAN
    assert moment(pd.NaT) is None
    assert normalize({"span_id": "a", "session.id": pd.NA, "user.id": 7})[rows.USER] == "7"


def test_otlp_and_a_tracers_own_print():
    body, answer = json.dumps(BODY), json.dumps(completion(SAID))
    document = {
        "resourceSpans": [{"scopeSpans": [{"spans": [{
            "traceId": "t1", "spanId": "a1", "parentSpanId": "", "name": "ChatCompletion", "kind": 1,
            "startTimeUnixNano": str(int(BEGAN.timestamp() * 1e6) * 1000),
            "endTimeUnixNano": str(int(ENDED.timestamp() * 1e6) * 1000),
            "status": {"code": 1},
            "attributes": [
                {"key": "openinference.span.kind", "value": {"stringValue": "LLM"}},
                {"key": "input.value", "value": {"stringValue": body}},
                {"key": "output.value", "value": {"stringValue": answer}},
                {"key": "tag.tags", "value": {"arrayValue": {"values": [{"stringValue": "a"}]}}},
                {"key": "llm.token_count.prompt", "value": {"intValue": "30"}},
            ],
        }]}]}],
    }  # fmt: skip
    printed = {
        "name": "ChatCompletion", "context": {"trace_id": "0xt1", "span_id": "0xa1"}, "kind": "SpanKind.INTERNAL",
        "parent_id": None, "start_time": BEGAN.isoformat(), "end_time": ENDED.isoformat(),
        "status": {"status_code": "OK"},
        "attributes": {
            "openinference.span.kind": "LLM", "input.value": body, "output.value": answer, "tag.tags": ["a"],
            "llm.token_count.prompt": 30,
        },
    }  # fmt: skip
    (one,) = otlp(document)
    assert normalize(one) == normalize(printed)
    found = exchange(normalize(one))
    assert (found.id, found.time, found.seconds, found.tags, found.tokens) == (
        "a1",
        BEGAN,
        1.5,
        ("a",),
        Tokens(30, 0, 0),
    )


def test_a_run_of_ours_is_marked_by_attribute_or_metadata():
    for marked in (
        {"attributes.dspy_selfimprove.run": "r1"},
        {"attributes": {"dspy_selfimprove": {"run": "r1"}}},
        {"metadata": {"dspy_selfimprove.run": "r1"}},
        {"metadata": json.dumps({"dspy_selfimprove.run": "r1"})},
    ):
        assert normalize({"span_id": "a", **marked})[rows.RUN] == "r1"
    assert normalize({"span_id": "a", "metadata": {"about": "dspy_selfimprove"}})[rows.RUN] is None


# DSPy's modules.


def test_names_of_modules():
    assert module_name("Prog.forward").module == "Prog"
    assert module_name("Predict(StringSignature(a -> b)).aforward").signed
    for other in ("ChatAdapter.__call__", "LM.__call__", "forward", "a.b.forward", "chain", "", None):
        assert module_name(other) is None


def test_instructions_are_read_off_the_quoted_signature():
    import dspy

    for told in ("Answer tersely.", "It's \"quoted\",\nin two lines\twith instructions='x'", "ü 💥 \\n {braces}"):
        signature = dspy.Signature("context, question -> answer", told)
        quoted = json.dumps({"lm": "<LM>", "signature": repr(signature), "demos": []})
        assert instructions_of(quoted) == signature.instructions
    for odd in (
        None,
        "",
        "[]",
        json.dumps({"signature": 3}),
        json.dumps({"signature": "S(a -> b\n    instructions=oops(\n"}),
    ):
        assert instructions_of(odd) is None


def test_a_step_without_its_fields_is_none():
    chain = {"name": "Prog.forward", "span_kind": "CHAIN"}
    assert step(row({"q": 1}, {"a": 2}, **chain), ("Prog",)).outputs == {"a": 2}
    assert step(row({"kwargs": {"q": 1}}, {"a": 2}, **chain), ("Prog",)).inputs == {"q": 1}
    assert step(row({"q": 1}, {"a": 2}, status_code="ERROR", **chain), ("Prog",)) is None
    assert step(row(REDACTED, {"a": 2}, **chain), ("Prog",)) is None
    assert step(row({"q": 1}, None, **chain), ("Prog",)) is None
