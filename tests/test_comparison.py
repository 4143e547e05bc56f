"""Comparisons of two evaluations: what is shown and what is not, what flipped, what cannot be compared."""

from __future__ import annotations

import math
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.calibration import Calibration
from dspy_selfimprove.comparison import Comparison, compare
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.evaluation import Evaluation, Measured, Outcome, evaluate
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.rollout import Rollout
from dspy_selfimprove.score import Score, Scorecard
from dspy_selfimprove.statistics import Estimate, estimate_difference, estimate_mean, estimate_population

MISSING = Score.missing("the judge did not answer in time")


def evaluation(
    values: list[float | None], *, version: str = "1", floor: float | None = None, start: int = 0, **more: Any
) -> Evaluation:
    """An evaluation by the metric `right` with these values; `weights` and `clusters` are by example."""
    outcomes = []
    for number, value in enumerate(values, start):
        score = MISSING if value is None else Score(value)
        outcomes.append(
            Outcome(
                id=f"T{number}",
                fingerprint=more.get("fingerprint", "f"),
                inputs={"n": number},
                reference={},
                rollouts=(Rollout(0, {"output": f"{value} of {number}"}),),
                cards=(Scorecard(f"T{number}", {more.get("name", "right"): score}),),
                weight=more["weights"][number] if "weights" in more else 1.0,
                cluster=more["clusters"][number] if "clusters" in more else None,
            )
        )
    return Evaluation(tuple(outcomes), (Measured(more.get("name", "right"), version, at_least=floor),), len(values))


def test_pairs_show_what_two_separate_means_could_not() -> None:
    hard = [n / 60 for n in range(50)]  # how hard an example is varies far more than the change
    before, after = evaluation(hard), evaluation([value + 0.1 for value in hard])
    found = compare(before, after)
    assert found["right"].verdict == "better"
    assert found["right"].mean == estimate_difference([value + 0.1 for value in hard], hard)
    assert found["right"].mean.value == pytest.approx(0.1)
    assert before["right"].high > after["right"].low, "the separate intervals overlap"
    assert compare(after, before)["right"].verdict == "worse"
    assert compare(before, before)["right"].verdict == "not shown"
    assert compare(before, after, least=0.2)["right"].verdict == "not shown"
    assert compare(before, after, least=0.001)["right"].verdict == "better"


def test_what_matters_can_be_said_of_each_metric() -> None:
    hard = [n / 60 for n in range(50)]
    before, after = evaluation(hard), evaluation([value + 0.1 for value in hard])
    assert compare(before, after, least={"right": 0.2})["right"].verdict == "not shown"
    assert compare(after, before, least={"right": 0.2})["right"].verdict == "not shown"
    found = compare(before, after, least={"right": 0.02})
    assert found["right"].verdict == "better"
    assert "right: a difference counts from 0.02 on." in str(found)
    assert compare(before, after, least={})["right"].verdict == "better"
    with pytest.raises(UsageError, match="no metric 'wrong' in both"):
        compare(before, after, least={"wrong": 0.1})
    with pytest.raises(UsageError, match="share of the scale"):
        compare(before, after, least={"right": math.nan})


def test_what_a_calibration_believes_can_be_what_matters() -> None:
    """Two prompts that are the same, and a judge that by chance says of each example what makes the second better."""
    noise = Estimate(0.3, 0.25, 0.35, 0.95, 30)
    judge = Calibration("right", "1", "openai/x", 30, 5, 600, noise, noise, 0.1)
    before, after = evaluation([0.4] * 30), evaluation([0.6] * 30)
    assert compare(before, after)["right"].verdict == "better"
    assert compare(before, after, least={"right": judge.believable(30, spread=0)})["right"].verdict == "not shown"
    many = compare(evaluation([0.2] * 80), evaluation([0.8] * 80), least={"right": judge.believable(80, spread=0)})
    assert many["right"].verdict == "better"


def test_few_examples_show_nothing() -> None:
    assert compare(evaluation([0.0, 0.0, 0.0]), evaluation([1.0, 0.0, 1.0]))["right"].verdict == "not shown"


VALUES = st.lists(st.tuples(*[st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=25)


@settings(max_examples=40)
@given(VALUES, st.sampled_from([None, 0.25, 0.75]))
def test_there_and_back_is_the_same_with_the_other_sign(pairs: list[Any], floor: float | None) -> None:
    before, after = (evaluation([pair[side] for pair in pairs], floor=floor) for side in (0, 1))
    there, back = compare(before, after), compare(after, before)
    opposite = {"better": "worse", "worse": "better", "not shown": "not shown"}
    near = 0.02  # the bootstrap's ends differ a little from one side to the other
    if min(abs(there["right"].mean.low), abs(there["right"].mean.high)) > near:
        assert back["right"].verdict == opposite[there["right"].verdict]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert there["right"].mean.n == len(both)
    assert there["right"].mean.missing == len(pairs) - len(both)
    if both:
        assert there["right"].mean.value == pytest.approx(float(np.mean([b - a for a, b in both])))
        assert there["right"].after - there["right"].before == pytest.approx(there["right"].mean.value)
    at = 0.5 if floor is None else floor
    assert len(there.flips) == len(back.flips) == sum((a >= at) != (b >= at) for a, b in both)
    assert [flip.is_gain for flip in there.flips].count(True) == sum(a < at <= b for a, b in both)
    assert str(there)
    assert there._repr_html_()
    assert len(there.to_frame()) == len(pairs)


def test_flips_name_the_examples_and_both_answers() -> None:
    found = compare(evaluation([1.0, 0.0, 0.75, 0.0]), evaluation([0.0, 1.0, 1.0, 0.25]))
    assert [(flip.id, flip.before, flip.after, flip.is_gain) for flip in found.flips] == [
        ("T0", 1.0, 0.0, False),
        ("T1", 0.0, 1.0, True),
    ]
    assert (found.flips[0].output_before, found.flips[0].output_after) == ("1.0 of 0", "0.0 of 0")
    assert "+1 -1" in str(found)
    frame = found.to_frame()
    assert frame.loc[("right", "T1"), "change"] == 1.0


def test_by_production_s_weights_the_verdict_can_be_another() -> None:
    """Rare examples got better, the frequent ones worse."""
    weights, clusters = [0.05] * 40 + [20.0] * 40, [n % 2 for n in range(80)]
    before = evaluation([0.0] * 40 + [0.6] * 40, weights=weights, clusters=clusters)
    after = evaluation([1.0] * 40 + [0.3] * 40, weights=weights, clusters=clusters)
    found = compare(before, after)["right"]
    assert found.mean.low > 0
    changes = np.array([1.0] * 40 + [0.3 - 0.6] * 40)
    assert found.production == estimate_population(changes, weights, strata=clusters, bounds=(-1.0, 1.0))
    assert found.verdict == "worse"
    shown = str(compare(before, after))
    assert "production" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_only_common_examples_and_metrics_count_and_it_says_so() -> None:
    before, after = evaluation([0.0] * 30), evaluation([1.0] * 30, start=10)
    found = compare(before, after)
    assert found["right"].mean.n == 20
    assert "10 examples that only before has" in str(found)
    assert "10 examples that only after has" in str(found)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (evaluation([1.0] * 3, start=9), "no example in common"),
        (evaluation([1.0] * 3, name="brief"), "no metric in common"),
        (evaluation([1.0] * 3, version="2"), "'right' has changed"),
        (evaluation([1.0] * 3, fingerprint="g"), "3 examples have the same id"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Evaluation, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare(evaluation([0.0] * 3), other)


def test_a_metric_that_is_indecisive_in_one_shows_nothing() -> None:
    holed = evaluation([1.0] * 30 + [None] * 10)
    found = compare(evaluation([0.0] * 40), holed)
    assert found.indecisive == ("right",)
    assert found["right"].mean.low > 0
    assert found["right"].verdict == "not shown"
    assert "indecisive" in str(found)
    assert "10 pairs lack a verdict" in str(found)


def test_wrong_questions() -> None:
    same = evaluation([0.0] * 3)
    with pytest.raises(UsageError, match="no metric 'wrong'"):
        compare(same, same)["wrong"]
    with pytest.raises(UsageError, match="share of the scale"):
        compare(same, same, least=-1)


def test_two_programs_evaluated_for_real() -> None:
    class Answer(dspy.Module):
        def __init__(self, wrong: int) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, left: int) -> dspy.Prediction:
            return dspy.Prediction(answer=left if left % self.wrong else -1)

    examples = [dspy.Example(left=n, expected=n).with_inputs("left") for n in range(60)]
    right = metric_of(lambda answer, expected: answer == expected, name="right", at_least=0.9)
    often, seldom = (evaluate(Answer(wrong), examples, right, show=False) for wrong in (2, 20))
    found = compare(often, seldom)
    assert isinstance(found, Comparison)
    assert repr(found) == "<Comparison on 60 examples: right better>"
    assert found["right"].mean.value == pytest.approx(27 / 60)
    assert len(found.flips) == 27
    assert often["right"] == estimate_mean([float(n % 2 > 0) for n in range(60)])
    assert often.program != seldom.program, "an attribute of the module is part of its version"
