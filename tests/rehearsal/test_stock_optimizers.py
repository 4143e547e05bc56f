"""DSPy's own optimizers with the rehearsal model in all three roles: nothing they ask goes unread, and each one helps.

The truth comes from the world, not from what an optimizer reports: expected scores of the texts it chose, examples
included. One support desk and one question desk; the budgets are small.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import dspy
import pytest
from phoenix.evals.llm.wrapper import generate_classification_schema

from dspy_selfimprove.prompt import fill, slots_of
from dspy_selfimprove.rehearsal.engine import lm
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.reading import read
from dspy_selfimprove.rehearsal.ticket import Example
from dspy_selfimprove.rehearsal.world import Kind, World

pytestmark = pytest.mark.slow

TRAIN, VALIDATION = 32, 24


class FillingAdapter(dspy.ChatAdapter):
    """The variables of a prompt are filled in when it is sent, so that an optimizer sees and keeps its slots."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        slots = slots_of(signature.instructions)
        if slots and set(slots) <= set(inputs):
            signature = signature.with_instructions(fill(signature.instructions, inputs, slots))
        return super().format(signature, demos, inputs)


class Desk(dspy.Module):
    def __init__(self, prompts: Mapping[str, str]) -> None:
        super().__init__()
        self.system = dspy.Predict(
            dspy.Signature("customer_name, plan, date, message -> reply", prompts["system"]),
        )

    def forward(self, **inputs: str) -> dspy.Prediction:
        return self.system(**inputs)


class Retrieval(dspy.Module):
    def __init__(self, prompts: Mapping[str, str], find: Callable[[str], tuple[str, ...]]) -> None:
        super().__init__()
        self.query = dspy.Predict(dspy.Signature("question -> query", prompts["query"]))
        self.answer = dspy.Predict(dspy.Signature("question, context -> answer", prompts["answer"]))
        self.find = find

    def forward(self, question: str) -> dspy.Prediction:
        context = "\n".join(self.find(self.query(question=question).query))
        return dspy.Prediction(reply=self.answer(question=question, context=context).answer, context=context)


@dataclass
class Recorder:
    """The model, and what it was asked in which role and form. The only way in."""

    model: RehearsalModel
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        reading = read(body)
        with self.lock:
            self.seen[reading.role, reading.form] += 1
        return self.model.complete(body)


class Task:
    """A world as an optimizer meets it: a program, examples and a metric."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.world = World.draw(kind, seed)
        self.recorder = Recorder(RehearsalModel(seed=seed))
        self.lm = lm(self.recorder)
        drawn = [self.example(example) for example in self.world.examples(TRAIN + VALIDATION)]
        self.train, self.validation = drawn[:TRAIN], drawn[TRAIN:]

    def program(self) -> dspy.Module:
        if self.world.kind == "support":
            return Desk(self.world.prompts)
        return Retrieval(self.world.prompts, self.world.retrieve)

    def example(self, example: Example) -> dspy.Example:
        if self.world.kind == "support":
            given = {**example.variables, "message": example.text}
        else:
            given = {"question": example.question}
        return dspy.Example(**given, origin=example.id).with_inputs(*given)

    def metric(self, gold: dspy.Example, made: dspy.Prediction, *_: object, **__: object) -> dspy.Prediction:
        """The mean of the world's metrics, and what the judges say."""
        example = self.world.example(int(gold.origin[1:]))
        values, feedback = [], []
        for name in self.world.metrics:
            if name in self.world.judges:
                value, words = self.judged(name, example, made)
            else:
                score = self.world.code_score(name, example, made.reply)
                value, words = score.value, score.feedback
            values.append(value)
            feedback.append(f"{name}: {words}")
        return dspy.Prediction(score=fmean(values), feedback="\n".join(feedback))

    def number(self, gold: dspy.Example, made: dspy.Prediction, *_: object) -> float:
        return float(self.metric(gold, made).score)

    def judged(self, name: str, example: Example, made: dspy.Prediction) -> tuple[float, str]:
        spec = self.world.judges[name]
        data = {"input": example.text, "output": made.reply, "context": made.get("context", "")}
        text = fill(str(spec.messages[0]["content"]), data, slots_of(str(spec.messages[0]["content"])))
        schema = generate_classification_schema(list(spec.choices))
        form = {"type": "json_schema", "json_schema": {"name": "extract_structured_data", "schema": schema}}
        body = {"model": "judge", "messages": [{"role": "user", "content": text}], "response_format": form}
        verdict = json.loads(self.recorder.complete(body)["choices"][0]["message"]["content"])
        return float(spec.choices[verdict["label"]] or 0.0), verdict["explanation"]

    def expected(self, program: dspy.Module) -> float:
        """The true mean score of what a program says and shows."""
        texts, demos = {}, {}
        for name, predictor in program.named_predictors():
            texts[name] = predictor.signature.instructions
            demos[name] = [
                ("\n".join(str(demo[key]) for key in ("message", "question") if key in demo), str(demo[output]))
                for demo in predictor.demos
                for output in predictor.signature.output_fields
            ]
        return fmean(self.world.expected(texts, demos).values())


def mipro(task: Task) -> dspy.Module:
    optimizer = dspy.MIPROv2(
        metric=task.number,
        auto=None,
        num_candidates=8,
        max_bootstrapped_demos=2,
        max_labeled_demos=0,
        metric_threshold=0.6,  # without it, examples of any score are kept
        num_threads=1,
    )
    return optimizer.compile(
        task.program(), trainset=task.train, valset=task.validation, num_trials=16, minibatch=False
    )


def copro(task: Task) -> dspy.Module:
    optimizer = dspy.COPRO(metric=task.number, breadth=6, depth=3)
    return optimizer.compile(task.program(), trainset=task.train, eval_kwargs={"num_threads": 1})


def simba(task: Task) -> dspy.Module:
    optimizer = dspy.SIMBA(metric=task.metric, bsize=16, num_candidates=4, max_steps=4, max_demos=1, num_threads=1)
    return optimizer.compile(task.program(), trainset=task.train, seed=1)


def gepa(task: Task) -> dspy.Module:
    optimizer = dspy.GEPA(
        metric=task.metric,
        max_metric_calls=400,
        reflection_lm=task.lm,
        num_threads=1,
        warn_on_score_mismatch=False,  # the judge is asked twice and differs with itself
    )
    return optimizer.compile(task.program(), trainset=task.train, valset=task.validation)


class Complaints(logging.Handler):
    """What dspy and gepa log when something could not be read; they go on regardless."""

    WORDS = ("parse", "failed", "error", "exception", "traceback", "fallback", "without program aware", "invalid")

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        proposal = "Proposed new text" in said or said.startswith("Advice for ")
        if not proposal and any(word in said.lower() for word in self.WORDS):
            self.heard.append(said)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    handler = Complaints()
    logging.getLogger("dspy").addHandler(handler)
    yield handler.heard
    logging.getLogger("dspy").removeHandler(handler)


@pytest.mark.parametrize("kind", ["support", "retrieval"])
@pytest.mark.parametrize("optimize", [mipro, copro, simba, gepa])
def test_a_stock_optimizer_helps(
    optimize: Callable[[Task], dspy.Module],
    kind: Kind,
    complaints: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = Task(kind, seed=0)
    before = task.expected(task.program())
    with dspy.context(lm=task.lm, adapter=FillingAdapter()):
        chosen = optimize(task)
    after = task.expected(chosen)
    said = capsys.readouterr().out
    assert complaints == []
    assert "Error getting" not in said
    # ChatAdapter asks again as JSONAdapter when it cannot read an answer; only GEPA's proposer speaks JSON by itself.
    forms = {"worker": {"chat"}, "judge": {"schema"}, "coach": {"json"} if optimize is gepa else {"chat"}}
    assert {role: {form for each, form in task.recorder.seen if each == role} for role in forms} == forms
    assert after > before + 0.02


@pytest.mark.parametrize("kind", ["support", "retrieval"])
def test_what_is_observed_is_what_the_world_expects(kind: Kind) -> None:
    """Through DSPy, its adapter and the judges' prompts: nothing of a prompt is lost on the way to the model."""
    task = Task(kind, seed=1)
    examples = [task.example(example) for example in task.world.examples(300, start=1000)]
    with dspy.context(lm=task.lm, adapter=FillingAdapter()):
        program = task.program()
        seen = [task.number(example, program(**example.inputs())) for example in examples]
    assert fmean(seen) == pytest.approx(task.expected(program), abs=4 * stdev(seen) / len(seen) ** 0.5)
