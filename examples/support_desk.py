"""A support desk on the plain OpenAI client: the kind of application whose prompt is worth improving.

Its system prompt is mediocre on purpose, and its text differs in every call, because the customer's name, plan and
the date are filled in. Nothing here knows of dspy-selfimprove but the one call of `instrument`.

    OPENAI_API_KEY=... python examples/support_desk.py --model gpt-4o-mini --tickets 5

Without a key, start the stand-in model first (`dspy-selfimprove rehearsal serve`) and export what it prints.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from openai import OpenAI
from openinference.instrumentation import using_attributes
from opentelemetry.trace import StatusCode, Tracer

TICKETS = Path(__file__).parent.parent / "datasets" / "support_tickets" / "train.jsonl"

SYSTEM = """\
You are the support assistant of Northwind Home, which sells smart home devices and the Northwind Plus subscription.
You are talking to {customer_name}, whose plan is {plan}. Today is {date}.
Answer the customer's message. Be friendly and professional."""


def tickets(path: Path = TICKETS) -> Iterator[dict[str, Any]]:
    """The tickets of a split, in order."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def answer(client: OpenAI, ticket: Mapping[str, Any], *, model: str) -> str:
    """One reply, as the last turn of the ticket's conversation."""
    customer = ticket["customer"]
    system = SYSTEM.format(customer_name=customer["name"], plan=customer["plan"], date=ticket["date"])
    completion = client.chat.completions.create(
        model=model, temperature=0.7, messages=[{"role": "system", "content": system}, *ticket["turns"]]
    )
    return completion.choices[0].message.content or ""


def handle(client: OpenAI, ticket: Mapping[str, Any], *, model: str, tracer: Tracer) -> str:
    """One ticket from end to end, as production traces it: a span of the desk's own around the model's."""
    names = {"session_id": ticket["id"], "user_id": ticket["customer"]["id"], "metadata": {"ticket": ticket["id"]}}
    with using_attributes(**names), tracer.start_as_current_span("handle ticket") as span:
        span.set_attribute("openinference.span.kind", "CHAIN")
        span.set_attribute("input.value", ticket["turns"][-1]["content"])
        reply = answer(client, ticket, model=model)
        span.set_attribute("output.value", reply)
        span.set_status(StatusCode.OK)
        return reply


def serve(client: OpenAI, waiting: list[dict[str, Any]], *, model: str, tracer: Tracer) -> Iterator[str]:
    """The replies to many tickets, eight at a time, in the order of the tickets."""
    with ThreadPoolExecutor(8) as clerks:
        replies = [clerks.submit(handle, client, ticket, model=model, tracer=tracer) for ticket in waiting]
        try:
            yield from (reply.result() for reply in replies)
        finally:
            clerks.shutdown(cancel_futures=True)  # after an error or ctrl-C, no clerk takes another ticket


def main() -> None:
    from dspy_selfimprove import instrument

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="gpt-4o-mini")
    options.add_argument("--tickets", type=int, default=5)
    chosen = options.parse_args()
    if "OPENAI_API_KEY" not in os.environ:
        options.exit(1, "Set OPENAI_API_KEY; or run `dspy-selfimprove rehearsal serve` and export what it prints.\n")
    some = list(islice(tickets(), max(1, chosen.tickets)))
    with instrument("support-desk") as telemetry:
        for ticket, reply in zip(some, serve(OpenAI(), some, model=chosen.model, tracer=telemetry.tracer), strict=True):
            print(f"{ticket['id']}  {ticket['customer']['name']}: {ticket['turns'][-1]['content']}\n\n{reply}\n")


if __name__ == "__main__":
    main()
