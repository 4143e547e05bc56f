from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.temper import Temper

SYSTEM = "You are the support desk of Acme. Greet the customer by first name. Apologise. Say what happens next."
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_order",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    },
}


def ask(user: str = "My invoice is wrong. Ada", **parameters: Any) -> dict[str, Any]:
    return {
        "model": "rehearsal",
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}],
        **parameters,
    }


def texts(completion: Mapping[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in completion["choices"]]


def test_an_answer_is_a_chat_completion() -> None:
    completion = ChatCompletion.model_validate(RehearsalModel().complete(ask()), strict=True)
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_same_run_again_is_the_same_run() -> None:
    first, second = RehearsalModel(seed=3), RehearsalModel(seed=3)
    requests = [ask(), ask("Hello"), ask(), ask(n=3), ask()]
    assert [first.complete(body) for body in requests] == [second.complete(body) for body in requests]


def test_asking_again_gives_a_spread_and_another_seed_another() -> None:
    model = RehearsalModel(seed=1)
    spread = [texts(model.complete(ask()))[0] for _ in range(20)]
    assert len(set(spread)) > 1
    other = RehearsalModel(seed=2)
    assert [texts(other.complete(ask()))[0] for _ in range(20)] != spread


def test_other_requests_in_between_change_nothing() -> None:
    alone, busy = RehearsalModel(), RehearsalModel()
    expected = [alone.complete(ask()) for _ in range(4)]
    got = []
    for index in range(4):
        busy.complete(ask(f"Something else {index}"))
        got.append(busy.complete(ask()))
    assert got == expected


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"temperature": 0.0}, {"seed": 7}])
def test_a_pinned_request_repeats_itself(parameters: dict[str, Any]) -> None:
    model = RehearsalModel()
    assert len({texts(model.complete(ask(**parameters)))[0] for _ in range(10)}) == 1


def test_n_answers_are_those_of_n_asks() -> None:
    at_once, in_turn = RehearsalModel(), RehearsalModel()
    asked = [text for body in (ask(n=4), ask(n=2), ask()) for text in texts(at_once.complete(body))]
    assert asked == [texts(in_turn.complete(ask()))[0] for _ in range(7)]


@given(st.integers(1, 60))
def test_a_limit_only_cuts(limit: int) -> None:
    whole = texts(RehearsalModel().complete(ask()))[0]
    completion = RehearsalModel().complete(ask(max_tokens=limit))
    text = texts(completion)[0]
    assert whole.startswith(text)
    assert completion["usage"]["completion_tokens"] <= limit
    assert completion["choices"][0]["finish_reason"] == ("stop" if text == whole else "length")


def test_a_stop_sequence_ends_the_answer_before_itself() -> None:
    whole = texts(RehearsalModel().complete(ask()))[0]
    mark = whole.split()[1]
    completion = RehearsalModel().complete(ask(stop=[mark, "never there"]))
    assert texts(completion) == [whole[: whole.index(mark)]]
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_a_forced_tool_is_called() -> None:
    forced = {"type": "function", "function": {"name": "look_up_order"}}
    choice = RehearsalModel().complete(ask("Order 17, please", tools=[TOOL], tool_choice=forced))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("look_up_order", {"order_id": "17"})


def test_a_schema_is_kept_to() -> None:
    schema = {"type": "object", "properties": {"reply": {"type": "string"}, "urgent": {"type": "boolean"}}}
    body = ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}})
    data = json.loads(texts(RehearsalModel().complete(body))[0])
    assert {name: type(value) for name, value in data.items()} == {"reply": str, "urgent": bool}


def test_threads_share_one_count() -> None:
    model = RehearsalModel()
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda _: texts(model.complete(ask()))[0], range(64)))
    alone = RehearsalModel()
    assert sorted(crowd) == sorted(texts(alone.complete(ask()))[0] for _ in range(64))


def test_a_request_is_left_as_it_was() -> None:
    body = ask(n=2, stop="x", tools=[TOOL])
    before = json.dumps(body)
    RehearsalModel().complete(body)
    assert json.dumps(body) == before


PIECES = (
    "<output>",
    "</output>",
    "```\n",
    "[[ ## reply ## ]]\n",
    "Output: ",
    "Feedback: ",
    "Write a new instruction. ",
    "{",
    "}",
    "[",
    "'",
    "&",
    "<",
    "{{name}}",
    "Be kind. ",
    "You are an expert evaluator. ",
    "Is the output good or bad?",
    "Rate the reply from 0 to 10. ",
    "| Score: 3\n",
    "You are a prompt engineer. Improve the current prompt. ",
    "# Current prompt\n",
    "## Feedback\n",
    "Your input fields are:\n1. `a` (str): \n",
    "Your output fields are:\n1. `new_prompt` (str): \n",
    "All interactions will be structured in the following way, with the appropriate values filled in.\n",
    "In adhering to this structure, your objective is: \n",
    "Instruction #1: x\nPrefix #1: y\nResulting Score #1: 3\n",
)
PROSE = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=25).map("".join)


@settings(deadline=None, max_examples=300)
@given(PROSE, PROSE, st.sampled_from(["system", "developer", "user", "assistant"]), st.booleans())
def test_any_text_gets_an_answer(first: str, second: str, role: str, json_mode: bool) -> None:
    messages = [{"role": role, "content": first}, {"role": "user", "content": second}]
    body: dict[str, Any] = {"model": "rehearsal", "messages": messages}
    if json_mode:
        body["response_format"] = {"type": "json_object"}
    text = texts(ChatCompletion.model_validate(RehearsalModel().complete(body), strict=True).model_dump())[0]
    assert isinstance(json.loads(text) if json_mode and not first.startswith("Your input") else {}, dict)


def test_a_rate_is_a_rate() -> None:
    with pytest.raises(UsageError, match="coach_slip"):
        Temper(coach_slip=1.5)


ALL_ROLES = """
from dspy_selfimprove.message import digest
from dspy_selfimprove.rehearsal import RehearsalModel, World

model, said = RehearsalModel(seed=3), []


def ask(text):
    answer = model.complete({"model": "m", "messages": [{"role": "user", "content": text}]})
    said.append(answer["choices"][0]["message"])
    return said[-1]["content"]


for kind in ("support", "retrieval"):
    world = World.draw(kind, 2)
    for example in world.examples(8):
        for prompt in world.prompts.values():
            reply = ask(f"{prompt}\\n\\n{example.text or example.question}")
            for judge in world.judges.values():
                ask(judge.messages[0]["content"].replace("{{output}}", reply).replace("{{input}}", example.text))
    blame = " ".join(message["content"] for message in said[-12:])
    for _ in range(4):
        ask(f"Improve this prompt:\\n```\\n{prompt}\\n```\\nFeedback: {blame}\\nWrite a new one within ``` blocks.")
print(digest(said, 64))
"""


def test_a_process_of_its_own_says_the_same_whatever_its_hash_seed() -> None:
    """Sets of strings have another order in every process; nothing that is drawn may depend on it."""
    said = {
        subprocess.run(
            [sys.executable, "-c", ALL_ROLES],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (0, 1, 2)
    }
    assert len(said) == 1
