"""What a coach's proposals are worth: the true expected scores of each, against its parent's, beside GEPA's proposer.

In each of three rehearsal worlds, a parent prompt (the seed's, and one of middling quality) answers tickets and is
judged; every operator then proposes, and each proposal's expected scores are computed exactly (`World.expected`). An
optimizer sees none of that. `better` is the share of proposals whose true mean score is above the parent's, `gain` the
mean difference over all proposals asked for (none counts as zero), with its 95 % interval over the asks; `calls` are
the coach's for each. GEPA's proposer is its own prompt, asked of the same coach: with three examples at random, which
is its default, and with the very lessons that ours is shown.

    python benchmarks/proposals.py [asks] [worlds]

The rehearsal coach shows the machinery, not the quality of any model.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

POOL = 24  # lessons in each pool


@dataclass
class Row:
    """The gains of one way to propose."""

    gains: list[float] = field(default_factory=list)
    none: int = 0
    calls: int = 0

    def __str__(self) -> str:
        mean = statistics.fmean(self.gains)
        half = 1.96 * statistics.stdev(self.gains) / math.sqrt(len(self.gains))
        better = sum(gain > 1e-9 for gain in self.gains) / len(self.gains)
        calls = self.calls / len(self.gains)
        return f"{better:>8.0%}{mean:>+9.4f} ±{half:.4f}{self.none:>7}{calls:>8.1f}"


def main(asks: int, count: int) -> None:
    support(asks, count)
    retrieval(asks, count)


def support(asks: int, count: int) -> None:
    from dspy_selfimprove.candidate import Candidate
    from dspy_selfimprove.model import Model, Models
    from dspy_selfimprove.optimizers.gradient import Coach, NoProposal, Reflect, Situation
    from dspy_selfimprove.optimizers.lesson import Brief, Trial, Wanted
    from dspy_selfimprove.rehearsal import RehearsalModel, World, serve

    rows: dict[tuple[str, str], Row] = {}
    brief = Brief(
        (
            Wanted("helpfulness", "How well a reply serves the customer."),
            Wanted("compliance", "Whether a reply keeps to the house policy."),
            Wanted("brevity", "How short the reply is."),
        )
    )
    for seed in range(count):
        world = World.draw("support", seed)
        with serve(RehearsalModel(seed=seed)) as served:
            models = Models(Model(name="openai/rehearsal", base_url=served.url, api_key="none"))
            coach, baseline = Coach(models), Candidate(dict(world.prompts))
            for kind, text in {"seed": world.prompts["system"], "middling": middling(world)}.items():
                parent = baseline if kind == "seed" else baseline.child("edit", texts={"system": text})
                before = mean(world, text)
                pool = lessons(world, models, text, asks * 4 + POOL)
                print(f"world {seed}, {kind}: expected mean {before:.3f}", file=sys.stderr, flush=True)
                for ask in range(asks):
                    own = tuple(pool[ask * 4 : ask * 4 + POOL])
                    here = Situation(
                        parent=parent, predictor="system", brief=brief, lessons=own, baseline=baseline, seed=ask
                    )
                    updates = [Reflect().propose(coach, replace(here, seed=ask * 10 + each)) for each in range(3)]
                    others = tuple(each.candidate for each in updates if not isinstance(each, NoProposal))
                    trials = tuple(
                        Trial(each, world.expected({"system": each.texts["system"]})) for each in (parent, *others)
                    )
                    for name, (operator, situation) in ways(here, others, trials).items():
                        row = rows.setdefault((kind, name), Row())
                        found = operator.propose(coach, situation)
                        missing = isinstance(found, NoProposal)
                        row.none += missing
                        row.calls += found.spent.calls
                        made = text if missing else found.candidate.texts["system"]
                        row.gains.append(mean(world, made) - before)
                    dice = random.Random(f"{seed}/{ask}")
                    peers = {"gepa, 3 at random": dice.sample(own, 3), "gepa, our 6 lessons": ours(own, brief, ask)}
                    for name, shown in peers.items():
                        row = rows.setdefault((kind, name), Row())
                        row.calls += 1
                        row.gains.append(mean(world, gepa(models, text, shown)) - before)
    for kind in ("seed", "middling"):
        print(f"\nfrom the {kind} prompt ({count} worlds, {asks} asks each)")
        print(f"{'':<30}{'better':>8}{'gain':>9}{'':>8}{'none':>7}{'calls':>8}")
        for (each, name), row in rows.items():
            if each == kind:
                print(f"{name:<30}{row}")


def retrieval(asks: int, count: int) -> None:
    """A program of two predictors: each learns from its own part, and its new text is swapped in alone."""
    from dspy_selfimprove.candidate import Candidate
    from dspy_selfimprove.model import Model, Models
    from dspy_selfimprove.optimizers.gradient import Coach, NoProposal, Reflect, Situation
    from dspy_selfimprove.optimizers.lesson import BOLD, MODERATE, Brief, Wanted
    from dspy_selfimprove.rehearsal import RehearsalModel, World, serve

    wanted = {
        "correctness": "Whether the reply holds the value asked for.",
        "compliance": "Whether a reply keeps to the rules of the desk.",
        "brevity": "How short the reply is.",
    }
    brief = Brief(tuple(Wanted(name, said) for name, said in wanted.items()))
    rows: dict[str, Row] = {}
    for seed in range(count):
        world = World.draw("retrieval", seed)
        with serve(RehearsalModel(seed=seed)) as served:
            models = Models(Model(name="openai/rehearsal", base_url=served.url, api_key="none"))
            coach, baseline = Coach(models), Candidate(dict(world.prompts))
            pool = answered(world, models, asks * 2 + POOL)
            before = statistics.fmean(world.expected(baseline.texts).values())
            print(f"retrieval {seed}: expected mean {before:.3f}", file=sys.stderr, flush=True)
            for ask in range(asks):
                own = tuple(pool[ask * 2 : ask * 2 + POOL])
                for name in baseline.texts:
                    for step in (MODERATE, BOLD):
                        here = Situation(parent=baseline, predictor=name, brief=brief, lessons=own, step=step, seed=ask)
                        found = Reflect().propose(coach, here)
                        row = rows.setdefault(f"{name}: reflect, {step.name}", Row())
                        row.none += isinstance(found, NoProposal)
                        row.calls += found.spent.calls
                        texts = baseline.texts if isinstance(found, NoProposal) else found.candidate.texts
                        row.gains.append(statistics.fmean(world.expected(texts).values()) - before)
    print(f"\nof one predictor out of two, from the seed prompts ({count} worlds, {asks} asks each)")
    for name, row in rows.items():
        print(f"{name:<30}{row}")


def answered(world: Any, models: Any, count: int) -> list[Any]:
    """What the two predictors of a question desk were given and gave, and the verdicts on the reply."""
    import dspy

    from dspy_selfimprove.metric import metric_of
    from dspy_selfimprove.optimizers.lesson import Lesson, parts_of

    class Desk(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.query = dspy.Predict(dspy.Signature("question -> query", world.prompts["query"]))
            self.answer = dspy.Predict(dspy.Signature("question, context -> answer", world.prompts["answer"]))

        def forward(self, question: str) -> Any:
            context = "\n".join(world.retrieve(self.query(question=question).query))
            return dspy.Prediction(reply=self.answer(question=question, context=context).answer, context=context)

    mapped = {"input": "question", "output": "reply"}
    judge = metric_of(world.judges["compliance"], models=models, input_mapping=mapped)
    desk, found = Desk(), []
    for each in world.examples(count):
        with dspy.context(lm=models.lm("worker"), trace=[]):
            made = desk(question=each.question)
            parts = parts_of(desk, dspy.settings.trace)
        scores = {name: world.code_score(name, each, made.reply) for name in ("correctness", "brevity")}
        scores["compliance"] = judge.score(dspy.Example(question=each.question).with_inputs("question"), made)
        given, outputs = {"question": each.question}, {"reply": made.reply}
        found.append(Lesson(id=each.id, inputs=given, outputs=outputs, scores=scores, parts=parts))
    return found


def ways(here: Any, others: Any, trials: Any) -> dict[str, tuple[Any, Any]]:
    """Each operator with the situation it is put in."""
    from dspy_selfimprove.optimizers.gradient import Combine, Compress, Merge, Reflect, Rethink, Rewrite, Union
    from dspy_selfimprove.optimizers.lesson import BOLD, MODERATE

    moderate, bold, merging = replace(here, step=MODERATE), replace(here, step=BOLD), replace(here, others=others)
    return {
        "reflect, small": (Reflect(), here),
        "reflect, moderate": (Reflect(), moderate),
        "reflect, bold": (Reflect(), bold),
        "reflect, moderate, 3 lessons": (Reflect(size=3), moderate),
        "reflect, moderate, 12": (Reflect(size=12), moderate),
        "  at helpfulness alone": (Reflect(), replace(moderate, brief=replace(here.brief, target="helpfulness"))),
        "combine 3 small": (Combine(), here),
        "combine 3 moderate": (Combine(), moderate),
        "combine 3 bold": (Combine(), bold),
        "merge of 3 small": (Merge(), merging),
        "union of 3 small": (Union(), merging),
        "rewrite from 4, true means": (Rewrite(), replace(here, trials=trials)),
        "rethink": (Rethink(), here),
        "compress": (Compress(), here),
    }


def mean(world: Any, text: str) -> float:
    return statistics.fmean(world.expected({"system": text}).values())


def middling(world: Any) -> str:
    """The seed prompt with every second rule that the best point of the true front asks for, where it says nothing."""
    from dspy_selfimprove.rehearsal.catalogue import RULE, stated

    text = world.prompts["system"]
    best = max(world.front(), key=lambda point: sum(point.scores))
    open_rules = [name for name in best.choice if name not in stated(text, "support")]
    said = [RULE[name].asks[0].text if best.choice[name] else RULE[name].forbids[0] for name in open_rules[::2]]
    return "\n".join([text, *said])


def lessons(world: Any, models: Any, text: str, count: int) -> list[Any]:
    """What the worker answers under `text`, judged by the world's own judges: noise and all."""
    import dspy

    from dspy_selfimprove.evaluation import evaluate
    from dspy_selfimprove.metric import metric_of
    from dspy_selfimprove.optimizers.lesson import Lesson
    from dspy_selfimprove.program import ChatProgram
    from dspy_selfimprove.prompt import ChatPrompt

    def brevity(output: str, origin: int) -> Any:
        return world.code_score("brevity", world.example(origin), output)

    examples = [
        dspy.Example(
            conversation=[{"role": "user", "content": each.text}], variables=dict(each.variables), origin=origin
        ).with_inputs("conversation", "variables")
        for origin, each in enumerate(world.examples(count))
    ]
    metrics = [
        *(metric_of(world.judges[name], models=models) for name in ("helpfulness", "compliance")),
        metric_of(brevity),
    ]
    with dspy.context(lm=models.lm("worker")):
        found = evaluate(ChatProgram(ChatPrompt(system=text)), examples, metrics, show=False)
    topics = {each.text: each.topic for each in world.examples(count)}
    return [
        replace(Lesson.of(outcome), cluster=topics[outcome.inputs["conversation"][0]["content"]])
        for outcome in found.outcomes
    ]


def ours(pool: Iterable[Any], brief: Any, seed: int) -> Iterable[Any]:
    from dspy_selfimprove.optimizers.lesson import minibatches

    return minibatches(pool, brief, seed=seed)[0]


def gepa(models: Any, text: str, shown: Iterable[Any]) -> str:
    """GEPA's own prompt and its own reading of the answer, with the feedback as a DSPy metric gives it."""
    from gepa.strategies.instruction_proposal import InstructionProposalSignature

    examples: list[Mapping[str, Any]] = [
        {
            "Inputs": {"message": lesson.inputs["conversation"][0]["content"]},
            "Generated Outputs": {"output": lesson.outputs["output"]},
            "Feedback": "\n".join(
                f"{name}: {score.value:.2f}. {score.feedback}" for name, score in lesson.scores.items()
            ),
        }
        for lesson in shown
    ]
    given = {"current_instruction_doc": text, "dataset_with_feedback": examples}
    answer = models.lm("coach")(InstructionProposalSignature.prompt_renderer(given))[0]
    return str(InstructionProposalSignature.output_extractor(answer)["new_instruction"])


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:3]) if len(sys.argv) > 2 else (20, 3))
