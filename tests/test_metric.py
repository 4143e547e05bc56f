"""Metrics through their doors: what they are made of, where inputs come from, what goes wrong, what DSPy gets."""

from __future__ import annotations

import asyncio
import copy
import functools
import math
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import dspy
import httpx
import numpy as np
import pytest
import yaml
from phoenix.evals import ClassificationEvaluator, create_evaluator
from phoenix.evals.__generated__ import classification_evaluator_configs as phoenixs
from phoenix.evals.llm import LLM
from phoenix.evals.metrics import MatchesRegex, exact_match

from dspy_selfimprove import metrics
from dspy_selfimprove.case import Case, transcript
from dspy_selfimprove.errors import BudgetExhausted, DataError, Outage, Refused, TimedOut, UsageError
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.judge import Judge
from dspy_selfimprove.measure import Judged
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.metric import Metric, Metrics, human, metric_of
from dspy_selfimprove.metrics import label, structure, text
from dspy_selfimprove.metrics.usage import latency
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.program import example_of
from dspy_selfimprove.rehearsal import RehearsalModel, serve
from dspy_selfimprove.rehearsal.server import Served
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.score import Score, Scorecard

ASKED = {"role": "user", "content": "Where is my parcel?"}
SAID = {"role": "assistant", "content": "It arrives on Friday."}
SAMPLE = Sample(id="T1", chat_history=(ASKED,), output=SAID, variables={"plan": "plus"}, human={"thumb": Score(1.0)})
QUESTION = dspy.Example(question="2+2?", answer="4").with_inputs("question")


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Served]:
    with serve(RehearsalModel(seed=1)) as server:
        yield server


@pytest.fixture
def models(rehearsal: Served) -> Models:
    rehearsal.reset()
    return Models(Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none"), slots=4)


def exact(output: str, expected: str) -> bool:
    """Whether the answer is the one expected."""
    return output == expected


# Where inputs come from.


def seen_by(*names: str, **settings: Any) -> tuple[Metric, dict[str, Any]]:
    """A metric that asks for these names, and what it was given."""
    seen: dict[str, Any] = {}

    def note(**given: Any) -> float:
        seen.update(given)
        return 1.0

    parameters = ", ".join(names)
    scope: dict[str, Any] = {"note": note}
    exec(f"def asking({parameters}): return note({', '.join(f'{name}={name}' for name in names)})", scope)
    return metric_of(scope["asking"], **settings), seen


@pytest.mark.parametrize("example", [SAMPLE, example_of(SAMPLE)], ids=["sample", "example"])
def test_a_chat_is_found_under_the_usual_names(example: Any) -> None:
    asking, seen = seen_by("input", "output", "message", "reference", "expected", "plan", "conversation")
    reply = dspy.Prediction(output="On Monday.", message={"role": "assistant", "content": "On Monday."})
    assert asking.score(example, reply).value == 1
    assert seen == {
        "input": "Where is my parcel?",
        "output": "On Monday.",
        "message": {"role": "assistant", "content": "On Monday."},
        "reference": "It arrives on Friday.",
        "expected": "It arrives on Friday.",
        "plan": "plus",
        "conversation": [ASKED],
    }


def test_without_an_answer_the_recorded_one_is_judged() -> None:
    asking, seen = seen_by("output", "message")
    asking.score(SAMPLE)
    assert seen == {"output": "It arrives on Friday.", "message": SAID}
    with pytest.raises(UsageError, match="no answer to judge"):
        asking.score({"input": "?"})


def test_a_dspy_program_is_found_by_its_fields() -> None:
    asking, seen = seen_by("question", "input", "output", "expected", "answer", "reasoning")
    asking.score(QUESTION, dspy.Prediction(reasoning="Two and two.", answer="5"))
    assert seen == {
        "question": "2+2?",
        "input": "2+2?",
        "output": "5",
        "expected": "4",
        "answer": "5",
        "reasoning": "Two and two.",
    }


def test_of_several_output_fields_none_is_guessed() -> None:
    asking, _ = seen_by("output")
    with pytest.raises(UsageError, match=r"needs 'output'.*'answer', 'sure'"):
        asking.score(QUESTION, dspy.Prediction(answer="4", sure=True))
    mapped, seen = seen_by("output", input_mapping={"output": "answer"})
    mapped.score(QUESTION, dspy.Prediction(answer="4", sure=True))
    assert seen == {"output": "4"}


def test_several_inputs_are_shown_by_name() -> None:
    asking, seen = seen_by("input")
    asking.score(dspy.Example(city="Rome", nights=2, price=3).with_inputs("city", "nights"), "Booked.")
    assert seen == {"input": "city: Rome\nnights: 2"}


def test_the_whole_example_and_answer_are_dspys_own() -> None:
    asking, seen = seen_by("example", "gold", "prediction", "pred")
    asking.score(SAMPLE, "Hello.")
    assert isinstance(seen["example"], dspy.Example)
    assert seen["gold"].output == "It arrives on Friday."
    assert isinstance(seen["pred"], dspy.Prediction)
    assert seen["prediction"].output == "Hello."


def test_defaults_constants_and_everything_else() -> None:
    def wide(output: str, floor: float = 0.25, **rest: Any) -> float:
        return 1.0 if {"question", "expected", "input"} <= set(rest) else floor

    assert metric_of(wide).score(QUESTION, "4").value == 1
    assert metric_of(wide, name="w", given={"floor": 0.5}).score({}, "4").value == 0.5
    assert metric_of(wide, name="w").score({}, "4").value == 0.25


def test_a_conversation_as_text_holds_its_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}}
    turns = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "late"}]
    assert transcript(turns) == 'user: Where is my parcel?\n\nassistant: [calls find({"id": 7})]\n\ntool: late'
    assert transcript([]) == ""


def test_what_a_case_cannot_be_made_of_is_refused() -> None:
    for example, answer in ((7, "x"), ({}, 7)):
        with pytest.raises(UsageError, match="int is not an"):
            metric_of(exact).score(example, answer)


# What is missing in the data.


def test_an_input_that_is_nowhere_is_named_with_what_there_is() -> None:
    asking, _ = seen_by("output", "policy", "tone")
    with pytest.raises(UsageError) as refused:
        asking.check(SAMPLE)
    assert "needs 'policy', 'tone', and the data has 'output', 'message', 'input'" in str(refused.value)
    assert "'plan'" in str(refused.value)
    assert "given={'policy': ...}" in refused.value.remedy
    asking, _ = seen_by("output", "policy", "tone", given={"policy": "none", "tone": "kind"})
    asking.check(SAMPLE)


def test_a_judge_is_refused_before_anything_is_spent(models: Models, rehearsal: Served) -> None:
    judge = metric_of("compliance", models=models)
    assert set(judge.needs) == {"policy", "input", "output"}
    with pytest.raises(UsageError, match="'compliance' needs 'policy', and the data has 'output'"):
        judge.check(SAMPLE)
    with pytest.raises(UsageError, match="needs 'policy'"):
        judge.score(SAMPLE)
    with pytest.raises(UsageError, match="needs 'policy'"):
        asyncio.run(judge.ascore(SAMPLE))
    assert rehearsal.counts().calls == 0


def test_an_example_without_the_expected_answer_gives_no_verdict() -> None:
    nothing = dspy.Example(question="?", answer=None).with_inputs("question")
    assert metric_of(exact).score(nothing, "4").failure == "the example has no expected"
    assert asyncio.run(metric_of(text.token_f1).ascore(nothing, "4")).failure == "the example has no expected"


# What a function returns.


@dataclass
class Returned:
    score: float
    explanation: str


@pytest.mark.parametrize(
    ("returned", "value", "feedback"),
    [
        (0.25, 0.25, ""),
        (1, 1, ""),
        (True, 1, ""),
        (False, 0, ""),
        (np.bool_(True), 1, ""),
        (np.float32(0.5), 0.5, ""),
        (np.int64(0), 0, ""),
        (np.array([0.75]), 0.75, ""),
        ((0.5, "half"), 0.5, "half"),
        ([0.5], 0.5, ""),
        (Score(0.5, feedback="half"), 0.5, "half"),
        ({"score": 0.5, "explanation": "half"}, 0.5, "half"),
        (dspy.Prediction(score=0.5, feedback="half"), 0.5, "half"),
        (Returned(0.5, "half"), 0.5, "half"),
        (" Good ", 0.75, ""),
        ({"label": "good", "score": None}, 0.75, ""),
    ],
)
def test_what_is_a_verdict(returned: Any, value: float, feedback: str) -> None:
    score = metric_of(lambda output: returned, name="m", choices={"good": 0.75, "bad": 0}).score({}, "x")
    assert (score.value, score.feedback) == (value, feedback)


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (None, "returned nothing"),
        (math.nan, "not finite"),
        (np.float64("nan"), "not finite"),
        (math.inf, "not finite"),
        (1.5, "outside its scale, 0 to 1"),
        (-0.1, "outside its scale"),
        ("secret words of a customer", "has no `choices`"),
        ([], "a list, which is no number"),
        ([0.5, 0.5], "a list, which is no number"),
        (np.array([0.5, 0.5]), "a ndarray, which is no number"),
        (object(), "a object, which is no number"),
        (1j, "a complex, which is no number"),
        ({"score": None}, "returned nothing"),
    ],
)
def test_what_is_none(returned: Any, why: str) -> None:
    score = metric_of(lambda output: returned, name="m").score({}, "x")
    assert score.is_missing
    assert why in (score.failure or "")
    assert "secret" not in (score.failure or "")


def test_a_label_that_is_no_choice_gives_no_verdict() -> None:
    score = metric_of(lambda output: "strange", name="m", choices={"good": 1, "bad": 0}).score({}, "x")
    assert score.failure == "the metric returned text that is none of its choices"


def test_choices_have_a_scale_of_their_own_and_must_be_numbers() -> None:
    stars = metric_of(lambda output: output, name="stars", choices={"bad": 1, "fair": 3, "good": 5})
    assert [stars.score({}, label).value for label in ("bad", "fair", "Good")] == [0, 0.5, 1]
    with pytest.raises(UsageError, match="'good' of 'm' has no number"):
        metric_of(lambda output: output, name="m", choices={"good": "one", "bad": 0})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="do not tell better from worse"):
        metric_of(lambda output: output, name="m", choices={"good": 1})


def test_a_scale_and_a_direction_are_turned_once() -> None:
    def words(output: str) -> int:
        return len(output.split())

    assert metric_of(words, scale=(0, 8)).score({}, "a b").value == 0.25
    assert metric_of(words, scale=(8, 0)).score({}, "a b").value == 0.75
    assert metric_of(words, scale=(0, 8), direction="minimize").score({}, "a b").value == 0.75
    assert metric_of(words, scale=(8, 0), direction="minimize").score({}, "a b").value == 0.25
    assert metric_of(words, scale=(0, 8)).score({}, "a b").details["written"] == 2


def test_one_failure_in_fifty_is_missing_and_the_rest_stand() -> None:
    def brittle(output: str) -> float:
        return 1.0 if output != "7" else {}["private text"]

    scores = [metric_of(brittle).score({}, str(number)) for number in range(50)]
    assert [score.failure for score in scores if score.is_missing] == [
        f"the metric raised KeyError (test_metric.py, line {brittle.__code__.co_firstlineno + 1})"
    ]
    assert sum(score.value == 1 for score in scores) == 49


@pytest.mark.parametrize("error", [TimedOut("The model did not answer in time."), TimeoutError()])
def test_an_outage_inside_a_function_is_missing(error: Exception) -> None:
    def asking(output: str) -> float:
        raise error

    score = metric_of(asking).score({}, "x")
    assert score.is_missing
    assert score.failure is not None
    assert score.failure.startswith(("The model did not answer in time", "the metric raised TimeoutError"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BudgetExhausted("No more."), Refused("No key.")])
def test_what_must_stop_the_run_passes(error: BaseException) -> None:
    def asking(output: str) -> float:
        raise error

    async def aasking(output: str) -> float:
        raise error

    with pytest.raises(type(error)):
        metric_of(asking).score({}, "x")
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            asyncio.run(metric_of(aasking).ascore({}, "x"))


# What a metric is made of.


def test_a_dspy_metric_is_called_as_dspy_calls_it() -> None:
    seen: list[tuple[Any, ...]] = []

    def plain(x: Any, y: Any, trace: Any = None) -> bool:
        seen.append((x, y, trace))
        return bool(x.answer == y.answer)

    made = metric_of(plain)
    assert made.score(QUESTION, dspy.Prediction(answer="4")).value == 1
    assert float(made(QUESTION, dspy.Prediction(answer="5"), ["a trace"])) == 0
    assert seen[0][0] is QUESTION
    assert [each[2] for each in seen] == [None, ["a trace"]]

    def reflective(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        return dspy.Prediction(score=0.5, feedback=f"look at {pred_name}")

    assert metric_of(reflective)(QUESTION, dspy.Prediction(answer="5"), None, "solve", []).feedback.endswith(
        "look at solve"
    )
    assert metric_of(dspy.evaluate.answer_exact_match).score(QUESTION, dspy.Prediction(answer="4")).value == 1

    class Module(dspy.Module):
        def forward(self, example: Any, pred: Any, trace: Any = None) -> float:
            return 0.5

    assert metric_of(Module()).score(QUESTION, dspy.Prediction(answer="4")).value == 0.5


async def test_an_async_function_works_in_and_outside_a_loop() -> None:
    async def slow(output: str) -> float:
        await asyncio.sleep(0)
        return 0.5

    made = metric_of(slow)
    assert (await made.ascore({}, "x")).value == 0.5
    assert made.score({}, "x").value == 0.5  # with a loop running, as in a notebook
    assert await asyncio.to_thread(lambda: made.score({}, "x").value) == 0.5


async def test_a_plain_function_keeps_its_context_on_a_loop() -> None:
    def asks_settings(output: str) -> float:
        return float(dspy.settings.get("marker", 0.0))

    with dspy.context(marker=0.75):
        assert (await metric_of(asks_settings).ascore({}, "x")).value == 0.75


def test_names_come_from_functions_and_must_be_there() -> None:
    made = metric_of(exact)
    assert (made.name, made.description) == ("exact", "Whether the answer is the one expected.")
    for nameless in (lambda output: 1, functools.partial(exact, expected="4")):
        with pytest.raises(UsageError, match="needs one"):
            metric_of(nameless)
    four = metric_of(functools.partial(exact, expected="4"), name="four")
    assert four.score({"expected": "5"}, "4").value == 1
    assert four.version != metric_of(functools.partial(exact, expected="5"), name="four").version


def test_versions_follow_what_can_change_a_verdict() -> None:
    def other(output: str, expected: str) -> bool:
        return output != expected

    versions = [
        metric_of(exact).version,
        metric_of(other).version,
        metric_of(exact, scale=(0, 2)).version,
        metric_of(exact, input_mapping={"expected": "answer"}).version,
        metric_of(exact, given={"expected": "4"}).version,
        metric_of(exact, given={"expected": "5"}).version,
    ]
    assert len(set(versions)) == len(versions)
    assert metric_of(exact, weight=3, name="else").version == versions[0]


def test_what_no_metric_can_be_made_of_is_refused() -> None:
    for wrong, message in (
        (7, "cannot be made of int"),
        (Score, "cannot be made of Score"),
        ("helpfullness", "Did you mean 'helpfulness'"),
        ("nowhere.yaml", "no metric file nowhere.yaml"),
        (len, "no names to be found by"),
    ):
        with pytest.raises(UsageError, match=message):
            metric_of(wrong)
    with pytest.raises(UsageError, match=r"has no parameter 'policy'.*It has output, expected"):
        metric_of(exact, given={"policy": ""})
    with pytest.raises(UsageError, match="has no 'colour'"):
        metric_of(exact, colour="red")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="between 0 and 1"):
        metric_of(exact, at_least=1.5)
    with pytest.raises(UsageError, match="takes no `models`"):
        metric_of(exact, models=SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not a direction"):
        metric_of(exact, direction="up")  # type: ignore[arg-type]


def test_a_made_metric_can_be_changed() -> None:
    changed = metric_of(metric_of(exact, weight=2), at_least=0.5, name="right")
    assert (changed.name, changed.weight, changed.at_least) == ("right", 2, 0.5)
    with pytest.raises(UsageError, match="takes no `given`"):
        metric_of(changed, given={"expected": "4"})


# Files.


def test_a_judge_without_a_model_says_what_to_pass() -> None:
    with pytest.raises(UsageError, match=r"'helpfulness' has no model to ask\. Pass models="):
        metric_of("helpfulness")


def write(folder: Any, **about: Any) -> Any:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
    return path


ASKING = [{"role": "user", "content": "Is this good? {{output}}"}]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"name": "mine", "messages": ASKING, "choices": {"good": "one", "bad": 0}}, "'good' of 'mine' has no number"),
        ({"name": "mine", "messages": ASKING, "choices": ["good", "bad"]}, "'good' of 'mine' has no number"),
        ({"name": "mine", "messages": ASKING, "choices": {"good": True, "bad": 0}}, "has no number"),
        ({"name": "mine", "messages": ASKING, "choices": {"good": 1, "fine": 1}}, "do not tell better from worse"),
        ({"name": "mine", "messages": ASKING}, "no `choices`"),
        ({"name": "mine", "choices": {"good": 1, "bad": 0}}, "no `messages`"),
        ({"messages": ASKING, "choices": {"good": 1, "bad": 0}}, "no `name`"),
        ({"name": "mine", "kind": "HUMAN"}, "neither LLM nor CODE"),
        ({"name": "mine", "kind": "CODE", "function": "nowhere"}, "package.module:name"),
        ({"name": "mine", "function": "no.such.module:f"}, "cannot be imported"),
        ({"name": "mine", "function": "math:pi"}, "not a function"),
        ({"name": "mine", "function": "math:sqrt", "optimization_direction": "up"}, "none of maximize"),
        ({"name": "mine", "function": "math:sqrt", "direction": "minimize"}, "called `optimization_direction`"),
        (
            {"name": "mine", "function": "math:sqrt", "at_least": 0.5},
            r"not the metric's, but yours: metric_of\(..., at_l",
        ),
        ({"name": "mine", "function": "math:sqrt", "optimisation_direction": "minimize"}, "may mean `optimization_dir"),
    ],
)
def test_a_file_that_is_no_metric_says_why(tmp_path: Any, models: Models, about: Any, message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        metric_of(write(tmp_path, **about), models=models)
    (tmp_path / "torn.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(DataError, match="not YAML"):
        metric_of(tmp_path / "torn.yaml")


@pytest.mark.parametrize("name", metrics.HOMES)
def test_every_measure_has_a_name(name: str) -> None:
    made = metric_of(name)
    assert made.name == name
    assert made.description


def test_a_measure_is_found_by_its_name_and_a_slip_is_put_right() -> None:
    assert metric_of("token_f1").score({"expected": "a b"}, "a c").value == 0.5
    assert metric_of("graded", given={"order": ["low", "mid", "high"]}).score({"expected": "low"}, "mid").value == 0.5
    with pytest.raises(UsageError, match=r"no metric 'tokenf1'\. Did you mean 'token_f1'"):
        metric_of("tokenf1")


def test_labels_are_what_is_written(tmp_path: Any, models: Models) -> None:
    """To YAML an unquoted `no` is a falsehood, and `1` a number."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmessages: 'Is it so? {{output}}'\nchoices:\n  yes: 1\n  no: 0\n  1: 0.5\n", encoding="utf-8"
    )
    made = metric_of(path, models=models)
    assert isinstance(made.measure, Judged)
    assert dict(made.measure.judge.spec.choices) == {"yes": 1, "no": 0, "1": 0.5}
    path.write_text("name: mine\nchoices:\n  yes: 1\n  yes: 0\n", encoding="utf-8")
    with pytest.raises(DataError, match="not YAML"):
        metric_of(path, models=models)


def test_an_evaluator_one_of_whose_choices_has_no_number_is_refused(models: Models) -> None:
    llm = LLM(provider="openai", model="x", base_url="http://127.0.0.1:9/v1", api_key="none")
    made = ClassificationEvaluator(name="tone", llm=llm, prompt_template="{output}", choices={"good": 1, "bad": None})
    with pytest.raises(UsageError, match="'bad' of 'tone' has no number"):
        metric_of(made, models=models)


def test_what_is_only_looked_at_may_be_missing_for_good() -> None:
    both = Metrics([metric_of("brevity"), metric_of(human("thumb"), weight=0), metric_of(latency, weight=0)])
    verdicts = [both(dspy.Example(question="?"), dspy.Prediction(output="Yes.")) for _ in range(20)]
    assert {verdict.score for verdict in verdicts} == {1.0}
    assert verdicts[0].objective_scores == {"brevity": 1.0}


def test_a_measure_of_time_says_that_nobody_took_it() -> None:
    score = metric_of(latency).score({}, "Yes.")
    assert score.failure == "the time was not recorded"


def test_an_async_metric_with_a_client_of_its_own_keeps_it_on_one_loop() -> None:
    with serve(RehearsalModel(seed=1)) as server, ThreadPoolExecutor(8) as threads:
        client = httpx.AsyncClient(base_url=server.url)

        async def asking(output: str) -> float:
            body = {"model": "rehearsal", "messages": [{"role": "user", "content": output}]}
            return float((await client.post("/chat/completions", json=body)).status_code == 200)

        metric = metric_of(asking)
        scores = list(threads.map(lambda n: metric.score({}, str(n)), range(24)))
    assert [score.value for score in scores] == [1.0] * 24


def test_a_code_metric_comes_from_its_file() -> None:
    brevity = metric_of("brevity")
    assert brevity.score(SAMPLE).value == 1
    assert brevity.score(SAMPLE, "word " * 100).value == 0.5
    assert metric_of("brevity", given={"none": 400}).score(SAMPLE, "word " * 100).value == pytest.approx(300 / 360)


CONFIGS = [getattr(phoenixs, name) for name in phoenixs.__all__ if name.endswith("CONFIG")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_phoenixs_own_files_fit_as_they_are(config: Any, tmp_path: Any, models: Models) -> None:
    about = {
        **config.model_dump(),
        "scope": "span",
        "recommended": True,
        "category": "quality",
        "details": "...",
        "kind": "LLM",
    }
    made = metric_of(write(tmp_path, **about, inputs={"output": {"description": "the answer"}}), models=models)
    assert made.name == config.name
    assert made.direction == config.optimization_direction
    assert made.weight == (0 if config.optimization_direction == "neutral" else 1)
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    data = {name: "some text" for name in made.needs if name != "output"}
    reply = {"output": "", "message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    made.check(data, reply)
    score = made.score(data, reply)
    assert score.label in config.choices
    written = config.choices[score.label]
    assert score.value == (1 - written if config.optimization_direction == "minimize" else written)


def test_a_neutral_judge_can_be_told_which_end_is_good(models: Models, tmp_path: Any) -> None:
    about = phoenixs.REFUSAL_CLASSIFICATION_EVALUATOR_CONFIG.model_dump()
    refusal = metric_of(write(tmp_path, **about), models=models, direction="minimize")
    assert (refusal.direction, refusal.weight) == ("minimize", 1)
    assert refusal.score(SAMPLE, "I cannot help with that.").value == 0
    with pytest.raises(UsageError, match="is neutral"):
        metric_of(write(tmp_path, **about), models=models, weight=1)


# Phoenix's evaluators.


def test_any_phoenix_evaluator_is_a_metric(models: Models, rehearsal: Served) -> None:
    @create_evaluator(name="short", kind="code")
    def short(output: str) -> float:
        return 1.0 if len(output) < 30 else 0.0

    llm = LLM(provider="openai", model="rehearsal", base_url=rehearsal.url, api_key="none")
    tone = ClassificationEvaluator(
        name="manner",
        llm=llm,
        prompt_template="Is the tone of {output} polite or rude?",
        choices={"polite": 1, "rude": 0},
    )
    assert metric_of(short).score(SAMPLE).value == 1
    assert metric_of(tone).score(SAMPLE, "You idiot.").value == 0
    assert metric_of(tone, models=models).score(SAMPLE, "Thank you, kind regards.").label == "polite"
    assert metric_of(exact_match).score(dspy.Example(expected="4"), "4").value == 1
    assert metric_of(MatchesRegex(pattern=r"\d", name="digit")).score(SAMPLE, "It is 4.").value == 1
    spec = EvalSpec("tone", "LLM", messages=tuple(ASKING), choices=FrozenDict({"good": 1, "bad": 0}))
    assert metric_of(spec, models=models).score(SAMPLE).label in ("good", "bad")
    assert metric_of(Judge(spec, models)).score(SAMPLE).label in ("good", "bad")
    with pytest.raises(UsageError, match="has no variable 'policy'"):
        metric_of(spec, models=models, given={"policy": "x"})
    with pytest.raises(UsageError, match="takes no `models`"):
        metric_of(Judge(spec, models), models=models)


def test_a_judge_sees_tool_calls_in_the_output(models: Models) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "find_parcel", "arguments": "{}"}}
    case = Case(
        SAMPLE,
        {"output": "One moment.", "message": {"role": "assistant", "content": "One moment.", "tool_calls": [call]}},
    )
    assert case.shown("output") == "One moment.\n[calls find_parcel({})]"
    assert case.get("output", None) == "One moment."


async def test_one_judge_call_per_answer_whoever_asks(models: Models, rehearsal: Served) -> None:
    helpful = metric_of("helpfulness", models=models)
    first = helpful.score(SAMPLE)
    assert await helpful.ascore(SAMPLE) == first
    called = helpful(SAMPLE, dspy.Prediction(output="It arrives on Friday."), None, "chat", [])
    assert called.score == first.value
    assert rehearsal.counts().roles == {"judge": 1}
    helpful.score(SAMPLE, repeat=1)
    assert rehearsal.counts().roles == {"judge": 2}
    await asyncio.gather(*(helpful.ascore(SAMPLE, "Another answer.") for _ in range(8)))
    assert rehearsal.counts().roles == {"judge": 3}


def test_what_was_paid_for_is_found_again_in_the_journal(models: Models, rehearsal: Served, tmp_path: Any) -> None:
    with Journal.open(tmp_path / "run.db") as journal:
        first = metric_of("helpfulness", models=models, journal=journal).score(SAMPLE)
    with Journal.open(tmp_path / "run.db") as journal:
        assert metric_of("helpfulness", models=models, journal=journal).score(SAMPLE) == first
    assert rehearsal.counts().calls == 1


# People.


def test_people_judged_the_recorded_answer_and_no_other() -> None:
    thumb = metric_of(human("thumb"), weight=2)
    assert thumb.score(SAMPLE).value == 1
    assert thumb.score(example_of(SAMPLE)).value == 1
    assert thumb.score(SAMPLE, "It arrives on Friday.").value == 1
    assert thumb.score(SAMPLE, dspy.Prediction(output="It arrives on Friday.", message=SAID)).value == 1
    assert "another" in (thumb.score(SAMPLE, "Never.").failure or "")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert thumb.score(
        SAMPLE, {"output": "It arrives on Friday.", "message": {**SAID, "tool_calls": [call]}}
    ).is_missing
    assert metric_of(human("stars")).score(SAMPLE).failure == "nobody judged it by this name"
    assert asyncio.run(thumb.ascore(SAMPLE)).value == 1


# Several.


def graded(name: str, value: float | None, **settings: Any) -> Metric:
    return metric_of(lambda output: value, name=name, **settings)


def test_two_metrics_with_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Two metrics have the name 'exact'\. Rename one"):
        Metrics([metric_of(exact), metric_of(exact, weight=2)])
    with pytest.raises(UsageError, match="function is not a Metric"):
        Metrics([exact])  # type: ignore[list-item]


def test_several_give_a_scorecard_and_a_reward() -> None:
    several = Metrics(
        [graded("a", 0.5), graded("b", 1.0, weight=3, at_least=0.75), graded("seen", 0.0, direction="neutral")]
    )
    card = several.score(SAMPLE)
    assert isinstance(card, Scorecard)
    assert (card.example, card.row(several.names)) == ("T1", (0.5, 1.0, 0.0))
    assert asyncio.run(several.ascore(SAMPLE)) == card
    assert several.reward(card) == pytest.approx(0.5 + 0.5 * (0.5 + 3) / 4)
    assert several.reward(Metrics([graded("a", None), graded("b", 1.0)]).score(SAMPLE)) is None
    assert (several[0].name, several["b"].weight, len(several), repr(several)) == ("a", 3, 3, "Metrics(a, b, seen)")
    with pytest.raises(UsageError, match="no metric 'c'"):
        several["c"]
    with pytest.raises(UsageError, match="needs 'expected'"):
        Metrics([graded("a", 1), metric_of(exact)]).check({"conversation": []})


def test_for_dspy_the_worst_is_said_first() -> None:
    several = Metrics([graded("fine", 0.9), graded("bad", 0.1, at_least=0.5), graded("later", 0.0, priority=2)])
    verdict = several(SAMPLE, dspy.Prediction(output="x"))
    assert verdict.feedback == "bad: 0.10. It must reach 0.50.\nfine: 0.90.\nlater: 0.00."
    assert verdict.objective_scores == {"fine": 0.9, "bad": 0.1, "later": 0.0}
    assert verdict.score == several.reward(several.score(SAMPLE, "x"))


def test_weights_follow_what_falls_short_in_production() -> None:
    samples = [
        Sample(id=str(number), chat_history=(), output=SAID, weight=weight, scores={"a": Score(a), "b": Score(b)})
        for number, (a, b, weight) in enumerate([(1.0, 0.5, 3), (0.6, 0.1, 1)])
    ]
    samples.append(Sample(id="x", chat_history=(), output=SAID, scores={"a": Score.missing("late")}))
    after = Metrics([graded("a", 1), graded("b", 1)]).following(samples)
    assert [each.weight for each in after] == pytest.approx([2 * 0.1 / 0.7, 2 * 0.6 / 0.7])
    with pytest.raises(UsageError, match="No metric has a mean"):
        Metrics([graded("c", 1)]).following(samples)


# What DSPy gets.

REPLY = dspy.Prediction(output="x")


def test_a_verdict_is_as_true_as_its_score() -> None:
    zero, half = graded("a", 0.0)(SAMPLE, REPLY), graded("a", 0.5)(SAMPLE, REPLY)
    assert (bool(zero), bool(half)) == (False, True)
    assert bool(dspy.Prediction(score=0.0)), "if this fails, DSPy has mended it and our class is not needed"
    assert isinstance(half, dspy.Prediction)
    assert set(half.keys()) == {"score", "feedback", "objective_scores"}
    assert sum([zero, half, half]) == 1.0
    assert half >= 0.5
    assert not half > 0.5
    for copied in (copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
        assert (type(copied), copied.score, bool(copied), copied.is_missing) == (type(half), 0.5, True, False)


def test_a_missing_verdict_moves_no_mean_and_passes_no_threshold(caplog: pytest.LogCaptureFixture) -> None:
    values = iter([0.6, 0.8, None, 0.7])
    tried = metric_of(lambda output: next(values), name="tried")
    verdicts = [tried(SAMPLE, REPLY) for _ in range(4)]
    stand_in = verdicts[2]
    assert stand_in.score == pytest.approx((0.5 + 0.6 + 0.8) / 3)
    assert stand_in.is_missing
    assert not stand_in
    assert not stand_in >= 0.1
    assert not stand_in > 0.1
    assert "no verdict" in stand_in.feedback
    assert [bool(verdict) for verdict in verdicts] == [True, True, False, True]
    assert "the metric returned nothing" in caplog.text


def test_when_most_are_missing_it_says_so_instead() -> None:
    never = graded("never", None)
    stand_ins = 0
    with pytest.raises(Outage, match=r"'never' are missing.*returned nothing"):
        for _ in range(20):
            assert never(SAMPLE, REPLY).score == 0.5
            stand_ins += 1
    assert stand_ins == 5


def test_one_missing_metric_of_several_leaves_the_reward_in_place() -> None:
    several = Metrics([graded("a", 0.5), graded("b", None)])
    verdict = several(SAMPLE, REPLY)
    assert verdict.is_missing
    assert verdict.objective_scores == {"a": 0.5, "b": 0.5}
    assert verdict.score == 0.5
    seen = Metrics([graded("a", 0.5), graded("b", None, weight=0)])(SAMPLE, REPLY)
    assert seen
    assert not seen.is_missing


def test_a_program_that_gave_nothing_scores_nothing() -> None:
    for each in (graded("a", 1.0), Metrics([graded("a", 1.0)])):
        verdict = each(SAMPLE, None)
        assert (verdict.score, bool(verdict), verdict.feedback) == (0, False, "The program gave no answer.")


def test_dspys_own_evaluation_takes_it_as_it_is() -> None:
    class Echo(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=question[0])

    devset = [dspy.Example(question=f"{n}?", answer=str(n % 2)).with_inputs("question") for n in range(4)]
    result = dspy.Evaluate(devset=devset, metric=metric_of(exact), num_threads=2, display_progress=False)(Echo())
    assert result.score == 50
    several = Metrics([metric_of(exact), metric_of("brevity")])
    result = dspy.Evaluate(devset=devset, metric=several, num_threads=2, display_progress=False)(Echo())
    assert result.score == 75


def test_measures_that_come_along_work_by_name() -> None:
    assert metric_of(text.token_f1).score(SAMPLE, "It arrives on Monday.").value == pytest.approx(0.75)
    assert metric_of(structure.tool_calls).score(SAMPLE, {"message": SAID}).value == 1
    assert metric_of(text.exact).score(dspy.Example(expected=4), dspy.Prediction(number=4)).value == 1
    assert metric_of(label.match).score(dspy.Example(expected="true"), dspy.Prediction(spam=True)).value == 1
    assert metric_of(structure.matches, given={"pattern": "Friday"}).score(SAMPLE).value == 1
    assert metric_of(latency).score(SAMPLE, {"output": "x", "seconds": 5.5}).value == pytest.approx(0.5)
    assert metric_of(latency).score(SAMPLE, {"output": "x", "seconds": None}).failure == "the time was not recorded"
