"""The stand-in model behind DSPy's engines: real modules, real adapters, real threads and a real event loop."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import exceptions as failures

from dspy_selfimprove.rehearsal.engine import Service, lm
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency
from dspy_selfimprove.rehearsal.model import RehearsalModel

ASK = "question -> answer"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_order",
        "description": "Find an order.",
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    },
}


class Recording:
    """The real stand-in, and every body it was given."""

    def __init__(self) -> None:
        self.model, self.bodies = RehearsalModel(), []

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return self.model.complete(body)


def verbatim(model: dspy.LM, body: dict[str, Any]) -> lm15.Response:
    config = lm15.Config(extensions={"openai_chat": body})
    return model(lm15.Request(model=model.model, messages=(lm15.Message.user("see the body"),), config=config))


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_modules_and_adapters_get_the_fields_they_ask_for(module, adapter):
    model = lm()
    with dspy.context(lm=model, adapter=adapter):
        answer = module("question -> answer: str, stars: int")(question="Where is my parcel?")
    assert answer.answer
    assert isinstance(answer.stars, int)
    # One call: an adapter that cannot read the answer asks again in another form.
    assert model.engine.counts().calls == 1


def test_json_adapter_uses_a_schema():
    stand_in = Recording()
    with dspy.context(lm=lm(stand_in), adapter=dspy.JSONAdapter()):
        dspy.Predict(ASK)(question="Where is my parcel?")
    assert stand_in.bodies[0]["response_format"]["type"] == "json_schema"


def test_each_of_several_answers_is_a_call_of_its_own():
    stand_in = Recording()
    model = lm(stand_in)
    with dspy.context(lm=model):
        found = dspy.Predict(ASK, n=3)(question="Where is my parcel?")
        again = dspy.Predict(ASK, rollout_id=7, temperature=1.0)(question="Where is my parcel?")
    assert len(found.completions.answer) == 3
    assert again.answer
    assert model.engine.counts().calls == 4
    assert not any("n" in body or "rollout_id" in body for body in stand_in.bodies)


def test_the_same_seed_gives_the_same_run():
    def run(seed: int) -> list[tuple[str, str]]:
        model = lm(seed=seed)
        bodies = [{"messages": [{"role": "user", "content": f"Ticket {number % 7}: lost"}]} for number in range(20)]
        responses = [verbatim(model, body) for body in bodies]
        return [(response.id, response.text) for response in responses]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len(set(run(1))) == 20


def test_a_body_of_its_own_arrives_as_it_is():
    stand_in = Recording()
    body = {
        "messages": [
            {"role": "developer", "content": "\tYou answer support tickets. \n"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Where is {my} order 12?"}]},
        ],
        "tools": [TOOL],
        "tool_choice": "required",
        "temperature": 0.3,
    }
    model = lm(stand_in)
    response = verbatim(model, body)
    assert stand_in.bodies == [{**body, "model": "worker"}]
    assert response.finish_reason == "tool_call"
    (call,) = response.message.parts_of(lm15.ToolCallPart)
    assert call.name == "look_up_order"
    assert response.provider_data["message"]["tool_calls"][0]["id"] == call.id
    assert response.provider_data["finish_reason"] == "tool_calls"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    assert model.engine.counts().prompt_tokens == response.usage.input_tokens


def test_evaluate_with_threads_counts_every_call():
    model = lm(latency=Latency.fixed(0.03))
    examples = [dspy.Example(question=f"Ticket {number}").with_inputs("question") for number in range(24)]
    evaluate = dspy.Evaluate(devset=examples, metric=lambda example, found: bool(found.answer), num_threads=8)
    with dspy.context(lm=model):
        assert evaluate(dspy.Predict(ASK)).score == 100.0
    counts = model.engine.counts()
    assert (counts.calls, counts.answers, counts.in_flight, dict(counts.errors)) == (24, 24, 0, {})
    assert sum(counts.roles.values()) == 24
    assert 2 <= counts.peak <= 8


async def test_one_loop_holds_many_calls_without_a_thread_for_each():
    model = lm(latency=Latency.fixed(0.5))
    before = threading.active_count()
    with dspy.context(lm=model):
        answers = await asyncio.gather(*(dspy.Predict(ASK).acall(question=f"Ticket {number}") for number in range(40)))
    assert all(answer.answer for answer in answers)
    assert model.engine.counts().peak == 40
    assert threading.active_count() - before < 40


async def test_streaming_gives_the_same_answer():
    with dspy.context(lm=lm()):
        streaming = dspy.streamify(dspy.Predict(ASK))
        last = [chunk async for chunk in streaming(question="Where is my parcel?")][-1]
    with dspy.context(lm=lm()):
        assert last.answer == dspy.Predict(ASK)(question="Where is my parcel?").answer


def test_a_copied_program_talks_to_the_same_service():
    program = dspy.Predict(ASK)
    program.set_lm(lm())
    program.deepcopy()(question="Where is my parcel?")
    program.lm.copy(temperature=0.2)("Where is my parcel?")
    assert program.lm.engine.counts().calls == 2


FAILURES = {
    Fault.RATE_LIMIT: failures.LMRateLimitError,
    Fault.SERVER_ERROR: failures.LMServerError,
    Fault.TIMEOUT: failures.LMTimeoutError,
    Fault.DROPPED: failures.LMTransportError,
    Fault.TORN: failures.LMTransportError,
    Fault.MALFORMED: failures.LMProviderError,
}


@pytest.mark.parametrize(("fault", "kind"), FAILURES.items())
async def test_faults_raise_what_a_real_engine_raises(fault, kind):
    model = lm(faults=Faults(**{fault: 1.0}, hang=0.0, retry_after=3.5), num_retries=0)
    with pytest.raises(kind) as sync:
        model("Where is my parcel?")
    with pytest.raises(kind):
        await model.acall("Where is my parcel?")
    if fault is Fault.RATE_LIMIT:
        assert (sync.value.status, sync.value.retry_after) == (429, 3.5)
    if fault is Fault.SERVER_ERROR:
        assert sync.value.status in (500, 503)
    counts = model.engine.counts()
    assert (counts.calls, counts.answers, dict(counts.errors)) == (2, 0, {str(fault): 2})


def test_an_empty_answer_and_one_cut_off():
    body = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}
    whole = verbatim(lm(), body)
    empty = verbatim(lm(faults=Faults(empty=1.0)), body)
    cut = verbatim(lm(faults=Faults(cut_off=1.0)), body)
    assert (empty.text or "", empty.finish_reason, empty.usage.output_tokens) == ("", "stop", 0)
    assert whole.text.startswith(cut.text)
    assert 0 < len(cut.text) < len(whole.text)
    assert cut.finish_reason == "length"
    assert 0 < cut.usage.output_tokens < whole.usage.output_tokens


def test_a_tool_call_can_be_cut_off_in_its_arguments():
    body = {"messages": [{"role": "user", "content": "Where is order 12?"}], "tools": [TOOL], "tool_choice": "required"}

    def arguments(faults: Faults) -> str:
        return verbatim(lm(faults=faults), body).provider_data["message"]["tool_calls"][0]["function"]["arguments"]

    whole, cut = arguments(Faults()), arguments(Faults(cut_off=1.0))
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


def test_faults_cost_attempts_and_change_no_answer():
    def run(faults: Faults) -> tuple[list[str], int]:
        model = lm(faults=faults, num_retries=50)
        return [model("Where is my parcel?")[0] for _ in range(15)], model.engine.counts().calls

    calm, calls = run(Faults())
    troubled, attempts = run(Faults(rate_limit=0.5, retry_after=0.0))
    assert troubled == calm
    assert attempts > calls == 15


def test_fate_does_not_depend_on_the_order_of_requests():
    bodies = [{"messages": [{"role": "user", "content": f"Ticket {number}"}]} for number in range(200)]

    def fates(order: list[dict[str, Any]]) -> dict[str, tuple[Fault | None, float]]:
        service = Service(RehearsalModel(), seed=5, latency=Latency.heavy(1.0), faults=Faults.mixed(0.3))
        calls = {body["messages"][0]["content"]: service.call(body) for body in order}
        return {text: (call.fault, call.seconds) for text, call in calls.items()}

    assert fates(bodies) == fates(bodies[::-1])


def test_resetting_forgets_what_ended_and_keeps_what_is_in_flight():
    service = Service(RehearsalModel())
    body = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}
    with service.call(body) as call:
        call.answer()
        service.counters.reset()
        counts = service.counters.counts()
        assert (counts.calls, counts.answers, counts.in_flight, counts.peak) == (0, 0, 1, 1)
    assert service.counters.counts().in_flight == 0
    with pytest.raises(KeyboardInterrupt), service.call(body):
        raise KeyboardInterrupt
    assert service.counters.counts().errors == {"given_up": 1}
