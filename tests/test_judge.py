"""Judges over real HTTP: Phoenix's own evaluators, the rehearsal server behind, and whatever can go wrong between."""

import asyncio
import copy
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from phoenix.evals import ClassificationEvaluator, Evaluator, LLMEvaluator, bind_evaluator, create_evaluator
from phoenix.evals import Score as PhoenixScore
from phoenix.evals.llm import LLM
from phoenix.evals.metrics import HallucinationEvaluator, MatchesRegex, PrecisionRecallFScore, exact_match

from dspy_selfimprove.budget import Budget, Ledger
from dspy_selfimprove.errors import (
    BadAnswer,
    BudgetExhausted,
    Outage,
    RateLimited,
    Refused,
    SelfImproveError,
    UsageError,
)
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.judge import Judge
from dspy_selfimprove.judges import slip
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.request import Refusal
from dspy_selfimprove.rehearsal.server import serve
from dspy_selfimprove.sample import EvalSpec
from dspy_selfimprove.telemetry.evaluators import specify, track_evaluators

ROOT = Path(__file__).parent.parent
HELPFULNESS = yaml.safe_load((ROOT / "metrics" / "helpfulness.yaml").read_text(encoding="utf-8"))
INPUTS = {"input": "My parcel is late.", "output": "We are sorry. It comes within 2 days.", "more": "not asked for"}
CHOICES = {"good": 1, "fair": 0.5, "bad": 0}
GOOD = {"label": "good", "explanation": "It is."}


class Scripted:
    """Behind the server: says what it is told to, in whichever form it is asked, and remembers what it was sent."""

    def __init__(self, *answers):
        self.answers, self.bodies = list(answers) or [GOOD], []
        self.lock = threading.Lock()

    def complete(self, body):
        with self.lock:
            answer = self.answers[min(len(self.bodies), len(self.answers) - 1)]
            self.bodies.append(body)
        message, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        if not isinstance(message, str | None):
            message = json.dumps(message)
        if "tools" in body and message is not None:
            call = {"id": "c", "type": "function", "function": {"name": "extract_structured_data"}}
            call["function"]["arguments"] = message
            told = {"role": "assistant", "content": None, "tool_calls": [call]}
        else:
            told = {"role": "assistant", "content": message}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": told, "finish_reason": reason, "logprobs": None}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }


@functools.cache  # each one makes two clients
def llm(url):
    return LLM(provider="openai", model="rehearsal", base_url=url, api_key="none")


def classifier(url="http://127.0.0.1:9/v1", **settings):
    asked = {"prompt_template": "Judge {{output}} as an answer to {{input}}.", "choices": CHOICES, **settings}
    return ClassificationEvaluator(**{"name": "tone", "llm": llm(url), **asked})


def models(url, **settings):
    pool = {name: settings.pop(name) for name in ("slots", "ledger", "watch") if name in settings}
    return Models(Model(name="openai/rehearsal", base_url=url, api_key="none", **settings), **pool)


def helpfulness(url="http://127.0.0.1:9/v1", **parameters):
    return ClassificationEvaluator(
        name="helpfulness",
        llm=llm(url),
        prompt_template=HELPFULNESS["messages"],
        choices=HELPFULNESS["choices"],
        **parameters,
    )


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.01)
    monkeypatch.setattr("dspy_selfimprove.judges.coded._FIRST_WAIT", 0.01)


# -- what is sent ------------------------------------------------------------------------------------------------------

SYSTEM = [{"role": "system", "content": "You judge {{input}}."}, {"role": "user", "content": "The reply: {{output}}"}]
KINDS = {
    "a text": {},
    "messages with a system prompt": {"prompt_template": SYSTEM},
    "f-string": {"prompt_template": "Judge {output} for {input}"},
    "described choices": {"choices": {"good": (1, "it helps"), "bad": (0, "it does not")}},
    "no explanation, parameters": {"include_explanation": False, "temperature": 0.0, "seed": 7},
    "sections": {"prompt_template": "{{#input}}asked: {{.}}{{/input}} got {{output}}"},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_judge_sends_what_phoenix_sends_and_reads_what_phoenix_reads(settings):
    behind = Scripted()
    with serve(behind) as server:
        evaluator = classifier(server.url, **settings)
        (theirs,) = evaluator.evaluate(INPUTS)
        ours = Judge(evaluator, models(server.url)).score(INPUTS)
        own = Judge(evaluator).score(INPUTS)
    assert behind.bodies[0] == behind.bodies[1] == behind.bodies[2]
    assert ours == own
    assert (ours.value, ours.label, ours.feedback) == (theirs.score, theirs.label, theirs.explanation or "")


def test_built_in_and_bound_evaluators_too():
    behind = Scripted({"label": "hallucinated", "explanation": "No such window."})
    mapping = {"input": "conversation", "output": lambda row: row["reply"]["text"]}
    data = {"conversation": "User: refund?", "reply": {"text": "90 days"}}
    with serve(behind) as server:
        evaluator = bind_evaluator(evaluator=HallucinationEvaluator(llm=llm(server.url)), input_mapping=mapping)
        (theirs,) = evaluator.evaluate(data)
        judge = Judge(evaluator, models(server.url))
        ours = judge.score(data)
    assert behind.bodies[0] == behind.bodies[1]
    assert theirs.score == 1.0
    assert (judge.direction, ours.value) == ("minimize", 0.0)
    assert judge.inputs == ("conversation",)


def test_any_text_is_sent_as_phoenix_sends_it():
    behind = Scripted()
    with serve(behind) as server:
        evaluator = classifier(server.url)
        judge = Judge(evaluator, models(server.url))
        texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
            ["{{input}}", "{x}", "&lt;", "{{#a}}"]
        )
        values = texts | st.none() | st.lists(texts, max_size=2) | st.dictionaries(texts, texts, max_size=2)

        @settings(max_examples=30)
        @given(values, values)
        def same(asked, said):
            behind.bodies.clear()
            evaluator.evaluate({"input": asked, "output": said})
            sent = behind.bodies[0]
            behind.bodies.clear()
            assert not judge.score({"input": asked, "output": said}).is_missing
            assert behind.bodies in ([], [sent])  # none, if hypothesis asks for the same text twice

        same()


def test_a_model_that_takes_no_schema_is_asked_by_a_tool_from_then_on():
    class NoSchema(Scripted):
        def complete(self, body):
            if "response_format" in body:
                with self.lock:
                    self.bodies.append(body)
                raise UsageError("no schema here")
            return super().complete(body)

    behind = NoSchema()
    with serve(behind) as server:
        judge = Judge(classifier(server.url), models(server.url))
        assert judge.score(INPUTS).label == "good"
        assert judge.score({**INPUTS, "output": "another"}).label == "good"
    assert ["tools" in body for body in behind.bodies] == [False, True, True]


def test_the_judge_role_answers_and_its_parameters_lie_below_the_evaluators():
    behind = Scripted()
    with serve(behind) as server:
        role = Model(
            name="openai/other", base_url=server.url, api_key="k", parameters={"temperature": 0.9, "max_tokens": 99}
        )
        pool = Models(Model(name="openai/x", base_url="http://127.0.0.1:9/v1", api_key="k"), judge=role)
        assert Judge(classifier(temperature=0.1), pool).score(INPUTS).value == 1.0
    (body,) = behind.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("other", 0.1, 99)
    assert pool.ledger.spent["judge"].tokens == 110
    assert pool.ledger.spent["worker"].calls == 0


def test_the_users_evaluator_stays_as_it_was_and_phoenixs_limiter_is_never_asked(monkeypatch):
    def limit(*_):
        raise AssertionError("the limiter was asked")

    with serve(Scripted()) as server:
        evaluator = classifier(server.url)
        before, its_llm = dict(vars(evaluator)), dict(vars(evaluator.llm))
        monkeypatch.setattr("phoenix.evals.rate_limiters.RateLimiter.limit", limit)
        for judge in (Judge(evaluator, models(server.url)), Judge(evaluator)):
            assert judge.score(INPUTS).value == 1.0
    assert vars(evaluator) == before
    assert vars(evaluator.llm) == its_llm


# -- scales ------------------------------------------------------------------------------------------------------------


def test_numbers_become_scores_by_the_range_and_direction_of_the_choices():
    behind = Scripted()
    numbers = st.dictionaries(st.text("abcde", min_size=1, max_size=3), st.integers(-9, 9), min_size=2)
    with serve(behind) as server:
        pool = models(server.url)

        @settings(max_examples=30)
        @given(numbers.filter(lambda choices: len(set(choices.values())) > 1), st.data())
        def turned(choices, data):
            direction = data.draw(st.sampled_from(["maximize", "minimize", "neutral"]))
            label = data.draw(st.sampled_from(sorted(choices)))
            behind.answers = [{"label": label}]
            score = Judge(classifier(choices=choices, direction=direction), pool).score(INPUTS)
            low, high = min(choices.values()), max(choices.values())
            share = (choices[label] - low) / (high - low)
            assert score.value == pytest.approx(1 - share if direction == "minimize" else share)
            assert score.details["written"] == choices[label]

        turned()


# -- what goes wrong ---------------------------------------------------------------------------------------------------

TICKETS = [
    {"input": f"Ticket {n}: my parcel is late.", "output": f"Sorry! It comes in {n} days, see https://x.example/{n}."}
    for n in range(60)
]


def judged(judge, rows=TICKETS):
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(judge.score, rows))


@pytest.mark.parametrize("attempts", [1, 6])
def test_a_fifth_of_the_calls_fails_in_every_way_and_no_verdict_changes(attempts):
    """With patience all verdicts come; without, some are missing, each with its reason, and the others are the same."""
    with serve(RehearsalModel(seed=3)) as server:
        clean = judged(Judge(helpfulness(temperature=0), models(server.url)))
    assert len({score.value for score in clean}) > 1
    faults = Faults.mixed(0.2, retry_after=0.02, hang=0.3)
    with serve(RehearsalModel(seed=3), faults=faults, seed=30) as server:
        pool = models(server.url, attempts=attempts, timeout=5)
        judge = Judge(helpfulness(temperature=0), pool)
        scores = judged(judge)
        seen = server.counts().errors
    assert set(seen) == {*Fault}
    for score, other in zip(scores, clean, strict=True):
        assert score.is_missing or score == other
    missing = Counter(score.failure for score in scores if score.is_missing)
    assert judge.tally.missing == missing
    assert judge.tally.judged == 60
    assert judge.tally.slips > 0
    assert set(missing) <= {slip.AWAY, slip.BUSY, slip.LATE}
    assert (len(missing) > 0) is (attempts == 1)
    assert pool.slots.busy == 0
    assert pool.ledger.in_flight == 0


SILENT = {
    "rate_limit": (RateLimited, slip.BUSY, "Use fewer slots"),
    "server_error": (Outage, slip.AWAY, "is up"),
    "timeout": (Outage, slip.AWAY, "is up"),
    "dropped": (Outage, slip.AWAY, "is up"),
    "torn": (Outage, slip.AWAY, "is up"),
    "malformed": (Outage, slip.AWAY, "is up"),
    "empty": (BadAnswer, slip.EMPTY, "JSON schema"),
    "cut_off": (BadAnswer, slip.CUT_OFF, "max_tokens"),
}


@pytest.mark.parametrize("fault", [str(fault) for fault in Fault])
def test_if_every_call_fails_the_run_stops_soon_and_says_what_to_mend(fault):
    kind, reason, remedy = SILENT[fault]
    faults = Faults(**{fault: 1.0}, retry_after=0.01, hang=0.05)
    with serve(RehearsalModel(), faults=faults) as server:
        judge = Judge(helpfulness(), models(server.url, slots=8))
        with pytest.raises(kind, match=r"'helpfulness' gave no verdict \d+ times in a row") as caught:
            judged(judge)
        calls = server.counts().calls
    assert reason in str(caught.value)
    assert remedy in caught.value.remedy
    assert judge.tally.missing.keys() == {reason}
    assert calls <= 3 * 24, "three attempts each, and those that were under way when it stopped"


def test_nobody_answers_and_a_late_answer_are_told_apart():
    with serve(Scripted(), latency=Latency.fixed(1)) as server:
        late = Judge(classifier(), models(server.url, timeout=0.05, attempts=1)).score(INPUTS)
        url = server.url
    away = Judge(classifier(), models(url)).score(INPUTS)
    assert (late.failure, away.failure) == (slip.LATE, slip.AWAY)


UNUSABLE = {
    slip.EMPTY: ("", None, "  "),
    slip.CUT_OFF: (('{"explanation": "It', "length"),),
    slip.NOT_JSON: ("good", '["good"]', '{"label": '),
    slip.NO_LABEL: ({"explanation": "It is."}, {"label": None}),
    slip.WRONG_LABEL: ({"label": "splendid"}, {"label": ["good"]}, {"label": 1}),
    slip.WITHHELD: ((None, "content_filter"), ('{"expl', "content_filter")),
}


@pytest.mark.parametrize(
    ("reason", "answer"), [(reason, answer) for reason, answers in UNUSABLE.items() for answer in answers]
)
@pytest.mark.parametrize("described", [False, True], ids=["schema", "tool"])
def test_an_unusable_answer_is_asked_again_and_then_missing(reason, answer, described):
    choices = {"good": (1, "well"), "bad": (0, "not")} if described else CHOICES
    for unusable, expected in ((2, None), (3, reason)):
        behind = Scripted(*[answer] * unusable, GOOD)
        with serve(behind) as server:
            judge = Judge(classifier(choices=choices, seed=10), models(server.url))
            score = judge.score(INPUTS)
        assert len(behind.bodies) == 3
        assert [body["seed"] for body in behind.bodies] == [10, 11, 12], "another seed, or it would say the same"
        assert score.failure == expected
        assert judge.tally.slips == 2


def test_a_missing_verdict_is_not_remembered():
    behind = Scripted("", "", "", GOOD)
    with serve(behind) as server:
        judge = Judge(classifier(), models(server.url))
        assert judge.score(INPUTS).failure == slip.EMPTY
        assert judge.score(INPUTS).value == 1.0


def test_one_text_that_the_service_refuses_is_missing_and_the_run_goes_on():
    class Filter(Scripted):
        def complete(self, body):
            if "poison" in str(body["messages"]):
                raise Refusal("a text of the trace")
            if "endless" in str(body["messages"]):
                raise Refusal("a text of the trace", code="context_length_exceeded")
            return super().complete(body)

    with serve(Filter()) as server:
        judge = Judge(classifier(), models(server.url))
        assert judge.score({**INPUTS, "output": "poison"}).failure == slip.REFUSED
        assert judge.score(INPUTS).value == 1.0
        assert judge.score({**INPUTS, "output": "poison"}).failure == slip.REFUSED
        assert judge.score({**INPUTS, "output": "endless"}).failure == slip.TOO_LONG
        assert judge.score({**INPUTS, "output": "fine"}).value == 1.0


def test_mistakes_of_whoever_set_it_up_raise_at_once_and_cost_nothing():
    with serve(Scripted(), api_key="right") as server:
        for judge in (Judge(classifier(server.url)), Judge(classifier(), models(server.url))):
            with pytest.raises(Refused, match="refused the key"):
                judge.score(INPUTS)
        with pytest.raises(Refused, match="does not know this model"):
            Judge(classifier(), models(server.url.removesuffix("/v1"))).score(INPUTS)
        with pytest.raises(UsageError, match="judge 'tone' needs 'input', and the data has 'question', 'output'"):
            Judge(classifier(), models(server.url)).score({"question": "x", "output": "y"})
        assert server.counts().calls == 2
    recorded = EvalSpec("tone", "LLM", provider="openai", model="gpt-x", messages=SYSTEM, choices=CHOICES)
    with pytest.raises(Refused, match="No key is set"):
        Judge(recorded).score(INPUTS)
    nobody = "http://127.0.0.1:9/v1"
    with pytest.raises(UsageError, match="carry no numbers"):
        Judge(classifier(choices=["good", "bad"]), models(nobody))
    for number in ("1", float("nan")):
        with pytest.raises(UsageError, match="'good' of the judge 'tone' is no number"):
            Judge(classifier(choices={"good": number, "bad": 0}), models(nobody))
    with pytest.raises(UsageError, match=r"cannot be rendered .* Write its variables as {{name}}"):
        Judge(classifier(prompt_template='Return {"a": 1} for {output}'), models(nobody))
    with pytest.raises(UsageError, match="No model is known for the judge 'tone'"):
        Judge(EvalSpec("tone", "LLM", messages=SYSTEM, choices=CHOICES))
    with pytest.raises(UsageError, match="A str is no Phoenix evaluator"):
        Judge("helpfulness")


def test_the_budget_passes_through():
    with serve(Scripted()) as server:
        judge = Judge(classifier(), models(server.url, ledger=Ledger(Budget(calls=1))))
        judge.score(INPUTS)
        with pytest.raises(BudgetExhausted):
            judge.score({**INPUTS, "output": "another"})
        assert judge.score(INPUTS).value == 1.0, "what is known costs nothing"


def test_no_text_of_model_or_trace_gets_into_a_reason_or_an_error():
    secret = "4929 1234 5678"
    answers = [{"label": secret}, secret, ("{" + secret, "length"), {"explanation": secret}]
    for answer in answers:
        with serve(Scripted(answer)) as server:
            judge = Judge(classifier(), models(server.url, slots=1))
            seen = [judge.score({**INPUTS, "output": f"{secret} {n}"}) for n in range(7)]
            with pytest.raises(SelfImproveError) as caught:
                judge.score({**INPUTS, "output": secret})
        assert secret not in str(seen) + str(caught.value)


# -- evaluators that are code ------------------------------------------------------------------------------------------


def given_back(value, **settings):
    @create_evaluator(name="measure", **settings)
    def measure(output):
        return value

    return Judge(measure)


def test_what_functions_give_back():
    score = given_back({"score": 0.25, "label": "so", "explanation": "for a reason"}).score(INPUTS)
    assert (score.value, score.label, score.feedback) == (0.25, "so", "for a reason")
    assert given_back(True).score(INPUTS).value == 1.0
    assert given_back(np.float64(0.5)).score(INPUTS).value == 0.5
    assert given_back(0.25, direction="minimize").score(INPUTS).value == 0.75
    assert given_back("fine").score(INPUTS).failure == "a label without a number"
    assert given_back(float("nan")).score(INPUTS).failure == "no number was written"
    assert given_back(7).score(INPUTS).failure == "the number is outside its scale, 0 to 1"
    assert given_back(None).score(INPUTS).failure == "the evaluator raised ValueError"


def test_one_example_in_fifty_raises_and_only_that_one_is_missing():
    @create_evaluator(name="length")
    def length(output: str) -> float:
        if "7" in output:
            raise KeyError(output)
        return 1.0

    judge = Judge(length)
    scores = [judge.score({"output": f"reply {n}"}) for n in range(50)]
    assert [score.failure for score in scores].count("the evaluator raised KeyError") == 5
    assert judge.tally.missing == {"the evaluator raised KeyError": 5}
    assert judge.score({"output": {"not": "a text"}}).failure == slip.UNFIT
    assert sum(score.value or 0 for score in scores) == 45


def test_an_interrupt_is_no_verdict_and_whoever_waited_goes_on():
    started, go = threading.Event(), threading.Event()
    turns = iter([KeyboardInterrupt, None])

    @create_evaluator(name="slow")
    def slow(output):
        raises = next(turns)
        started.set()
        go.wait(5)
        if raises:
            raise raises
        return 1.0

    judge = Judge(slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(judge.score, INPUTS)
        started.wait(5)
        second = threads.submit(judge.score, INPUTS)
        time.sleep(0.05)
        go.set()
        assert isinstance(first.exception(), KeyboardInterrupt)
        assert second.result().value == 1.0


def test_phoenixs_own_measures():
    assert Judge(MatchesRegex(r"\d days")).score(INPUTS).value == 1.0
    assert Judge(exact_match).score({"output": "a", "expected": "b"}).value == 0.0
    labels = {"expected": ["a", "b", "a"], "output": ["a", "a", "a"]}
    several = PrecisionRecallFScore()
    theirs = {score.name: score.score for score in several.evaluate(labels)}
    assert Judge(several, pick="recall").score(labels).value == pytest.approx(theirs["recall"])
    assert Judge(several, pick="recall").name == "recall"
    with pytest.raises(UsageError, match="gives the scores 'precision', 'recall', 'f1'"):
        Judge(several).score(labels)
    assert Judge(MatchesRegex("a")).version != Judge(MatchesRegex("b")).version
    assert Judge(MatchesRegex("a")).version == Judge(MatchesRegex("a")).version


def asynchronous():
    loops = []

    @create_evaluator(name="patient")
    async def patient(output: str) -> float:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return 0.5

    return patient, loops


def test_an_async_function_runs_on_one_loop_whoever_asks():
    patient, loops = asynchronous()
    judge = Judge(patient)
    rows = [{"output": str(n)} for n in range(12)]

    async def on_a_loop():
        here = [judge.score(rows[0])]  # a plain call while a loop runs, as in a notebook
        return here + await asyncio.gather(*map(judge.ascore, rows[:6]))

    scores = asyncio.run(on_a_loop()) + asyncio.run(on_a_loop()) + [judge.score(row) for row in rows]
    assert {score.value for score in scores} == {0.5}
    assert len(loops) == 12
    assert len(set(loops)) == 1


def test_an_async_function_that_asks_another_judge_by_a_plain_call_does_not_wait_for_itself():
    inner = Judge(asynchronous()[0])

    @create_evaluator(name="outer")
    async def outer(output: str) -> float:
        return inner.score({"output": output}).value

    assert Judge(outer).score(INPUTS).value == 0.5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_helpers_of_its_own(tmp_path):
    script = """
import asyncio, os
from phoenix.evals import create_evaluator
from dspy_selfimprove.judge import Judge
@create_evaluator(name="f")
async def f(output):
    return 1.0
judge = Judge(f)
print(asyncio.run(judge.ascore({"output": "a"})).value, flush=True)
if (child := os.fork()) == 0:
    print(asyncio.run(judge.ascore({"output": "b"})).value, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=50, check=False
    )
    assert done.stdout == "1.0\n1.0\n", done.stderr


class Careful(LLMEvaluator):
    """A user's own: asks for a text, then decides by code."""

    def _evaluate(self, eval_input):
        text = self.llm.generate_text(self.prompt_template.render(variables=eval_input), temperature=0)
        return [PhoenixScore(name=self.name, score=float(text.strip()), kind="llm")]


class CarefulLater(LLMEvaluator):
    async def _async_evaluate(self, eval_input):
        asked = self.prompt_template.render(variables=eval_input)
        found = await self.llm.async_generate_object(asked, {"type": "object", "properties": {"x": {"type": "number"}}})
        return [PhoenixScore(name=self.name, score=found["x"], kind="llm")]


class Bypass(Evaluator):
    """Overrides the outermost method, with no schema at all."""

    def evaluate(self, eval_input, input_mapping=None):
        return [PhoenixScore(name=self.name, score=float(len(eval_input["output"]) > 3))]

    def _evaluate(self, eval_input):
        raise AssertionError("never called")


def test_subclasses_with_code_of_their_own_ask_through_our_calls():
    with serve(Scripted("nonsense", "0.25")) as server:
        pool = models(server.url)
        judge = Judge(
            Careful(name="careful", llm=llm("http://127.0.0.1:9/v1"), prompt_template="Rate {{output}}"), pool
        )
        assert judge.score(INPUTS).value == 0.25
        assert judge.tally.slips == 1, "an answer that its code could not use was asked for again"
        assert pool.ledger.spent["judge"].calls == 2
    with serve(Scripted({"x": 0.75})) as server:
        own = CarefulLater(name="later", llm=llm(server.url), prompt_template="Rate {{output}}")
        assert Judge(own, models(server.url)).score(INPUTS).value == 0.75
        assert asyncio.run(Judge(own).ascore(INPUTS)).value == 0.75
    assert Judge(Bypass(name="bypass", kind="code")).score({"output": "long"}).value == 1.0


def test_more_judges_wait_on_a_loop_than_there_are_threads():
    """Each of them holds a thread while its own code, which is async, waits for another."""
    with serve(Scripted({"x": 0.75})) as server:
        own = CarefulLater(name="later", llm=llm("http://127.0.0.1:9/v1"), prompt_template="Rate {{output}}")
        judge = Judge(own, models(server.url, slots=32))

        async def all_at_once():
            return await asyncio.gather(*(judge.ascore({**INPUTS, "output": str(n)}) for n in range(700)))

        assert {score.value for score in asyncio.run(asyncio.wait_for(all_at_once(), 120))} == {0.75}


class Stranger(Evaluator):
    """Asks a service of its own with a client of its own."""

    def __init__(self, url):
        import openai

        super().__init__(name="stranger", kind="llm")
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def _evaluate(self, eval_input):
        messages = [{"role": "user", "content": eval_input["output"]}]
        done = self.client.chat.completions.create(model="m", messages=messages)
        return [PhoenixScore(name=self.name, score=float(done.choices[0].message.content))]


def test_a_client_of_its_own_is_waited_for_just_as_long():
    faults = Faults(rate_limit=0.15, server_error=0.15, dropped=0.1, retry_after=0.01)
    with serve(Scripted("0.5"), faults=faults, seed=2) as server:
        stranger = bind_evaluator(evaluator=Stranger(server.url), input_mapping={"output": "output"})
        judge = Judge(stranger, models("http://127.0.0.1:9/v1", slots=2))
        scores = judged(judge)
        assert server.counts().calls > 40
        assert server.counts().peak <= 2
    assert {score.value for score in scores} == {0.5}


# -- once --------------------------------------------------------------------------------------------------------------


def test_one_call_for_all_who_ask_the_same_and_another_for_each_repeat():
    behind = Scripted()
    with serve(behind, latency=Latency.fixed(0.05)) as server:
        judge = Judge(classifier(), models(server.url))

        async def six():
            return await asyncio.gather(*(judge.ascore(INPUTS) for _ in range(6)))

        with ThreadPoolExecutor(10) as threads:
            asked = [threads.submit(judge.score, INPUTS) for _ in range(8)]
            asked_on_loops = [threads.submit(lambda: asyncio.run(six())) for _ in range(2)]
            scores = [each.result() for each in asked] + [score for each in asked_on_loops for score in each.result()]
        assert len(behind.bodies) == 1
        assert len(set(map(repr, scores))) == 1
        judge.score({**INPUTS, "more": "what the judge does not see makes no difference"})
        assert len(behind.bodies) == 1
        judge.score(INPUTS, repeat=1)
        judge.score({**INPUTS, "output": "another"})
        assert len(behind.bodies) == 3
    assert judge.tally.judged == 3
    assert judge.tally.remembered == 20


def test_repeats_of_a_seeded_judge_are_not_the_same_request():
    behind = Scripted("", "", GOOD)
    with serve(behind) as server:
        judge = Judge(classifier(seed=5), models(server.url))
        for repeat in range(3):
            judge.score(INPUTS, repeat)
    seeds = [body["seed"] for body in behind.bodies]
    assert len(set(seeds)) == len(seeds) == 5


def test_the_journal_keeps_verdicts_of_models_by_their_version(tmp_path):
    behind = Scripted("", "", "", GOOD)
    with serve(behind) as server, Journal.open(tmp_path / "run.db") as journal:
        pool = models(server.url)
        assert Judge(classifier(), pool, journal=journal).score(INPUTS).is_missing
        first = Judge(classifier(), pool, journal=journal).score(INPUTS)
        again = Judge(classifier(), pool, journal=journal)
        assert again.score(INPUTS) == first
        assert len(behind.bodies) == 4
        assert again.tally.remembered == 1
        for changed in (
            classifier(choices={**CHOICES, "worst": -1}),
            classifier(prompt_template="Judge: {{output}}"),
            classifier(temperature=0.5),
            classifier(direction="minimize"),
        ):
            Judge(changed, pool, journal=journal).score(INPUTS)
        other = models(server.url, parameters={"seed": 7})
        Judge(classifier(), other, journal=journal).score(INPUTS, repeat=1)
        assert len(behind.bodies) == 9
        assert behind.bodies[-1]["seed"] == 10, "a repeat moves a seed of the model's own too"
        given_back(1.0).score(INPUTS)
        assert len(list(journal.entries("verdict"))) == 6


# -- threads, loops, traces --------------------------------------------------------------------------------------------


def test_scripts_threads_and_loops_get_the_same_numbers():
    with serve(RehearsalModel(seed=1)) as server:

        def fresh():
            return Judge(helpfulness(temperature=0), models(server.url, slots=4))

        rows = TICKETS[:12]
        plain = [fresh().score(row) for row in rows]
        in_threads = judged(fresh(), rows)

        async def gathered(judge):
            return await asyncio.gather(*map(judge.ascore, rows))

        judge = fresh()
        first, second = asyncio.run(gathered(judge)), asyncio.run(gathered(judge))
        shared = fresh()
        with ThreadPoolExecutor(4) as threads:
            several = [each.result() for each in [threads.submit(asyncio.run, gathered(shared)) for _ in range(4)]]
        assert plain == in_threads == first == second
        assert all(scores == plain for scores in several)
        assert judge._kind is not shared._kind


async def test_a_plain_call_inside_a_running_loop_does_not_wait_for_that_loop():
    """One slot, taken by a task of this loop; the loop is then blocked by a plain call: it still comes to an end."""
    with serve(Scripted(), latency=Latency.fixed(0.1)) as server:
        judge = Judge(classifier(), models(server.url, slots=1))
        flying = asyncio.create_task(judge.ascore(INPUTS))
        while not server.counts().calls:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)
        assert judge.score(INPUTS).value == 1.0, "the same verdict: waits for the task's call"
        assert judge.score({**INPUTS, "output": "another"}).value == 1.0
        assert (await flying).value == 1.0
        assert server.counts().calls == 2


async def test_a_cancelled_call_ends_and_what_it_paid_for_is_kept():
    with serve(Scripted(), latency=Latency.fixed(0.1)) as server:
        judge = Judge(classifier(), models(server.url))
        flying = asyncio.create_task(judge.ascore(INPUTS))
        while not server.counts().calls:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)
        flying.cancel()
        await asyncio.gather(flying, return_exceptions=True)
        assert (await judge.ascore(INPUTS)).value == 1.0
        assert server.counts().calls == 1


@pytest.mark.slow
def test_a_process_that_ends_does_not_wait_for_its_judges(tmp_path):
    with serve(Scripted(), latency=Latency.fixed(60)) as server:
        script = f"""
import asyncio
from phoenix.evals import ClassificationEvaluator
from phoenix.evals.llm import LLM
from dspy_selfimprove.judge import Judge
llm = LLM(provider="openai", model="m", base_url={server.url!r}, api_key="k")
judge = Judge(ClassificationEvaluator(name="j", llm=llm, prompt_template="{{{{output}}}}", choices={{"a": 1, "b": 0}}))
async def main():
    try:
        await asyncio.wait_for(judge.ascore({{"output": "x"}}), 0.2)
    except TimeoutError:
        print("left")
asyncio.run(main())
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=50, check=False,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"},
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_judging_leaves_no_trace_in_production_and_one_in_a_project_of_its_own(tmp_path, monkeypatch):
    from openinference.instrumentation.openai import OpenAIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    production, judges = InMemorySpanExporter(), InMemorySpanExporter()
    providers = []
    for exporter in (production, judges):
        providers.append(TracerProvider())
        providers[-1].add_span_processor(SimpleSpanProcessor(exporter))
    OpenAIInstrumentor().instrument(tracer_provider=providers[0])
    # Phoenix traces its evaluators to the global provider, which can be set only once in a process.
    monkeypatch.setattr("phoenix.evals.tracing.trace_api.get_tracer_provider", lambda: providers[0])
    try:
        with serve(Scripted()) as server, track_evaluators(tmp_path):
            pool = models(server.url)
            evaluator = classifier(server.url)
            Judge(evaluator, pool).score(INPUTS)
            Judge(evaluator).score(INPUTS)
            rated = Careful(name="careful", llm=llm(server.url), prompt_template="Rate {{output}}")
            assert Judge(rated, pool).score(INPUTS).failure == "the evaluator raised ValueError"
            assert not production.get_finished_spans()
            with providers[0].get_tracer("app").start_as_current_span("request"):
                Judge(evaluator, pool, tracer=providers[1].get_tracer("judges")).score(INPUTS)
            assert [span.name for span in production.get_finished_spans()] == ["request"]
            pool.lm("worker")("What a worker asks is production's, and its span is whole.")
    finally:
        OpenAIInstrumentor().uninstrument()
    (verdict,) = judges.get_finished_spans()
    assert verdict.parent is None
    assert verdict.attributes["openinference.span.kind"] == "EVALUATOR"
    assert json.loads(verdict.attributes["input.value"]) == {name: INPUTS[name] for name in ("input", "output")}
    assert json.loads(verdict.attributes["output.value"])["value"] == 1.0
    call = production.get_finished_spans()[-1]
    assert call.name == "ChatCompletion"
    assert call.attributes["llm.input_messages.0.message.content"].startswith("What a worker asks")
    assert json.loads(call.attributes["llm.output_messages.0.message.content"]) == GOOD
    assert call.attributes["llm.token_count.total"] == 110
    assert not list(tmp_path.iterdir()), "our judging is not what the application is judged by"


# -- from a record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_judge_built_from_a_record_asks_the_same_under_the_same_version(settings):
    behind = Scripted()
    with serve(behind) as server:
        evaluator = classifier(server.url, **settings)
        spec = EvalSpec.from_json(json.loads(json.dumps(specify(evaluator).to_json())))
        pool = models(server.url)
        from_record, from_evaluator = Judge(spec, pool), Judge(evaluator, pool)
        assert from_record.version == from_evaluator.version == spec.version
        assert from_record.inputs == from_evaluator.inputs
        assert from_record.score(INPUTS) == from_evaluator.score(INPUTS)
    assert behind.bodies[0] == behind.bodies[1]
    other = Models(Model(name="openai/another", base_url=server.url, api_key="none"))
    assert Judge(spec, other).version != spec.version, "another model is another judge"


def test_bound_and_code_evaluators_from_their_records(caplog):
    # A copy: Phoenix binds an evaluator in place.
    mapping = {"output": "reply", "expected": "gold.text"}
    bound = bind_evaluator(evaluator=copy.copy(exact_match), input_mapping=mapping)
    spec = specify(bound, bound._input_mapping)
    judge = Judge(spec)
    assert judge.inputs == ("gold.text", "reply")
    assert judge.score({"reply": "a", "gold": {"text": "a"}}).value == 1.0
    with pytest.raises(UsageError, match=r"needs 'gold.text', and the data has 'reply'"):
        judge.score({"reply": "a"})
    with pytest.raises(UsageError, match="its record lacks arguments"):
        Judge(specify(MatchesRegex("a")))
    with pytest.raises(UsageError, match=r"no_such.module:f, cannot be loaded \(ModuleNotFoundError\)"):
        Judge(EvalSpec("f", "CODE", source="no_such.module:f"))
    with pytest.raises(UsageError, match=r"json:dumps is no Phoenix evaluator"):
        Judge(EvalSpec("f", "CODE", source="json:dumps"))
    with pytest.raises(UsageError, match="'thumb' are people's"):
        Judge(EvalSpec("thumb", "HUMAN"))
    with pytest.raises(UsageError, match="none that Phoenix takes"):
        Judge(EvalSpec("t", "LLM", choices=CHOICES), models("http://127.0.0.1:9/v1"))
    spec = EvalSpec("t", "LLM", messages=SYSTEM, choices=CHOICES, unrecorded=("invocation_parameters.extra_headers",))
    Judge(spec, models("http://127.0.0.1:9/v1"))
    assert "left out: invocation_parameters.extra_headers" in caplog.text


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:DeprecationWarning")
def test_the_example_judges_and_each_of_phoenixs_own_work_on_the_rehearsal_model():
    import phoenix.evals.metrics as theirs

    policy = (ROOT / "datasets" / "support_tickets" / "policy.md").read_text(encoding="utf-8")
    known = {**TICKETS[0], "policy": policy}
    seen = []
    with serve(RehearsalModel()) as server:
        pool = models(server.url)
        for name in ("helpfulness", "compliance"):
            metric = yaml.safe_load((ROOT / "metrics" / f"{name}.yaml").read_text(encoding="utf-8"))
            evaluator = ClassificationEvaluator(
                name=name, llm=llm(server.url), prompt_template=metric["messages"], choices=metric["choices"]
            )
            score = Judge(evaluator, pool).score(known)
            assert score.label in metric["choices"]
        for kind in vars(theirs).values():
            if isinstance(kind, type) and issubclass(kind, ClassificationEvaluator):
                judge = Judge(kind(llm=llm(server.url)), pool)
                score = judge.score(dict.fromkeys(judge.inputs, "What the customer wrote, and what was answered."))
                assert 0 <= score.value <= 1, judge.name
                seen.append(judge.name)
    assert len(seen) >= 10
