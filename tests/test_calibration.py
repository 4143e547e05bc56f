"""Is the judge any good: what was planted in the rehearsal judge is found, and where nothing was, nothing is."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import math
import random
import threading
from dataclasses import replace

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoenix.evals import LLMEvaluator
from phoenix.evals import Score as PhoenixScore
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from dspy_selfimprove.calibration import LENGTHS, Calibration, check, pad
from dspy_selfimprove.definition import read
from dspy_selfimprove.errors import DataError, Outage, SelfImproveError, UsageError
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.judge import Judge
from dspy_selfimprove.metric import human, metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.rehearsal import Faults, RehearsalModel, Temper, catalogue, serve
from dspy_selfimprove.rehearsal.catalogue import RULE
from dspy_selfimprove.rehearsal.judge import criteria_in, lift_chance, notch_of, verdict
from dspy_selfimprove.rehearsal.worker import words_in
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.score import Score
from dspy_selfimprove.statistics import Estimate

TOPIC, ASKED = "late_delivery", "My parcel is late."
HELPFULNESS = read("helpfulness").spec
CRITERIA = [c for c in criteria_in(HELPFULNESS.messages[0]["content"]) if RULE[c.rule].applies(TOPIC)]


def replies():
    """Every way to meet some of the criteria and not the others, in two wordings."""
    for kept, wording in itertools.product(itertools.product((False, True), repeat=len(CRITERIA)), (0, 1)):
        parts = [RULE[c.rule].does[wording] for c, keep in zip(CRITERIA, kept, strict=True) if keep]
        yield " ".join(parts) or f"The parcel was handed over{'.' if wording else ' there.'}"


POOL = tuple(replies())


# --- what was planted, worked out exactly ---


def moments(text, notches, temper):
    """Mean and variance of the planted judge's score of one reply."""
    shown = catalogue.shown(text)
    right = [(c.rule in shown) == c.wanted for c in CRITERIA]
    chances = np.zeros(notches)
    for flips in itertools.product((False, True), repeat=len(CRITERIA)):
        chance = math.prod(temper.judge_noise if flip else 1 - temper.judge_noise for flip in flips)
        met = sum(each != flip for each, flip in zip(right, flips, strict=True))
        chances[notch_of(met / len(CRITERIA), notches)] += chance
    lift = lift_chance(words_in(text), temper)
    lifted = np.append(0.0, chances[:-1])
    lifted[-1] += chances[-1]
    chances = (1 - lift) * chances + lift * lifted
    scores = np.arange(notches) / (notches - 1)
    mean = float(chances @ scores)
    return mean, float(chances @ (scores - mean) ** 2)


def planted(notches, temper, pool=POOL):
    """The noise, and what 100 words do, on average over the pool."""
    slopes, widths = [], []
    for text in pool:
        versions = [(text, 0), *(pad(text, words) for words in LENGTHS)]
        x = np.array([added for _, added in versions]) / 100
        y = np.array([moments(longer, notches, temper)[0] for longer, _ in versions])
        around = x - x.mean()
        slopes.append(around @ y / (around @ around))
        widths.append(around @ around)
    noise = math.sqrt(np.mean([moments(text, notches, temper)[1] for text in pool]))
    return noise, float(np.average(slopes, weights=widths))


@pytest.fixture
def quick(monkeypatch):
    """The planted judge reads the same replies thousands of times."""
    monkeypatch.setattr(catalogue, "shown", functools.lru_cache(None)(catalogue.shown))


def planted_metric(notches, temper, dice):
    def judge(output):
        found = verdict(CRITERIA, topic=TOPIC, reply=output, notches=notches, temper=temper, dice=dice)
        return found.notch / (notches - 1)

    return metric_of(judge, name="planted")


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low - 1e-9 <= truth <= estimate.high + 1e-9


LEVELS = [(3, 0.03, 0.4), (3, 0.1, 0.1), (21, 0.03, 0.0), (21, 0.1, 0.4), (21, 0.25, 0.1)]
SEEDS = 20


def test_planted_noise_and_length_bias_are_found_as_often_as_promised(quick):
    noise_held, length_held, seen = [], [], {}
    for notches, noise, bias in LEVELS:
        temper = Temper(judge_noise=noise, judge_length_bias=bias)
        true_noise, true_length = planted(notches, temper)
        found = []
        for seed in range(SEEDS):
            dice = random.Random(f"{notches}/{noise}/{bias}/{seed}")
            rows = [{"output": dice.choice(POOL)} for _ in range(20)]
            found.append(check(planted_metric(notches, temper, dice), rows, show=False))
        noise_held += [holds(each.noise, true_noise) for each in found]
        length_held += [holds(each.length, true_length) for each in found]
        seen[bias, notches] = np.mean([not holds(each.length, 0.0) for each in found])
        assert np.mean([each.noise.value for each in found]) == pytest.approx(true_noise, rel=0.1)
        assert np.mean([each.length.value for each in found]) == pytest.approx(true_length, abs=0.01)
    assert np.mean(noise_held) >= 0.9
    assert np.mean(length_held) >= 0.9
    assert seen[0.4, 3] >= 0.9, "what is planted is seen"
    assert seen[0.0, 21] <= 0.1, "what is not is not"


@pytest.mark.parametrize("notches", [3, 21])
def test_where_nothing_is_planted_it_says_so(quick, notches):
    steady = planted_metric(notches, Temper.perfect(), random.Random(1))
    found = check(steady, [{"output": text} for text in POOL], show=False)
    assert (found.noise.value, found.flips.value, found.length.value) == (0.0, 0.0, pytest.approx(0.0, abs=1e-12))
    assert 0.0 < found.noise.high < 0.15
    assert holds(found.length, 0.0)
    said = str(found)
    assert "none seen" in said
    assert "no effect of length shown" in said


# --- the whole way: Phoenix's evaluators, HTTP, slots ---


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.01)


def models_at(url, **settings):
    judge = Model(name="openai/rehearsal", base_url=url, api_key="none", **settings)
    return Models(Model(name="openai/other", base_url=url, api_key="none"), judge=judge, slots=8)


def labelled(texts, label="good"):
    return [{"inputs": {"input": ASKED, "output": text}, "label": label} for text in texts]


class Number(LLMEvaluator):
    """A judge that says a number."""

    def _evaluate(self, eval_input):
        prompt = self.prompt_template.render(variables=eval_input)
        schema = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}
        return [PhoenixScore(name=self.name, score=float(self.llm.generate_object(prompt, schema)["score"]))]


def number_judge(url):
    asked = HELPFULNESS.messages[0]["content"].rpartition("Which label")[0] + "Give a score from 0 to 1."
    from phoenix.evals.llm import LLM

    llm = LLM(provider="openai", model="rehearsal", base_url=url, api_key="none")
    return Number(name="helpful_number", llm=llm, prompt_template=asked)


@pytest.mark.parametrize(("form", "notches"), [("choices", 5), ("number", 21)])
@pytest.mark.parametrize(("noise", "bias"), [(0.0, 0.0), (0.1, 0.4)])
def test_over_http_a_judge_shows_what_was_planted(form, notches, noise, bias):
    temper = Temper(judge_noise=noise, judge_length_bias=bias)
    with serve(RehearsalModel(seed=3, temper=temper)) as server:
        models = models_at(server.url)
        numbers = Judge(number_judge(server.url), models, scale=(0, 1))
        metric = metric_of(numbers) if form == "number" else metric_of("helpfulness", models=models)
        rows = [{"input": ASKED, "output": text} for text in POOL[::2]]
        found = check(metric, rows, models=models, repeats=4, show=False)
        calls = server.counts().calls
    true_noise, true_length = planted(notches, temper, POOL[::2])
    assert holds(found.noise, true_noise)
    assert holds(found.length, true_length)
    assert found.verdicts == calls == 16 * 4 * (4 if form == "choices" else 3)
    assert (found.order is not None) == (form == "choices")
    if form == "choices":
        assert holds(found.order, 0.0), "this judge ranks by what the labels say, not by where they stand"
    assert (found.noise.value == 0.0) == (noise == 0.0)
    if bias == 0.0 or form == "choices":  # the number judge's effect is smaller, and may be seen or not
        assert holds(found.length, 0.0) == (bias == 0.0)


def test_a_judge_that_goes_by_the_place_of_a_choice_is_caught():
    asked = {"role": "user", "content": HELPFULNESS.messages[0]["content"].rpartition("Which label")[0] + "Choose."}
    spec = EvalSpec("place", "LLM", messages=(asked,), choices={"zeta": 1, "omega": 0.5, "kappa": 0})
    with serve(RehearsalModel(seed=3, temper=Temper.perfect())) as server:
        models = models_at(server.url)
        helpful = [text for text in POOL if len(catalogue.shown(text)) > 2]
        rows = [{"input": ASKED, "output": text} for text in helpful]
        found = check(metric_of(spec, models=models), rows, models=models, repeats=2, show=False)
    assert found.order.high < -0.3
    assert "in reverse order the judge scores" in str(found)


def test_a_fifth_of_the_calls_failing_biases_nothing_and_the_missing_are_counted():
    temper = Temper(judge_noise=0.1, judge_length_bias=0.4)
    faults = Faults.parse("20%,retry_after=0s,hang=0.2s")
    with serve(RehearsalModel(seed=5, temper=temper), faults=faults) as server:
        models = models_at(server.url, attempts=1, timeout=5.0)
        metric = metric_of("helpfulness", models=models)
        found = check(metric, labelled(POOL[::2]), models=models, repeats=4, show=False)
    true_noise, true_length = planted(5, temper, POOL[::2])
    assert 0.03 < found.missing_share < 0.3
    assert found.verdicts == 16 * 4 * 4
    assert len(found.missing) > 1, "each reason is counted apart"
    assert holds(found.noise, true_noise)
    assert holds(found.length, true_length)
    assert holds(found.order, 0.0)
    assert "Too many to rely on the rest" in str(found)


def test_all_calls_failing_ends_soon_and_says_what_to_mend():
    with serve(RehearsalModel(), faults=Faults.parse("500=100%")) as server:
        models = models_at(server.url)
        with pytest.raises(SelfImproveError) as raised:
            check(metric_of("helpfulness", models=models), labelled(POOL), models=models, show=False)
        assert isinstance(raised.value, Outage)
        assert "Check that the service" in raised.value.remedy
        assert server.counts().calls < 100


def test_what_a_journal_has_is_not_asked_again_and_gives_the_same_figures(tmp_path):
    with serve(RehearsalModel(seed=1)) as server, Journal.open(tmp_path / "v.db") as journal:
        found, calls = [], []
        for _ in range(2):
            models = models_at(server.url)
            metric = metric_of("helpfulness", models=models, journal=journal)
            one = check(metric, labelled(POOL[:4]), models=models, repeats=2, journal=journal, show=False)
            found.append(replace(one, made="").to_json())
            calls.append(server.counts().calls)
    assert calls == [4 * 2 * 4] * 2
    assert found[0] == found[1]


def test_from_a_thread_and_beside_a_running_loop_the_figures_are_the_same(quick):
    def figures():
        steady = planted_metric(5, Temper(judge_noise=0.1), random.Random(7))
        return replace(check(steady, [{"output": text} for text in POOL[:8]], show=False), made="")

    async def beside():
        return figures()

    found = [figures(), asyncio.run(beside())]
    thread = threading.Thread(target=lambda: found.append(figures()))
    thread.start()
    thread.join()
    assert found[0] == found[1] == found[2]


# --- people ---


class Echo:
    """A judge behind the server that says the label it finds in the reply."""

    def complete(self, body):
        label = body["messages"][-1]["content"].partition("says:")[2].split()[0]
        told = {"role": "assistant", "content": json.dumps({"label": label, "explanation": "So."})}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "rehearsal",
            "choices": [{"index": 0, "message": told, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


MET = [("excellent", "good"), ("good", "good"), ("poor", "fair"), ("useless", "useless"), ("fair", "poor")] * 3
ORDER = ["useless", "poor", "fair", "good", "excellent"]


@pytest.fixture(scope="module")
def echo():
    with serve(Echo()) as server:
        yield models_at(server.url)


def test_agreement_with_a_labelled_set_is_scikit_learns_kappa(echo):
    rows = [
        {"inputs": {"input": str(n), "output": f"says: {said} ."}, "label": right.upper()}
        for n, (right, said) in enumerate(MET)
    ]
    found = check(metric_of("helpfulness", models=echo), rows, models=echo, repeats=2, show=False).agreement
    right, said = zip(*MET, strict=True)
    places = [[ORDER.index(label) for label in side] for side in (right, said)]
    assert found.labels == tuple(ORDER)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(right, said))
    assert found.weighted_kappa.value == pytest.approx(cohen_kappa_score(*places, weights="quadratic"))
    assert found.spearman.value == pytest.approx(stats.spearmanr(*places)[0])
    assert found.pearson.value == pytest.approx(stats.pearsonr(*places)[0])
    assert found.same.value == pytest.approx(6 / 15)
    assert found.confusion[ORDER.index("excellent")] == (0, 0, 0, 3, 0)
    assert (found.rows, found.missing) == (15, 0)


def sample(number, said, **more):
    turn = {"role": "user", "content": f"Question {number}"}
    return Sample(str(number), (turn,), {"role": "assistant", "content": f"says: {said} ."}, **more)


def test_people_are_found_in_samples_under_the_metrics_name_or_another(echo):
    metric = metric_of("helpfulness", models=echo)
    values = {label: at / 4 for at, label in enumerate(ORDER)}
    rows = [sample(n, said, human={"thumb": Score(values[right])}) for n, (right, said) in enumerate(MET)]
    rows.append(sample(99, "good", human={"thumb": Score.missing("nobody looked")}))
    without = check(metric, rows, models=echo, repeats=2, show=False)
    assert without.agreement is None
    assert any("thumb" in note for note in without.notes)
    found = check(metric, rows, models=echo, repeats=2, human="thumb", show=False).agreement
    assert found.kappa.value == pytest.approx(cohen_kappa_score(*zip(*MET, strict=True)))
    assert found.rows == 15


def test_a_minimized_judge_agrees_by_its_turned_scores(echo):
    spec = replace(HELPFULNESS, optimization_direction="minimize", choices={"excellent": 0, "fair": 0.5, "useless": 1})
    rows = [
        {"inputs": {"input": str(n), "output": f"says: {label} ."}, "label": label}
        for n, label in enumerate(("excellent", "fair", "useless") * 2)
    ]
    found = check(metric_of(spec, models=echo), rows, models=echo, repeats=2, show=False).agreement
    assert found.labels == ("useless", "fair", "excellent")
    assert (found.kappa.value, found.pearson.value) == (1.0, pytest.approx(1.0))


def test_scores_without_labels_give_correlations_alone():
    rows = [{"inputs": {"output": "x" * n}, "score": n / 10} for n in range(1, 9)]
    found = check(metric_of(lambda output: min(1.0, len(output) / 900), name="long"), rows, show=False).agreement
    assert found.kappa is None
    assert found.pearson.value == pytest.approx(1.0)


# --- what it allows ---

PLAIN = Estimate(0.1, 0.05, 0.15, 0.95, 30)


def calibration(noise=0.2, spread=0.1, **more):
    return Calibration("m", "v", "openai/x", 30, 5, 600, Estimate(noise, 0, 1, 0.95, 30), PLAIN, spread, **more)


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.integers(2, 400), st.integers(1, 8))
@settings(max_examples=40)
def test_more_examples_and_more_repeats_never_make_it_harder(noise, spread, examples, repeats):
    found = calibration(noise, spread)
    assert found.believable(examples + 1, repeats) <= found.believable(examples, repeats)
    assert found.believable(examples, repeats + 1) <= found.believable(examples, repeats)
    assert calibration(0.0, 0.0).believable(examples, repeats) == 0.0
    if (few := found.repeats_for(0.1, examples)) is not None:
        assert found.repeats_for(0.2, examples) <= few
        assert found.repeats_for(0.1, examples + 1) <= few


@pytest.mark.parametrize(("noise", "spread", "effect", "examples"), [(0.2, 0.05, 0.06, 60), (0.3, 0.2, 0.1, 100)])
def test_the_repeats_it_asks_for_show_the_effect_four_times_in_five_and_nothing_is_believed_by_chance(
    noise, spread, effect, examples
):
    found = calibration(noise, spread)
    repeats = found.repeats_for(effect, examples)
    assert repeats > 1
    generator = np.random.default_rng(8)

    def share_believed(true, repeats):
        between = true + spread * generator.standard_normal((4_000, examples))
        seen = between + noise * math.sqrt(2 / repeats) * generator.standard_normal((4_000, examples))
        return float((np.abs(seen.mean(axis=1)) > found.believable(examples, repeats)).mean())

    assert share_believed(effect, repeats) >= 0.78
    assert share_believed(effect, repeats - 1) < 0.8
    assert share_believed(0.0, repeats) <= 0.06


def test_where_repeats_cannot_help_it_says_none():
    assert calibration(0.2, 0.3).repeats_for(0.05, 20) is None
    # 2 * .04 / (20 * (.05 / (2.093 + .842))^2) = 13.8
    assert calibration(0.2, 0.3).repeats_for(0.05, 20, spread=0.0) == 14
    with pytest.raises(UsageError):
        calibration().believable(1)
    for effect in (0.0, math.nan):
        with pytest.raises(UsageError):
            calibration().repeats_for(effect, 10)


def test_where_noise_is_not_known_neither_is_what_it_allows():
    unknown = calibration(math.nan)
    for ask in (lambda: unknown.believable(100), lambda: unknown.repeats_for(0.05, 100)):
        with pytest.raises(UsageError, match="noise of 'm' is not known") as told:
            ask()
        assert told.value.remedy
    assert "not known" in str(unknown)


# --- keeping it ---


def test_it_is_kept_and_stale_when_the_metric_or_the_model_is_another(tmp_path, echo):
    metric = metric_of("helpfulness", models=echo)
    rows = [{"inputs": {"input": str(n), "output": f"says: {s} ."}, "label": r} for n, (r, s) in enumerate(MET[:5])]
    found = check(metric, rows, models=echo, repeats=2, show=False)
    assert Calibration.load(metric, echo, folder=tmp_path) is None
    path = found.save(tmp_path)
    assert path.name == f"{metric.version}-openai-rehearsal.json"
    assert Calibration.load(metric, echo, folder=tmp_path) == Calibration.load(metric, folder=tmp_path) == found
    url = echo.by_role["judge"].base_url
    other = Models(Model(name="openai/newer", base_url=url, api_key="none"))
    assert Calibration.load(metric, other, folder=tmp_path) is None
    assert Calibration.load(metric_of("helpfulness", models=other), other, folder=tmp_path) is None
    changed = metric_of(replace(HELPFULNESS, include_explanation=False), models=echo)
    assert Calibration.load(changed, echo, folder=tmp_path) is None
    for broken in ("{", "[]", '{"format": 1}', '{"format": 99}'):
        path.write_text(broken)
        with pytest.raises(DataError):
            Calibration.load(metric, echo, folder=tmp_path)


def test_figures_that_are_not_known_come_back_from_json():
    unknown = Estimate(math.nan, -1.0, 1.0, 0.95, 0, 3)
    found = calibration(length=unknown, order=None, missing={"away": 3}, shared=("coach",), notes=("One.",))
    back = Calibration.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert math.isnan(back.length.value)
    assert replace(back, length=None) == replace(found, length=None)
    assert "not known" in str(back)


def test_a_judge_that_is_the_worker_or_the_coach_is_warned_of(echo):
    url = echo.by_role["judge"].base_url
    alone = Models(Model(name="openai/rehearsal", base_url=url, api_key="none"))
    rows = [{"inputs": {"input": "x", "output": "says: good ."}}]
    for models, shared in ((alone, ("worker", "coach")), (echo, ())):
        found = check(metric_of("helpfulness", models=models), rows, models=models, repeats=2, show=False)
        assert found.shared == shared
        assert ("same model as the worker and coach" in str(found)) == bool(shared)
    assert "Use another model" in found._repr_html_() or not found.shared


# --- filler ---


@given(st.text(min_size=1), st.integers(1, 400))
@settings(max_examples=50)
def test_filler_comes_after_the_text_in_the_length_asked_for_and_always_the_same(text, words):
    longer, added = pad(text, words)
    assert longer.startswith(text.rstrip())
    assert words <= added < words + 20
    assert len(longer.split()) == len(text.split()) + added
    assert pad(text, words) == (longer, added)


def test_filler_says_nothing_that_a_judge_looks_for():
    for text in POOL:
        assert catalogue.shown(pad(text, 400)[0]) == catalogue.shown(text)


def test_what_is_not_prose_is_not_lengthened():
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    seen = []

    def listen(output):
        seen.append(output)
        return 1.0

    rows = [
        {"output": '{"a": 1}'},
        {"output": "```\nx = 1\n```"},
        {"output": "| a | b |\n|---|---|"},
        {"output": "  "},
        Sample("1", (), message),
        Sample("2", (), {"role": "assistant", "content": "On its way."}),
        dspy.Example(question="?", output="Soon.").with_inputs("question"),
    ]
    found = check(metric_of(listen, name="listen"), rows, repeats=2, show=False)
    assert len(seen) == found.verdicts == 7 * 2 + 2 * 2 * len(LENGTHS)
    assert (found.length.n, found.rows) == (2, 7)
    assert any(note.startswith("5 answers of 7 are not prose") for note in found.notes)


# --- what users do wrong ---


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "nothing to judge"),
        ([{"inputs": {"output": "Hello."}}], "needs 'input'"),
        ([{"inputs": {"input": "x", "output": "y"}, "label": "splendid"}], "label of row 1"),
        ([{"inputs": {"input": "x", "output": "y"}, "score": 4}], "row 1"),
        ([{"inputs": {"input": "x"}}], "no answer"),
        ([7], "not an example"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused_before_anything_is_asked(rows, said):
    models = models_at("http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match=said) as raised:
        check(metric_of("helpfulness", models=models), rows, models=models, show=False)
    assert "splendid" not in str(raised.value)


def test_people_and_a_single_verdict_cannot_be_checked():
    rows = [{"output": "x"}]
    with pytest.raises(UsageError, match="People cannot be asked again"):
        check(metric_of(human("thumb")), rows)
    with pytest.raises(UsageError, match="two verdicts"):
        check(metric_of(lambda output: 1.0, name="one"), rows, repeats=1)


def test_a_metric_without_any_verdict_says_that_nothing_is_known():
    found = check(metric_of(lambda output: None, name="mute"), [{"output": "Hello."}] * 3, repeats=2, show=False)
    assert found.missing == {"the metric returned nothing": 3 * 2 * 3}
    assert math.isnan(found.noise.value)
    assert str(found).count("not known") == 2
