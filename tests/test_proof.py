"""The last step: what is shown on the sealed test, what is not, and how rarely luck passes for a gain."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.calibration import Calibration
from dspy_selfimprove.comparison import compare
from dspy_selfimprove.dataset import Dataset, split
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Measured, Outcome
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.program import ChatProgram, read_candidate
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.proof import Proof, expect, prove, prove_on
from dspy_selfimprove.rehearsal import lm
from dspy_selfimprove.rollout import Rollout
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score, Scorecard
from dspy_selfimprove.seal import open_test, openings
from dspy_selfimprove.statistics import DIFFERENCES, Estimate, estimate_difference, estimate_population

ROLLOUT = (Rollout(0, {"output": "."}),)
MISSING = Score.missing("the judge did not answer in time")

Columns = dict[str, Sequence[float | None]]


def evaluation(columns: Columns, name: str = "old", **more: Any) -> Evaluation:
    """An evaluation with these values by metric; `weights` and `clusters` are by example, `about` by metric."""
    length = len(next(iter(columns.values())))
    start = more.get("start", 0)
    outcomes = []
    for place in range(length):
        scores = {
            metric: MISSING if (value := column[place]) is None else Score(float(value))
            for metric, column in columns.items()
        }
        outcomes.append(
            Outcome(
                id=f"T{place + start}",
                fingerprint="f",
                inputs={},
                reference={},
                rollouts=ROLLOUT,
                cards=(Scorecard(f"T{place + start}", scores),),
                weight=more["weights"][place] if "weights" in more else 1.0,
                cluster=more["clusters"][place] if "clusters" in more else None,
            )
        )
    measured = tuple(Measured(metric, "1", **more.get("about", {}).get(metric, {})) for metric in columns)
    return Evaluation(tuple(outcomes), measured, length, candidate=name, stopped=more.get("stopped"))


def proof_of(before: Columns, after: Columns, *, more: dict[str, Any] | None = None, **terms: Any) -> Proof:
    shared = more or {}
    return prove(evaluation(before, "old", **shared), evaluation(after, "new", **shared), **terms)


# --- How often it is wrong --------------------------------------------------------------------------------------------

METRICS = ("graded", "smooth", "exact")


def noise(generator: np.random.Generator, hard: Any) -> Columns:
    """Three metrics around how hard each example is, and no more: in quarters, smooth, and all or nothing."""
    n = len(hard)
    graded = np.round(np.clip(hard + generator.normal(0, 0.25, n), 0, 1) * 4) / 4
    smooth = np.clip(hard + generator.normal(0, 0.15, n), 0, 1)
    exact = (generator.uniform(size=n) < 0.7 + 0.2 * hard).astype(float)
    return dict(zip(METRICS, (list(graded), list(smooth), list(exact)), strict=True))


def test_noise_is_seldom_called_an_improvement() -> None:
    """400 runs of two programs that are one, by three metrics: at most 28 may declare anything on any metric."""
    generator = np.random.default_rng(20)
    declared = 0
    for _ in range(400):
        hard = generator.uniform(0.2, 0.8, 60)
        found = proof_of(noise(generator, hard), noise(generator, hard))
        declared += any(each.verdict == "improved" for each in found.findings)
    assert 0 < declared <= 28, "about ten are to be expected; none at all would be a test that cannot fail"


def quarters(generator: np.random.Generator, n: int, gain: float) -> tuple[Any, Any]:
    hard = generator.uniform(0.2, 0.6, n)
    sides = (hard + shift + generator.normal(0, 0.25, n) for shift in (0.0, gain))
    before, after = (np.round(np.clip(side, 0, 1) * 4) / 4 for side in sides)
    return before, after


def all_or_nothing(generator: np.random.Generator, n: int, gain: float) -> tuple[Any, Any]:
    before, after = ((generator.uniform(size=n) < 0.4 + shift).astype(float) for shift in (0.0, gain))
    return before, after


def smooth(generator: np.random.Generator, n: int, gain: float) -> tuple[Any, Any]:
    before = generator.uniform(0.3, 0.5, n)
    return before, np.clip(before + gain + generator.normal(0, 0.2, n), 0, 1)


@pytest.mark.parametrize(("law", "n"), [(quarters, 60), (all_or_nothing, 60), (smooth, 90)])
def test_twice_the_smallest_believable_gain_is_found(law: Any, n: int) -> None:
    """Among three metrics of which two did not change, in at least 80 of 100 runs."""
    generator = np.random.default_rng(4)
    before, after = law(generator, 100_000, 0.0)
    spread, nothing = float((after - before).std()), Estimate(0.0, 0.0, 0.0, 0.95, n)
    calibration = Calibration("graded", "1", "m", n, 5, 5 * n, noise=nothing, flips=nothing, spread=spread)
    gain = 2 * calibration.believable(n)
    found = 0
    for _ in range(100):
        hard = generator.uniform(0.2, 0.8, n)
        old, new = noise(generator, hard), noise(generator, hard)
        old["graded"], new["graded"] = law(generator, n, gain)
        found += proof_of(old, new).verdict == "improved"
    assert found >= 80


def test_more_metrics_need_more_evidence() -> None:
    """A gain that one metric alone would show is not shown as one of six."""
    generator = np.random.default_rng(0)
    before = list(generator.uniform(0.2, 0.6, 50))
    after = [float(np.clip(value + 0.075 + generator.normal(0, 0.22), 0, 1)) for value in before]
    alone = proof_of({"right": before}, {"right": after})
    assert alone.level == 0.95
    assert alone["right"].difference == estimate_difference(after, before)
    assert alone.improved
    flat = {f"other {n}": [0.5] * 50 for n in range(5)}
    among = proof_of({"right": before, **flat}, {"right": after, **flat})
    assert among.level == pytest.approx(1 - 0.05 / 6)
    assert among["right"].difference == estimate_difference(after, before, level=among.level)
    assert not among.improved
    assert prove(
        evaluation({"right": before, **flat}, "old"), evaluation({"right": after, **flat}, "new"), metrics=["right"]
    ).improved


# --- The verdict ------------------------------------------------------------------------------------------------------

LOW, MIDDLE, HIGH = [0.2, 0.3] * 25, [0.5, 0.6] * 25, [0.8, 0.9] * 25


def test_what_is_improved_is_chosen_and_nothing_else() -> None:
    up = proof_of({"right": LOW}, {"right": MIDDLE})
    assert (up.verdict, up.chosen, up["right"].verdict) == ("improved", "new", "improved")
    assert up["right"].before == pytest.approx(0.25)
    assert up["right"].difference.value == pytest.approx(0.3)
    down = proof_of({"right": MIDDLE}, {"right": LOW})
    assert (down.verdict, down.chosen) == ("worse", "old")
    same = proof_of({"right": LOW}, {"right": LOW})
    assert (same.verdict, same.chosen) == ("not shown", "old")


def test_a_loss_beside_a_gain_keeps_the_baseline() -> None:
    found = proof_of({"right": LOW, "kind": HIGH}, {"right": HIGH, "kind": MIDDLE})
    assert (found["right"].verdict, found["kind"].verdict) == ("improved", "worse")
    assert (found.verdict, found.chosen) == ("not shown", "old")
    assert "does not count beside kind" in str(found)
    tolerant = proof_of({"right": LOW, "kind": HIGH}, {"right": HIGH, "kind": MIDDLE}, tolerance={"kind": 0.4})
    assert tolerant.verdict == "improved"
    looked_at = {"about": {"kind": {"weight": 0.0}}}
    aside = proof_of({"right": LOW, "kind": HIGH}, {"right": HIGH, "kind": MIDDLE}, more=looked_at)
    assert aside.verdict == "improved"
    assert "looked at only" in str(aside)
    unwanted = Preference({"right": Goal()})
    assert proof_of({"right": LOW, "kind": HIGH}, {"right": HIGH, "kind": LOW}, preference=unwanted).improved


def test_a_neutral_metric_decides_nothing() -> None:
    more = {"about": {"words": {"direction": "neutral", "weight": 0.0}}}
    found = proof_of({"right": LOW, "words": LOW}, {"right": LOW, "words": HIGH}, more=more)
    assert (found["words"].verdict, found.verdict) == ("improved", "not shown")


def test_a_gain_must_be_large_enough() -> None:
    for least, verdict in ((0.0, "improved"), (0.2, "improved"), (0.3, "not shown"), ({"right": 0.5}, "not shown")):
        assert proof_of({"right": LOW}, {"right": MIDDLE}, min_improvement=least).verdict == verdict
    other = proof_of({"right": LOW, "kind": LOW}, {"right": MIDDLE, "kind": MIDDLE}, min_improvement={"right": 0.5})
    assert (other["right"].verdict, other["kind"].verdict, other.verdict) == ("not shown", "improved", "improved")


def test_floors_must_hold() -> None:
    def with_floor(floor: float, after: Sequence[float | None] = HIGH) -> Proof:
        more = {"about": {"safe": {"at_least": floor}}}
        return proof_of({"right": LOW, "safe": HIGH}, {"right": HIGH, "safe": after}, more=more)

    assert (with_floor(0.8)["safe"].held, with_floor(0.8).verdict) == ("holds", "improved")
    assert (with_floor(0.85)["safe"].held, with_floor(0.85).verdict) == ("open", "improved")
    broken = with_floor(0.95)
    assert (broken["safe"].held, broken.verdict, broken.chosen) == ("below", "not shown", "old")
    assert "below the floor of 0.95, as before" in str(broken)
    unknown = with_floor(0.1, [None] * 25 + HIGH[25:])
    assert (unknown["safe"].held, unknown.verdict) == ("unknown", "not shown")
    assert "cannot be said" in str(unknown)
    asked = Preference({"right": Goal(), "safe": Goal(at_least=0.95)})
    assert proof_of({"right": LOW, "safe": HIGH}, {"right": HIGH, "safe": HIGH}, preference=asked).unheld == ("safe",)


def test_by_production_s_weights_the_verdict_can_be_another() -> None:
    """Rare examples got better, the frequent ones worse."""
    more = {"weights": [0.05] * 40 + [20.0] * 40, "clusters": [n % 2 for n in range(80)]}
    before, after = [0.0] * 40 + [0.6] * 40, [1.0] * 40 + [0.3] * 40
    found = proof_of({"right": before}, {"right": after}, more=more)
    assert found["right"].difference.low > 0
    changes = np.array(after) - np.array(before)
    expected = estimate_population(changes, more["weights"], strata=more["clusters"], bounds=DIFFERENCES, level=0.95)
    assert found["right"].production == found["right"].deciding == expected
    assert found.verdict == "worse"
    assert "production" in str(found)
    assert proof_of({"right": before}, {"right": after}).verdict == "improved"


def test_a_floor_is_held_in_production_or_not_at_all() -> None:
    about = {"right": {"at_least": 0.5}}
    after = [0.9] * 40 + [0.4] * 40
    assert proof_of({"right": LOW + LOW[:30]}, {"right": after}, more={"about": about})["right"].held == "holds"
    weights = {"weights": [0.1] * 40 + [10.0] * 40, "about": about}
    assert proof_of({"right": LOW + LOW[:30]}, {"right": after}, more=weights)["right"].held == "below"


def test_missing_verdicts_are_left_out_and_too_many_show_nothing() -> None:
    few = proof_of({"right": LOW}, {"right": [None, *MIDDLE[1:]]})
    assert (few["right"].difference.missing, few["right"].difference.n, few.verdict) == (1, 49, "improved")
    assert "1 pairs lack a verdict" in str(few)
    many = proof_of({"right": LOW, "kind": LOW}, {"right": [None] * 10 + MIDDLE[10:], "kind": MIDDLE})
    assert many["right"].indecisive
    assert many["right"].verdict == "not shown"
    assert many.level == 0.95, "what is not tested takes no share of the error"
    assert many.improved
    assert "shows nothing, for better or worse" in str(many)
    nothing = proof_of({"right": [None] * 20}, {"right": LOW[:20]})
    assert (nothing.verdict, nothing.chosen) == ("not shown", "old")
    assert math.isnan(nothing["right"].difference.value)
    assert Proof.from_json(json.loads(json.dumps(nothing.to_json(), allow_nan=False))).verdict == "not shown"


def test_what_only_one_side_has_and_an_early_end_are_said() -> None:
    found = prove(
        evaluation({"right": LOW}, "old"), evaluation({"right": MIDDLE}, "new", start=10, stopped="no budget")
    )
    assert (found.examples, found.left_out) == (40, 20)
    assert "20 examples that only one" in str(found)
    assert "ended early: no budget" in str(found)


def test_what_the_search_had_led_to_expect_stands_beside() -> None:
    validation = compare(evaluation({"right": LOW}), evaluation({"right": HIGH}))
    found = proof_of({"right": LOW}, {"right": MIDDLE}, validation=validation)
    assert found["right"].expected == validation["right"].mean
    assert "+0.600" in str(found)
    assert "search expected" in found._repr_html_()
    corrected = expect({"right": np.array([LOW, HIGH]).T})
    assert proof_of({"right": LOW}, {"right": MIDDLE}, validation=corrected)["right"].expected == corrected["right"]


VALUES = st.lists(st.tuples(*[st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 4), min_size=1, max_size=25)
OPPOSITE = {"improved": "worse", "worse": "improved", "not shown": "not shown"}


@settings(max_examples=60)
@given(VALUES, st.sampled_from([0.0, 0.1]))
def test_there_and_back_is_the_opposite(rows: list[Any], least: float) -> None:
    a, b, c, d = (list(column) for column in zip(*rows, strict=True))
    there = proof_of({"x": a, "y": c}, {"x": b, "y": d}, min_improvement=least, tolerance=least)
    back = proof_of({"x": b, "y": d}, {"x": a, "y": c}, min_improvement=least, tolerance=least)
    for name in ("x", "y"):
        one, other = there[name].difference, back[name].difference
        if one.n:
            assert one.value == pytest.approx(-other.value)
            assert one.low == pytest.approx(-other.high, abs=1e-9)
        if min(abs(abs(one.low) - least), abs(abs(one.high) - least)) > 1e-9:
            assert back[name].verdict == OPPOSITE[there[name].verdict]
    assert str(there)
    assert there._repr_html_()
    assert not there.improved or any(each.verdict == "improved" for each in there.findings)
    again = Proof.from_json(json.loads(json.dumps(there.to_json(), allow_nan=False)))
    assert (again.verdict, again.chosen, str(again)) == (there.verdict, there.chosen, str(there))


@settings(max_examples=40)
@given(VALUES, st.floats(0, 0.5), st.floats(0, 0.5))
def test_asking_for_more_never_finds_more(rows: list[Any], least: float, more: float) -> None:
    a, b, _, _ = (list(column) for column in zip(*rows, strict=True))
    if proof_of({"x": a}, {"x": b}, min_improvement=min(0.99, least + more)).improved:
        assert proof_of({"x": a}, {"x": b}, min_improvement=least).improved


def test_a_proof_is_read_back_as_it_was() -> None:
    more = {"weights": [1.0, 2.0] * 25, "about": {"right": {"at_least": 0.3}}}
    found = proof_of({"right": LOW}, {"right": HIGH}, more=more, min_improvement=0.1)
    assert Proof.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert repr(found) == "<Proof on 50 examples: improved (right improved)>"


@pytest.mark.parametrize(
    "terms",
    [
        {"min_improvement": 1.0},
        {"min_improvement": -0.1},
        {"min_improvement": {"speed": 0.1}},
        {"tolerance": True},
        {"metrics": ["speed"]},
        {"preference": Preference({"speed": Goal()})},
    ],
)
def test_terms_that_cannot_be_meant_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        proof_of({"right": LOW}, {"right": MIDDLE}, **terms)


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="There is right"):
        proof_of({"right": LOW}, {"right": MIDDLE})["left"]


# --- What the search may expect ---------------------------------------------------------------------------------------


def test_the_luck_of_the_choice_is_taken_off() -> None:
    """Fifteen candidates that are one: the best looks better than it is, and is not expected to be."""
    naive, corrected = [], []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        tables = {name: generator.uniform(size=(40, 15)) for name in ("right", "kind")}
        mean = sum(table.mean(axis=0) for table in tables.values()) / 2
        best = int(mean.argmax())
        naive.append(np.mean([table[:, best].mean() - table[:, 0].mean() for table in tables.values()]))
        corrected.append(np.mean([each.value for each in expect(tables).values()]))
    assert np.mean(naive) > 0.04
    assert abs(np.mean(corrected)) < 0.015


def test_a_gain_that_is_real_stays() -> None:
    generator = np.random.default_rng(1)
    table = np.clip(generator.normal(0.5, 0.1, (60, 10)), 0, 1)
    table[:, 7] = np.clip(table[:, 0] + 0.2, 0, 1)
    table[generator.uniform(size=table.shape) < 0.1] = np.nan
    found = expect({"right": table})["right"]
    assert found.value == pytest.approx(0.2, abs=0.02)
    assert found.low > 0.1
    best_is_baseline = expect({"right": table}, baseline=7)["right"]
    assert best_is_baseline.value == pytest.approx(0, abs=1e-12)


def test_the_choice_is_by_what_is_wanted() -> None:
    flat = np.full((20, 3), 0.5)
    right, kind = flat.copy(), flat.copy()
    right[:, 1], kind[:, 2] = 0.9, 0.8
    wanted = Preference({"right": Goal(weight=0.0), "kind": Goal()})
    found = expect({"right": right, "kind": kind}, preference=wanted)
    assert (found["right"].value, found["kind"].value) == pytest.approx((0.0, 0.3))


@pytest.mark.parametrize("tables", [{}, {"a": [[0.5]], "b": [[0.5, 0.5]]}, {"a": [0.5]}])
def test_tables_must_fit(tables: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="tables"):
        expect(tables)


# --- On the sealed test -----------------------------------------------------------------------------------------------


ASKED: Counter[str] = Counter()  # outside the programs: what they hold is part of their version
BROKEN: set[str] = set()


class Reply(dspy.Module):  # type: ignore[misc]
    """A program that answers as told; a person stops it where `BROKEN` says so."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def forward(self, conversation: Any, **given: Any) -> dspy.Prediction:
        ASKED[self.words] += 1
        if self.words in BROKEN:
            raise KeyboardInterrupt
        return dspy.Prediction(output=self.words)


class Longer(Reply):
    pass


class Stranger(dspy.Module):  # type: ignore[misc]
    """A program for other examples."""

    def forward(self, text: str) -> dspy.Prediction:
        return dspy.Prediction(output=text)


def polite(output: str) -> float:
    return 1.0 if "please" in output else 0.0


def asked() -> list[Sample]:
    reply = {"role": "assistant", "content": "Yes."}
    words = ["lamp", "hub", "bill", "card", "door", "plan", "name", "code", "bulb", "app"]
    return [
        Sample(f"T{n}", ({"role": "user", "content": f"{words[n % 10]} {words[n // 10]} {chr(97 + n % 26)}?"},), reply)
        for n in range(60)
    ]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return split(asked(), tmp_path / "tickets", groups=())


def test_the_test_is_opened_once_for_both(dataset: Dataset, tmp_path: Path) -> None:
    baseline, winner = Reply("No."), Longer("Wait, please.")
    ASKED.clear()
    with Journal.open(tmp_path / "run") as journal:
        found = prove_on(dataset, baseline, winner, metric_of(polite), journal=journal, show=False)
        assert [opening.purpose for opening in openings(dataset)] == ["final proof"]
        assert found.improved
        assert found.standing == "first use"
        assert found.examples == dataset.sizes["test"] == ASKED["No."] == ASKED[winner.words]
        again = prove_on(dataset, baseline, winner, metric_of(polite), journal=journal, show=False)
        assert again == found, "what is proven is read, not made again"
        assert len(openings(dataset)) == 1
        other = prove_on(dataset, winner, baseline, metric_of(polite), journal=journal, show=False)
    assert other.verdict == "worse"
    assert other.standing == "not first use: this is opening 2 of the test"
    assert "promise less" in str(other)


def test_a_proof_that_was_cut_short_is_still_the_first_use(dataset: Dataset, tmp_path: Path) -> None:
    baseline, winner = Reply("Not now."), Longer("Soon, please.")
    BROKEN.add(winner.words)
    with Journal.open(tmp_path / "run") as journal, pytest.raises(KeyboardInterrupt):
        prove_on(dataset, baseline, winner, metric_of(polite), journal=journal, show=False)
    assert len(openings(dataset)) == 1
    BROKEN.clear()
    with Journal.open(tmp_path / "run") as journal:
        found = prove_on(dataset, baseline, winner, metric_of(polite), journal=journal, show=False)
    assert (found.verdict, len(openings(dataset))) == ("improved", 2)
    assert found.standing == "first use"
    assert ASKED[baseline.words] == dataset.sizes["test"], "nothing is asked twice"


def test_two_prompts_of_the_rehearsal_model(dataset: Dataset) -> None:
    """The real thing from end to end: the winner is the shorter prompt's shorter answers."""
    long = ChatProgram(
        ChatPrompt(
            system="Restate the question. Explain the likely cause. Offer an alternative. End with a short summary. "
            "Give a time frame. Greet the customer by first name. Ask whether this solved the problem."
        )
    )
    short = ChatProgram(ChatPrompt(system="Answer briefly."))
    with dspy.context(lm=lm(seed=1)):
        found = prove_on(dataset, long, short, "brevity", min_improvement=0.05, show=False)
    assert found.improved
    assert found.chosen == found.after == read_candidate(short).id
    assert found.before == read_candidate(long).id


def test_somebody_else_s_look_counts(dataset: Dataset) -> None:
    open_test(dataset, purpose="curiosity")
    found = prove_on(dataset.folder, Reply("No."), Longer("Yes, please."), polite, show=False)
    assert found.standing == "not first use: this is opening 2 of the test"


def test_what_cannot_succeed_leaves_the_seal_alone(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="nothing to prove"):
        prove_on(dataset, Reply("No."), Reply("No."), polite, show=False)
    with pytest.raises(UsageError, match="takes 'text'"):
        prove_on(dataset, Reply("No."), Stranger(), polite, show=False)
    with pytest.raises(UsageError, match="share of the scale"):
        prove_on(dataset, Reply("No."), Longer("Yes."), polite, min_improvement=2, show=False)
    with pytest.raises(UsageError, match="not measured"):
        prove_on(dataset, Reply("No."), Longer("Yes."), polite, preference=Preference({"speed": Goal()}), show=False)
    with pytest.raises(UsageError):
        prove_on(dataset, Reply("No."), Longer("Yes."), "no such metric", show=False)
    assert openings(dataset) == ()
