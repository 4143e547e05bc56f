"""What is optimized is what is shipped: from recorded calls alone, the program makes production's requests again.

The requests are sent by applications that know nothing of templates, captured at an HTTP server, made into a checkpoint
(the template is inferred), and sent again by a ChatProgram through the real client; both sides are read at the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import dspy
import pytest
import templates
from capture import capture
from requests_corpus import recorded_requests

from dspy_selfimprove.checkpoint import Checkpoint, Origin
from dspy_selfimprove.composition import NOT_AGAIN, compose
from dspy_selfimprove.exchange import Exchange
from dspy_selfimprove.message import canonical
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.program import ChatProgram, example_of
from dspy_selfimprove.template import AMBIGUOUS, NOTHING_IN_COMMON, TOO_FEW

ASIDE = {"stream", "stream_options", "n"}  # how a reply is delivered


class Recorded:
    def __init__(self, bodies: list[dict[str, Any]]) -> None:
        self.bodies = bodies

    def exchanges(self) -> list[Exchange]:
        answer = {"role": "assistant", "content": "Fine."}
        return [
            Exchange(id=str(number), request=body, output=answer, session_id=f"c{number}")
            for number, body in enumerate(self.bodies)
        ]


def in_production(bodies: list[Mapping[str, Any]], url: str) -> None:
    """Every body through the official client, as an application sends it."""
    import openai

    known = set(openai.resources.chat.completions.Completions.create.__annotations__)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for body in bodies:
            named = {name: value for name, value in body.items() if name in known}
            extra = {name: value for name, value in body.items() if name not in known}
            client.chat.completions.create(**named, **({"extra_body": extra} if extra else {}))


def by_program(checkpoint: Checkpoint, url: str) -> None:
    """Every sample through the program of its prompt."""
    programs = {seen.version: ChatProgram(seen.prompt) for seen in checkpoint.prompts}
    lms = {
        seen.prompt.model: Models(Model(name=f"openai/{seen.prompt.model}", base_url=url, api_key="none")).lm("worker")
        for seen in checkpoint.prompts
    }
    for sample in checkpoint.samples:
        program = programs[str(sample.prompt)]
        with dspy.context(lm=lms[program.prompt.model]):
            program(**example_of(sample).inputs())


def form(body: Mapping[str, Any]) -> str:
    return canonical({name: value for name, value in body.items() if value is not None and name not in ASIDE})


def sent_again(bodies: list[Mapping[str, Any]], folder: Any) -> tuple[Checkpoint, list[dict[str, Any]], dict[str, Any]]:
    """The checkpoint, what production sent, and what the program sent in its place, by number."""
    with capture() as (url, seen):
        in_production(bodies, url)
        production = list(seen)
        seen.clear()
        checkpoint = compose(Recorded(production), folder, origin=Origin("test"))
        by_program(checkpoint, url)
        return checkpoint, production, dict(zip((each.id for each in checkpoint.samples), seen, strict=True))


def told(bodies: list[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The corpus, but each application's system prompt is a realistic template, filled with ordinary values."""
    truths: dict[str, list[str]] = {}
    changed = []
    for number, body in enumerate(bodies):
        first, *rest = body["messages"]
        if first["role"] not in ("system", "developer"):
            changed.append(dict(body))
            continue
        # An application is known by its model and its parameters' names.
        application = canonical([body["model"], first["role"], sorted(set(body) - {"seed"})])
        if application not in truths:
            nth = seed + len(truths)
            truth = templates.template(templates.FRESH, nth)
            made = templates.renderings(truth, templates.FRESH.words, Random(nth), len(bodies))
            truths[application] = [text for text, _ in made]
        changed.append({**body, "messages": [{**first, "content": truths[application][number]}, *rest]})
    return changed


@pytest.mark.parametrize("seed", [0, 40])
def test_500_recorded_requests_are_sent_again_by_the_program_with_the_inferred_template(tmp_path, seed):
    checkpoint, production, again = sent_again(told([each.body for each in recorded_requests(500)], seed), tmp_path)
    assert not checkpoint.set_aside
    assert len(again) == 500
    assert sum(bool(seen.prompt.system) for seen in checkpoint.prompts) >= 6
    for number, body in again.items():
        assert form(body) == form(production[int(number)])
        assert body["messages"] == production[int(number)]["messages"]


def test_with_hostile_values_a_request_is_made_again_or_set_aside_with_the_reason(tmp_path):
    bodies = [each.body for each in recorded_requests(500)]
    checkpoint, production, again = sent_again(bodies, tmp_path)
    assert len(again) + sum(checkpoint.set_aside.values()) == 500
    assert set(checkpoint.set_aside) <= {AMBIGUOUS, NOTHING_IN_COMMON, TOO_FEW}
    assert NOT_AGAIN not in checkpoint.set_aside
    assert len(again) >= 350
    for number, body in again.items():
        assert form(body) == form(production[int(number)])
