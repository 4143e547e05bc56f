"""Recorded requests: what ten applications send to a chat-completion API, and what it was made of.

Each application builds its bodies its own way, with f-strings and dicts, and never through ChatPrompt: only so can a
test compare the two. Values are unkind on purpose: braces, another slot's text, tabs, outer blank lines, Unicode.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_selfimprove.prompt import ChatPrompt


@dataclass(frozen=True)
class Recorded:
    """One call: the body as sent, and the prompt, conversation, variables and own parameters that make it up."""

    application: str
    body: Mapping[str, Any]
    prompt: ChatPrompt
    conversation: Sequence[Mapping[str, Any]]
    variables: Mapping[str, str]
    parameters: Mapping[str, Any]


def recorded_requests(count: int = 500, seed: int = 0) -> list[Recorded]:
    """`count` calls, the applications taking turns; the same ones for the same seed."""
    draw = random.Random(seed)
    applications = (support, reasoning, instructions_first, tools, vision, extraction, bare, question, knobs, streaming)
    return [applications[number % len(applications)](draw, number) for number in range(count)]


NAMES = (
    "Ana",
    "Łukasz Żółw",
    "李小龙",
    "O'Brien {{plan}}",
    "مريم",
    "a\tb",
    'Q"uo\\te',
    "{name}",
    "🧑‍🚀 Zoë",
    " padded ",
)
PLANS = ("free", "pro\nplus", "{{name}}", "enterprise {tier: 1}", "$1 \\1 %s", "")
TEXTS = (
    "Where is my parcel?",
    "\n  It   has tabs\tand spaces  \n\n",
    '{"order": {"id": 7}} {{ name }}',
    "naïve café, e\u0301 and é, \u200bzero width, \u202eright to left",
    "line one\r\nline two\rline three\u2028line four",
    "emoji 👩‍👩‍👧 and math ∑∞ \U0001d4b3",
    "<script>alert('x')</script> & <b>bold</b>",
    "0",
    "x" * 3000,
)


def said(draw: random.Random, turns: int) -> Iterator[dict[str, Any]]:
    """A conversation that ends with the user."""
    for turn in range(2 * turns - 1):
        yield {
            "role": "assistant" if turn % 2 else "user",
            "content": f"{draw.choice(TEXTS)}{draw.choice(('', turn, draw.random()))}",
        }


SUPPORT = """

\tYou help customers of a shop.
    - Address {{name}}; the plan is {{plan}}, and {{name}} knows it.
\tAnswer as JSON like {"reply": "..."}; never write {{unknown}} or { {name} }.

"""


def support(draw: random.Random, number: int) -> Recorded:
    name, plan = draw.choice(NAMES), draw.choice(PLANS)
    # In one pass, as a template engine fills: what a value holds is not filled again.
    system = "".join(
        {"{{name}}": name, "{{plan}}": plan}.get(piece, piece)
        for piece in SUPPORT.replace("{{name}}", "\0{{name}}\0").replace("{{plan}}", "\0{{plan}}\0").split("\0")
    )
    turns = list(said(draw, draw.randint(1, 4)))
    own = {"seed": number, "user": f"customer-{number % 17}"}
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": system}, *turns],
        "temperature": 0.2,
        "max_tokens": 300,
        "top_p": None,
        "stop": ["END", "\n\n\n"],
        **own,
    }
    prompt = ChatPrompt(
        system=SUPPORT,
        variables=("name", "plan"),
        model="gpt-4o-mini",
        temperature=0.2,
        max_tokens=300,
        stop=("END", "\n\n\n"),
    )
    return Recorded("support", body, prompt, turns, {"name": name, "plan": plan}, own)


def reasoning(draw: random.Random, number: int) -> Recorded:
    system, turns = "Think it through.\n\tThen answer.  ", list(said(draw, draw.randint(1, 2)))
    body = {
        "messages": [{"role": "developer", "content": system}, *turns],
        "model": "o4-mini",
        "reasoning_effort": "low",
        "max_completion_tokens": 2000,
    }
    prompt = ChatPrompt(
        system=system, role="developer", model="o4-mini", reasoning_effort="low", max_completion_tokens=2000
    )
    return Recorded("reasoning", body, prompt, turns, {}, {})


def instructions_first(draw: random.Random, number: int) -> Recorded:
    date = f"2026-{draw.randint(1, 12):02}-01"
    turns = list(said(draw, 2))
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": f"  Today is {date}. Be brief.\n"}, *turns],
        "temperature": 1,
    }
    prompt = ChatPrompt(system="  Today is {{date}}. Be brief.\n", role="user", model="gpt-4o-mini", temperature=1.0)
    return Recorded("instructions_first", body, prompt, turns, {"date": date}, {})


LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up an order.\n\tBy its number.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": ["integer", "null"]}, "deep": {"type": "boolean", "default": False}},
            "required": ["order", "deep"],
            "additionalProperties": False,
        },
    },
}
REFUND = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object", "properties": {}}}}


def tools(draw: random.Random, number: int) -> Recorded:
    calls = [
        {
            "id": f"call_{number}_{each}",
            "type": "function",
            "function": {
                "name": "look_up",
                "arguments": json.dumps({"order": number, "deep": bool(each)}, indent=each),
            },
        }
        for each in range(draw.randint(1, 2))
    ]
    history: list[dict[str, Any]] = [
        {"role": "user", "name": f"user_{number % 5}", "content": draw.choice(TEXTS)},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": draw.choice(TEXTS)} for call in calls),
    ]
    if draw.random() < 0.5:
        history += [
            {"role": "assistant", "content": "Found it.", "refusal": None, "name": "desk"},
            {"role": "user", "content": draw.choice(TEXTS)},
        ]
    choice: Any = draw.choice(("auto", "required", {"type": "function", "function": {"name": "look_up"}}))
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Use the tools."}, *history],
        "tools": [LOOK_UP, REFUND],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    prompt = ChatPrompt(
        system="Use the tools.",
        model="gpt-4o",
        tools=(LOOK_UP, REFUND),
        tool_choice="auto",
        parallel_tool_calls=False,
    )
    return Recorded("tools", body, prompt, history, {}, {"tool_choice": choice})


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


def vision(draw: random.Random, number: int) -> Recorded:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": draw.choice(TEXTS)},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": draw.choice(("low", "high"))}},
        {"type": "image_url", "image_url": {"url": f"https://example.com/{number}.png"}},
        {"type": "text", "text": " and this? "},
    ]
    turns = [{"role": "user", "name": "ana", "content": parts}]
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Describe the picture."}, *turns],
        "max_tokens": 50,
        "presence_penalty": -0.5,
    }
    prompt = ChatPrompt(system="Describe the picture.", model="gpt-4o", max_tokens=50, presence_penalty=-0.5)
    return Recorded("vision", body, prompt, turns, {}, {})


FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "ticket",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"topic": {"type": "string", "enum": ["late", "broken"]}, "urgent": {"type": "boolean"}},
            "required": ["topic", "urgent"],
            "additionalProperties": False,
        },
    },
}
SHOTS = (
    {"role": "user", "content": "Broken on arrival! {{text}}"},
    {"role": "assistant", "content": '{"topic": "broken", "urgent": true}'},
)


def extraction(draw: random.Random, number: int) -> Recorded:
    text = f"{draw.choice(TEXTS)}{number}\n"
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "Sort the ticket."},
            *SHOTS,
            {"role": "user", "content": f"Ticket:\n\n{text}\n\n(end)\n"},
        ],
        "response_format": FORM,
        "seed": 5,
        "temperature": 0,
        "frequency_penalty": None,
    }
    prompt = ChatPrompt(
        system="Sort the ticket.",
        user="Ticket:\n\n{{text}}\n\n(end)\n",
        few_shot=SHOTS,
        model="gpt-4o-mini",
        response_format=FORM,
        seed=5,
        temperature=0.0,
    )
    return Recorded("extraction", body, prompt, [], {"text": text}, {})


def bare(draw: random.Random, number: int) -> Recorded:
    turns = list(said(draw, draw.randint(1, 3)))
    own = {"temperature": draw.choice((0, 0.5, 1.5))}
    return Recorded(
        "bare", {"model": "gpt-4o-mini", "messages": turns, **own}, ChatPrompt(model="gpt-4o-mini"), turns, {}, own
    )


def question(draw: random.Random, number: int) -> Recorded:
    topic, text = draw.choice(NAMES), draw.choice(TEXTS)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}] * draw.randint(0, 2)
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": f"You know {topic}."},
            *turns,
            {"role": "user", "content": f"<q>{text}</q> about {topic}"},
        ],
    }
    prompt = ChatPrompt(system="You know {{topic}}.", user="<q>{{text}}</q> about {{topic}}", model="gpt-4o-mini")
    return Recorded("question", body, prompt, turns, {"topic": topic, "text": text}, {})


def knobs(draw: random.Random, number: int) -> Recorded:
    turns = list(said(draw, 1))
    own = {"metadata": {"request": str(number), "note": draw.choice(NAMES)}, "prediction": None}
    constant = {
        "logit_bias": {"50256": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "service_tier": "default",
        "store": False,
        "top_k": 40,  # a local server's; the official client has no name for it
        "guided": {"regex": "[a-z]+\t", "depth": [1, [2, {"x": None}]]},
    }
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "Be odd."}, *turns],
        "response_format": {"type": "json_object"},
        **constant,
        **own,
    }
    prompt = ChatPrompt(system="Be odd.", model="gpt-4o-mini", response_format={"type": "json_object"}, extra=constant)
    return Recorded("knobs", body, prompt, turns, {}, own)


def streaming(draw: random.Random, number: int) -> Recorded:
    turns = list(said(draw, 1))
    own = {"stream": True, "stream_options": {"include_usage": True}} if number % 20 < 10 else {"n": 2}
    body = {"model": "gpt-4o-mini", "messages": [{"role": "system", "content": "Go on.\n"}, *turns], **own}
    return Recorded("streaming", body, ChatPrompt(system="Go on.\n", model="gpt-4o-mini"), turns, {}, own)
