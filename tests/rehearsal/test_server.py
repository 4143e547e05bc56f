"""The rehearsal server, driven by the real clients: openai's, DSPy's and Phoenix's evaluators."""

import asyncio
import copy
import http.client
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import aiohttp
import dspy
import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.server import Served, serve

TICKET = [
    {"role": "system", "content": "You answer support tickets."},
    {"role": "user", "content": "Where is my parcel?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_order",
        "description": "Find an order.",
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["good", "bad"]}, "stars": {"type": "integer"}},
    "required": ["label", "stars"],
    "additionalProperties": False,
}


class Verdict(BaseModel):
    label: str
    stars: int


def client(served: Served, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, **{"api_key": "any", "max_retries": 0, **options})


def ask(served: Served, content: str = "Where is my parcel?", **parameters):
    messages = [TICKET[0], {"role": "user", "content": content}]
    with client(served) as api:
        answer = api.chat.completions.create(model="gpt-4o-mini", messages=messages, **parameters)
        return list(answer) if parameters.get("stream") else answer


def post(served: Served, body: bytes | str) -> httpx.Response:
    return httpx.post(f"{served.url}/chat/completions", content=body, timeout=30)


def base(served: Served) -> str:
    return served.url.removesuffix("/v1")


def eventually(holds) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@pytest.fixture(scope="module")
def served():
    with serve(RehearsalModel()) as running:
        yield running


# -- the real client ------------------------------------------------------------------------------------------------


def test_the_openai_client_gets_an_answer_and_its_usage(served):
    answer = ask(served)
    assert answer.object == "chat.completion"
    assert answer.model == "gpt-4o-mini"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id.startswith("req_")


async def test_the_async_client_gets_answers_in_one_loop(served):
    async with openai.AsyncOpenAI(base_url=served.url, api_key="any", max_retries=0) as api:
        answers = await asyncio.gather(
            *(api.chat.completions.create(model="any", messages=TICKET, seed=number) for number in range(8))
        )
    assert all(answer.choices[0].message.content for answer in answers)


def test_models_are_listed_and_any_name_is_answered(served):
    with client(served) as api:
        assert [model.id for model in api.models.list()] == ["rehearsal"]
        assert api.chat.completions.create(model="their/own-model", messages=TICKET).model == "their/own-model"


def test_several_choices(served):
    answer = ask(served, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)


def test_every_kind_of_message_is_read(served):
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up_order", "arguments": '{"order": "12"}'}}
    messages = [
        {"role": "developer", "content": "You answer support tickets."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Where is order 12?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It left the warehouse."},
    ]
    with client(served) as api:
        answer = api.chat.completions.create(model="any", messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up_order"}}])
def test_a_tool_is_called_when_it_must_be(served, choice):
    answer = ask(served, "Where is order 12?", tools=[TOOL], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "look_up_order")
    assert set(json.loads(call.function.arguments)) == {"order"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_tool_is_left_alone_when_it_must_not_be_called(served):
    assert ask(served, "Where is order 12?", tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None
    either = ask(served, "Where is order 12?", tools=[TOOL], tool_choice="auto").choices[0]
    assert either.finish_reason == ("tool_calls" if either.message.tool_calls else "stop")


def test_a_schema_is_kept(served):
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
    answer = json.loads(ask(served, response_format=wanted).choices[0].message.content)
    assert answer["label"] in ("good", "bad")
    assert isinstance(answer["stars"], int)
    with client(served) as api:
        parsed = api.chat.completions.parse(model="any", messages=TICKET, response_format=Verdict)
    assert isinstance(parsed.choices[0].message.parsed, Verdict)


# -- streaming ------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_says():
    with serve(RehearsalModel()) as first, serve(RehearsalModel()) as second:
        whole = ask(first, n=2)
        chunks = ask(second, n=2, stream=True, stream_options={"include_usage": True})
    *parts, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(part.usage is None for part in parts)
    assert {chunk.id for chunk in chunks} == {whole.id}
    for choice in whole.choices:
        mine = [part.choices[0] for part in parts if part.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert len(mine) > 3
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == ["stop"]


def test_a_stream_without_the_option_has_no_usage(served):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(served, stream=True))


def test_a_stream_on_the_wire(served):
    body = {"model": "any", "messages": TICKET, "stream": True, "stream_options": {"include_usage": True}}
    answer = post(served, json.dumps(body))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["total_tokens"] > 0


def test_a_streamed_tool_call_is_put_together_by_the_client():
    with serve(RehearsalModel()) as first, serve(RehearsalModel()) as second:
        (whole,) = ask(first, "Where is order 12?", tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
        with (
            client(second) as api,
            api.chat.completions.stream(
                model="gpt-4o-mini",
                messages=[TICKET[0], {"role": "user", "content": "Where is order 12?"}],
                tools=[TOOL],
                tool_choice="required",
            ) as stream,
        ):
            choice = stream.get_final_completion().choices[0]
    (call,) = choice.message.tool_calls
    assert (call.id, call.function.name) == (whole.id, whole.function.name)
    assert call.function.arguments == whole.function.arguments
    assert choice.finish_reason == "tool_calls"


# -- refusals -------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hello"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REFUSED = {
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages of another type": ({"messages": "hello"}, "messages"),
    "a message of another type": ({"messages": ["hello"]}, "messages[0]"),
    "unknown role": ({"messages": [{"role": "robot", "content": "hello"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "content of another type": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
    "a tool that nobody called": (
        {"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "y"}]},
        "messages[1]",
    ),
    "an unanswered call": ({"messages": [{"role": "assistant", "tool_calls": [CALL]}, USER]}, "messages[1]"),
    "a call half answered": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
                {"role": "tool", "tool_call_id": "call_2", "content": "done"},
                USER,
            ]
        },
        "messages[2]",
    ),
    "a call left open": ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}, "messages"),
    "no model": ({"model": ""}, "model"),
    "temperature too high": ({"temperature": 3}, "temperature"),
    "temperature of another type": ({"temperature": True}, "temperature"),
    "no choices": ({"n": 0}, "n"),
    "half a choice": ({"n": 1.5}, "n"),
    "stream of another type": ({"stream": "yes"}, "stream"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "too many stops": ({"stop": ["a"] * 5}, "stop"),
    "no tools": ({"tools": []}, "tools"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "a tool that is not there": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice.function.name",
    ),
    "a choice without tools": ({"tool_choice": "auto"}, "tool_choice"),
    "unknown format": ({"response_format": {"type": "poem"}}, "response_format.type"),
    "a format without its schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "a JSON object nobody was told of": ({"response_format": {"type": "json_object"}}, "messages"),
}


@pytest.mark.parametrize(("change", "param"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_as_openai_refuses(served, change, param):
    with client(served) as api, pytest.raises(openai.BadRequestError) as refused:
        api.post("/chat/completions", body={"model": "any", "messages": [USER], **change}, cast_to=object)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param
    assert refused.value.code
    assert param in refused.value.body["message"] or param == "model"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        '{"model": NaN}',
        '{"model": "a", "temperature": 1e999}',
        '"\\ud800"',
        b"\xff\xfe",
        "[" * 100_000,
        '{"model":"a","x":' + "[" * 900 + "]" * 900 + ',"messages":5}',
    ],
    ids=["nothing", "open", "nan", "infinity", "half a character", "bytes", "deep", "deep and closed"],
)
def test_a_body_that_cannot_be_read_is_a_400(served, raw):
    answer = post(served, raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_too_large_an_unknown_path_and_a_wrong_method_are_in_shape(served):
    huge = post(served, b" " * (17 * 2**20))
    lost = httpx.post(f"{base(served)}/chat/completions", json={})
    wrong = httpx.get(f"{served.url}/chat/completions")
    assert [answer.status_code for answer in (huge, lost, wrong)] == [413, 404, 405]
    for answer in (huge, lost, wrong):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "/v1" in lost.json()["error"]["message"]


def test_a_key_is_asked_for_when_there_is_one():
    with serve(RehearsalModel(), api_key="sésame") as served:
        for key in ("other", ""):
            with client(served, api_key=key or "x") as api, pytest.raises(openai.AuthenticationError) as refused:
                api.models.list()
            assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            ask(served)
        header = {"Authorization": "Bearer sésame".encode()}
        body = {"model": "any", "messages": TICKET}
        assert httpx.post(f"{served.url}/chat/completions", json=body, headers=header).status_code == 200
        assert httpx.get(f"{base(served)}/healthz").status_code == 200
        assert served.counts().errors == {"unauthorized": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
VALID = {
    "model": "any",
    "messages": [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        USER,
    ],
    "temperature": 0.5,
    "top_p": 1,
    "n": 2,
    "stop": ["\n\n"],
    "max_tokens": 50,
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}},
}


def places(value, path=()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


@st.composite
def almost_valid(draw):
    """A valid body with one to three of its values, at any depth, replaced by any JSON at all."""
    body = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(body) if path]))
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw(JSON)
    return body


@settings(max_examples=150)
@given(body=JSON | almost_valid())
def test_any_json_gets_an_answer_or_a_refusal_in_shape(served, body):
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = connection.getresponse()
        text = answer.read().decode()
    if answer.status == 200:
        assert text.endswith("data: [DONE]\n\n") or json.loads(text)["choices"]
    else:
        assert answer.status == 400
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


# -- faults on the wire ---------------------------------------------------------------------------------------------


def meet(api: openai.OpenAI, content: str):
    """What a client gets: a completion, or the error it raises."""
    try:
        return api.chat.completions.create(model="any", messages=[{"role": "user", "content": content}])
    except Exception as error:
        return error


def named(outcome) -> str:
    """The same in the words of the faults."""
    match outcome:
        case openai.RateLimitError():
            return "rate_limit"
        case openai.InternalServerError(status_code=500 | 503):
            return "server_error"
        case openai.APITimeoutError():
            return "timeout"
        case openai.APIConnectionError():
            return "torn" if "without sending complete message body" in str(outcome.__cause__) else "dropped"
        case json.JSONDecodeError():
            return "malformed"
        case Exception():
            return repr(outcome)
    (choice,) = outcome.choices
    if choice.finish_reason == "length":
        return "cut_off"
    return "answer" if choice.message.content else "empty"


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_is_seen_for_what_it_is(fault):
    with serve(RehearsalModel(), faults=Faults(**{fault: 1.0})) as served:
        with client(served, timeout=0.5 if fault is Fault.TIMEOUT else 30) as api:
            assert named(meet(api, "Where is my parcel?")) == fault
        assert served.counts().calls == 1
        # A caller that lost its patience is not served any longer.
        assert eventually(lambda: served.counts().in_flight == 0)
        assert served.counts().errors == {str(fault): 1}


def test_a_429_says_how_long_to_wait_and_server_errors_show_both_faces():
    with serve(RehearsalModel(), faults=Faults(rate_limit=1.0, retry_after=1.5)) as served, client(served) as api:
        turned_away = meet(api, "Where is my parcel?")
    headers = turned_away.response.headers
    assert turned_away.code == "rate_limit_exceeded"
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    with serve(RehearsalModel(), faults=Faults(server_error=1.0)) as served, client(served) as api:
        failed = [meet(api, f"Ticket {number}") for number in range(20)]
    assert {error.status_code for error in failed} == {500, 503}
    assert {error.type for error in failed} == {"server_error"}


def test_a_caller_that_gives_up_is_counted_and_let_go():
    with serve(RehearsalModel(), latency=Latency.fixed(600)) as served, client(served, timeout=0.3) as api:
        assert named(meet(api, "Where is my parcel?")) == "timeout"
        assert eventually(lambda: served.counts().errors == {"given_up": 1})
        assert (served.counts().in_flight, served.counts().answers) == (0, 0)


def test_a_server_that_gives_up_on_a_hanging_call_closes_the_connection():
    with serve(RehearsalModel(), faults=Faults(timeout=1.0, hang=0.01)) as served, client(served) as api:
        assert named(meet(api, "Where is my parcel?")) == "dropped"


def test_with_mixed_faults_the_client_meets_each_as_often_as_the_server_counts_it():
    faults = Faults.mixed(0.1, retry_after=0.01)
    with serve(RehearsalModel(), seed=2, faults=faults) as served, client(served, timeout=3) as api:
        with ThreadPoolExecutor(8) as pool:
            seen = Counter(pool.map(lambda number: named(meet(api, f"Ticket {number}")), range(400)))
        assert eventually(lambda: served.counts().in_flight == 0)
        counts = served.counts()
    assert set(seen) == {"answer", *Fault}
    assert counts.errors == {kind: count for kind, count in seen.items() if kind != "answer"}
    assert counts.calls == 400
    assert counts.answers == seen["answer"] + seen["empty"] + seen["cut_off"]


def test_the_clients_own_retries_end_well_and_change_no_answer():
    tickets = [f"Ticket {number}" for number in range(120)]

    def answers(faults: Faults) -> tuple[list[str], int]:
        with (
            serve(RehearsalModel(), seed=2, faults=faults) as served,
            client(served, timeout=3, max_retries=10) as api,
            ThreadPoolExecutor(16) as pool,
        ):
            found = list(pool.map(lambda text: meet(api, text), tickets))
            return [answer.choices[0].message.content for answer in found], served.counts().calls

    calm, calls = answers(Faults())
    # What a client retries by itself; the other kinds are answers to it, good or bad.
    shares = dict.fromkeys(("rate_limit", "server_error", "timeout", "dropped", "torn"), 0.02)
    troubled, attempts = answers(Faults(**shares, retry_after=0.01))
    assert troubled == calm
    assert attempts > calls == len(tickets)


def test_a_stream_can_break_in_the_middle():
    with serve(RehearsalModel(), faults=Faults(torn=1.0)) as served, pytest.raises(httpx.RemoteProtocolError):
        ask(served, stream=True)
    with serve(RehearsalModel(), faults=Faults(malformed=1.0)) as served, pytest.raises(json.JSONDecodeError):
        ask(served, stream=True)


# -- the other real clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [["good", "bad"], {"good": 1, "bad": 0}, {"good": (1, "It helps."), "bad": (0, "It does not help.")}],
    ids=["labels", "numbers", "described"],
)
def test_a_phoenix_evaluator_judges(served, choices):
    from phoenix.evals import LLM, ClassificationEvaluator

    judge = LLM(
        provider="openai",
        model="gpt-4o-mini",
        base_url=served.url,
        api_key="any",
        initial_per_second_request_rate=1e6,
    )
    evaluator = ClassificationEvaluator(
        name="helpfulness",
        llm=judge,
        prompt_template="Is the answer helpful?\nQuestion: {input}\nAnswer: {output}",
        choices=choices,
    )
    (score,) = evaluator.evaluate({"input": "Where is my parcel?", "output": "It left the warehouse; it comes today."})
    assert score.label in ("good", "bad")
    assert score.explanation
    expected = None if isinstance(choices, list) else choices[score.label]
    assert score.score == (expected[0] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=lambda adapter: type(adapter).__name__
)
async def test_dspy_over_http(served, adapter):
    served.reset()
    model = dspy.LM("openai/gpt-4o-mini", api_base=served.url, api_key="any", cache=False, num_retries=0)
    with dspy.context(lm=model, adapter=adapter):
        program = dspy.ChainOfThought("question -> answer: str, stars: int")
        assert isinstance(program(question="Where is my parcel?").stars, int)
        assert isinstance((await program.acall(question="Where is my parcel?")).stars, int)
    assert served.counts().calls == 2


# -- counters, concurrency, repeating, stopping ---------------------------------------------------------------------


def test_counters_can_be_read_and_reset_over_http(served):
    url = f"{base(served)}/counters"
    assert httpx.post(f"{url}/reset").json()["calls"] == 0
    answer = ask(served)
    post(served, "{")
    counts = httpx.get(url).json()
    assert counts == served.counts().to_json()
    assert (counts["calls"], counts["answers"], counts["errors"]) == (2, 1, {"bad_request": 1})
    assert sum(counts["roles"].values()) == 1
    assert set(counts["roles"]) <= {"worker", "judge", "coach"}
    assert counts["prompt_tokens"] == answer.usage.prompt_tokens
    assert counts["completion_tokens"] == answer.usage.completion_tokens
    assert counts["peak"] == 1
    assert counts["seconds"] > 0


async def test_slow_calls_wait_side_by_side_in_one_thread():
    with serve(RehearsalModel(), latency=Latency.fixed(0.5)) as served:
        before = threading.active_count()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def status(number: int) -> int:
                body = {"model": "any", "messages": [{"role": "user", "content": f"Ticket {number}"}]}
                async with session.post(f"{served.url}/chat/completions", json=body) as answer:
                    return answer.status

            statuses = await asyncio.gather(*(status(number) for number in range(64)))
        assert set(statuses) == {200}
        assert served.counts().peak >= 60
        assert threading.active_count() - before <= 2


def test_the_same_seed_and_requests_give_the_same_bytes():
    def run(seed: int) -> list[tuple[int, str, bytes]]:
        faults = Faults(rate_limit=0.2, server_error=0.2, malformed=0.1, empty=0.1, cut_off=0.1)
        with serve(RehearsalModel(seed=seed), seed=seed, faults=faults) as served, httpx.Client() as api:
            answers = [
                api.post(
                    f"{served.url}/chat/completions",
                    json={"model": "any", "messages": TICKET, "stream": bool(number % 2)},
                )
                for number in range(30)
            ]
        return [(answer.status_code, answer.headers.get("x-request-id"), answer.content) for answer in answers]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_stopping_cuts_off_what_is_in_flight_and_leaves_no_thread():
    before = set(threading.enumerate())
    with serve(RehearsalModel(), latency=Latency.fixed(600)) as served, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, served, f"Ticket {number}") for number in range(3)]
        assert eventually(lambda: served.counts().in_flight == 3)
        served.stop()
        served.stop()
        for future in waiting:
            assert isinstance(future.exception(timeout=30), openai.APIConnectionError)
        with pytest.raises(openai.APIConnectionError):
            ask(served)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("rehearsal")]


def test_only_this_machine_can_connect_and_a_taken_port_is_said_plainly(served):
    assert served.url == f"http://127.0.0.1:{served.port}/v1"
    with (
        pytest.raises(SetupError, match=f"port {served.port} .*another with --port"),
        serve(RehearsalModel(), port=served.port),
    ):
        pass
    with pytest.raises(UsageError, match="is no port"), serve(RehearsalModel(), port=70_000):
        pass


def test_a_failure_of_the_model_is_a_server_error_in_shape(caplog):
    class Broken:
        def complete(self, body):
            raise ZeroDivisionError

    with serve(Broken()) as served, pytest.raises(openai.InternalServerError) as failed:
        ask(served)
    assert failed.value.type == "server_error"
    assert "ZeroDivisionError" in caplog.text
