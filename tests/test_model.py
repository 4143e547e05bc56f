"""The door to models, driven through real HTTP: the real client, DSPy's real layers, the rehearsal server behind."""

import asyncio
import copy
import gc
import importlib.util
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy
import openai
import pytest
from dspy.lm15 import Config, Message, Request

from dspy_selfimprove import outage
from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.errors import BudgetExhausted, RateLimited, Refused, SetupError, TimedOut, Unavailable, UsageError
from dspy_selfimprove.model import REHEARSAL, Model, Models, Price, Tokens, _backoff
from dspy_selfimprove.rehearsal.engine import Service
from dspy_selfimprove.rehearsal.fault import Faults, Latency
from dspy_selfimprove.rehearsal.server import serve
from dspy_selfimprove.slots import Slots
from dspy_selfimprove.wire import BODY, OpenAIWire

REPLY = "Thanks for writing, this is the answer."


class Echo:
    """Behind the server: remembers the bodies it was sent, and answers each the same."""

    def __init__(self, answer=None):
        self.bodies, self.answer = [], answer
        self.lock = threading.Lock()

    def complete(self, body):
        with self.lock:
            self.bodies.append(body)
        message = self.answer or {"role": "assistant", "content": REPLY}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }


def models(url, *, provider="openai", watch=None, ledger=None, slots=8, **settings):
    model = Model(name=f"{provider}/rehearsal-worker", base_url=url, api_key="none", **settings)
    return Models(model, slots=slots, ledger=ledger, watch=watch)


def asking(text):
    return verbatim({"messages": [{"role": "user", "content": text}]})


def verbatim(body, model="openai/rehearsal-worker"):
    config = Config(extensions={BODY: body})
    return Request(model=model, messages=(Message.user("see the extension"),), config=config)


AWKWARD = {
    "messages": [
        {"role": "developer", "content": "\n  Keep\tthis {as} {{it}} is.  \n"},
        {"role": "user", "name": "ana", "content": [
            {"type": "text", "text": " two "}, {"type": "text", "text": "parts"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{\"order\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "user", "content": "and now?"},
    ],
    "temperature": 0.3,
    "max_tokens": 77,
    "stop": ["END"],
    "seed": 5,
    "tools": [{"type": "function", "function": {"name": "look_up", "strict": True, "parameters": {
        "type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"],
        "additionalProperties": False}}}],
    "tool_choice": "auto",
}  # fmt: skip


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_request_with_a_body_of_its_own_arrives_unchanged(provider, is_async):
    """What production sends is what arrives: names, null content, developer role, strict tools, tabs and all."""
    behind = Echo()
    with serve(behind) as server:
        lm = models(server.url, provider=provider).lm("worker")
        request = verbatim(AWKWARD, lm.model)
        response = asyncio.run(lm.acall(request)) if is_async else lm(request)
    assert response.text == REPLY
    (body,) = behind.bodies
    assert body == {**AWKWARD, "model": "rehearsal-worker"}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_other_providers_go_through_litellm(is_async):
    """`together_ai` stands for them: LiteLLM speaks to any of them, here at the rehearsal server's address."""
    behind = Echo()
    body = {"messages": [{"role": "system", "content": " S\t"}, {"role": "user", "content": "x"}], "temperature": 0.3}
    with serve(behind) as server:
        lm = models(server.url, provider="together_ai").lm("worker")
        request = verbatim(body, lm.model)
        response = asyncio.run(lm.acall(request)) if is_async else lm(request)
        assert response.text == REPLY
        assert behind.bodies[0]["messages"] == body["messages"]
        assert behind.bodies[0]["temperature"] == 0.3
        if importlib.util.find_spec("mcp") is None:
            with pytest.raises(Exception, match="needs the package mcp for this request") as caught:
                lm(verbatim(AWKWARD, lm.model))
            assert isinstance(outage.failure_of(caught.value), SetupError)


def test_an_ordinary_dspy_program_runs_on_it_in_threads_and_on_a_loop():
    calls = []
    behind = Echo({"role": "assistant", "content": "[[ ## answer ## ]]\nfour\n\n[[ ## completed ## ]]"})
    with serve(behind) as server:
        lm = models(server.url, watch=calls.append).lm("worker", temperature=0.5)
        with dspy.context(lm=lm):
            program = dspy.Predict("question -> answer")
            assert program(question="2+2?").answer == "four"

            async def many():
                return await asyncio.gather(*(program.acall(question=f"{n}?") for n in range(10)))

            assert {result.answer for result in asyncio.run(many())} == {"four"}
            assert {result.answer for result in asyncio.run(many())} == {"four"}, "a second loop gets its own client"
    assert len(calls) == 21
    assert {call.failure for call in calls} == {None}
    assert calls[0].tokens == Tokens(100, 10)
    assert calls[0].dollars == pytest.approx(REHEARSAL.of(Tokens(100, 10)))
    assert behind.bodies[0]["temperature"] == 0.5


def test_tool_calls_come_back_and_broken_arguments_are_no_crash():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    broken = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": '{"x": '}}
    with serve(Echo({"role": "assistant", "content": None, "tool_calls": [call, broken]})) as server:
        response = models(server.url).lm("worker")(asking("x"))
    assert [part.input for part in response.message.parts] == [{"x": 1}, {}]
    assert response.provider_data["message"]["tool_calls"][1]["function"]["arguments"] == '{"x": '


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_outages_of_every_kind_are_waited_out(is_async, monkeypatch):
    """Thirty per cent of the attempts fail in some way; every call ends well, and each was charged once."""
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.01)
    calls = []
    faults = Faults(
        rate_limit=0.06,
        server_error=0.06,
        timeout=0.06,
        dropped=0.04,
        torn=0.04,
        malformed=0.04,
        retry_after=0.02,
        hang=5,
    )
    ledger = Ledger(Budget(calls=60))
    with serve(Echo(), faults=faults) as server:
        lm = models(server.url, watch=calls.append, ledger=ledger, timeout=1.5, attempts=12).lm("worker")
        requests = [verbatim({"messages": [{"role": "user", "content": f"ticket {n}"}]}) for n in range(40)]
        if is_async:

            async def all_of_them():
                return await asyncio.gather(*(lm.acall(request) for request in requests))

            responses = asyncio.run(all_of_them())
        else:
            responses = dspy.Parallel(num_threads=8)([(lm, (request,)) for request in requests])
        counts = server.counts()
    assert [response.text for response in responses] == [REPLY] * 40
    assert counts.calls > 45
    # On a busy machine an attempt may time out before the server has seen it; the server then counts one less.
    unseen = sum(call.attempts for call in calls) - counts.calls
    assert 0 <= unseen <= 3
    # A time-out may have been charged, so it stays in the books; what never reached the model does not.
    assert 0 <= ledger.total.calls - 40 - counts.errors["timeout"] <= unseen
    assert ledger.in_flight == 0


def test_a_waiting_call_gives_its_slot_to_another(monkeypatch):
    """One slot, and a text whose first attempt fails: all the others get through before it is tried again."""
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 1.0)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    faults = Faults(server_error=0.3)
    texts = [f"text {n}" for n in range(12)]
    # The fate of an attempt depends on its content and number alone, so the test can look it up beforehand.
    service = Service(Echo(), faults=faults)
    bodies = {text: {"model": "rehearsal-worker", "messages": [{"role": "user", "content": text}]} for text in texts}
    failing = next(text for text in texts if service.call(bodies[text]).fault)
    others = [text for text in texts if text != failing and not Service(Echo(), faults=faults).call(bodies[text]).fault]
    behind = Echo()
    with serve(behind, faults=faults) as server:
        pool = models(server.url, slots=1)
        lm = pool.lm("worker")
        with ThreadPoolExecutor(12) as threads:
            first = threads.submit(lm, verbatim({"messages": bodies[failing]["messages"]}))
            while not server.counts().errors:
                time.sleep(0.001)
            rest = [threads.submit(lm, verbatim({"messages": bodies[text]["messages"]})) for text in others]
            assert {reply.result().text for reply in (first, *rest)} == {REPLY}
    assert behind.bodies[-1]["messages"][0]["content"] == failing
    assert pool.slots.busy == 0


@pytest.mark.parametrize(
    ("library", "names", "said", "kind"),
    [
        ("anthropic", ("OverloadedError", "InternalServerError"), {"status_code": 529}, Unavailable),
        ("anthropic", ("RateLimitError", "APIStatusError"), {"status_code": 429}, RateLimited),
        ("anthropic", ("APITimeoutError", "APIConnectionError"), {}, TimedOut),
        ("google.genai.errors", ("ServerError", "APIError"), {"code": 503, "status": "UNAVAILABLE"}, Unavailable),
        ("google.genai.errors", ("ClientError",), {"code": 429, "status": "RESOURCE_EXHAUSTED"}, RateLimited),
        ("google.genai.errors", ("ClientError",), {"code": 403, "status": None}, Refused),
        ("google.genai.errors", ("ClientError",), {"code": 400, "status": "INVALID_ARGUMENT"}, Refused),
        ("shop", ("ClientError",), {"code": 429}, None),
    ],
)
def test_errors_of_clients_that_an_evaluator_brings_along_are_known_by_their_names(library, names, said, kind):
    """The names and fields are those of anthropic 2.12 and google-genai 3.4, which are not among the dependencies."""
    base = Exception
    for name in reversed(names):
        base = type(name, (base,), {"__module__": library})
    error = base("what the service wrote")
    vars(error).update(said)
    failure = outage.failure_of(error)
    assert type(failure) is (kind or type(None))
    assert "what the service wrote" not in str(failure)


def test_a_refusal_is_told_at_once_and_in_our_words():
    with serve(Echo(), api_key="right") as server:
        lm = models(server.url, attempts=6).lm("worker")
        with pytest.raises(dspy.utils.exceptions.LMInvalidRequestError) as caught:
            lm(asking("x"))
        assert server.counts().calls == 1
    failure = outage.failure_of(caught.value)
    assert isinstance(failure, Refused)
    assert "refused the key, or got none" in str(failure)


def test_nothing_listens_is_an_outage_that_ends(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.001)
    calls = []
    with serve(Echo()) as server:
        url = server.url
    lm = models(url, attempts=3, watch=calls.append).lm("worker")
    with pytest.raises(Exception, match="cannot be reached") as caught:
        lm(asking("x"))
    assert isinstance(outage.failure_of(caught.value), Unavailable)
    assert [(call.attempts, call.failure) for call in calls] == [(3, "Unavailable")]


def test_a_provider_that_nobody_knows_is_named_as_the_mistake(capsys):
    with pytest.raises(Exception, match="LiteLLM knows no such provider"):
        Models(Model(name="nope/nope")).lm("worker")("hi")
    assert "Provider List" not in capsys.readouterr().out


def test_a_timeout_is_told_apart():
    with serve(Echo(), latency=Latency.fixed(3)) as server:
        lm = models(server.url, attempts=1, timeout=0.2).lm("worker")
        with pytest.raises(dspy.utils.exceptions.LMTimeoutError) as caught:
            lm(asking("x"))
    assert isinstance(outage.failure_of(caught.value), TimedOut)


def test_something_else_answers_at_the_address(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.001)
    with serve(Echo()) as server:
        lm = models(server.url.removesuffix("/v1"), attempts=2).lm("worker")
        with pytest.raises(Exception, match="does not know this model"):
            lm(asking("x"))


def test_the_budget_stops_the_run_and_is_found_through_dspys_wrapping():
    ledger = Ledger(Budget(calls=3))
    with serve(Echo()) as server:
        lm = models(server.url, ledger=ledger).lm("judge")
        requests = [asking(str(n)) for n in range(4)]
        for request in requests[:3]:
            lm(request)
        with pytest.raises(Exception, match="has no room for the next call") as caught:
            lm(requests[3])
        assert server.counts().calls == 3
    assert isinstance(outage.failure_of(caught.value), BudgetExhausted)
    assert ledger.spent["judge"].calls == 3


def test_no_more_calls_in_flight_than_slots_across_roles_threads_and_loops():
    with serve(Echo(), latency=Latency.fixed(0.03)) as server:
        pool = models(server.url, slots=4)
        lms = [pool.lm(role) for role in ("worker", "judge", "coach")]

        def in_threads():
            dspy.Parallel(num_threads=12, disable_progress_bar=True)(
                [(lms[n % 3], (asking(f"t{n}"),)) for n in range(30)]
            )

        async def on_a_loop():
            await asyncio.gather(*(lms[n % 3].acall(asking(f"a{n}")) for n in range(30)))

        thread = threading.Thread(target=in_threads)
        thread.start()
        asyncio.run(on_a_loop())
        thread.join()
        counts = server.counts()
    assert counts.calls == 60
    assert counts.peak == 4
    assert pool.slots.busy == 0


def test_a_pause_is_kept_by_every_role_of_the_model_and_by_those_who_wait_for_a_slot():
    """429 with a second to wait: nothing is sent until then, by another role or by a caller already in the queue."""
    sent = []

    class Behind(Echo):
        def complete(self, body):
            sent.append(time.monotonic())
            return super().complete(body)

    texts = [f"text {n}" for n in range(40)]
    faults = Faults(rate_limit=0.1, retry_after=1.0)
    body = {"model": "rehearsal-worker", "messages": [{"role": "user", "content": ""}]}
    fates = {text: Service(Echo(), faults=faults) for text in texts}

    def fails(text):
        return fates[text].call({**body, "messages": [{"role": "user", "content": text}]}).fault is not None

    failing = [text for text in texts if fails(text)]
    passing = [text for text in texts if text not in failing][:6]
    with serve(Behind(), faults=faults, latency=Latency.fixed(0.05)) as server:
        pool = models(server.url, slots=1)
        worker, judge = pool.lm("worker"), pool.lm("judge")
        with ThreadPoolExecutor(8) as threads:
            told = threads.submit(worker, verbatim({"messages": [{"role": "user", "content": failing[0]}]}))
            while not server.counts().errors:
                time.sleep(0.001)
            start = time.monotonic()
            rest = [threads.submit(lm, asking(text)) for lm, text in zip([worker, judge] * 3, passing, strict=True)]
            assert {reply.result().text for reply in (told, *rest)} == {REPLY}
    assert len(sent) == 7
    assert min(sent) - start > 0.8, "a pause of a second, less what passed before the client saw it"


def test_what_cannot_be_one_whole_answer_is_refused_before_it_costs():
    with serve(Echo()) as server:
        lm = models(server.url).lm("worker")
        for extra in ({"n": 2}, {"stream": True}):
            with pytest.raises(Exception, match="one whole answer") as caught:
                lm(verbatim({"messages": [{"role": "user", "content": "x"}], **extra}))
            assert isinstance(outage.failure_of(caught.value), UsageError)
        lm(verbatim({"messages": [{"role": "user", "content": "x"}], "n": 1, "stream": False}))
        assert server.counts().calls == 1


ORDINARY = {"messages": [{"role": "user", "content": "naïve \U0001f4e6 {x}"}], "temperature": 0.5, "user": "u1"}


@contextmanager
def plain_server(answer):
    """Answers every request with this JSON; gives its address, and what it was sent."""
    seen = []

    class Behind(BaseHTTPRequestHandler):
        def do_POST(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.path, headers, self.rfile.read(int(headers["content-length"]))))
            told = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Behind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
        server.shutdown()


BESIDE = {"extra_headers": {"x-team": "a"}, "extra_query": {"v": "2"}, "extra_body": {"top_k": 4}, "timeout": 7.0}


@pytest.mark.parametrize("beside", [{}, BESIDE], ids=["body only", "with more beside it"])
@pytest.mark.parametrize("body", [AWKWARD, ORDINARY], ids=["awkward", "ordinary"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_clients_lower_door_sends_what_its_upper_one_sends(body, beside, is_async):
    """The same bytes in the order they were given in, and one header more: the answer is to be left unread."""
    completion = Echo().complete({"model": "m"})
    asked = {**body, **beside, "model": "m"}
    with plain_server(completion) as (url, seen):
        openai.OpenAI(base_url=url, api_key="k", max_retries=0).chat.completions.create(**asked)
        wire = OpenAIWire(url, "k", 60.0)
        answer = asyncio.run(wire.asend(asked)) if is_async else wire.send(asked)
    assert answer == completion
    (path, headers, sent), (other_path, other_headers, other_sent) = seen
    assert other_path == path
    assert json.loads(other_sent) == json.loads(sent)
    assert sorted(other_sent) == sorted(sent)
    assert other_headers.pop("x-stainless-raw-response") == "true"
    # The two clients name themselves, and only one was given a timeout at its making.
    own = ("x-stainless-async", "user-agent", "x-stainless-read-timeout")
    assert {k: v for k, v in other_headers.items() if k not in own} == {
        k: v for k, v in headers.items() if k not in own
    }


@pytest.mark.parametrize(
    "answer",
    [[], "text", {}, {"choices": []}, {"choices": "x"}, {"choices": [None]}, {"choices": None, "usage": 3}],
    ids=repr,
)
def test_what_is_no_completion_is_refused_and_holds_nothing(answer):
    ledger = Ledger()
    with plain_server(answer) as (url, seen):
        with pytest.raises(Exception, match="sends no chat completions"):
            models(url, ledger=ledger).lm("worker")(asking("x"))
        assert len(seen) == 1
    assert ledger.in_flight == 0


def test_a_completion_without_the_usual_company_is_still_an_answer():
    odd = {"choices": [{"message": {"content": "Yes."}}], "usage": {"prompt_tokens": "many"}}
    with plain_server(odd) as (url, _):
        response = models(url).lm("worker")(asking("x"))
    assert (response.text, response.finish_reason, response.usage.total_tokens) == ("Yes.", "stop", 0)


def test_a_body_of_ones_own_is_answered_with_the_completion_and_fails_in_our_words():
    body = {"messages": [{"role": "user", "content": "x"}], "model": "whatever"}
    with serve(Echo(), api_key="right") as server, pytest.raises(Refused, match="refused the key"):
        models(server.url).caller("judge").ask(body)
    behind = Echo()
    with serve(behind) as server:
        pool = models(server.url)
        assert pool.caller("judge").ask(body)["choices"][0]["message"]["content"] == REPLY
        with pytest.raises(UsageError, match="one whole answer"):
            pool.caller("judge").ask({**body, "n": 2})
    assert behind.bodies == [{**body, "model": "rehearsal-worker"}]
    assert pool.ledger.spent["judge"].calls == 1


def test_a_parameter_the_client_has_no_name_for_is_sent():
    behind = Echo()
    with serve(behind) as server:
        models(server.url).lm("worker")(verbatim({"messages": [{"role": "user", "content": "x"}], "top_k": 5}))
    assert behind.bodies[0]["top_k"] == 5


def test_an_answer_that_was_paid_for_is_booked_and_never_asked_for_again():
    odd = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}
    ledger = Ledger()
    with serve(Echo({"role": "assistant", "content": None, "tool_calls": [odd]})) as server:
        response = models(server.url, ledger=ledger).lm("worker")(asking("x"))
        assert server.counts().calls == 1
    assert response.provider_data["message"]["tool_calls"] == [odd]
    assert ledger.total.tokens == 110


def test_a_page_at_the_address_is_no_outage():
    """Some other server answers 200 with a page: refused at once, not asked six times."""
    page = b"<html>hello</html>"

    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        lm = models(f"http://127.0.0.1:{other.server_port}/v1").lm("worker")
        with pytest.raises(Exception, match="sends no chat completions"):
            lm(asking("x"))
        other.shutdown()
    assert len(asked) == 1


def test_a_watcher_that_fails_loses_no_answer(caplog):
    def watch(call):
        raise RuntimeError("a bug of the watcher's")

    with serve(Echo()) as server:
        response = models(server.url, watch=watch).lm("worker")(asking("x"))
    assert response.text == REPLY
    assert "watches calls failed" in caplog.text


def test_room_that_calls_in_flight_hold_is_waited_for():
    """Two calls reserve nearly the whole budget and use little of it: the third waits for what they give back."""
    ledger = Ledger(Budget(tokens=1_000))
    with serve(Echo(), latency=Latency.fixed(0.2)) as server:
        lm = models(server.url, ledger=ledger).lm("worker")
        requests = [verbatim({"messages": [{"role": "user", "content": str(n)}], "max_tokens": 450}) for n in range(3)]
        with ThreadPoolExecutor(3) as threads:
            assert {reply.text for reply in threads.map(lm, requests)} == {REPLY}
    assert ledger.total.tokens == 330


def test_programs_are_copied_and_the_pool_is_not():
    pool = models("http://127.0.0.1:9/v1")
    program = dspy.Predict("question -> answer")
    program.set_lm(pool.lm("worker"))
    again = copy.deepcopy(program)
    assert again.lm._engine_spec.caller is program.lm._engine_spec.caller


def test_clients_of_loops_that_ended_are_let_go(caplog):
    with serve(Echo()) as server:
        pool = models(server.url)
        lm = pool.lm("worker")
        for n in range(5):
            asyncio.run(lm.acall(asking(str(n))))
            gc.collect()
        assert "never retrieved" not in caplog.text
        assert len(pool._callers["worker"].line.wire._clients) == 1


async def test_a_cancelled_call_gives_back_its_slot_and_its_room():
    with serve(Echo(), latency=Latency.fixed(5)) as server:
        pool = models(server.url, slots=1)
        lm = pool.lm("worker")
        flying = asyncio.create_task(lm.acall(asking("a")))
        waiting = asyncio.create_task(lm.acall(asking("b")))
        while not server.counts().calls:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)
        for task in (waiting, flying):
            task.cancel()
        await asyncio.gather(flying, waiting, return_exceptions=True)
    assert pool.slots.busy == 0
    assert pool.ledger.in_flight == 0
    assert pool.ledger.total.calls == 1, "it was under way, so it may be charged"


def test_prices():
    assert Price(2.0, 8.0, cached=1.0).of(Tokens(1_000_000, 500_000, cached=250_000)) == pytest.approx(1.5 + 0.25 + 4.0)
    assert Model(name="openai/rehearsal").priced() == REHEARSAL
    known = Model(name="openai/gpt-4o-mini").priced()
    assert known is not None
    assert 0 < known.input < known.output < 10
    assert Model(name="openai/a-model-nobody-knows").priced() is None
    with pytest.raises(UsageError, match=r"No price is known for openai/a-model-nobody-knows"):
        Models(Model(name="openai/a-model-nobody-knows"), ledger=Ledger(Budget(dollars=1)))
    Models(Model(name="openai/a-model-nobody-knows", price=Price(1, 1)), ledger=Ledger(Budget(dollars=1)))


def test_waits_grow_and_respect_what_was_asked():
    assert 5.0 <= _backoff(1, Unavailable("x", retry_after=5.0)) <= 5.0
    assert all(_backoff(attempt, Unavailable("x")) <= 60 for attempt in range(1, 40))
    assert _backoff(1, Unavailable("x", retry_after=3600)) is None
    assert _backoff(1, Refused("x")) is None


def test_mistakes_are_refused_before_any_call():
    with pytest.raises(UsageError, match="who serves the model"):
        Model(name="gpt-4o-mini")
    with pytest.raises(UsageError, match="no role 'student'"):
        Models(Model(name="openai/x")).lm("student")
    with pytest.raises(UsageError, match="at least one attempt"):
        Model(name="openai/x", attempts=0)
    assert "secret" not in repr(Model(name="openai/x", api_key="secret"))
    assert Slots(2).size == 2
