"""Programs: what ChatProgram sends, what a Candidate reads from any module, what traces give as Examples.

The wire is real wherever it matters: the official client and `Models` both write to one HTTP server that keeps bodies.
"""

from __future__ import annotations

import asyncio
import doctest
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from statistics import fmean
from typing import Any

import dspy
import pydantic
import pytest
from capture import capture
from dspy.utils.callback import BaseCallback
from hypothesis import given, settings
from hypothesis import strategies as st
from requests_corpus import recorded_requests

from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import MissingVariable, UsageError
from dspy_selfimprove.exchange import Step
from dspy_selfimprove.message import canonical
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.program import ChatProgram, apply_candidate, example_of, examples_of, read_candidate
from dspy_selfimprove.program.verbatim import ChatSignature
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.rehearsal import RehearsalModel, World, lm
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score

QUESTION = {"role": "user", "content": "Where is my parcel?"}
PROMPT = ChatPrompt(system="\n\tAnswer {{name}}.  \n", model="m", temperature=0.2)


class Echo:
    """A model that keeps what it was asked and says what it is told to."""

    def __init__(self, message: Mapping[str, Any] | None = None, finish_reason: str = "stop") -> None:
        self.message = message or {"role": "assistant", "content": "On its way."}
        self.finish_reason, self.bodies = finish_reason, []

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.bodies.append(json.loads(json.dumps(body)))
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": self.message, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }


def asked(program: Any, behind: Echo | None = None, **inputs: Any) -> dict[str, Any]:
    """The one body that a call sends."""
    behind = behind or Echo()
    with dspy.context(lm=lm(behind)):
        program(**inputs)
    (body,) = behind.bodies
    return body


# The byte-for-byte promise


def test_500_recorded_requests_are_sent_again_as_they_were():
    import openai

    recorded = recorded_requests(500)
    aside = {"stream", "stream_options", "n"}
    known = set(openai.resources.chat.completions.Completions.create.__annotations__)
    with capture() as (url, bodies):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for each in recorded:
            named = {name: value for name, value in each.body.items() if name in known}
            extra = {name: value for name, value in each.body.items() if name not in known}
            client.chat.completions.create(**named, **({"extra_body": extra} if extra else {}))
        production = bodies[:]
        bodies.clear()
        programs = {each.prompt.version: ChatProgram(each.prompt) for each in recorded}
        lms = {name: Models(Model(name=f"openai/{name}", base_url=url, api_key="none")).lm("worker")
               for name in {each.body["model"] for each in recorded}}  # fmt: skip

        def call(each: Any, way: str) -> Any:
            inputs = {"conversation": each.conversation, "variables": each.variables, "parameters": each.parameters}
            return getattr(programs[each.prompt.version], way)(**inputs)

        async def rest() -> list[Any]:
            replies = []
            for each in recorded[400:]:
                with dspy.context(lm=lms[each.body["model"]]):
                    replies.append(await call(each, "acall"))
            return replies

        replies = []
        for each in recorded[:400]:
            with dspy.context(lm=lms[each.body["model"]]):
                replies.append(call(each, "__call__"))
        assert {reply.output for reply in [*replies, *asyncio.run(rest())]} == {"On its way."}

    def form(body: Mapping[str, Any]) -> str:
        return canonical({name: value for name, value in body.items() if value is not None and name not in aside})

    assert len(production) == len(bodies) == 500
    assert len({form(body) for body in production}) > 400, "the corpus is varied"
    assert [form(body) for body in bodies] == [form(body) for body in production]
    assert [body["messages"] for body in bodies] == [body["messages"] for body in production]


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SPACED = st.lists(st.sampled_from(["\t", "\n", "  ", "\r\n", "{{name}}", "{{other}}", "{", "x", "é", "'\"\\"])).map(
    "".join
)


@given(text=TEXT | SPACED, more=SPACED)
@settings(max_examples=40)
def test_instructions_keep_every_character_through_all_that_dspy_does_with_a_signature(text, more):
    signature = ChatSignature.with_instructions(text)
    assert signature.instructions == text
    assert signature.append_instructions(more).instructions == f"{text}\n\n{more}"
    extended = signature.append("note", dspy.InputField(), str)
    for same in (
        signature.with_updated_fields("output", prefix="Reply:", desc="a reply"),
        signature.delete("variables"),
        signature.load_state(signature.dump_state()),
        extended,
        extended.prepend("first", dspy.InputField()).delete("note"),
    ):
        assert same.instructions == text
        assert same.with_instructions(more).instructions == more
    assert signature.equals(ChatSignature.with_instructions(text))
    assert signature.equals(ChatSignature.with_instructions(text + "!")) is False
    assert ChatSignature.instructions == ""


@given(
    system=TEXT | SPACED,
    rewritten=SPACED,
    user=st.none() | SPACED,
    role=st.sampled_from(["system", "developer", "user"]),
    name=TEXT,
    said=st.lists(TEXT, min_size=1, max_size=3),
    shown=st.lists(st.tuples(TEXT, TEXT), max_size=2),
    temperature=st.none() | st.floats(0, 2),
)
@settings(max_examples=60)
def test_what_is_exported_is_what_was_evaluated(system, rewritten, user, role, name, said, shown, temperature):
    """However text, demonstrations and parameters were changed: `prompt` asks exactly what the call asked."""
    program = ChatProgram(
        ChatPrompt(system=system, user=user, role=role, variables=("name",), few_shot=(QUESTION,), model="worker")
    )
    program.chat.signature = program.chat.signature.with_instructions(rewritten)
    program.chat.demos = [
        dspy.Example(conversation=[{"role": "user", "content": text}], variables={"name": name}, output=answer)
        for text, answer in shown
    ]
    program.chat.config = {"temperature": temperature, "top_k": 3, "cache": False}
    conversation = [{"role": "user", "content": text} for text in said]
    body = asked(program, conversation=conversation, variables={"name": name})
    assert body == program.prompt.request(conversation, name=name)
    assert program.prompt.system == (rewritten or None)
    # And the exported prompt is a program that asks the same again.
    assert asked(ChatProgram(program.prompt), conversation=conversation, variables={"name": name}) == body
    assert ChatPrompt.from_json(json.loads(json.dumps(program.prompt.to_json()))) == program.prompt


def test_a_prediction_holds_the_text_the_whole_reply_and_why_it_ended():
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"order": '}}
    reply = {"role": "assistant", "content": None, "tool_calls": [call]}
    with dspy.context(lm=lm(Echo(reply, "tool_calls"))):
        made = ChatProgram(PROMPT)(conversation=[QUESTION], variables={"name": "Ana"})
    assert (made.output, made.message, made.finish_reason) == ("", reply, "tool_calls")


def test_a_prompt_without_system_text_sends_none_until_one_is_proposed():
    program = ChatProgram(ChatPrompt(model="worker"))
    assert asked(program, conversation=[QUESTION]) == {"messages": [QUESTION], "model": "worker"}
    program.chat.signature = program.chat.signature.with_instructions("Be brief.")
    assert asked(program, conversation=[QUESTION])["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_slot_that_is_no_variable_is_sent_as_it_is_written():
    program = ChatProgram(PROMPT)
    program.chat.signature = program.chat.signature.with_instructions("{{name}}: {{invented}}")
    body = asked(program, conversation=[QUESTION], variables={"name": "{{invented}}"})
    assert body["messages"][0]["content"] == "{{invented}}: {{invented}}"


# Parameters


def test_the_call_s_parameters_win_over_the_predictor_s_and_those_over_the_prompt_s():
    program = ChatProgram(ChatPrompt(system="x", model="worker", temperature=0.2, seed=1, max_tokens=9))
    program.chat.config = {"temperature": 0.5, "seed": 2, "max_tokens": None}
    body = asked(program, conversation=[QUESTION], parameters={"seed": 3, "user": "u1", "stream": True, "n": 4})
    del body["messages"]
    assert body == {"model": "worker", "temperature": 0.5, "seed": 3, "user": "u1"}
    assert asked(program, conversation=[QUESTION], parameters={"seed": None}).get("seed") is None
    assert program.prompt.parameters == {"model": "worker", "temperature": 0.5, "seed": 2}


def test_the_lm_s_own_parameters_are_not_sent_unless_it_is_another_try():
    program = ChatProgram(ChatPrompt(system="x", temperature=0.2, seed=1))
    behind = Echo()
    model = lm(behind, temperature=0.9, max_tokens=5)
    with dspy.context(lm=model):
        program(conversation=[QUESTION])
        with dspy.context(lm=model.copy(rollout_id=0, temperature=1.0)):
            program(conversation=[QUESTION])
    plain, again = behind.bodies
    assert (plain["temperature"], plain["seed"], "max_tokens" in plain) == (0.2, 1, False)
    assert (again["temperature"], "seed" in again, "max_tokens" in again) == (1.0, False, False)


def test_dspy_s_cache_tells_apart_what_differs_on_the_wire_and_which_try_it_is():
    program = ChatProgram(PROMPT)
    behind = Echo()
    model = lm(behind).copy(cache=True)
    marked = f"{id(behind)}"  # DSPy's cache outlives the test
    with dspy.context(lm=model):
        for name, chosen in (("a", model), ("a", model), ("b", model), ("a", model.copy(rollout_id=1))):
            with dspy.context(lm=chosen):
                program(conversation=[{"role": "user", "content": marked}], variables={"name": name})
    assert len(behind.bodies) == 3


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ({"conversation": "Hi", "variables": {"name": "a"}}, "A conversation is a list of messages"),
        ({"conversation": [QUESTION]}, "The prompt needs 'name'"),
        ({"conversation": [QUESTION], "variables": {"name": "a", "nam": "b"}}, "no variable 'nam'"),
        ({"conversation": [QUESTION], "variables": {"name": "a"}, "parameters": {"messages": []}}, "no parameter"),
    ],
)
def test_a_call_that_cannot_be_right_is_refused_before_it_is_sent(inputs, error):
    behind = Echo()
    with dspy.context(lm=lm(behind)), pytest.raises(UsageError, match=error):
        ChatProgram(PROMPT)(**inputs)
    assert behind.bodies == []


def test_a_request_without_any_message_is_refused():
    with dspy.context(lm=lm(Echo())), pytest.raises(UsageError, match="hold no message"):
        ChatProgram(ChatPrompt(model="m"))()


# Which LM


def test_an_lm_that_would_send_something_else_is_refused_before_it_sends():
    with capture() as (url, bodies):
        for engine in ("auto", "lm15", "litellm"):
            model = dspy.LM("openai/m", api_base=url, api_key="none", engine=engine, cache=False, num_retries=0)
            with dspy.context(lm=model), pytest.raises(UsageError, match=r'Models\(...\).lm\("worker"\)'):
                ChatProgram(PROMPT)(conversation=[QUESTION], variables={"name": "a"})
    assert bodies == []


def test_an_engine_that_does_not_know_of_the_body_is_found_out_by_its_answer():
    class Stranger:
        def complete(self, request: Any) -> Any:
            from dspy.lm15 import Message, Response, Usage

            return Response(
                id=None, model="m", message=Message.assistant("Hi"), finish_reason="stop", usage=Usage(0, 0, 0)
            )

    with (
        dspy.context(lm=dspy.LM("x/y", engine=Stranger(), cache=False)),
        pytest.raises(UsageError, match="own request"),
    ):
        ChatProgram(PROMPT)(conversation=[QUESTION], variables={"name": "a"})


def test_several_answers_to_one_call_are_refused():
    with dspy.context(lm=lm(Echo(), n=3)), pytest.raises(UsageError, match="one answer"):
        ChatProgram(PROMPT)(conversation=[QUESTION], variables={"name": "a"})


def test_only_the_chat_predictor_speaks_verbatim():
    """Around it and inside the same context, another predictor keeps the adapter it was given."""
    behind = Echo({"role": "assistant", "content": "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"})

    class Both(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.support = dspy.Predict("question -> answer"), ChatProgram(PROMPT)

        def forward(self) -> dspy.Prediction:
            self.first(question="?")
            self.support(conversation=[QUESTION], variables={"name": "Ana"})
            return self.first(question="?")

    with dspy.context(lm=lm(behind), adapter=dspy.ChatAdapter()):
        assert Both()().answer == "yes"
    before, chat, after = behind.bodies
    assert before == after
    assert "[[ ## question ## ]]" in before["messages"][1]["content"]
    assert [message["content"] for message in chat["messages"]] == ["\n\tAnswer Ana.  \n", "Where is my parcel?"]


# Demonstrations


def test_demonstrations_stand_between_the_few_shot_turns_and_the_conversation():
    shot = {"role": "assistant", "content": "Welcome."}
    program = ChatProgram(ChatPrompt(system="x", user="Q: {{text}}", few_shot=(shot,)))
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    whole = {"role": "assistant", "content": "Gladly.", "refusal": None, "annotations": [], "audio": None}
    program.chat.demos = [
        dspy.Example(conversation=earlier, variables={"text": "one"}, output="1", id="T1", weight=3.0, augmented=True),
        {"variables": {"text": "two"}, "output": "not this", "message": whole},
    ]
    body = asked(program, conversation=earlier, variables={"text": "three"})
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("system", "x"),
        ("assistant", "Welcome."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Q: one"),
        ("assistant", "1"),
        ("user", "Q: two"),
        ("assistant", "Gladly."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Q: three"),
    ]
    assert body["messages"][7] == {"role": "assistant", "content": "Gladly."}, "a reply's other fields go nowhere"


def test_a_demonstration_that_cannot_be_shown_is_left_out():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    program = ChatProgram(ChatPrompt(system="x"))
    program.chat.demos = [
        dspy.Example(conversation=[QUESTION], variables={}),
        dspy.Example(conversation=[QUESTION], output=""),
        dspy.Example(conversation=[], output="Nobody asked."),
        dspy.Example(conversation=[QUESTION], message={"role": "assistant", "content": "Wait.", "tool_calls": [call]}),
        dspy.Example(conversation=[QUESTION], message={"role": "assistant", "content": None, "refusal": "No."}),
    ]
    assert program.prompt.few_shot == ()
    program.chat.demos.append(dspy.Example(conversation=[QUESTION], output="Yes."))
    assert len(program.prompt.few_shot) == 2, "what is added in place counts too"
    program.chat.demos[-1].output = "No."
    assert program.prompt.few_shot[-1]["content"] == "No."


def test_a_demonstration_may_hold_variables_of_another_version_of_the_prompt():
    program = ChatProgram(PROMPT)
    program.chat.demos = [dspy.Example(conversation=[QUESTION], variables={"since_dropped": "x"}, output="Yes.")]
    assert len(program.prompt.few_shot) == 2


def test_a_demonstration_without_the_variable_of_the_user_turn_says_so():
    program = ChatProgram(ChatPrompt(user="Q: {{text}}"))
    program.chat.demos = [dspy.Example(output="1")]
    with pytest.raises(MissingVariable, match="'text'"):
        _ = program.prompt


# As a DSPy module


def test_threads_and_a_loop_send_each_its_own():
    program = ChatProgram(PROMPT)
    names = [f"customer {number}" for number in range(60)]
    examples = [
        dspy.Example(conversation=[QUESTION], variables={"name": name}).with_inputs("conversation", "variables")
        for name in names
    ]
    behind = Echo()
    with dspy.context(lm=lm(behind)):
        dspy.Parallel(num_threads=8, disable_progress_bar=True)([(program, each.inputs()) for each in examples[:20]])
        scored = dspy.Evaluate(
            devset=examples[20:40], metric=lambda gold, made: made.output == "On its way.", num_threads=8
        )(program)

        async def rest() -> list[Any]:
            return await asyncio.gather(*(program.acall(**each.inputs()) for each in examples[40:]))

        assert {reply.output for reply in asyncio.run(rest())} == {"On its way."}
    assert scored.score == 100.0
    assert sorted(body["messages"][0]["content"] for body in behind.bodies) == sorted(
        f"\n\tAnswer {name}.  \n" for name in names
    )


def test_callbacks_usage_and_history_are_dspy_s_own(capsys):
    class Heard(BaseCallback):
        def __init__(self) -> None:
            self.names: list[str] = []

        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.names.append(type(instance).__name__)

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.names.append("format")

        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.names.append("lm")

        def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            self.names.append(f"parsed {sorted(outputs)}")

    heard, model, program = Heard(), lm(Echo()), ChatProgram(PROMPT)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
    ]
    with dspy.context(lm=model, callbacks=[heard], track_usage=True):
        made = program(conversation=history, variables={"name": "Ana"})
    assert heard.names == ["ChatProgram", "Predict", "format", "lm", "parsed ['finish_reason', 'message', 'output']"]
    assert made.get_lm_usage()["rehearsal/worker"]["prompt_tokens"] == 3
    model.inspect_history()
    shown = capsys.readouterr().out
    assert "Answer Ana." in shown
    assert "Where is my parcel?" in shown
    assert "On its way." in shown
    assert [message["role"] for message in model.history[-1]["messages"]] == ["system", "user", "assistant", "tool"]
    assert program.history[-1]["outputs"] == ["On its way."]


def test_streamify_gives_the_whole_reply_at_the_end():
    async def collected() -> list[Any]:
        stream = dspy.streamify(ChatProgram(PROMPT))(conversation=[QUESTION], variables={"name": "a"})
        return [chunk async for chunk in stream]

    with dspy.context(lm=lm(Echo())):
        (reply,) = asyncio.run(collected())
    assert reply.output == "On its way."


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_saved_state_brings_the_whole_prompt_back(tmp_path):
    program = ChatProgram(
        ChatPrompt(system="\n\n\tA {{name}}\n   b  \n\n", tools=(TOOL,), few_shot=(QUESTION,), temperature=0.2)
    )
    program.chat.demos = [dspy.Example(conversation=[QUESTION], variables={"name": "a"}, output="Soon.", score=0.5)]
    program.chat.config = {"temperature": 0.7, "top_k": 4}
    program.save(tmp_path / "program.json")
    loaded = ChatProgram(ChatPrompt(system="another", seed=3))
    loaded.load(tmp_path / "program.json")
    assert loaded.prompt == program.prompt
    assert loaded.chat.signature.instructions == "\n\n\tA {{name}}\n   b  \n\n"
    assert read_candidate(loaded).id == read_candidate(program).id


def test_what_was_asked_before_loading_is_not_asked_after(tmp_path):
    ChatProgram(ChatPrompt(system="x", seed=1)).save(tmp_path / "program.json")
    program = ChatProgram(ChatPrompt(system="x", seed=2))
    assert asked(program, conversation=[QUESTION])["seed"] == 2
    program.load(tmp_path / "program.json")
    assert asked(program, conversation=[QUESTION])["seed"] == 1


def test_a_program_saved_whole_comes_back_whole(tmp_path):
    program = ChatProgram(PROMPT)
    program.chat.signature = program.chat.signature.with_instructions("\tTo {{name}}\n")
    program.save(tmp_path / "whole", save_program=True)
    loaded = dspy.load(tmp_path / "whole", allow_pickle=True)
    assert loaded.prompt == program.prompt
    assert asked(loaded, conversation=[QUESTION], variables={"name": "a"})["messages"][0]["content"] == "\tTo a\n"


def test_as_a_part_of_a_larger_program_its_text_is_saved_too(tmp_path):
    class Larger(dspy.Module):
        def __init__(self, prompt: ChatPrompt) -> None:
            super().__init__()
            self.support = ChatProgram(prompt)

    program = Larger(PROMPT)
    program.support.chat.signature = program.support.chat.signature.with_instructions("\tnew\n")
    program.save(tmp_path / "larger.json")
    loaded = Larger(PROMPT)
    loaded.load(tmp_path / "larger.json")
    assert loaded.support.prompt == program.support.prompt


@pytest.mark.parametrize("copied", [lambda program: program.deepcopy(), lambda program: program.reset_copy()])
def test_a_copy_shares_nothing_that_an_optimizer_writes_into(copied):
    program = ChatProgram(PROMPT)
    copy = copied(program)
    copy.chat.signature.instructions = "scribbled over"  # as InferRules does
    copy.chat.demos.append(dspy.Example(conversation=[QUESTION], output="x"))
    assert program.prompt == PROMPT
    assert copy.prompt.system == "scribbled over"


# Candidates


class Rag(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = dspy.Predict(dspy.Signature("question -> query", "Write a query."))
        self.answer = dspy.ChainOfThought(dspy.Signature("question, context -> answer", "Answer."))
        self.again = self.query  # a predictor in two places
        self.checks = [dspy.Predict("answer -> good: bool"), {"deep": dspy.Predict("answer -> fair")}]
        self.by_name = {"tone": dspy.Predict("answer -> tone")}
        self.frozen = dspy.ChainOfThought("answer -> summary")
        self.frozen._compiled = True

    def forward(self, question: str) -> dspy.Prediction:
        query = self.query(question=question).query
        first = self.answer(question=question, context=query)
        self.again(question=first.answer)
        return first


def react() -> dspy.Module:
    def look_up(order: int) -> str:
        """Looks up an order."""
        return "found"

    return dspy.ReAct("question -> answer", tools=[look_up])


MODULES = {
    "predict": (lambda: dspy.Predict("question -> answer"), {"self"}),
    "chain": (lambda: dspy.ChainOfThought("question -> answer"), {"predict"}),
    "react": (react, {"react", "extract.predict"}),
    "rag": (Rag, {"query", "answer.predict", "checks[0]", "by_name['tone']"}),
    "chat": (lambda: ChatProgram(PROMPT), {"chat"}),
}


@pytest.mark.parametrize("kind", MODULES)
def test_any_module_is_read_and_changed_in_a_copy(kind):
    make, names = MODULES[kind]
    program = make()
    baseline = read_candidate(program)
    assert set(baseline.texts) == names
    texts = {name: f"Text for {name}." for name in names}
    child = baseline.child("edit", texts=texts, parameters={"temperature": 0.4, "max_tokens": 20})
    changed = apply_candidate(child, program)
    assert type(changed) is type(program)
    assert read_candidate(changed).id == child.id
    assert {name: each.signature.instructions for name, each in changed.named_predictors()} == texts
    assert read_candidate(program).id == baseline.id, "the program itself stays"
    assert (
        apply_candidate(baseline, changed)
        .named_predictors()[0][1]
        .signature.equals(program.named_predictors()[0][1].signature)
    )


def test_a_shared_predictor_stays_shared_and_a_frozen_one_as_it_was():
    program = Rag()
    changed = apply_candidate(read_candidate(program).child("edit", texts={"query": "New."}), program)
    assert changed.again is changed.query
    assert changed.again.signature.instructions == "New."
    assert changed.frozen.predict.signature.instructions == program.frozen.predict.signature.instructions


@pytest.mark.parametrize("kind", MODULES)
def test_no_two_copies_share_a_signature(kind):
    program = MODULES[kind][0]()
    before = read_candidate(program)
    one, two = apply_candidate(before, program), apply_candidate(before, program)
    for _, predictor in one.named_predictors():
        predictor.signature.instructions += " More."
    assert read_candidate(two).id == read_candidate(program).id == before.id


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    texts=st.fixed_dictionaries(
        {"query": st.text(max_size=20).map(str.strip), "answer.predict": st.just("Two\nlines")}
    ),
    shown=st.lists(st.fixed_dictionaries({"question": VALUES, "query": VALUES}), max_size=3),
    parameters=st.dictionaries(st.sampled_from(["temperature", "top_p", "seed"]), st.floats(0, 1), max_size=3),
)
@settings(max_examples=30)
def test_what_is_applied_is_what_is_read(texts, shown, parameters):
    candidate = read_candidate(Rag()).child("any", texts=texts, parameters=parameters)
    candidate = Candidate(candidate.texts, {"query": tuple(shown)} if shown else {}, candidate.parameters)
    once = apply_candidate(candidate, Rag())
    assert read_candidate(once).to_json() == candidate.to_json()
    assert read_candidate(apply_candidate(read_candidate(once), once)).id == candidate.id


class Order(pydantic.BaseModel):
    number: int
    note: str = "none"


def test_typed_demonstrations_are_shown_as_before():
    """Read as JSON and put back, they make the same messages for the model."""
    signature = dspy.Signature(
        {"order": (Order, dspy.InputField()), "tags": (list[str], dspy.OutputField())}, "Tag it."
    )
    program = dspy.Predict(signature)
    program.demos = [
        dspy.Example(order=Order(number=7), tags=["late", "big"], id="T1", augmented=True).with_inputs("order")
    ]
    candidate = read_candidate(program)
    assert candidate.to_json()["demos"] == {"self": [{"order": {"number": 7, "note": "none"}, "tags": ["late", "big"]}]}
    answer = Echo({"role": "assistant", "content": '[[ ## tags ## ]]\n["x"]\n\n[[ ## completed ## ]]'})
    for each in (program, apply_candidate(candidate, program)):
        with dspy.context(lm=lm(answer), adapter=dspy.ChatAdapter()):
            assert each(order=Order(number=8)).tags == ["x"]
    assert answer.bodies[0] == answer.bodies[1]


def test_a_named_predictor_gets_exactly_the_candidate_s_demonstrations():
    program = Rag()
    for _, predictor in program.named_predictors():
        predictor.demos = [dspy.Example(question="a", query="b", answer="c", tone="d", good=True)]
    changed = apply_candidate(Candidate({"query": "New."}), program)
    assert changed.query.demos == []
    assert changed.answer.predict.demos == program.answer.predict.demos


def test_parameters_are_the_whole_program_s():
    program = Rag()
    for number, (_, predictor) in enumerate(program.named_predictors()):
        predictor.config = {"temperature": 0.3, "top_p": number, "rollout_id": 4}
    assert dict(read_candidate(program).parameters) == {"temperature": 0.3}
    behind = Echo({"role": "assistant", "content": "[[ ## query ## ]]\nq\n\n[[ ## completed ## ]]"})
    changed = apply_candidate(read_candidate(program).child("hot", parameters={"temperature": 0.9}), program)
    with dspy.context(lm=lm(behind, temperature=0.1), adapter=dspy.ChatAdapter()):
        changed.query(question="?")
    assert (behind.bodies[0]["temperature"], behind.bodies[0]["top_p"]) == (0.9, 0)


def test_of_a_chat_what_may_vary_is_read_and_its_contract_stays():
    prompt = ChatPrompt(
        system="x", model="m", temperature=0.2, seed=3, tools=(TOOL,), response_format={"type": "json_object"},
        extra={"store": False},
    )  # fmt: skip
    program = ChatProgram(prompt)
    baseline = read_candidate(program)
    assert dict(baseline.parameters) == {"model": "m", "temperature": 0.2, "seed": 3}
    assert apply_candidate(baseline, program).prompt == prompt
    hotter = apply_candidate(baseline.child("hot", parameters={"temperature": 1.0, "model": "n", "top_k": 2}), program)
    assert hotter.prompt.request([QUESTION]) == {
        **prompt.request([QUESTION]),
        "temperature": 1.0,
        "model": "n",
        "top_k": 2,
    }
    assert read_candidate(hotter).parameters["top_k"] == 2


def test_a_chat_inside_a_larger_program_is_read_and_changed_like_any_predictor():
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = ChatProgram(ChatPrompt(system="One.", model="m", temperature=0.2, seed=1))
            self.more = [ChatProgram(ChatPrompt(system="\tTwo.", model="m", temperature=0.2, seed=2))]

    program = Two()
    baseline = read_candidate(program)
    assert dict(baseline.texts) == {"one.chat": "One.", "more[0].chat": "\tTwo."}
    assert dict(baseline.parameters) == {"model": "m", "temperature": 0.2}
    changed = apply_candidate(
        baseline.child("edit", texts={"more[0].chat": "\t2.\n"}, parameters={"model": "n"}), program
    )
    assert changed.more[0].prompt == ChatPrompt(system="\t2.\n", model="n", temperature=0.2, seed=2)
    assert changed.one.prompt == ChatPrompt(system="One.", model="n", temperature=0.2, seed=1)


@pytest.mark.parametrize(
    ("candidate", "error"),
    [
        (Candidate({"answr": "x"}), r"no predictor 'answr'. It has self"),
        (Candidate({"self": "x"}, parameters={"n": 2}), "'n' is no parameter"),
        (Candidate({"self": "x"}, parameters={"rollout_id": 2}), "'rollout_id' is no parameter"),
        (Candidate({"self": "x"}, parameters={"model": "m"}), "its LM does"),
    ],
)
def test_a_candidate_that_does_not_fit_is_refused(candidate, error):
    with pytest.raises(UsageError, match=error):
        apply_candidate(candidate, dspy.Predict("question -> answer"))


def test_a_program_with_nothing_to_improve_is_refused():
    class Empty(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = dspy.ChainOfThought("a -> b")
            self.part._compiled = True

    with pytest.raises(UsageError, match="no predictor that could be improved"):
        read_candidate(Empty())


def test_a_demonstration_that_is_not_data_is_refused_without_showing_it():
    program = dspy.Predict("question -> answer")
    program.demos = [dspy.Example(question=object(), answer="secret")]
    with pytest.raises(UsageError, match="A demonstration of 'self' holds something that is not data") as caught:
        read_candidate(program)
    assert "secret" not in str(caught.value)


def test_a_program_that_holds_a_lock_is_copied_and_one_that_would_be_shared_is_refused(caplog):
    class Locked(dspy.Module):
        def __init__(self, *steps: Any) -> None:
            super().__init__()
            self.lock, self.steps = threading.Lock(), list(steps)
            self.ask = dspy.Predict("question -> answer")

    program = Locked()
    changed = apply_candidate(read_candidate(program).child("edit", texts={"ask": "New."}), program)
    assert (changed.ask.signature.instructions, changed.lock) == ("New.", program.lock)
    assert program.ask.signature.instructions != "New."
    stuck = Locked(dspy.Predict("a -> b"))
    stuck.steps[0].client = threading.Lock()
    with pytest.raises(UsageError, match="cannot be copied"):
        apply_candidate(read_candidate(stuck), stuck)


def test_a_copy_keeps_the_same_lm():
    model = lm(Echo())
    program = Rag()
    program.set_lm(model)
    changed = apply_candidate(read_candidate(program), program)
    assert {id(predictor.lm) for predictor in changed.predictors()} == {id(model)}


# Examples


def test_a_sample_becomes_an_example_whose_parameters_reach_the_request():
    sample = Sample(
        id="T1",
        chat_history=(QUESTION,),
        output={"role": "assistant", "content": [{"type": "text", "text": "Soon."}]},
        scores={"tone": Score(0.5)},
        variables={"name": "Ana"},
        parameters={"seed": 7, "user": "u"},
        weight=2.5,
    )
    example = example_of(sample)
    assert (example.output, example.id, example.weight, example.scores["tone"].value) == ("Soon.", "T1", 2.5, 0.5)
    assert type(example.conversation) is list
    assert type(example.conversation[0]) is dict
    body = asked(ChatProgram(PROMPT), **example.inputs())
    assert (body["seed"], body["user"], body["messages"][0]["content"]) == (7, "u", "\n\tAnswer Ana.  \n")
    program = ChatProgram(PROMPT)
    program.chat.demos = [example]
    assert program.prompt.few_shot == (QUESTION, {"role": "assistant", "content": ({"type": "text", "text": "Soon."},)})


class Tracer(BaseCallback):
    """What a trace records of module calls, from DSPy itself: classes, nesting, fields."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.steps: list[Step] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.open[call_id] = (instance, inputs["kwargs"])

    def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        path = tuple(type(instance).__name__ for instance, _ in self.open.values())
        instance, inputs = self.open.pop(call_id)
        told = instance.signature.instructions if isinstance(instance, dspy.Predict) else None
        self.steps.append(
            Step(
                id=f"S{len(self.steps)}", module=path[-1], path=path, inputs=inputs, outputs=dict(outputs.items()),
                instructions=told,
            )
        )  # fmt: skip


def traced(program: dspy.Module, **inputs: Any) -> list[Step]:
    fields = ["reasoning", "query", "answer", "fair", "tone", "summary", "good"]
    content = "".join(f"[[ ## {name} ## ]]\nthe {name}\n\n" for name in fields) + "[[ ## completed ## ]]"
    tracer = Tracer()
    model = lm(Echo({"role": "assistant", "content": content}))
    with dspy.context(lm=model, adapter=dspy.ChatAdapter(), callbacks=[tracer]):
        program(**inputs)
    return tracer.steps


def test_traces_of_a_program_become_examples_of_it_and_of_each_predictor():
    found = examples_of(traced(Rag(), question="Why?"), Rag())
    (whole,) = found.program
    assert whole.inputs().toDict() == {"question": "Why?"}
    assert (whole.answer, whole.reasoning, whole.id) == ("the answer", "the reasoning", "S4")
    assert [each.question for each in found.predictors["query"]] == ["Why?", "the answer"]
    (answered,) = found.predictors["answer.predict"]
    assert answered.inputs().toDict() == {"question": "Why?", "context": "the query"}
    assert set(answered.labels().keys()) == {"id", "reasoning", "answer"}
    assert (found.predictors["checks[0]"], found.unmatched) == ((), 0)


def test_a_program_that_is_its_own_predictor_or_a_chat_gets_both():
    found = examples_of(traced(dspy.Predict("question -> answer"), question="Why?"), dspy.Predict("question -> answer"))
    assert len(found.program) == len(found.predictors["self"]) == 1
    steps = traced(ChatProgram(PROMPT), conversation=[QUESTION], variables={"name": "a"}, parameters={"seed": 1})
    found = examples_of(steps, ChatProgram(PROMPT))
    assert found.program[0].parameters == {"seed": 1}
    assert found.predictors["chat"][0].message["role"] == "assistant"
    assert asked(ChatProgram(PROMPT), **found.program[0].inputs())["seed"] == 1


def test_a_module_inside_one_of_its_own_class_is_found():
    class Node(dspy.Module):
        def __init__(self, inner: dspy.Module | None) -> None:
            super().__init__()
            self.inner, self.ask = inner, dspy.Predict("question -> query" if inner else "question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            made = self.ask(question=question)
            return self.inner(question=made.query) if self.inner else made

    found = examples_of(traced(Node(Node(None)), question="Why?"), Node(Node(None)))
    assert {name: len(each) for name, each in found.predictors.items()} == {"ask": 1, "inner.ask": 1}
    assert (len(found.program), found.unmatched) == (1, 0)


def test_what_cannot_be_placed_is_counted_and_never_guessed():
    class Twins(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dspy.Predict(dspy.Signature("text -> label", "First."))
            self.two = dspy.Predict(dspy.Signature("text -> label", "Second."))

        def forward(self, **inputs: str) -> dspy.Prediction:
            return self.two(text=self.one(**inputs).label)

    def step(module: str, path: tuple[str, ...], told: str | None = None, **inputs: Any) -> Step:
        return Step(id="S", module=module, path=path, inputs=inputs, outputs={"label": "x"}, instructions=told)

    inside = ("Twins", "Predict")
    found = examples_of(
        [
            step("Predict", inside, "Second.", text="a"),
            step("Predict", inside, "First.", text="b"),
            step("Predict", inside, text="which of the two?"),
            step("Predict", inside, "Told otherwise since.", text="c"),
            step("Predict", inside, "First.", other="d"),
            step("Predict", ("Stranger", "Predict"), "First.", text="e"),
            step("Predict", ("Predict",), "First.", text="its parent is lost"),
            step("Twins", ("App", "Twins"), inputs={"text": "nested"}),
            step("Stranger", ("Stranger",), text="f"),
            step("ChainOfThought", ("Stranger", "ChainOfThought"), text="in between"),
        ],
        Twins(),
    )
    assert [each.text for each in found.predictors["two"]] == ["a"]
    assert [each.text for each in found.predictors["one"]] == ["b", "its parent is lost"]
    assert [each.inputs().toDict() for each in found.program] == [{"text": "nested"}], "**inputs as traces nest them"
    assert found.unmatched == 5


# Every stock optimizer


class Desk:
    """One support desk of the rehearsal: its prompt as a chat, its examples, its code metrics."""

    def __init__(self) -> None:
        self.world = World.draw("support", 0)
        self.bodies: list[dict[str, Any]] = []
        self.model = RehearsalModel(seed=0)
        self.lm = lm(self)
        self.names = [name for name in self.world.metrics if name not in self.world.judges]
        self.examples = [
            dspy.Example(
                conversation=[{"role": "user", "content": each.text}],
                variables=dict(each.variables),
                parameters={"user": each.id},
                output="Thank you for writing.",
                id=each.id,
            ).with_inputs("conversation", "variables", "parameters")
            for each in self.world.examples(24)
        ]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.bodies.append(json.loads(json.dumps(body)))
        return self.model.complete(body)

    def program(self) -> ChatProgram:
        return ChatProgram(
            ChatPrompt(system=f"\n\t{self.world.prompts['system']}\n\n", model="worker", temperature=0.3)
        )

    def metric(self, gold: dspy.Example, made: dspy.Prediction, *_: object, **__: object) -> dspy.Prediction:
        example = self.world.example(int(gold.id[1:]))
        scores = [self.world.code_score(name, example, made.output) for name in self.names]
        feedback = "\n".join(score.feedback for score in scores)
        return dspy.Prediction(score=fmean(score.value for score in scores), feedback=feedback)

    def number(self, gold: dspy.Example, made: dspy.Prediction, *_: object) -> float:
        return float(self.metric(gold, made).score)


def mipro(desk: Desk) -> dspy.Module:
    optimizer = dspy.MIPROv2(
        metric=desk.number, auto=None, num_candidates=3, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=1
    )
    split = {"trainset": desk.examples[:12], "valset": desk.examples[12:]}
    return optimizer.compile(desk.program(), **split, num_trials=4, minibatch=False)


def copro(desk: Desk) -> dspy.Module:
    optimizer = dspy.COPRO(metric=desk.number, breadth=3, depth=2)
    return optimizer.compile(desk.program(), trainset=desk.examples[:8], eval_kwargs={"num_threads": 1})


def simba(desk: Desk) -> dspy.Module:
    optimizer = dspy.SIMBA(metric=desk.metric, bsize=8, num_candidates=3, max_steps=2, max_demos=1, num_threads=1)
    return optimizer.compile(desk.program(), trainset=desk.examples[:16], seed=1)


def gepa(desk: Desk) -> dspy.Module:
    optimizer = dspy.GEPA(metric=desk.metric, max_metric_calls=120, reflection_lm=desk.lm, num_threads=1)
    return optimizer.compile(desk.program(), trainset=desk.examples[:12], valset=desk.examples[12:])


def bootstrap(desk: Desk) -> dspy.Module:
    optimizer = dspy.BootstrapFewShot(metric=desk.number, max_bootstrapped_demos=2, max_labeled_demos=3, max_rounds=2)
    return optimizer.compile(desk.program(), trainset=desk.examples[:8])


def infer_rules(desk: Desk) -> dspy.Module:
    optimizer = dspy.InferRules(
        metric=desk.number, num_candidates=2, num_rules=2, num_threads=1, max_bootstrapped_demos=1, max_labeled_demos=1
    )
    return optimizer.compile(desk.program(), trainset=desk.examples[:8])


@pytest.mark.parametrize("optimize", [mipro, copro, simba, gepa, bootstrap, infer_rules])
def test_a_stock_optimizer_improves_the_prompt_itself_and_it_is_sent_as_it_stands(optimize, caplog, capsys):
    desk = Desk()
    start = desk.program()
    with dspy.context(lm=desk.lm), caplog.at_level(logging.ERROR):
        chosen = optimize(desk)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert chosen.prompt != start.prompt
    if optimize is bootstrap:
        assert chosen.prompt.system == start.prompt.system
        assert len(chosen.prompt.few_shot) == 6
    elif optimize is not mipro:  # which may find that examples are enough
        assert chosen.prompt.system != start.prompt.system
    # The worker is asked in production's form and in no other.
    chats = [body for body in desk.bodies if body.get("user")]
    assert len(chats) > 1
    assert not [body for body in chats if "[[ ##" in json.dumps(body)]
    desk.bodies.clear()
    example = desk.examples[-1]
    with dspy.context(lm=desk.lm):
        chosen(**example.inputs())
    expected = chosen.prompt.request(example.conversation, **example.variables)
    assert desk.bodies == [{**expected, "user": example.id}]
    # And as a candidate it is the same prompt again.
    assert apply_candidate(read_candidate(chosen), start).prompt == chosen.prompt


@pytest.mark.parametrize("name", ["chat", "variant", "examples"])
def test_the_examples_in_docstrings_run(name):
    result = doctest.testmod(import_module(f"dspy_selfimprove.program.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_door_itself_loads_dspy_only_when_a_name_is_used():
    used = "import sys, dspy_selfimprove.program as door; before = 'dspy' in sys.modules; door.ChatProgram"
    script = f"{used}; print(before, 'dspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
