"""DSPy's own optimizers behind our protocol: the contract for each, and what could go wrong between the two."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.errors import BudgetExhausted, Outage, Refused, UsageError
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import Metrics, metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.optimizer import Optimizer, optimizer_of
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.program import ChatProgram, read_candidate
from dspy_selfimprove.rehearsal import Faults, World
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.testing import OptimizerContract, Stage, stage

NAMES = ("mipro", "copro", "simba", "gepa", "bootstrap")


@pytest.mark.slow
class TestMIPROv2(OptimizerContract):
    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        return optimizer_of("mipro", stage.metrics, models=stage.models, **settings)


@pytest.mark.slow
class TestCOPRO(OptimizerContract):
    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        return optimizer_of("copro", stage.metrics, models=stage.models, **settings)


@pytest.mark.slow
class TestSIMBA(OptimizerContract):
    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        return optimizer_of("simba", stage.metrics, models=stage.models, **settings)


@pytest.mark.slow
class TestGEPA(OptimizerContract):
    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        return optimizer_of("gepa", stage.metrics, models=stage.models, **settings)


@pytest.mark.slow
class TestBootstrap(OptimizerContract):
    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        return optimizer_of("bootstrap", stage.metrics, models=stage.models, **settings)


def improved(name: str, desk: Stage, program: Any = None, **settings: Any) -> Any:
    made = optimizer_of(name, desk.metrics, models=desk.models, show=False, **settings)
    return made.compile(program or desk.program, trainset=desk.train, valset=desk.validation)


# What it is for.


@pytest.mark.slow
def test_a_real_gain_is_found_and_shown() -> None:
    """The truth is the world's own, which no optimizer knows."""
    wanted = Preference({"helpfulness": Goal(weight=3), "brevity": Goal(weight=1)})
    with stage(seed=1, budget=Budget(calls=700), validation=40) as desk:
        chosen = improved("gepa", desk, preference=wanted)
        assert chosen.improvement.verdict == "improved", str(chosen.improvement)
        before, after = (
            wanted.quality(desk.world.expected({"system": each.prompt.system})) or 0.0
            for each in (desk.program, chosen)
        )
    assert after > before + 0.05


@pytest.mark.parametrize("name", ["mipro", "copro", "gepa", "bootstrap"])
def test_no_answer_is_paid_for_twice(name: str) -> None:
    """Not by the optimizer, which asks again all the time, and not to measure what it saw already."""
    with stage(budget=Budget(calls=120)) as desk:
        found = improved(name, desk).improvement
        asked = Counter(desk.heard[: desk.server.counts().calls])
    coach = found.spent["coach"].calls if "coach" in found.spent else 0
    again = sum(count - 1 for count in asked.values())
    assert again <= coach, "only a coach that is asked again is meant to give another answer"
    if name in ("mipro", "bootstrap"):
        assert found.compared > 1, "nothing was measured that the optimizer had seen, so this shows nothing"


def test_the_pool_of_an_optimizer_that_knows_one_number_has_a_front() -> None:
    with stage(budget=Budget(calls=140)) as desk:
        found = improved("mipro", desk).improvement
        assert found.compared >= 3
        assert len(found.front) >= 2
        assert all(set(trial.means) == {"brevity", "helpfulness"} for trial in found.front)
        assert all(trial.n == len(desk.validation) for trial in found.front)
        assert {each.operator for name, each in found.lineage.items() if name != found.baseline.candidate.id} == {
            "mipro"
        }


def test_judges_count_against_the_same_budget() -> None:
    with stage(budget=Budget(calls=100), judge=True) as desk:
        found = improved("gepa", desk).improvement
        assert desk.server.counts().calls <= 100
        assert found.spent["judge"].calls == desk.server.counts().roles["judge"] > 0
        assert set(found.names) == {"brevity", "helpfulness", "compliance"}


def test_the_budget_of_seconds_ends_it() -> None:
    """On a clock that a call takes a second by."""
    with stage() as desk:
        ledger = Ledger(Budget(seconds=40), clock=lambda: float(desk.server.counts().calls))
        models = Models(desk.models.by_role["worker"], slots=4, ledger=ledger)
        found = improved("gepa", replace(desk, models=models)).improvement
        assert 30 < desk.server.counts().calls <= 44
    assert found.stopped.reason == "budget"
    assert "40 seconds" in found.stopped.sentence
    assert found.baseline.status == "measured"


def test_a_budget_that_does_not_pay_for_the_baseline_says_so() -> None:
    with stage(budget=Budget(calls=6)) as desk:
        chosen = improved("copro", desk)
        assert desk.server.counts().calls <= 6
    found = chosen.improvement
    assert found.stopped.reason == "budget"
    assert "before the baseline was measured" in found.stopped.sentence
    assert read_candidate(chosen) == read_candidate(desk.program)


class Counted(ChatProgram):
    """Counts the answers that it asked for and that were not paid for any more."""

    refused = 0

    def forward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            Counted.refused += 1
            raise


@pytest.mark.parametrize("name", NAMES)
def test_a_cap_that_is_reached_inside_dspys_evaluation_ends_the_search_there(name: str, tmp_path: Path) -> None:
    """Somebody else spends the rest of it meanwhile. DSPy would score 0 what is refused then, and go on."""
    with Journal.open(tmp_path / "run.db") as journal, stage(budget=Budget(calls=200)) as desk:
        judged, ledger = iter(range(10_000)), desk.models.ledger

        def greedy(output: str) -> float:
            if next(judged) == 35:
                while True:
                    try:
                        ledger.settle(ledger.reserve("judge"))
                    except BudgetExhausted as full:
                        if full.final:
                            break
            return 0.5

        Counted.refused = 0
        program = Counted(desk.program.prompt)
        made = optimizer_of(name, [greedy], models=desk.models, journal=journal, show=False)
        found = made.compile(program, trainset=desk.train, valset=desk.validation).improvement
        scores = {entry.data["score"]["value"] for entry in journal.entries("score")}
    assert found.stopped.reason == "budget"
    # Those on their way in the search, and for each finalist those that find nothing left.
    assert Counted.refused <= 4 + 3 * 4
    assert scores == {0.5}


# When something is away or broken.


@pytest.mark.parametrize("name", ["copro", "simba", "gepa"])
def test_an_outage_of_a_few_answers_scores_nothing_zero(name: str, tmp_path: Path) -> None:
    """Every answer that comes is perfect; a sixth never comes. A zero anywhere would be an outage taken for one."""
    faults = Faults(dropped=0.17)
    with (
        Journal.open(tmp_path / "run.db") as journal,
        stage(budget=Budget(calls=150), faults=faults, attempts=1) as desk,
    ):
        perfect = Metrics([metric_of(lambda output: 1.0, name="perfect")])
        made = optimizer_of(name, perfect, models=desk.models, journal=journal, show=False)
        found = made.compile(desk.program, trainset=desk.train, valset=desk.validation).improvement
        scores = [entry.data["score"]["value"] for entry in journal.entries("score") if "score" in entry.data]
        assert desk.server.counts().errors["dropped"]
    assert scores
    assert set(scores) == {1.0}
    for trial in (found.baseline, *found.front, *found.unproven):
        assert all(mean.value == pytest.approx(1.0) for mean in trial.means.values() if mean.n)


def test_an_answer_that_cannot_be_read_is_the_candidates_fault() -> None:
    """An ordinary DSPy program whose answers come in no form that DSPy can read: 0, and the run goes on."""
    with stage(budget=Budget(calls=80)) as desk:
        program = dspy.Predict("message -> verdict: bool")  # the rehearsal model answers customers in prose
        examples = [
            dspy.Example(id=each.id, message=str(each.conversation)).with_inputs("message") for each in desk.train
        ]
        exact = Metrics([metric_of(lambda verdict: float(verdict), name="exact")])
        made = optimizer_of("copro", exact, models=desk.models, show=False)
        found = made.compile(program, trainset=examples[:8], valset=examples[8:]).improvement
    assert found.stopped.reason in ("finished", "budget")
    assert 0.0 <= found.baseline.means["exact"].value <= 1.0


@pytest.mark.parametrize("name", ["gepa"])
def test_a_service_that_is_away_from_the_start_is_one_clear_sentence(name: str) -> None:
    with stage(attempts=1) as desk:
        desk.server.stop()
        with pytest.raises(Outage) as raised:
            improved(name, desk)
    assert str(raised.value).startswith("The model's service")
    assert raised.value.remedy


@pytest.mark.parametrize("name", ["copro", "simba", "gepa"])
def test_a_service_that_goes_away_leaves_what_is_known(name: str) -> None:
    asked = iter(range(10_000))

    with stage(budget=Budget(calls=300), attempts=1) as desk:

        def leaving(output: str) -> float:
            if next(asked) == 25:
                desk.server.stop()
            return 0.5

        desk = replace(desk, metrics=Metrics([metric_of(leaving)]))
        found = improved(name, desk).improvement
    assert found.stopped.reason == "outage"
    assert found.stopped.sentence
    assert found.baseline.status == "measured"
    assert found.chosen == found.baseline


@pytest.mark.parametrize("name", ["mipro", "copro", "gepa"])
def test_a_coach_that_is_away_ends_it(name: str) -> None:
    with stage(budget=Budget(calls=400)) as desk:
        worker = desk.models.by_role["worker"]
        dead = Model(name="openai/rehearsal", base_url="http://127.0.0.1:9/v1", api_key="none", attempts=1)
        models = Models(worker, coach=dead, slots=4, ledger=Ledger(Budget(calls=400)))
        found = improved(name, replace(desk, models=models)).improvement
    assert found.stopped.reason == "outage"
    assert found.baseline.status == "measured"


@pytest.mark.parametrize("name", ["mipro", "gepa"])
def test_a_coach_that_is_set_up_wrongly_is_an_error(name: str) -> None:
    from dspy_selfimprove.rehearsal import RehearsalModel, serve

    with stage(budget=Budget(calls=400)) as desk, serve(RehearsalModel(), api_key="right") as guarded:
        worker = desk.models.by_role["worker"]
        wrong = Model(name="openai/rehearsal", base_url=guarded.url, api_key="wrong")
        models = Models(worker, coach=wrong, slots=4, ledger=Ledger(Budget(calls=400)))
        with pytest.raises(Refused, match="key"):
            improved(name, replace(desk, models=models))


def test_what_cannot_work_is_refused_before_anything_is_asked() -> None:
    class Waiting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict("message -> output")

        async def aforward(self, **inputs: Any) -> dspy.Prediction:
            return await self.answer.acall(**inputs)

    with stage() as desk:
        with pytest.raises(UsageError, match="only be awaited"):
            improved("gepa", desk, Waiting())
        other = Models(desk.models.by_role["worker"])
        foreign = dspy.Predict("message -> output")
        foreign.lm = other.lm("worker")
        with pytest.raises(UsageError, match="LM of its own"):
            improved("gepa", desk, foreign)
        with pytest.raises(UsageError, match="no predictor"):
            improved("gepa", desk, dspy.Module())
        assert desk.server.counts().calls == 0


# Other programs, other callers.


class Retrieval(dspy.Module):
    """Writes a query, reads what it finds, answers."""

    def __init__(self, prompts: Mapping[str, str], world: World) -> None:
        super().__init__()
        self.query = dspy.Predict(dspy.Signature("question -> query", prompts["query"]))
        self.answer = dspy.Predict(dspy.Signature("question, context -> answer", prompts["answer"]))
        self.find = world.retrieve

    def forward(self, question: str) -> dspy.Prediction:
        context = "\n".join(self.find(self.query(question=question).query))
        return dspy.Prediction(output=self.answer(question=question, context=context).answer)


@pytest.mark.parametrize("name", ["copro", "simba"])
def test_a_part_of_the_budget_is_held_back_for_those_that_see_no_validation_set(name: str) -> None:
    with stage(budget=Budget(calls=100)) as desk:
        found = improved(name, desk).improvement
        assert desk.server.counts().calls <= 100
    assert found.compared >= 2
    assert all(trial.status == "measured" for trial in found.front)


@pytest.mark.parametrize("name", NAMES)
def test_a_program_of_two_predictors(name: str) -> None:
    world = World.draw("retrieval", 0)
    with stage(budget=Budget(calls=170)) as desk:
        examples = [
            dspy.Example(id=each.id, question=each.question, reference=each.reference).with_inputs("question")
            for each in world.examples(20)
        ]
        by_id = {each.id: each for each in world.examples(20)}

        def correctness(example: Any, output: str) -> Any:
            return world.code_score("correctness", by_id[example.id], output)

        program = Retrieval(world.prompts, world)
        made = optimizer_of(name, [correctness], models=desk.models, show=False)
        chosen = made.compile(program, trainset=examples[:12], valset=examples[12:])
        assert desk.server.counts().calls <= 170
    assert type(chosen) is Retrieval
    assert set(chosen.improvement.chosen.candidate.texts) == {"query", "answer"}
    assert chosen.improvement.tried > 1


def test_samples_of_production_are_examples_too() -> None:
    with stage(budget=Budget(calls=60)) as desk:
        reply = {"role": "assistant", "content": "It comes on Friday."}
        samples = [
            Sample(each.id, tuple(each.conversation), reply, variables=each.variables)  # type: ignore[arg-type]
            for each in (*desk.train, *desk.validation)
        ]
        made = optimizer_of("bootstrap", desk.metrics, models=desk.models, show=False)
        found = made.compile(desk.program, trainset=samples).improvement
        assert found.baseline.n == len(samples) // 2
        assert found.compared > 0
        assert desk.server.counts().calls <= 60


def test_it_is_awaited_and_called_off() -> None:
    async def run() -> None:
        with stage(budget=Budget(calls=60)) as desk:
            made = optimizer_of("gepa", desk.metrics, models=desk.models, show=False)
            chosen = await made.acompile(desk.program, trainset=desk.train, valset=desk.validation)
            assert chosen.improvement.tried > 1
        asked, loop = threading.Event(), asyncio.get_running_loop()
        with stage() as desk:

            def slow(output: str) -> float:
                asked.set()
                return 0.5

            made = optimizer_of("gepa", [slow], models=desk.models, show=False)
            task = loop.create_task(made.acompile(desk.program, trainset=desk.train, valset=desk.validation))
            await asyncio.to_thread(asked.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            calls = desk.server.counts().calls
            assert desk.models.ledger.in_flight == 0
            await asyncio.sleep(0.2)
            assert desk.server.counts().calls == calls < 100

    asyncio.run(run())


def test_nothing_of_an_example_is_printed_or_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with stage(budget=Budget(calls=80)) as desk:
        made = optimizer_of("copro", desk.metrics, models=desk.models)
        made.compile(desk.program, trainset=desk.train, valset=desk.validation)
        texts = [each.conversation[0]["content"] for each in (*desk.train, *desk.validation)]
    said = "".join(capfd.readouterr())
    assert "Searching (copro)" in said
    assert not [text for text in texts if text in said]
    assert desk.program.prompt.system not in said


def test_a_program_that_was_improved_can_be_improved_and_saved(tmp_path: Path) -> None:
    with stage(budget=Budget(calls=120)) as desk:
        first = improved("bootstrap", desk)
    with stage(budget=Budget(calls=80)) as desk:
        second = improved("bootstrap", desk, first)
    assert second.improvement is not first.improvement
    assert second.deepcopy().improvement == second.improvement
    second.save(tmp_path / "program.json")
    assert "improvement" not in json.loads((tmp_path / "program.json").read_text())


# Killed.

SCRIPT = """
import sys
from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.optimizer import optimizer_of
from dspy_selfimprove.testing import stage

name, url, path = sys.argv[1:]
with stage() as desk, Journal.open(path) as journal:
    model = Model(name="openai/rehearsal", base_url=url, api_key="none")
    models = Models(model, slots=1, ledger=Ledger(Budget(calls=90)))
    made = optimizer_of(name, ["brevity"], models=models, journal=journal, show=False)
    chosen = made.compile(desk.program, trainset=desk.train, valset=desk.validation)
    print(chosen.improvement.chosen.candidate.id, chosen.improvement.tried)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simba"])
def test_killed_and_started_again_it_pays_for_no_call_twice(name: str, tmp_path: Path) -> None:
    """`kill -9` in the middle. The server counts what was asked of it."""

    def start(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, name, desk.server.url, str(path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with stage() as desk:
        whole, _ = start(tmp_path / "whole.db").communicate(timeout=120)
        uninterrupted = desk.server.counts().calls
        assert 20 < uninterrupted <= 90
    with stage() as desk:
        process = start(tmp_path / "killed.db")
        while desk.server.counts().calls < 0.6 * uninterrupted and process.poll() is None:
            threading.Event().wait(0.002)
        process.kill()
        process.communicate()
        assert desk.server.counts().calls < uninterrupted, "it was over before it was killed"
        parts, _ = start(tmp_path / "killed.db").communicate(timeout=120)
        assert desk.server.counts().calls <= uninterrupted + 1  # the one in flight
    assert parts == whole
