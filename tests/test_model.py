"""The door to models, driven through real HTTP: the real client, DSPy's real layers, the rehearsal server behind."""

import asyncio
import importlib.util
import threading

import dspy
import pytest
from dspy.lm15 import Config, Message, Request

from dspy_selfimprove import outage
from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.errors import BudgetExhausted, Refused, SetupError, TimedOut, Unavailable, UsageError
from dspy_selfimprove.model import BODY, REHEARSAL, Model, Models, Price, Tokens, _backoff
from dspy_selfimprove.rehearsal.fault import Faults, Latency
from dspy_selfimprove.rehearsal.server import serve
from dspy_selfimprove.slots import Slots

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
            with pytest.raises(Exception, match="needs the package mcp") as caught:
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
        response = models(server.url).lm("worker")(verbatim({"messages": [{"role": "user", "content": "x"}]}))
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
        lm = models(server.url, watch=calls.append, ledger=ledger, timeout=0.4, attempts=12).lm("worker")
        requests = [verbatim({"messages": [{"role": "user", "content": f"ticket {n}"}]}) for n in range(40)]
        if is_async:

            async def all_of_them():
                return await asyncio.gather(*(lm.acall(request) for request in requests))

            responses = asyncio.run(all_of_them())
        else:
            responses = dspy.Parallel(num_threads=8)([(lm, (request,)) for request in requests])
        counts = server.counts()
    assert [response.text for response in responses] == [REPLY] * 40
    assert sum(call.attempts for call in calls) == counts.calls > 45
    # A time-out may have been charged, so it stays in the books; what never reached the model does not.
    assert ledger.total.calls == 40 + counts.errors["timeout"]
    assert ledger.in_flight == 0


def test_a_waiting_call_gives_its_slot_to_another(monkeypatch):
    """One slot, and a first call that is told to wait: the others pass through it meanwhile."""
    order = []

    class Behind(Echo):
        def complete(self, body):
            order.append(body["messages"][0]["content"])
            return super().complete(body)

    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.2)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    # The fate of an attempt depends on its text and number alone, so one text that fails first can be found.
    faults = Faults(server_error=0.3)
    with serve(Behind(), faults=faults) as server:
        pool = models(server.url, slots=1)
        lm = pool.lm("worker")
        texts = [f"text {n}" for n in range(12)]
        dspy.Parallel(num_threads=12)(
            [(lm, (verbatim({"messages": [{"role": "user", "content": text}]}),)) for text in texts]
        )
        failed = server.counts().errors["server_error"]
    assert failed >= 1
    assert sorted(order) == sorted(texts)
    assert pool.slots.busy == 0


def test_a_refusal_is_told_at_once_and_in_our_words():
    with serve(Echo(), api_key="right") as server:
        lm = models(server.url, attempts=6).lm("worker")
        with pytest.raises(dspy.utils.exceptions.LMInvalidRequestError) as caught:
            lm(verbatim({"messages": [{"role": "user", "content": "x"}]}))
        assert server.counts().calls == 1
    failure = outage.failure_of(caught.value)
    assert isinstance(failure, Refused)
    assert "refused the key" in str(failure)


def test_nothing_listens_is_an_outage_that_ends(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.001)
    calls = []
    with serve(Echo()) as server:
        url = server.url
    lm = models(url, attempts=3, watch=calls.append).lm("worker")
    with pytest.raises(Exception, match="cannot be reached") as caught:
        lm(verbatim({"messages": [{"role": "user", "content": "x"}]}))
    assert isinstance(outage.failure_of(caught.value), Unavailable)
    assert [(call.attempts, call.failure) for call in calls] == [(3, "Unavailable")]


def test_a_timeout_is_told_apart():
    with serve(Echo(), latency=Latency.fixed(3)) as server:
        lm = models(server.url, attempts=1, timeout=0.2).lm("worker")
        with pytest.raises(dspy.utils.exceptions.LMTimeoutError) as caught:
            lm(verbatim({"messages": [{"role": "user", "content": "x"}]}))
    assert isinstance(outage.failure_of(caught.value), TimedOut)


def test_something_else_answers_at_the_address(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.001)
    with serve(Echo()) as server:
        lm = models(server.url.removesuffix("/v1"), attempts=2).lm("worker")
        with pytest.raises(Exception, match="does not know this model"):
            lm(verbatim({"messages": [{"role": "user", "content": "x"}]}))


def test_the_budget_stops_the_run_and_is_found_through_dspys_wrapping():
    ledger = Ledger(Budget(calls=3))
    with serve(Echo()) as server:
        lm = models(server.url, ledger=ledger).lm("judge")
        requests = [verbatim({"messages": [{"role": "user", "content": str(n)}]}) for n in range(4)]
        for request in requests[:3]:
            lm(request)
        with pytest.raises(Exception, match="used up") as caught:
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
                [(lms[n % 3], (verbatim({"messages": [{"role": "user", "content": f"t{n}"}]}),)) for n in range(30)]
            )

        async def on_a_loop():
            await asyncio.gather(
                *(lms[n % 3].acall(verbatim({"messages": [{"role": "user", "content": f"a{n}"}]})) for n in range(30))
            )

        thread = threading.Thread(target=in_threads)
        thread.start()
        asyncio.run(on_a_loop())
        thread.join()
        counts = server.counts()
    assert counts.calls == 60
    assert counts.peak == 4
    assert pool.slots.busy == 0


async def test_a_cancelled_call_gives_back_its_slot_and_its_room():
    with serve(Echo(), latency=Latency.fixed(5)) as server:
        pool = models(server.url, slots=1)
        lm = pool.lm("worker")
        flying = asyncio.create_task(lm.acall(verbatim({"messages": [{"role": "user", "content": "a"}]})))
        waiting = asyncio.create_task(lm.acall(verbatim({"messages": [{"role": "user", "content": "b"}]})))
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
