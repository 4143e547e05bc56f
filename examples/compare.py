"""Two versions of a prompt, put to the test side by side: no server, no key.

Both answer the same tickets; two judges and a code metric score every answer; the differences are taken ticket by
ticket. With a model of your own, name it: `python examples/compare.py openai/gpt-4o-mini`.
"""

import json
import sys
from pathlib import Path

import dspy

from dspy_selfimprove import ChatProgram, ChatPrompt, Metrics, Model, Models, compare, evaluate, metric_of
from dspy_selfimprove.rehearsal import RehearsalModel, serve

DATA = Path(__file__).parent.parent / "datasets" / "support_tickets"
BEFORE = "You are the support assistant of Northwind Home. Be friendly and professional."
AFTER = f"{BEFORE} Name the concrete next step and when it will be done. Never ask for a password or a card number."


def examples() -> list[dspy.Example]:
    """The validation tickets: the conversation is what the program is given, the rest is for the metrics."""
    with (DATA / "validation.jsonl").open(encoding="utf-8") as lines:
        tickets = [json.loads(line) for line in lines]
    return [
        dspy.Example(id=each["id"], conversation=each["turns"], cluster=each["topic"]).with_inputs("conversation")
        for each in tickets
    ]


def main(model: Model) -> None:
    models = Models(model)
    policy = (DATA / "policy.md").read_text(encoding="utf-8")
    metrics = Metrics(
        [
            metric_of("helpfulness", models=models),
            metric_of("compliance", models=models, given={"policy": policy}, at_least=0.8),
            metric_of("brevity", weight=0.5),
        ]
    )
    with dspy.context(lm=models.lm("worker")):
        before, after = (
            evaluate(ChatProgram(ChatPrompt(system=system)), examples(), metrics) for system in (BEFORE, AFTER)
        )
    print(after)
    change = compare(before, after)
    print(change)
    for flip in change.flips[:3]:
        print(f"{flip.id}: {flip.metric} from {flip.before:g} to {flip.after:g}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Model(name=sys.argv[1]))
    else:
        with serve(RehearsalModel(seed=7)) as rehearsal:
            main(Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none"))
