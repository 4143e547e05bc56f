"""One Metric object in all of DSPy's optimizers: one judge call per answer, no zero as a demonstration, feedback heard.

The worker and the coach are the rehearsal model in this process; the judge is one behind HTTP, which counts.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pytest

from dspy_selfimprove.case import Case
from dspy_selfimprove.measure import Measure
from dspy_selfimprove.metric import Metric, metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.program import ChatProgram
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.rehearsal import Faults, RehearsalModel, World, serve
from dspy_selfimprove.rehearsal.engine import lm
from dspy_selfimprove.rehearsal.server import Served
from dspy_selfimprove.sample import EvalSpec
from dspy_selfimprove.score import Score

pytestmark = pytest.mark.slow

# Two choices and several criteria: many an answer falls to zero.
ASKED = """Is this reply of a support desk complete or poor? A complete one
- acknowledges the customer's problem
- gives a time frame
- names the concrete next step
- says where to turn if that does not help

{{input}}

<reply>
{{output}}
</reply>"""
SPEC = EvalSpec(
    "completeness", "LLM", messages=({"role": "user", "content": ASKED},), choices={"complete": 1, "poor": 0}
)  # type: ignore[arg-type]


@dataclass
class Counting:
    """A measure that notes who was judged. What it measures is left to the one inside."""

    inside: Measure
    seen: list[tuple[str, str]] = field(default_factory=list)
    given: list[Score] = field(default_factory=list)

    @property
    def version(self) -> str:
        return self.inside.version

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inside.needs

    def score(self, case: Case, repeat: int) -> Score:
        score = self.inside.score(case, repeat)
        self.seen.append((case.shown("input"), case.shown("output")))
        self.given.append(score)
        return score

    async def ascore(self, case: Case, repeat: int) -> Score:
        raise AssertionError("DSPy's optimizers ask from threads")


@dataclass
class Desk:
    """Everything the optimizers get, and what they did with it."""

    metric: Metric
    counting: Counting
    judge: Served
    lm: dspy.LM
    coach: list[str]
    train: list[dspy.Example]
    validation: list[dspy.Example]
    program: ChatProgram

    def is_zero(self, demo: Mapping[str, Any]) -> bool:
        before = self.judge.counts().calls
        score = self.metric.score({"conversation": demo["conversation"]}, demo["output"])
        assert self.judge.counts().calls == before, "a demonstration that the metric never judged"
        return score.value == 0


class Heard:
    """The rehearsal model, and what was said to it as the coach."""

    def __init__(self) -> None:
        self.model, self.coach, self._lock = RehearsalModel(seed=2), list[str](), threading.Lock()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.coach.append(json.dumps(body["messages"], ensure_ascii=False))
        return self.model.complete(body)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    world = World.draw("support", 0)
    examples = [
        dspy.Example(
            conversation=[{"role": "user", "content": each.text}], variables=dict(each.variables), parameters={}
        ).with_inputs("conversation", "variables", "parameters")
        for each in world.examples(24)
    ]
    with serve(RehearsalModel(seed=1)) as judge:
        models = Models(Model(name="openai/rehearsal", base_url=judge.url, api_key="none"), slots=8)
        made = metric_of(SPEC, models=models)
        counting = Counting(made.measure)
        heard = Heard()
        program = ChatProgram(ChatPrompt(system=world.prompts["system"]))
        yield Desk(
            metric=replace(made, measure=counting),
            counting=counting,
            judge=judge,
            lm=lm(heard),
            coach=heard.coach,
            train=examples[:14],
            validation=examples[14:],
            program=program,
        )


def evaluate(desk: Desk) -> dspy.Module:
    result = dspy.Evaluate(devset=desk.validation, metric=desk.metric, num_threads=4)(desk.program)
    values = [score.value for score in desk.counting.given[-len(desk.validation) :]]
    assert result.score == pytest.approx(100 * sum(value or 0 for value in values) / len(values), abs=0.01)
    return desk.program


def bootstrap(desk: Desk) -> dspy.Module:
    optimizer = dspy.BootstrapFewShot(metric=desk.metric, max_bootstrapped_demos=3, max_labeled_demos=0)
    return optimizer.compile(desk.program, trainset=desk.train)


def random_search(desk: Desk) -> dspy.Module:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=desk.metric, max_bootstrapped_demos=2, max_labeled_demos=0, num_candidate_programs=2, num_threads=4
    )
    return optimizer.compile(desk.program, trainset=desk.train, valset=desk.validation)


def mipro(desk: Desk) -> dspy.Module:
    optimizer = dspy.MIPROv2(
        metric=desk.metric,
        auto=None,
        num_candidates=3,
        max_bootstrapped_demos=2,
        max_labeled_demos=0,
        num_threads=4,
    )
    return optimizer.compile(desk.program, trainset=desk.train, valset=desk.validation, num_trials=4, minibatch=False)


def copro(desk: Desk) -> dspy.Module:
    optimizer = dspy.COPRO(metric=desk.metric, breadth=3, depth=2)
    return optimizer.compile(desk.program, trainset=desk.train, eval_kwargs={"num_threads": 4})


def simba(desk: Desk) -> dspy.Module:
    optimizer = dspy.SIMBA(metric=desk.metric, bsize=10, num_candidates=4, max_steps=3, max_demos=2, num_threads=4)
    return optimizer.compile(desk.program, trainset=desk.train, seed=1)


def gepa(desk: Desk) -> dspy.Module:
    optimizer = dspy.GEPA(metric=desk.metric, max_metric_calls=80, reflection_lm=desk.lm, num_threads=4)
    return optimizer.compile(desk.program, trainset=desk.train, valset=desk.validation)


@pytest.mark.parametrize("optimize", [evaluate, bootstrap, random_search, mipro, copro, simba, gepa])
def test_one_metric_serves_them_all(optimize: Callable[[Desk], dspy.Module], desk: Desk) -> None:
    counting, said_before = desk.counting, len(desk.coach)
    calls_before, known_before = len(counting.seen), len(set(counting.seen))
    random.seed(0)
    with dspy.context(lm=desk.lm):
        chosen = optimize(desk)
    seen = counting.seen[calls_before:]
    scores = counting.given[calls_before:]

    # Each answer was judged by one call, however often, by whomever and from how many threads it was asked for.
    assert seen
    assert desk.judge.counts().calls == len(set(counting.seen))
    assert desk.judge.counts().roles == {"judge": len(set(counting.seen))}
    assert not [score for score in scores if score.is_missing]

    # Zeros were there to be taken, and none was.
    zeros = {pair for pair, score in zip(seen, scores, strict=True) if score.value == 0}
    assert zeros
    shown = [demo for predictor in chosen.predictors() for demo in predictor.demos]
    assert not [demo for demo in shown if desk.is_zero(demo)]
    if optimize in (bootstrap, random_search):
        assert shown, "no demonstration was kept, so the test shows nothing"

    # Those that ask for a reason got it: the judge's own words are in what the coach read.
    if optimize in (simba, gepa):
        reasons = {score.feedback for score in scores if score.value == 0}
        heard = "\n".join(desk.coach[said_before:])
        assert any(json.dumps(reason, ensure_ascii=False)[1:-1] in heard for reason in reasons)
    if optimize is gepa:
        assert len(seen) > len(set(seen)), "GEPA asks twice; the second time must be free"
    assert len(set(counting.seen)) > known_before


def test_objectives_reach_gepas_front(desk: Desk) -> None:
    """`objective_scores` count only if GEPA is told so; then each has a front of its own."""
    with dspy.context(lm=desk.lm):
        optimizer = dspy.GEPA(
            metric=desk.metric,
            max_metric_calls=40,
            reflection_lm=desk.lm,
            num_threads=4,
            track_stats=True,
            gepa_kwargs={"frontier_type": "objective"},
        )
        chosen = optimizer.compile(desk.program, trainset=desk.train, valset=desk.validation)
    found = chosen.detailed_results.val_aggregate_subscores
    assert [set(each) for each in found] == [{"completeness"}] * len(found)
    assert [each["completeness"] for each in found] == pytest.approx(chosen.detailed_results.val_aggregate_scores)


def greedy(desk: Desk) -> dspy.Module:
    """Takes every example that the metric lets through."""
    optimizer = dspy.BootstrapFewShot(metric=desk.metric, max_bootstrapped_demos=14, max_labeled_demos=0)
    return optimizer.compile(desk.program, trainset=desk.train)


@pytest.mark.parametrize("optimize", [greedy, mipro, gepa])
def test_a_judge_that_fails_now_and_then_costs_no_answer_its_score(
    optimize: Callable[[Desk], dspy.Module], desk: Desk
) -> None:
    """A fifth of its calls fail and are not tried again: the run ends, and no failure is taken for a verdict."""
    faults = Faults.mixed(0.2, retry_after=0.0, hang=0.6)
    with serve(RehearsalModel(seed=1), faults=faults) as judge:
        model = Model(name="openai/rehearsal", base_url=judge.url, api_key="none", attempts=1, timeout=0.5)
        made = metric_of(SPEC, models=Models(model, slots=8))
        counting = Counting(made.measure)
        shaky = replace(desk, metric=replace(made, measure=counting), counting=counting, judge=judge)
        with dspy.context(lm=desk.lm):
            chosen = optimize(shaky)
    missing = [pair for pair, score in zip(counting.seen, counting.given, strict=True) if score.is_missing]
    assert missing
    assert all(score.failure for score in counting.given if score.is_missing)
    verdicts: dict[tuple[str, str], set[float]] = {}
    for pair, score in zip(counting.seen, counting.given, strict=True):
        if score.value is not None:
            verdicts.setdefault(pair, set()).add(score.value)
    assert all(len(values) == 1 for values in verdicts.values())
    for predictor in chosen.predictors():
        for demo in predictor.demos:
            judged = [values for (_, said), values in verdicts.items() if said == demo["output"]]
            assert judged, "a demonstration that nobody judged"
            assert max(max(values) for values in judged) > 0
