"""Evaluations through their doors: the numbers, what is missing and why, who may call, what a journal spares."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.errors import BudgetExhausted, DataError, Outage, Refused, UsageError
from dspy_selfimprove.evaluation import ENDED, Evaluation, Measured, Outcome, aevaluate, evaluate
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import Metrics, human, metric_of
from dspy_selfimprove.metrics.usage import cost, latency
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.pool import Pool
from dspy_selfimprove.program import ChatProgram, example_of
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.rehearsal import RehearsalModel, World, lm, serve
from dspy_selfimprove.rehearsal.fault import Faults, Latency
from dspy_selfimprove.rehearsal.server import Served
from dspy_selfimprove.rollout import TOO_LONG, UNREADABLE, Rollout, Subject, plain, questions
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score, Scorecard
from dspy_selfimprove.statistics import estimate_mean, estimate_population

WORLD = World.draw("support", 0)
PROGRAM = ChatProgram(ChatPrompt(system=WORLD.prompts["system"], temperature=0))


def samples(count: int, **more: Any) -> list[Sample]:
    reply = {"role": "assistant", "content": "It comes on Friday."}
    return [
        Sample(
            id=f"T{number}",
            chat_history=({"role": "user", "content": each.text},),
            output=reply,
            variables=dict(each.variables),
            **{name: value[number] for name, value in more.items()},
        )
        for number, each in enumerate(WORLD.examples(count))
    ]


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Served]:
    with serve(RehearsalModel(seed=1)) as server:
        yield server


@pytest.fixture
def models(rehearsal: Served) -> Models:
    rehearsal.reset()
    return Models(Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none", attempts=2), slots=4)


def sums(count: int) -> list[dspy.Example]:
    return [dspy.Example(left=n, right=1, total=n + 1).with_inputs("left", "right") for n in range(count)]


class Adder(dspy.Module):
    """Adds, and does as told at some places."""

    def __init__(self, told: Any = None) -> None:
        super().__init__()
        self.told = told

    def forward(self, left: int, right: int) -> dspy.Prediction:
        if self.told is not None and (said := self.told(left)) is not None:
            return dspy.Prediction(answer=said)
        return dspy.Prediction(answer=left + right)


def right(answer: int, total: int) -> bool:
    """Whether the sum is right."""
    return answer == total


def run(program: Any, examples: Any, metrics: Any, **more: Any) -> Evaluation:
    return evaluate(program, examples, metrics, show=False, **more)


# The numbers.


def test_every_example_has_its_scores_and_the_means_are_theirs() -> None:
    found = run(
        Adder(lambda n: -1 if n % 4 == 0 else None), sums(40), [right, metric_of(lambda left: left / 40, name="n")]
    )
    assert [card["right"].value for card in found.scorecards] == [float(n % 4 != 0) for n in range(40)]
    assert found["right"] == estimate_mean([float(n % 4 != 0) for n in range(40)])
    assert found.values("n").tolist() == [n / 40 for n in range(40)]
    assert (found.names, found.planned, found.partial, found.indecisive) == (("right", "n"), 40, False, ())
    assert found.outcomes[3].output == "4"
    assert found.outcomes[3].reference == {"total": 4}


def test_a_chat_program_with_a_judge(models: Models, rehearsal: Served) -> None:
    metrics = [metric_of("helpfulness", models=models), metric_of("brevity"), metric_of(cost), metric_of(latency)]
    with dspy.context(lm=models.lm("worker")):
        found = run(PROGRAM, samples(12), metrics)
        again = run(PROGRAM, [example_of(each) for each in samples(12)], metrics[1])
    assert rehearsal.counts().roles == {"worker": 24, "judge": 12}
    assert [each.n for each in found.means.values()] == [12] * 4
    assert found.values("brevity").tolist() == again.values("brevity").tolist()
    assert found.values("helpfulness").tolist() == [
        metrics[0].score(each, dict(outcome.rollouts[0].output)).value
        for each, outcome in zip(samples(12), found.outcomes, strict=True)
    ]
    spent = found.spent
    assert {role: spend.calls for role, spend in spent.items()} == {"worker": 12, "judge": 12}
    rollouts = [rollout for outcome in found.outcomes for rollout in outcome.rollouts]
    assert sum(rollout.dollars for rollout in rollouts) == pytest.approx(spent["worker"].dollars)
    assert sum(rollout.tokens.input + rollout.tokens.output for rollout in rollouts) == spent["worker"].tokens
    assert all(rollout.seconds > 0 for rollout in rollouts)
    assert found.models == ("openai/rehearsal",)
    assert found.slots == 4


def test_weights_clusters_and_classes() -> None:
    examples = [
        dspy.Example(text=f"t{n}", label="spam" if n % 3 else "ham", weight=1.0 + n % 2, cluster=n % 4).with_inputs(
            "text"
        )
        for n in range(24)
    ]

    class Guess(dspy.Module):
        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(label="spam")

    exact = metric_of(lambda output, expected: output == expected, name="exact")
    found = run(Guess(), examples, exact)
    values = [float(n % 3 != 0) for n in range(24)]
    weights, clusters = [1.0 + n % 2 for n in range(24)], [n % 4 for n in range(24)]
    assert found.production == {"exact": estimate_population(values, weights, strata=clusters)}
    by_class = found.breakdown("class")
    assert {group: means["exact"].value for group, means in by_class.items()} == {"spam": 1.0, "ham": 0.0}
    assert {group: means["exact"].n for group, means in found.breakdown("cluster").items()} == dict.fromkeys("0123", 6)
    assert run(Guess(), [dspy.Example(text="a").with_inputs("text")], metric_of("brevity")).production is None
    assert run(Adder(), sums(9), right).breakdown("class") == {}  # nine answers are no classes
    with pytest.raises(UsageError, match="no breakdown by 'topic'"):
        found.breakdown("topic")
    assert "spam" in str(found.table("class"))
    assert "no cluster" in str(run(Adder(), sums(2), right).table("cluster"))


def test_repeats_are_other_answers_and_other_verdicts(models: Models, rehearsal: Served) -> None:
    program = ChatProgram(ChatPrompt(system=WORLD.prompts["system"], temperature=1))
    with dspy.context(lm=models.lm("worker")):
        found = run(program, samples(6), [metric_of("helpfulness", models=models), "brevity"], repeats=3)
    assert rehearsal.counts().roles == {"worker": 18, "judge": 18}
    assert any(len({each.text for each in outcome.rollouts}) > 1 for outcome in found.outcomes)
    for outcome in found.outcomes:
        values = [card["brevity"].value for card in outcome.cards]
        assert outcome.scores["brevity"].value == pytest.approx(sum(values) / 3)
    assert found["brevity"].n == 6
    assert len(found.to_frame()) == 18


def test_repeats_are_not_answered_by_dspys_cache() -> None:
    model = lm(seed=1, cache=True)
    predict = dspy.Predict("question -> answer")
    examples = [dspy.Example(question=f"Where is parcel {os.getpid()}-{n}?").with_inputs("question") for n in range(3)]
    with dspy.context(lm=model):
        found = run(predict, examples, "brevity", repeats=2)
    assert all(each.tokens is not None for outcome in found.outcomes for each in outcome.rollouts)
    assert found.spent["worker"].calls == 6


def test_the_wait_for_a_slot_is_not_how_long_an_answer_took() -> None:
    with serve(RehearsalModel(seed=1), latency=Latency.fixed(0.1)) as server:
        models = Models(Model(name="openai/rehearsal", base_url=server.url, api_key="none"), slots=2)
        with dspy.context(lm=models.lm("worker")):
            found = run(PROGRAM, samples(12), "brevity", slots=12)
    assert found.seconds >= 0.6, "two at a time"
    took = [outcome.rollouts[0].seconds for outcome in found.outcomes]
    assert min(took) >= 0.1
    assert max(took) < 0.4


def test_an_lm_of_somebody_elses_will_do() -> None:
    from dspy.utils import DummyLM

    examples = [dspy.Example(question=f"{n}?", answer="4").with_inputs("question") for n in range(6)]
    exact = metric_of(lambda output, expected: output == expected, name="exact")
    with dspy.context(lm=DummyLM([{"answer": "4"}] * 6)):
        found = run(dspy.Predict("question -> answer"), examples, exact)
    assert (found["exact"].value, found.slots) == (pytest.approx(1.0), 16)


class TwoSteps(dspy.Module):
    def __init__(self, *lms: Any) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("answer -> short")
        self.first.lm, self.second.lm = lms or (None, None)

    def forward(self, question: str) -> dspy.Prediction:
        return self.second(answer=self.first(question=question).answer)


ASKED = [dspy.Example(question=f"{n}?").with_inputs("question") for n in range(6)]
ALWAYS = metric_of(lambda prediction: 1.0, name="always")


def tokens_of(found: Evaluation) -> int:
    every = [rollout.tokens for outcome in found.outcomes for rollout in outcome.rollouts]
    return sum(each.input + each.output for each in every)


def test_what_others_lms_used_is_counted_once_and_by_the_call(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "run.db") as journal, dspy.context(lm=lm(seed=1)):
        first, again = (run(TwoSteps(), ASKED, ALWAYS, journal=journal) for _ in range(2))
    assert (first.spent["worker"].calls, first.spent["worker"].tokens) == (12, tokens_of(first))
    assert (again.remembered, again.spent, tokens_of(again)) == (6, {}, tokens_of(first))


def test_what_is_on_a_ledger_is_not_counted_again_beside_an_lm_of_somebody_elses(models: Models) -> None:
    others = lm(seed=1)
    found = run(TwoSteps(others, models.lm("worker")), ASKED, ALWAYS)
    assert (others.engine.counts().calls, models.ledger.total.calls) == (6, 6)
    assert (found.spent["worker"].calls, found.spent["worker"].tokens) == (12, tokens_of(found))
    assert found.spent["worker"].tokens > models.ledger.total.tokens > 0


def test_a_version_knows_each_predictors_lm_and_the_adapter(models: Models) -> None:
    def version(program: dspy.Module, **settings: Any) -> str:
        with dspy.context(lm=lm(seed=1), **settings):
            return Subject(program).version

    cold, hot = models.lm("worker", temperature=0), models.lm("worker", temperature=1)
    pairs = [version(TwoSteps(*pair)) for pair in ((cold, cold), (cold, hot), (hot, cold), (hot, hot))]
    assert len(set(pairs)) == 4
    assert version(TwoSteps(cold, hot)) == pairs[1]
    kinds: list[Any] = [
        {},
        {"adapter": dspy.JSONAdapter()},
        {"adapter": dspy.ChatAdapter(use_json_adapter_fallback=False)},
    ]
    kinds += [{"adapter": dspy.TwoStepAdapter(each)} for each in (cold, hot)]
    assert len({version(TwoSteps(), **each) for each in kinds}) == 5
    assert version(TwoSteps(), adapter=dspy.ChatAdapter()) == version(TwoSteps())
    assert version(PROGRAM, adapter=dspy.JSONAdapter()) == version(PROGRAM), "it brings its own"
    own = TwoSteps()
    own.adapter = dspy.JSONAdapter()
    assert version(own) != version(TwoSteps())
    assert len({version(dspy.Predict(f"question -> answer: {kind}")) for kind in ("str", "int", "list[int]")}) == 3


def test_both_ledgers_count_where_two_lms_bear_one_name(rehearsal: Served) -> None:
    both = [Models(Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none"), slots=4) for _ in range(2)]
    found = run(TwoSteps(*(each.lm("worker") for each in both)), ASKED, ALWAYS)
    assert found.spent["worker"] == both[0].ledger.total + both[1].ledger.total
    assert [each.ledger.total.calls for each in both] == [6, 6]


# Who may call, and what reaches the threads.


def test_called_from_anywhere_the_numbers_are_the_same(models: Models) -> None:
    metrics = Metrics([metric_of("helpfulness", models=models), metric_of("brevity")])
    examples = samples(10)

    def numbers(**more: Any) -> list[Any]:
        found = run(PROGRAM, examples, metrics, **more)
        return [found.values(name).tolist() for name in found.names]

    async def in_a_running_loop() -> list[Any]:
        return numbers()

    async def awaited() -> list[Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found = await aevaluate(PROGRAM, examples, metrics, show=False)
        ticking.cancel()
        assert ticks > 1, "the loop did not stay free"
        return [found.values(name).tolist() for name in found.names]

    with dspy.context(lm=models.lm("worker")):
        plain = numbers()
        assert numbers(slots=1) == plain
        assert numbers(slots=13) == plain
        assert asyncio.run(in_a_running_loop()) == plain
        assert asyncio.run(awaited()) == plain
        with ThreadPoolExecutor(3) as threads:
            contexts = [contextvars.copy_context() for _ in range(3)]
            assert list(threads.map(lambda each: each.run(numbers), contexts)) == [plain] * 3


def test_an_answer_is_judged_while_others_are_still_given() -> None:
    judged = threading.Event()

    def slow(n: int) -> None:
        assert n != 1 or judged.wait(10), "there is a barrier between answers and verdicts"

    def note(left: int) -> bool:
        if left == 0:
            judged.set()
        return True

    assert run(Adder(slow), sums(2), metric_of(note), slots=2)["note"].value == 1


def test_the_context_reaches_programs_and_metrics() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    seen: list[tuple[Any, ...]] = []

    def look(*_: Any) -> None:
        seen.append((whose.get(), dspy.settings.max_history_size, trace.get_current_span().get_span_context().span_id))

    def metric(answer: int) -> float:
        look()
        whose.set("the metric's")
        return 1.0

    whose.set("mine")
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("outer") as span, dspy.context(max_history_size=77):
        run(Adder(look), sums(5), metric, slots=3)
    assert seen == [("mine", 77, span.get_span_context().span_id)] * 10


def test_a_module_that_is_only_async_and_a_metric_that_is_too() -> None:
    class Async(dspy.Module):
        async def aforward(self, left: int, right: int) -> dspy.Prediction:
            await asyncio.sleep(0.001)
            return dspy.Prediction(answer=left + right)

    async def correct(answer: int, total: int) -> bool:
        await asyncio.sleep(0.001)
        return answer == total

    assert run(Async(), sums(8), correct)["correct"].value == 1


@pytest.mark.parametrize("answer", ["4", {"answer": 4}])
def test_a_program_may_give_a_text_or_a_dict(answer: Any) -> None:
    class Plain(dspy.Module):
        def forward(self, left: int, right: int) -> Any:
            return answer

    assert run(Plain(), sums(2), metric_of(lambda output: str(output) == "4", name="four"))["four"].value == 1


# What goes wrong.


def test_a_crash_is_missing_with_its_reason_and_no_zero() -> None:
    def bug(n: int) -> None:
        if n == 7:
            raise KeyError("a customer's words")

    found = run(Adder(bug), sums(30), right)
    assert found.missing == {"right": {"no answer: the program raised KeyError": 1}}
    assert (found["right"].value, found["right"].missing, found.indecisive) == (pytest.approx(1.0), 1, ())
    assert "customer" not in str(found) + json.dumps(found.to_json())


def test_a_program_that_never_answers_is_refused_soon() -> None:
    asked: list[int] = []

    def bug(n: int) -> None:
        asked.append(n)
        raise TypeError

    with pytest.raises(UsageError, match=r"no answer to any of 8 examples; last, the program raised TypeError") as told:
        run(Adder(bug), sums(500), right, slots=2)
    assert isinstance(told.value.__cause__, TypeError)
    assert len(asked) <= 10
    with pytest.raises(UsageError, match="any of 3 examples"):
        run(Adder(bug), sums(3), right)


def test_an_answer_that_cannot_be_read_scores_zero_and_is_not_judged() -> None:
    asked = []

    class Stubborn(dspy.Module):
        def forward(self, left: int, right: int) -> dspy.Prediction:
            if left == 2:
                raise dspy.utils.exceptions.AdapterParseError("ChatAdapter", dspy.Signature("a -> b"), "secret words")
            if left == 3:
                raise dspy.ContextWindowExceededError(model="m")
            return dspy.Prediction(answer=left + right)

    def note(answer: int, total: int) -> bool:
        asked.append(answer)
        return True

    found = run(Stubborn(), sums(5), metric_of(note))
    assert found.values("note").tolist() == [1, 1, 0, 0, 1]
    assert [found.outcomes[n].scores["note"].feedback for n in (2, 3)] == [UNREADABLE, TOO_LONG]
    assert (found.faults, len(asked)) == (2, 3)
    assert "2 answers could not be read" in str(found)
    assert "secret" not in json.dumps(found.to_json())


def test_a_real_answer_in_the_wrong_form_is_the_programs_fault() -> None:
    class Mute:
        def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
            made = RehearsalModel(seed=1).complete(body)
            made["choices"][0]["message"] = {"role": "assistant", "content": "No form at all."}
            return made

    typed = dspy.Predict("question -> answer: int, sure: bool")
    examples = [dspy.Example(question="2+2?").with_inputs("question")]
    with dspy.context(lm=lm(Mute())):
        found = run(typed, examples, metric_of(lambda answer: answer == 4, name="four"))
    assert (found["four"].value, found.faults) == (0.0, 1)


def test_judges_that_fail_change_no_verdict_of_the_others() -> None:
    """A fifth of the judge's calls fail in every way there is; each is tried once only, so that verdicts are lost."""
    faults = Faults.mixed(0.2, retry_after=0.01, hang=1.5)
    with serve(RehearsalModel(seed=1)) as good, serve(RehearsalModel(seed=1), faults=faults) as bad:
        found = []
        for url in (good.url, bad.url):
            settings = {"attempts": 1, "timeout": 1.0, "parameters": {"temperature": 0}}
            judge = Model(name="openai/rehearsal", base_url=url, api_key="none", **settings)
            models = Models(Model(name="openai/rehearsal", base_url=good.url, api_key="none"), judge=judge, slots=8)
            with dspy.context(lm=models.lm("worker")):
                found.append(run(PROGRAM, samples(60), metric_of("helpfulness", models=models)))
    whole, holed = found
    assert whole.missing["helpfulness"] == {}
    before, after = (each.values("helpfulness") for each in found)
    seen = ~np.isnan(after)
    assert 0 < (~seen).sum() < 30
    assert before[seen].tolist() == after[seen].tolist()
    assert sum(holed.missing["helpfulness"].values()) == (~seen).sum() == holed["helpfulness"].missing
    assert all("judge" in reason for reason in holed.missing["helpfulness"])
    assert holed.indecisive == ("helpfulness",)
    assert "indecisive" in str(holed)
    assert f"{holed['helpfulness'].value:.3f}" not in str(holed)


def test_when_all_fail_the_message_says_what_to_mend() -> None:
    refusing = Faults(server_error=1.0)
    with serve(RehearsalModel(seed=1)) as good, serve(RehearsalModel(seed=1), faults=refusing) as bad:
        sound, away = (
            Model(name="openai/rehearsal", base_url=url, api_key="none", attempts=1) for url in (good.url, bad.url)
        )
        for models, remedy in ((Models(away, judge=sound), "Try again"), (Models(sound, judge=away), "is up")):
            with dspy.context(lm=models.lm("worker")), pytest.raises(Outage) as told:
                run(PROGRAM, samples(40), metric_of("helpfulness", models=models))
            assert remedy in told.value.remedy
    with serve(RehearsalModel(seed=1), api_key="secret") as locked:
        models = Models(Model(name="openai/rehearsal", base_url=locked.url, api_key="wrong"))
        with dspy.context(lm=models.lm("worker")), pytest.raises(Refused, match="key"):
            run(PROGRAM, samples(40), "brevity")
        assert locked.counts().calls <= 16


def test_a_service_that_goes_away_on_the_way_ends_it_with_what_there_is() -> None:
    class Fading(dspy.Module):
        def forward(self, left: int, right: int) -> dspy.Prediction:
            if left >= 20:
                raise Outage("The model's service failed.")
            return dspy.Prediction(answer=left + right)

    found = run(Fading(), sums(500), right, slots=2)
    assert found.partial
    assert "24 examples in a row got no answer" in found.stopped
    assert 19 <= found["right"].n <= 20  # a verdict may still have been due
    assert len(found.outcomes) < 50
    assert "Ended early" in str(found)


def test_a_budget_that_is_used_up_ends_it_early(rehearsal: Served) -> None:
    rehearsal.reset()
    model = Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none")
    models = Models(model, slots=4, ledger=Ledger(Budget(calls=21)))
    with dspy.context(lm=models.lm("worker")):
        found = run(PROGRAM, samples(40), [metric_of("helpfulness", models=models), metric_of("brevity")])
    assert rehearsal.counts().calls == 21
    assert found.partial
    assert "budget of 21 calls" in found.stopped
    assert 7 <= found["helpfulness"].n <= len(found.outcomes) < 21
    assert set(found.missing["helpfulness"]) <= {ENDED}
    assert found.indecisive == (), "what it did not come to is not missing"
    assert f"{len(found.outcomes)} of 40 examples" in str(found)


def test_a_budget_that_was_used_up_before_leaves_an_empty_evaluation(rehearsal: Served) -> None:
    model = Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none")
    ledger = Ledger(Budget(calls=1))
    ledger.settle(ledger.reserve("worker"))
    models = Models(model, slots=4, ledger=ledger)
    with dspy.context(lm=models.lm("worker")):
        found = run(PROGRAM, samples(4), "brevity")
    assert (found.outcomes, found.partial, found["brevity"].n) == ((), True, 0)
    assert str(found)
    assert found.to_frame().empty


def test_ctrl_c_leaves_nothing_running() -> None:
    begun: list[int] = []

    def slow(n: int) -> None:
        begun.append(n)
        if n == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        run(Adder(slow), sums(400), right, slots=3)
    assert not [each for each in threading.enumerate() if each.name.startswith("evaluation-")]
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count < 40


async def test_cancelled_on_a_loop_it_begins_nothing_more() -> None:
    begun: list[int] = []
    enough = threading.Event()

    def slow(n: int) -> None:
        begun.append(n)
        if len(begun) == 4:
            enough.set()
        time.sleep(0.02)

    task = asyncio.create_task(aevaluate(Adder(slow), sums(400), right, slots=2, show=False))
    await asyncio.to_thread(enough.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [each for each in threading.enumerate() if each.name.startswith("evaluation-")]
    assert len(begun) < 40


@pytest.mark.parametrize(
    ("examples", "metrics", "says"),
    [
        ([], [right], "no example"),
        ([dspy.Example(left=1, right=1, total=2)], [right], "which of its fields are inputs"),
        ([{"left": 1}], [right], "dict is not an example"),
        (sums(3), [], "no metric"),
        (sums(3), ["helpfulnes"], "'helpfulnes'"),
        (sums(3), [right, right], "Two metrics have the name 'right'"),
        (sums(3), [7], "cannot be made of int"),
        ([dspy.Example(left=1, up=1).with_inputs("left", "up")], [right], r"takes 'left', 'right'.*gives 'left', 'up'"),
        (
            [dspy.Example(id="a", left=n, right=1).with_inputs("left", "right") for n in (1, 2)],
            [right],
            "has the id of",
        ),
        ([dspy.Example(left=1, right=1, weight=0).with_inputs("left", "right")], [right], "not above zero"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(examples: Any, metrics: Any, says: str) -> None:
    def never(n: int) -> None:
        raise AssertionError

    with pytest.raises(UsageError, match=says):
        run(Adder(never), examples, metrics)


def test_what_the_metrics_lack_is_refused_before_anything_is_spent(models: Models, rehearsal: Served) -> None:
    with dspy.context(lm=models.lm("worker")):
        with pytest.raises(UsageError, match="'compliance' needs 'policy'"):
            run(PROGRAM, samples(3), metric_of("compliance", models=models))
        with pytest.raises(UsageError, match="needs 'colour'"):
            run(dspy.ChainOfThought("question -> answer"), [dspy.Example(question="?").with_inputs("question")],
                metric_of(lambda colour: 1, name="c"))  # fmt: skip
        assert rehearsal.counts().calls == 0
    with pytest.raises(UsageError, match="No LM is configured"):
        run(PROGRAM, samples(3), "brevity")
    with pytest.raises(UsageError, match="not a program"):
        run(lambda left: left, sums(3), right)
    for wrong in ({"slots": 0}, {"repeats": 0}, {"repeats": True}, {"most_missing": 2}):
        with pytest.raises(UsageError):
            run(Adder(), sums(3), right, **wrong)
    # Of a program that does not say what it gives, the first answer tells.
    with pytest.raises(UsageError, match="needs 'colour'"):
        run(Adder(), sums(300), metric_of(lambda colour: 1, name="c"))


def test_equal_examples_without_ids_are_examples_of_their_own() -> None:
    found = run(Adder(), sums(2) * 2, right)
    assert len({outcome.id for outcome in found.outcomes}) == 4
    assert [outcome.id for outcome in found.outcomes] == [
        outcome.id for outcome in run(Adder(), sums(2) * 2, right).outcomes
    ]


@pytest.mark.parametrize("lacking", [{0}, {7}, set(range(1, 12))])
def test_an_answer_without_what_a_metric_needs_is_missing_wherever_it_stands(lacking: set[int]) -> None:
    class Sometimes(dspy.Module):
        def forward(self, left: int, right: int) -> dspy.Prediction:
            return dspy.Prediction(answer=1) if left in lacking else dspy.Prediction(answer=1, colour="red")

    found = run(Sometimes(), sums(12), metric_of(lambda answer, colour: 1.0, name="c"), slots=3)
    assert found.missing["c"] == {"neither the example nor its answer has 'colour'": len(lacking)}
    assert found["c"].n == 12 - len(lacking)


def test_if_all_answers_lack_it_that_is_said_by_the_end_and_faults_are_no_verdicts() -> None:
    def unreadable(n: int) -> None:
        if n < 2:
            raise dspy.utils.exceptions.AdapterParseError("ChatAdapter", dspy.Signature("a -> b"), "?")

    for count in (1, 4, 300):
        with pytest.raises(UsageError, match="needs 'colour'"):
            run(Adder(unreadable), sums(count + 2), metric_of(lambda colour: 1.0, name="c"), slots=2)


@pytest.mark.parametrize(
    ("detail", "kept"),
    [
        (math.nan, None),
        (np.float32(0.5), 0.5),
        (np.arange(3), (0, 1, 2)),
        (object(), "object"),
        ({1: {2}}, {"1": (2,)}),
    ],
)
def test_whatever_a_metric_keeps_beside_its_score_can_be_kept(detail: Any, kept: Any, tmp_path: Path) -> None:
    strange = metric_of(lambda answer: Score(1.0, details={"seen": detail}), name="strange")
    with Journal.open(tmp_path / "run.db") as journal:
        found = [run(Adder(), sums(3), strange, journal=each) for each in (None, journal, journal)]
    assert found[2].remembered == 3
    for each in found:
        assert [outcome.scores["strange"].details["seen"] for outcome in each.outcomes] == [kept] * 3
        assert Evaluation.load(each.save(tmp_path / "found.json")) == each


def test_a_few_examples_without_any_verdict_show_what_to_do() -> None:
    with serve(RehearsalModel(seed=1)) as good, serve(RehearsalModel(seed=1), faults=Faults(server_error=1.0)) as bad:
        sound, away = (
            Model(name="openai/rehearsal", base_url=url, api_key="none", attempts=1) for url in (good.url, bad.url)
        )
        models = Models(sound, judge=away)
        with dspy.context(lm=models.lm("worker")):
            found = run(PROGRAM, samples(5), [metric_of("helpfulness", models=models), "brevity"])
    assert found.indecisive == ("helpfulness",)
    assert "helpfulness: Check that the service of the judge's model is up, and its base URL." in found.table().notes


def test_numbers_of_numpys_weigh_and_group() -> None:
    examples = [
        dspy.Example(left=n, right=1, weight=np.int64(1 + n % 2), cluster=np.int32(n % 3)).with_inputs("left", "right")
        for n in range(12)
    ]
    found = run(Adder(), examples, ALWAYS)
    assert [outcome.weight for outcome in found.outcomes] == [1.0, 2.0] * 6
    assert [outcome.cluster for outcome in found.outcomes] == [0, 1, 2] * 4
    assert set(found.breakdown("cluster")) == {"0", "1", "2"}
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    for wrong in (np.int64(0), np.float32("nan"), np.bool_(True)):
        with pytest.raises(UsageError, match="not above zero"):
            run(Adder(), [dspy.Example(left=1, right=1, weight=wrong).with_inputs("left", "right")], ALWAYS)
    one, other = (questions([dspy.Example(left=np.int64(n)).with_inputs("left")])[0] for n in (1, 2))
    assert one.fingerprint != other.fingerprint


def test_people_said_nothing_of_an_answer_that_cannot_be_read() -> None:
    class Stubborn(dspy.Module):
        def forward(self, conversation: Any, **more: Any) -> dspy.Prediction:
            raise dspy.utils.exceptions.AdapterParseError("ChatAdapter", dspy.Signature("a -> b"), "?")

    found = run(Stubborn(), samples(3, human=[{"thumb": Score(1.0)}] * 3), [metric_of(human("thumb")), "brevity"])
    assert found.missing["thumb"] == {"people judged the recorded answer, and this is another": 3}
    assert (found["brevity"].value, found.faults) == (0.0, 3)


def test_people_judged_only_the_recorded_answer() -> None:
    said = [{"thumb": Score(1.0)}] * 3
    with dspy.context(lm=lm(seed=1)):
        found = run(PROGRAM, samples(3, human=said), metric_of(human("thumb")))
    assert found.missing["thumb"] == {"people judged the recorded answer, and this is another": 3}
    assert found.metrics[0].kind == "HUMAN"


# Nothing is paid for twice.


def test_a_journal_answers_what_was_asked_before(models: Models, rehearsal: Served, tmp_path: Path) -> None:
    helpful = metric_of("helpfulness", models=models)
    with Journal.open(tmp_path / "run.db") as journal, dspy.context(lm=models.lm("worker")):
        first = run(PROGRAM, samples(8), [helpful], journal=journal)
        assert rehearsal.counts().calls == 16
        again = run(PROGRAM, samples(8), [metric_of("helpfulness", models=models)], journal=journal)
        assert rehearsal.counts().calls == 16
        assert [each.scores for each in again.outcomes] == [each.scores for each in first.outcomes]
        assert (again.remembered, again.outcomes[0].rollouts) == (8, first.outcomes[0].rollouts)
        # Another metric judges the answers there are; more examples and another prompt are asked for.
        more = run(PROGRAM, samples(10), [helpful, "brevity"], journal=journal)
        assert (rehearsal.counts().calls, more.remembered) == (20, 8)
        run(
            ChatProgram(ChatPrompt(system="Answer {{customer_name}} of plan {{plan}} on {{date}}.")),
            samples(8),
            "brevity",
            journal=journal,
        )
        assert rehearsal.counts().calls == 28
        run(PROGRAM, samples(8), "brevity", repeats=2, journal=journal)
        assert rehearsal.counts().calls == 36


JUDGED: Counter[int] = Counter()


def once_broken(left: int, answer: Any) -> float:
    JUDGED[left] += 1
    if left == 2 and JUDGED[left] == 1:
        raise ValueError
    return 0.5


def test_what_is_missing_is_asked_for_again_and_what_is_no_json_too(tmp_path: Path) -> None:
    asked: Counter[int] = Counter()

    class Thing:
        pass

    def tell(n: int) -> Any:
        asked[n] += 1
        if n == 1 and asked[n] == 1:
            raise Outage("The model's service failed.")
        return Thing() if n == 2 else None

    with Journal.open(tmp_path / "run.db") as journal:
        first = run(Adder(tell), sums(12), metric_of(once_broken), journal=journal, most_missing=1)
        second = run(Adder(tell), sums(12), metric_of(once_broken), journal=journal)
        third = run(Adder(tell), sums(12), metric_of(once_broken), journal=journal)
    assert tuple(each["once_broken"].missing for each in (first, second, third)) == (2, 0, 0)
    assert (asked[0], asked[1], asked[2]) == (1, 2, 2)
    assert third.remembered == 12
    assert (JUDGED[0], JUDGED[1], JUDGED[2]) == (1, 1, 2)


class Verdict(pydantic.BaseModel):
    fits: bool
    why: str


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Typed(dspy.Signature):
    left: int = dspy.InputField()
    verdict: Verdict = dspy.OutputField()
    moods: list[Mood] = dspy.OutputField()


def test_answers_come_back_with_the_types_of_the_signature(tmp_path: Path) -> None:
    """Though a verdict is missing each time, no answer is paid for again."""
    asked: Counter[int] = Counter()

    class Judging(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(Typed)

        def forward(self, left: int) -> dspy.Prediction:
            asked[left] += 1
            said = Verdict(fits=left > 1, why=f"{asked[left]}")
            return dspy.Prediction(verdict=said, moods=[Mood.GOOD] * left)

    def fits(verdict: Any, moods: Any) -> float:
        if len(moods) == 2:
            raise ValueError
        return float(verdict.fits and moods[0] is Mood.GOOD)

    examples = [dspy.Example(left=n).with_inputs("left") for n in range(1, 5)]
    with Journal.open(tmp_path / "run.db") as journal, dspy.context(lm=lm(seed=1)):
        for _ in range(3):
            found = run(Judging(), examples, metric_of(fits), journal=journal)
        other = metric_of(lambda verdict: float(verdict.fits), name="other")
        more = run(Judging(), examples, other, journal=journal)
    assert set(asked.values()) == {1}
    assert [card["fits"].value for card in found.scorecards] == [0.0, None, 1.0, 1.0]
    assert more.values("other").tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("given", ["4", 4, 4.5, True, None, [1], {"a": (1, 2)}, Mood.GOOD, Verdict(fits=True, why="?")])
@pytest.mark.parametrize("kind", [int, str, int | None, list[str], Mood, Verdict, dict[str, Any]])
def test_what_counts_as_whole_comes_back_equal(given: Any, kind: Any) -> None:
    """Whatever the program makes of a field's name."""
    program = dspy.Predict(dspy.Signature({"left": (int, dspy.InputField()), "answer": (kind, dspy.OutputField())}))
    with dspy.context(lm=lm(seed=1)):
        subject = Subject(program)
    prediction = dspy.Prediction(answer=given)
    kept = Rollout.from_json(json.loads(json.dumps(Rollout(0, plain(dict(prediction.items()))).to_json())))
    if subject.is_whole(kept, prediction):
        back = subject.restored(kept)["answer"]
        assert (back, type(back)) == (given, type(given))
    else:
        assert not isinstance(given, str | int | float | None) or isinstance(given, Mood)
    if kind in (Mood, Verdict):
        assert subject.is_whole(kept, prediction) or not isinstance(given, kind)


def test_an_object_is_asked_for_again_until_it_was_judged_and_then_no_more(tmp_path: Path) -> None:
    asked: Counter[int] = Counter()

    class Thing:
        pass

    def tell(n: int) -> Any:
        asked[n] += 1
        return {"told": asked[n], "thing": Thing()}  # another one each time

    def seldom(left: int, answer: Any) -> float:
        if left == 1 and answer["told"] < 3:
            raise ValueError
        return 1.0

    with Journal.open(tmp_path / "run.db") as journal:
        for _ in range(5):
            found = run(Adder(tell), sums(3), metric_of(seldom), journal=journal, most_missing=1)
    assert asked == {0: 1, 1: 3, 2: 1}
    assert (found.remembered, found["seldom"].n) == (3, 3)


def test_an_answer_that_is_an_array_is_judged(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "run.db") as journal:
        found = run(Adder(lambda n: np.arange(n)), sums(4), metric_of(lambda answer: 1.0, name="m"), journal=journal)
    assert found["m"].n == 4


KILLED = """
import json, sys, dspy
from dspy_selfimprove.evaluation import evaluate
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.program import ChatProgram
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.sample import Sample

url, run, given = sys.argv[1:]
system, rows = json.loads(given)
models = Models(Model(name="openai/rehearsal", base_url=url, api_key="none"), slots=4)
metrics = [metric_of(name, models=models) for name in ("helpfulness", "tone")]
with Journal.open(run) as journal, dspy.context(lm=models.lm("worker")):
    program = ChatProgram(ChatPrompt(system=system, temperature=0))
    evaluate(program, map(Sample.from_json, rows), metrics, journal=journal, show=False)
"""


@pytest.mark.slow
def test_killed_in_the_middle_no_finished_call_is_repeated(tmp_path: Path) -> None:
    examples = samples(30)
    given = json.dumps([WORLD.prompts["system"], [each.to_json() for each in examples]])
    with serve(RehearsalModel(seed=1), latency=Latency.fixed(0.03)) as server:
        killed = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path / "run.db"), given])
        while killed.poll() is None and server.counts().answers < 40:
            time.sleep(0.005)
        assert killed.poll() is None, "it ended before it could be killed"
        killed.kill()
        killed.wait()
        time.sleep(0.2)
        before = server.counts().answers
        models = Models(Model(name="openai/rehearsal", base_url=server.url, api_key="none"), slots=4)
        metrics = [metric_of(name, models=models) for name in ("helpfulness", "tone")]
        with Journal.open(tmp_path / "run.db") as journal, dspy.context(lm=models.lm("worker")):
            kept = len(list(journal.entries("rollout"))) + len(list(journal.entries("score")))
            found = run(PROGRAM, examples, metrics, journal=journal)
        calls = server.counts().answers
    assert 40 - 8 <= kept <= before < 80
    assert calls == before + 90 - kept, "all that was kept is not asked for again, and nothing else is left out"
    assert calls <= 90 + 4, "only what was in flight is asked for twice"
    assert [found[name].n for name in found.names] == [30, 30]
    assert found.remembered >= kept // 3


# To look at and to keep.

SCORES = st.one_of(
    st.floats(0, 1).map(Score), st.sampled_from(["the judge did not answer in time", "it raised"]).map(Score.missing)
)
GROUPS = st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["billing", "<b>late</b>", "[red]x"]))


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    repeats, names = draw(st.integers(1, 3)), ("helpfulness", "brevity")[: draw(st.integers(1, 2))]
    outcomes = []
    for number in range(draw(st.integers(0, 12))):
        cards = tuple(Scorecard(f"T{number}", {name: draw(SCORES) for name in names}) for _ in range(repeats))
        rollouts = tuple(Rollout(each, {"output": "Ω 💥"}, draw(st.floats(0, 9))) for each in range(repeats))
        rest = (draw(st.sampled_from([1.0, 0.5])), draw(GROUPS), draw(st.none() | st.just("a")))
        outcomes.append(Outcome(f"T{number}", "f", {"q": 1}, {}, rollouts, cards, *rest))
    return Evaluation(tuple(outcomes), tuple(Measured(name, "1", at_least=0.5) for name in names), 12, repeats)


@settings(max_examples=40)
@given(evaluations())
def test_any_evaluation_adds_up_shows_itself_and_survives_json(found: Evaluation) -> None:
    back = Evaluation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert back == found
    for name in found.names:
        values = found.values(name)
        for value, outcome in zip(values, found.outcomes, strict=True):
            known = [card[name].value for card in outcome.cards if card[name].value is not None]
            assert math.isnan(value) if not known else value == pytest.approx(sum(known) / len(known))
        missing = sum(card[name].is_missing for outcome in found.outcomes for card in outcome.cards)
        assert sum(found.missing[name].values()) == missing
        every = found.repeats * len(found.outcomes)
        assert found.share_missing(name) == (missing / every if every else 1.0)
        assert (name in found.indecisive) == (found.share_missing(name) > 0.05)
    text, page = str(found), found._repr_html_()
    assert "<b>late" not in found.table("cluster").to_html()
    for name in found.names:
        assert name in text
        assert name in page
    assert len(found.to_frame()) == sum(len(outcome.cards) for outcome in found.outcomes)


def test_a_file_keeps_it_whole(tmp_path: Path) -> None:
    found = run(Adder(), sums(5), right)
    path = found.save(tmp_path / "evaluation.json")
    assert Evaluation.load(path) == found
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="cannot be read as an evaluation"):
        Evaluation.load(path)
    path.write_text(json.dumps({**found.to_json(), "format": 99}))
    with pytest.raises(DataError, match="newer version"):
        Evaluation.load(path)
    with pytest.raises(DataError):
        Evaluation.load(tmp_path / "none.json")


def test_it_fits_a_terminal_and_a_page() -> None:
    floors = [metric_of(right, at_least=0.5), metric_of(lambda left: 0.2, name="low", at_least=0.9)]
    examples = [
        dspy.Example(left=n, right=1, total=n + 1, weight=1 + n % 2).with_inputs("left", "right") for n in range(30)
    ]
    found = run(Adder(), examples, floors)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(found)
    shown = console.export_text()
    assert all(len(line) <= 80 for line in shown.splitlines())
    for said in ("right", "holds 0.50", "below 0.90", "production", "30 examples", "…"):
        assert (said in shown) == (said != "…"), said
    page = found._repr_html_()
    assert page.count("<svg") == 4
    assert "holds 0.50" in page
    with pytest.raises(UsageError, match="no metric 'wrong'"):
        found["wrong"]
    assert repr(found) == "<Evaluation of 30 examples: right 1.000, low 0.200>"


def test_progress_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(Adder(), sums(5), right)
    assert "Evaluating: 5" in capsys.readouterr().err
    run(Adder(), sums(5), right)
    assert capsys.readouterr().err == ""


# The pool.

TREES = st.recursive(st.just(()), lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=30)


@settings(max_examples=40)
@given(st.lists(TREES, max_size=6), st.integers(1, 5))
def test_every_task_and_what_follows_runs_once(trees: list[Any], size: int) -> None:
    ran: Counter[tuple[int, ...]] = Counter()
    lock = threading.Lock()

    def task(tree: Any, path: tuple[int, ...]) -> Any:
        def work() -> list[Any]:
            with lock:
                ran[path] += 1
            return [task(each, (*path, number)) for number, each in enumerate(tree)]

        return work

    def paths(tree: Any, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        yield path
        for number, each in enumerate(tree):
            yield from paths(each, (*path, number))

    Pool(size).run(task(tree, (number,)) for number, tree in enumerate(trees))
    assert ran == Counter(path for number, tree in enumerate(trees) for path in paths(tree, (number,)))


def test_a_pool_that_was_stopped_before_it_began_runs_nothing() -> None:
    pool = Pool(2)
    pool.stop()
    pool.run([lambda: pytest.fail("it ran")])


def test_a_pool_raises_what_a_task_raised_and_never_runs_more_than_its_size() -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def task(number: int) -> Any:
        def work() -> list[Any]:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.005)
            with lock:
                busy -= 1
            if number == 20:
                raise BudgetExhausted("enough")
            return []

        return work

    with pytest.raises(BudgetExhausted, match="enough"):
        Pool(3).run(task(number) for number in range(1000))
    assert most == 3
