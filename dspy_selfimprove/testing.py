"""For whoever writes an optimizer or a metric: the contract an optimizer keeps, and a stage to try things on.

    class TestMine(OptimizerContract):
        def make(self, stage, **settings):
            return Mine(stage.metrics, models=stage.models, **settings)

pytest then runs the contract's tests on the rehearsal model: real HTTP, real ledgers and journals, seconds each. They
use plain assertions, so any other runner will do too. `stage` gives the same world, program, metrics and models to a
test of one's own, with whatever goes wrong as often as it should (`Faults`).

Not covered: whether an optimizer is any good (a contract that demanded gains would be a benchmark), and what it does
with a real model.
"""

from __future__ import annotations

import _thread
import json
import random
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.evaluation import Evaluation, evaluate
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import Metric, Metrics, metric_of
from dspy_selfimprove.model import Call, Model, Models, Price
from dspy_selfimprove.optimizer import Improvement, Optimizer
from dspy_selfimprove.rehearsal.engine import StandIn
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency
from dspy_selfimprove.rehearsal.judge import verdict
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.server import Served, serve
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.world import World
from dspy_selfimprove.statistics import estimate_difference

if TYPE_CHECKING:
    import dspy

__all__ = ["Fault", "Faults", "Latency", "OptimizerContract", "Stage", "stage"]

TRAIN: Final = 16
VALIDATION: Final = 10
CALLS: Final = 120  # enough for each optimizer to try something, and over in seconds
SLOTS: Final = 4
FAULTS: Final = 0.1
_PRICE: Final = Price(input=1.0, output=2.0)


@dataclass(frozen=True)
class Stage:
    """A world of the rehearsal model with everything an optimizer is given. Made by `stage()`.

    `test` is sealed: no optimizer is given it, and `heard` says what the model was asked.
    """

    world: World
    server: Served
    models: Models
    metrics: Metrics
    program: dspy.Module
    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]
    calls: list[Call] = field(repr=False)
    heard: list[str] = field(repr=False)

    def evaluation(self, program: dspy.Module) -> Evaluation:
        """What our own evaluation says of a program on the validation examples, asked anew."""
        import dspy

        with dspy.context(lm=self.models.lm("worker")):
            return evaluate(program, self.validation, self.metrics, show=False)

    def restarted(self) -> Stage:
        """The same stage as another process would find it: nothing in memory, and nothing spent."""
        old = self.models
        fresh = Models(old.by_role["worker"], slots=old.slots.size, ledger=Ledger(old.ledger.budget))
        return replace(self, models=fresh, metrics=Metrics(replace(each) for each in self.metrics))


class _Heard:
    """The model, and the texts it was asked."""

    def __init__(self, model: StandIn, heard: list[str]) -> None:
        self._model, self._heard = model, heard

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._heard.append(json.dumps(body["messages"], ensure_ascii=False))
        return self._model.complete(body)


@contextmanager
def stage(
    *,
    seed: int = 0,
    budget: Budget | None = None,
    slots: int = SLOTS,
    faults: Faults | None = None,
    judge: bool = False,
    train: int = TRAIN,
    validation: int = VALIDATION,
    **model: Any,
) -> Iterator[Stage]:
    """A support desk, its program, and its metrics: how short and how helpful a reply is; with `judge` also a judge's.

    `train` and `validation` count the examples; `model` are settings of the `Model` that plays all roles.

    >>> with stage(budget=Budget(calls=50)) as desk:
    ...     found = desk.evaluation(desk.program)
    >>> found.names, found["brevity"].n, desk.models.ledger.total.calls
    (('brevity', 'helpfulness'), 10, 10)
    """
    import dspy

    from dspy_selfimprove.program import ChatProgram
    from dspy_selfimprove.prompt import ChatPrompt

    world, heard, calls = World.draw("support", seed), list[str](), list[Call]()
    examples = [
        dspy.Example(
            id=each.id,
            conversation=[{"role": "user", "content": each.text}],
            variables=dict(each.variables),
            parameters={},
        ).with_inputs("conversation", "variables", "parameters")
        for each in world.examples(train + 2 * validation)
    ]
    with serve(_Heard(RehearsalModel(seed=seed), heard), seed=seed, faults=faults) as server:
        settings = {"price": _PRICE, "timeout": 5.0, **model}
        worker = Model(name="openai/rehearsal", base_url=server.url, api_key="none", **settings)
        models = Models(worker, slots=slots, ledger=Ledger(budget or Budget()), watch=calls.append)
        yield Stage(
            world=world,
            server=server,
            models=models,
            metrics=Metrics(_metrics(world, models, judge=judge)),
            program=ChatProgram(ChatPrompt(system=world.prompts["system"])),
            train=tuple(examples[:train]),
            validation=tuple(examples[train : train + validation]),
            test=tuple(examples[train + validation :]),
            calls=calls,
            heard=heard,
        )


def _metrics(world: World, models: Models, *, judge: bool) -> Iterator[Metric]:
    steady = Temper(judge_noise=0.0, judge_length_bias=0.0)

    def brevity(output: str) -> Any:
        """Whether the reply is short."""
        return world.code_score("brevity", first, output)

    def helpfulness(example: Any, output: str) -> tuple[float, str]:
        """How much of what the customer needs is in the reply."""
        found = verdict(
            world.criteria["helpfulness"],
            topic=world.example(int(example.id[1:])).topic,
            reply=output,
            notches=5,
            temper=steady,
            dice=random.Random(0),
        )
        return found.share, found.explanation

    first = world.example(0)
    yield metric_of(brevity)
    yield metric_of(helpfulness)
    if judge:
        yield metric_of(world.judges["compliance"], models=models)


class OptimizerContract:
    """What holds for every optimizer. A subclass says how to `make` one; pytest runs the rest.

    `calls` is the budget of an ordinary run here. Raise it for an optimizer that cannot begin with so little.
    """

    calls: int = CALLS

    def make(self, stage: Stage, **settings: Any) -> Optimizer:
        """An optimizer for this stage; `settings` are those of every Optimizer, the metrics aside."""
        raise NotImplementedError

    def _run(self, stage: Stage, **settings: Any) -> tuple[dspy.Module, Improvement]:
        made = self.make(stage, show=False, **settings)
        chosen = made.compile(stage.program, trainset=stage.train, valset=stage.validation)
        found = chosen.improvement
        assert isinstance(found, Improvement)
        assert type(chosen) is type(stage.program), "the program that comes back is of another class"
        return chosen, found

    def test_what_it_returns_is_what_it_says_and_no_worse_than_the_baseline(self) -> None:
        from dspy_selfimprove.program import read_candidate

        with stage(budget=Budget(calls=self.calls), slots=SLOTS) as desk:
            before = read_candidate(desk.program)
            chosen, found = self._run(desk)
            assert read_candidate(desk.program) == before, "the student was changed"
            assert read_candidate(chosen).id == found.chosen.candidate.id
            assert found.baseline.candidate.id == before.id
            if not found.is_improved:
                assert found.chosen == found.baseline
            # Asked anew, outside the budget: the answers that chose it are not those that judge it.
            with stage(budget=Budget()) as fresh:
                old, new = fresh.evaluation(desk.program), fresh.evaluation(chosen)
            weights = desk.metrics.preference.weights
            values = [
                sum(weight * each.values(name) for name, weight in zip(desk.metrics.names, weights, strict=True))
                / sum(weights)
                for each in (new, old)
            ]
            assert estimate_difference(*values, level=0.99).high >= 0, "worse than the baseline, beyond noise"
            told = json.dumps(found.to_json(), allow_nan=False)
            assert Improvement.from_json(json.loads(told)) == found
            assert str(found)
            assert found._repr_html_()

    def test_it_keeps_a_prompt_that_cannot_be_bettered(self) -> None:
        with stage(budget=Budget(calls=self.calls // 2)) as desk:
            perfect = metric_of(lambda output: 1.0 if output else 0.0, name="answered")
            _, found = self._run(replace(desk, metrics=Metrics([perfect])))
            assert found.verdict != "improved"
            assert found.chosen.candidate.id == found.baseline.candidate.id

    def test_a_budget_is_kept(self) -> None:
        with stage() as desk:
            desk.evaluation(desk.program)
            usual = desk.models.ledger.total
        each = 1.5 * self.calls / usual.calls
        caps = {
            "calls": Budget(calls=self.calls // 2),
            "tokens": Budget(tokens=int(usual.tokens * each / 2)),
            "dollars": Budget(dollars=usual.dollars * each / 2),
        }
        for name, budget in caps.items():
            with stage(budget=budget) as desk:
                self._run(desk)
                spent, cap = getattr(desk.models.ledger.total, name), getattr(budget, name)
                largest = sorted((_cost(call, name) for call in desk.calls), reverse=True)[:SLOTS]
                assert spent <= cap + (0 if name == "calls" else sum(largest)), f"{spent} {name} of {cap}"
                assert desk.server.counts().calls == desk.models.ledger.total.calls
                assert desk.models.ledger.in_flight == 0

    def test_the_same_seed_gives_the_same_result(self) -> None:
        told = []
        for _ in range(2):
            with stage(budget=Budget(calls=self.calls // 2), slots=1) as desk:
                _, found = self._run(desk, seed=3)
                told.append(({**found.to_json(), "seconds": 0.0}, desk.heard))
        assert told[0] == told[1]

    def test_the_sealed_test_is_not_touched(self) -> None:
        with stage(budget=Budget(calls=self.calls // 2)) as desk:
            self._run(desk)
            texts = [str(each.conversation[0]["content"]) for each in (*desk.train, *desk.validation)]
            sealed = {str(each.conversation[0]["content"]) for each in desk.test} - set(texts)
            heard = "\n".join(desk.heard)
            assert sealed
            assert any(json.dumps(text, ensure_ascii=False)[1:-1] in heard for text in texts)
            assert not [text for text in sealed if json.dumps(text, ensure_ascii=False)[1:-1] in heard]

    def test_it_survives_faults(self) -> None:
        faults = Faults.mixed(FAULTS, retry_after=0.0, hang=0.1)
        with stage(budget=Budget(calls=self.calls // 2), faults=faults) as desk:
            chosen, found = self._run(desk)
            assert sum(desk.server.counts().errors.values()), "no fault came, so this shows nothing"
            assert found.stopped.reason in ("finished", "budget", "converged", "patience", "target")
            assert found.baseline.status == "measured"
            assert chosen is not None

    def test_ctrl_c_leaves_a_usable_result(self) -> None:
        assert threading.current_thread() is threading.main_thread(), "ctrl-C reaches the main thread alone"
        count = 2 * VALIDATION
        asked = iter(range(1_000_000))

        def patience(output: str) -> float:
            if next(asked) == count:
                _thread.interrupt_main()
            return 1.0

        with stage(budget=Budget(calls=self.calls)) as desk:
            watching = replace(metric_of(patience), weight=0.0)
            _, found = self._run(replace(desk, metrics=Metrics([*desk.metrics, watching])))
            assert found.stopped.reason == "interrupted"
            assert found.baseline.status == "measured"
            assert found.tried > 1 or found.chosen == found.baseline
            assert desk.models.ledger.in_flight == 0
            calls = desk.server.counts().calls
            assert calls < self.calls

    def test_started_again_on_its_journal_it_repeats_no_call(self) -> None:
        told, calls = [], []
        with tempfile.TemporaryDirectory() as folder, stage(budget=Budget(calls=self.calls // 2), slots=1) as desk:
            for _ in range(2):
                desk.server.reset()
                with Journal.open(Path(folder) / "run.db") as journal:
                    _, found = self._run(desk.restarted(), journal=journal)
                told.append(found.chosen.candidate)
                calls.append(desk.server.counts().calls)
        assert calls[0] > 0
        assert calls[1] == 0
        assert told[0] == told[1]


def _cost(call: Call, name: str) -> float:
    used = call.tokens.input + call.tokens.output
    return float(used) if name == "tokens" else (call.dollars or 0.0)
