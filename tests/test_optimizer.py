"""The verdict: who is the challenger, what shows a gain, what keeps the baseline; the result as text and as JSON."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.budget import Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Measured, Outcome
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.optimizer import Descent, Improvement, Optimizer, Stop, Trial, judged, optimizer_of, sides
from dspy_selfimprove.pareto import dominates
from dspy_selfimprove.preference import Goal, Preference
from dspy_selfimprove.rollout import Rollout
from dspy_selfimprove.score import Score, Scorecard

BASELINE = Candidate({"chat": "Answer."})


def candidate(number: int) -> Candidate:
    return BASELINE.child("rewrite", texts={"chat": f"Answer {number}."})


def evaluation(
    values: Mapping[str, Sequence[float | None]],
    *,
    goals: Mapping[str, Mapping[str, Any]] | None = None,
    stopped: str | None = None,
    weights: Sequence[float] | None = None,
) -> Evaluation:
    rows = []
    for place, scores in enumerate(zip(*values.values(), strict=True)):
        found = {
            name: Score.missing("away") if value is None else Score(value)
            for name, value in zip(values, scores, strict=True)
        }
        rows.append(
            Outcome(
                f"T{place}",
                "",
                {},
                {},
                (Rollout(0, {"output": "."}),),
                (Scorecard(f"T{place}", found),),
                weight=weights[place] if weights else 1.0,
            )
        )
    measured = tuple(Measured(name, "1", **(goals or {}).get(name, {})) for name in values)
    return Evaluation(tuple(rows), measured, planned=len(rows), stopped=stopped)


def verdict(before: Mapping[str, Any], *others: Mapping[str, Any], **more: Any) -> Improvement:
    goals = more.pop("goals", None)
    found = [(BASELINE, evaluation(before, goals=goals))]
    found += [(candidate(number), evaluation(each, goals=goals)) for number, each in enumerate(others)]
    return judged(found, by="test", **more)


# What is shown.


def test_a_gain_on_every_example_is_an_improvement() -> None:
    found = verdict({"a": [0.2] * 12}, {"a": [0.8] * 12})
    assert found.verdict == "improved"
    assert found.is_improved
    assert found.chosen == found.challenger != found.baseline
    assert found.gain is not None
    assert found.gain.value == pytest.approx(0.6)
    assert found.sentence.startswith("Improved: +0.600 [")


def test_a_loss_on_every_example_keeps_the_baseline_and_says_worse() -> None:
    found = verdict({"a": [0.8] * 12}, {"a": [0.2] * 12})
    assert found.verdict == "worse"
    assert found.chosen == found.baseline
    assert "Keep your prompt" in found.sentence


def test_what_helps_here_and_harms_there_shows_nothing() -> None:
    found = verdict({"a": [0.5] * 12}, {"a": [0.9, 0.1] * 6})
    assert found.verdict == "not shown"
    assert found.chosen == found.baseline


def test_without_another_there_is_nothing_to_compare() -> None:
    found = verdict({"a": [0.5] * 12})
    assert (found.verdict, found.challenger, found.gain, dict(found.differences)) == ("not shown", None, None, {})
    assert found.front == (found.baseline,)
    assert "no other was tried" in found.sentence


def test_an_evaluation_that_was_cut_short_proves_nothing() -> None:
    better = evaluation({"a": [1.0] * 12}, stopped="the budget was used up")
    found = judged([(BASELINE, evaluation({"a": [0.1] * 12})), (candidate(1), better)], by="test")
    assert found.challenger is None
    assert found.chosen == found.baseline
    assert [each.status for each in found.unproven] == ["unproven"]
    found = judged([(BASELINE, better), (candidate(1), evaluation({"a": [1.0] * 12}))], by="test")
    assert found.challenger is None
    assert found.baseline.status == "unproven"


def test_a_metric_with_too_many_verdicts_missing_proves_nothing() -> None:
    values = [None] * 3 + [1.0] * 9
    found = verdict({"a": [0.1] * 12}, {"a": values})
    assert found.challenger is None
    found = verdict({"a": [0.1] * 40}, {"a": [None, *[1.0] * 39]})  # one in forty may be
    assert found.verdict == "improved"
    assert found.gain is not None
    assert found.gain.missing == 1


def test_the_more_it_was_chosen_from_the_more_must_be_shown() -> None:
    """The same gain, alone and as the best of forty."""
    rng = np.random.default_rng(0)
    before = {"a": rng.uniform(0, 0.5, 30).tolist()}
    gain = {"a": np.clip(np.array(before["a"]) + rng.normal(0.12, 0.3, 30), 0, 1).tolist()}
    alone = verdict(before, gain)
    of_many = verdict(before, gain, *[{"a": [0.0] * 30}] * 39)
    assert alone.gain is not None
    assert of_many.gain is not None
    assert of_many.challenger == alone.challenger
    assert of_many.gain.value == pytest.approx(alone.gain.value)
    assert of_many.gain.low < alone.gain.low
    assert of_many.gain.level == pytest.approx(1 - 0.05 / 40)
    assert (alone.verdict, of_many.verdict) == ("improved", "not shown")


def test_where_nothing_is_better_hardly_any_run_says_so() -> None:
    """Ten candidates that are all the baseline: at most one in forty by the promise, and the test allows two."""
    rng = np.random.default_rng(7)
    runs, wrong = 120, 0
    for _ in range(runs):
        found = verdict(*[{"a": rng.uniform(0, 1, 30).tolist()} for _ in range(11)])
        wrong += found.verdict == "improved"
        assert found.challenger is not None
    assert wrong <= runs / 20


def test_a_gain_below_the_least_that_counts_keeps_the_baseline() -> None:
    before, after = {"a": [0.4] * 40, "b": [0.4] * 40}, {"a": [0.6] * 40, "b": [0.6] * 40}
    assert verdict(before, after).verdict == "improved"
    assert verdict(before, after, min_improvement=0.3).verdict == "not shown"
    assert verdict(before, after, min_improvement={"a": 0.3}).verdict == "not shown"
    assert verdict({"a": [0.1] * 40, "b": [0.4] * 40}, after, min_improvement={"a": 0.3}).verdict == "improved"
    assert verdict(before, after, min_improvement=0.3).chosen.candidate == BASELINE


def test_production_decides_where_examples_weigh_differently() -> None:
    weights = [100.0] * 3 + [1.0] * 27
    before = evaluation({"a": [0.5] * 30}, weights=weights)
    # Better on most examples, worse on those that make up production.
    after = evaluation({"a": [0.1] * 3 + [0.9] * 27}, weights=weights)
    found = judged([(BASELINE, before), (candidate(1), after)], by="test")
    assert found.verdict != "improved"
    assert found.gain is not None
    assert found.gain.value < 0
    assert found.challenger is not None
    assert found.challenger.means["a"].value == pytest.approx((0.1 * 300 + 0.9 * 27) / 327)


# What is wanted.


def test_weights_choose_the_challenger() -> None:
    before = {"a": [0.2] * 20, "b": [0.2] * 20}
    first, second = {"a": [0.9] * 20, "b": [0.2] * 20}, {"a": [0.2] * 20, "b": [0.8] * 20}
    assert verdict(before, first, second).chosen.candidate == candidate(0)
    wanted = Preference({"a": Goal(1), "b": Goal(3)})
    assert verdict(before, first, second, preference=wanted).chosen.candidate == candidate(1)


def test_a_floor_that_was_held_is_not_given_up() -> None:
    before, after = {"a": [0.2] * 20, "b": [0.9] * 20}, {"a": [1.0] * 20, "b": [0.7] * 20}
    assert verdict(before, after).verdict == "improved"
    found = verdict(before, after, preference=Preference({"a": Goal(), "b": Goal(at_least=0.8)}))
    assert found.verdict == "not shown"
    assert found.chosen == found.baseline


def test_reaching_a_floor_outweighs_what_it_costs() -> None:
    before, after = {"a": [0.9] * 20, "b": [0.4] * 20}, {"a": [0.5] * 20, "b": [0.7] * 20}
    wanted = Preference({"a": Goal(weight=5), "b": Goal(at_least=0.6)})
    assert verdict(before, after, preference=Preference({"a": Goal(weight=5), "b": Goal()})).verdict == "worse"
    found = verdict(before, after, preference=wanted)
    assert found.verdict == "improved"
    assert found.gain is not None
    assert found.gain.value == pytest.approx(0.3)


def test_a_later_priority_decides_only_where_the_first_shows_nothing() -> None:
    wanted = Preference({"a": Goal(priority=1), "b": Goal(priority=2)})
    same = [0.5] * 20
    assert verdict({"a": same, "b": [0.2] * 20}, {"a": same, "b": [0.9] * 20}, preference=wanted).is_improved
    assert verdict({"a": same, "b": [0.9] * 20}, {"a": [0.7] * 20, "b": [0.2] * 20}, preference=wanted).is_improved
    found = verdict({"a": same, "b": [0.2] * 20}, {"a": [0.3] * 20, "b": [1.0] * 20}, preference=wanted)
    assert found.verdict == "worse"


def test_a_metric_that_is_only_looked_at_decides_nothing() -> None:
    goals = {"b": {"weight": 0.0}}
    found = verdict({"a": [0.5] * 20, "b": [0.1] * 20}, {"a": [0.5] * 20, "b": [0.9] * 20}, goals=goals)
    assert found.verdict == "not shown"
    assert found.differences["b"].low > 0
    assert found.front[0].candidate == BASELINE or len(found.front) == 2


tables = st.integers(1, 6).flatmap(
    lambda count: st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=5, max_size=5), min_size=count, max_size=count
    )
)


@settings(max_examples=60)
@given(tables)
def test_the_front_is_what_nobody_dominates(rows: list[list[tuple[float, float]]]) -> None:
    values = [{"a": [each[0] for each in row], "b": [each[1] for each in row]} for row in rows]
    found = verdict(*values)
    points = {
        each.candidate.id: [each.means["a"].value, each.means["b"].value] for each in (found.baseline, *found.front)
    }
    if found.challenger is not None:
        points[found.challenger.candidate.id] = [found.challenger.means[name].value for name in ("a", "b")]
    for trial in found.front:
        assert not any(dominates(point, points[trial.candidate.id]) for point in points.values())
    for point in points.values():
        on_front = [points[each.candidate.id] for each in found.front]
        assert point in on_front or any(dominates(other, point) for other in on_front)
    assert found.chosen in (found.baseline, found.challenger)
    assert found.is_improved == (found.chosen == found.challenger)
    if found.is_improved:
        assert found.gain is not None
        assert found.gain.low > 0


@settings(max_examples=60)
@given(tables, st.floats(0, 0.9))
def test_it_comes_back_from_json(rows: list[list[tuple[float, float]]], least: float) -> None:
    values = [{"a": [each[0] for each in row], "b": [each[1] for each in row]} for row in rows]
    found = verdict(*values, min_improvement={"a": least})
    assert Improvement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


# The result.


@pytest.fixture(scope="module")
def full() -> Improvement:
    before, after = {"a": [0.2] * 40, "b": [0.8] * 40}, {"a": [0.9] * 40, "b": [0.4] * 40}
    return verdict(
        before,
        after,
        stopped=Stop("budget", "The budget of 100 calls was used up."),
        unproven=[Trial(candidate(9), {}, 0, "unproven")],
        spent={"worker": Spend(80, 1000, 0.5), "coach": Spend(3, 400, 0.1)},
        lineage={candidate(0).id: Descent((BASELINE.id,), "rewrite")},
        tried=7,
        seed=3,
    )


def test_all_of_it_comes_back_from_json(full: Improvement) -> None:
    again = Improvement.from_json(json.loads(json.dumps(full.to_json(), allow_nan=False)))
    assert again == full
    assert again.lineage[candidate(0).id].parents == (BASELINE.id,)
    assert again.spent["worker"] == Spend(80, 1000, 0.5)


def test_it_can_be_copied_and_pickled_with_its_program(full: Improvement) -> None:
    assert deepcopy(full) == full
    assert pickle.loads(pickle.dumps(full)) == full


def test_a_proof_is_put_beside_it(full: Improvement) -> None:
    class Proof:
        def to_json(self) -> dict[str, Any]:
            return {"verdict": "improved"}

    proven = full.with_proof(Proof())
    assert full.proof is None
    assert proven.to_json()["proof"] == {"verdict": "improved"}
    assert Improvement.from_json(proven.to_json()).proof == {"verdict": "improved"}


def test_it_says_what_it_found_in_a_terminal_and_on_a_page(full: Improvement) -> None:
    text = str(full)
    for part in (
        "test: Improved: +0.150",
        "0.200",
        "0.900",
        "better",
        "worse",
        "The budget of 100 calls was used up.",
        "7 candidates tried, 1 compared",
        "worker: 80 calls, 1,000 tokens, $0.5000",
        "Front of 2",
        "chosen",
        "baseline",
    ):
        assert part in text
    page = full._repr_html_()
    assert page.count("<table") == 2
    assert "Improved" in page
    assert repr(full) == "<Improvement by test: improved, 2 on the front>"


def test_a_result_with_nothing_measured_can_be_looked_at() -> None:
    nothing = evaluation({"a": [None] * 5})
    found = judged([(BASELINE, nothing)], by="test")
    assert found.baseline.status == "unproven"
    assert "Keep your prompt" in str(found)
    assert Improvement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))).names == ("a",)


# What all optimizers share.

MODELS = Models(Model(name="openai/rehearsal", base_url="http://127.0.0.1:1/v1", api_key="none"))


@pytest.mark.parametrize("name", ["mipro", "copro", "simba", "gepa", "bootstrap"])
def test_each_goes_by_its_name(name: str) -> None:
    made = optimizer_of(name, "brevity", models=MODELS)
    assert isinstance(made, Optimizer)
    assert made.name == name
    assert made.metrics.names == ("brevity",)


def test_each_is_a_teleprompter_of_dspys() -> None:
    from dspy.teleprompt.teleprompt import Teleprompter

    made = optimizer_of("gepa", "brevity", models=MODELS)
    assert isinstance(made, Teleprompter)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "magic"}, "no optimizer 'magic'"),
        ({"metrics": []}, "no metric to improve by"),
        ({"min_improvement": 1.5}, "share of the scale"),
        ({"min_improvement": {"kindness": 0.1}}, "no metric 'kindness'"),
        ({"preference": Preference({"kindness": Goal()})}, "no metric 'kindness'"),
        ({"preference": Preference({"brevity": Goal(weight=0, at_least=0.5), "kindness": Goal()})}, "'kindness'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_spent(settings: dict[str, Any], words: str) -> None:
    given_: dict[str, Any] = {"name": "gepa", "metrics": "brevity", **settings}
    with pytest.raises(UsageError, match=words):
        optimizer_of(given_.pop("name"), given_.pop("metrics"), models=MODELS, **given_)


def test_a_preference_takes_the_place_of_the_metrics_own_goals() -> None:
    ours = [metric_of("brevity", weight=3, at_least=0.9), metric_of(lambda output: 1.0, name="other")]
    made = optimizer_of("gepa", ours, models=MODELS, preference=Preference({"other": Goal(weight=2, priority=2)}))
    assert made.metrics.preference["brevity"] == Goal(weight=0.0)
    assert made.metrics.preference["other"] == Goal(weight=2, priority=2)
    assert ours[0].weight == 3


@given(st.integers(2, 40), st.integers(0, 5))
def test_half_is_held_back_to_choose_by(count: int, seed: int) -> None:
    train, validation = sides(range(count), None, seed=seed)
    assert sorted([*train, *validation]) == list(range(count))
    assert len(validation) == count // 2
    assert sides(range(count), None, seed=seed) == (train, validation)


def test_sides_of_nothing_are_refused() -> None:
    assert sides([1], [2], seed=0) == ((1,), (2,))
    for train, validation in (([], [1]), ([1], []), ([1], None)):
        with pytest.raises(UsageError):
            sides(train, validation, seed=0)
