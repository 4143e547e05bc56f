"""Verdicts of every hand and scale become scores, or say why they cannot."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.sample import EvalSpec
from dspy_selfimprove.scale import Scale, scale_of

numbers = st.floats(-1e6, 1e6)
STARS = EvalSpec("stars", "LLM", choices={"one": 1, "three": 3, "five": 5})
TOXIC = EvalSpec("toxicity", "LLM", "minimize", choices={"toxic": 1, "clean": 0})


def reading(score=None, label=None, **more):
    return Reading("span", "metric", "LLM", score=score, label=label, **more)


def test_the_tracked_evaluator_says_the_scale_and_its_direction():
    assert scale_of([3, 5], spec=STARS).score(reading(4)).value == 0.75
    assert scale_of([1, 0], spec=TOXIC).score(reading(1, "toxic")).value == 0.0
    assert scale_of([], spec=STARS).score(reading(label="five")).value == 1.0


def test_the_caller_goes_before_the_evaluator_and_may_turn_it_around():
    assert scale_of([3], spec=STARS, named=(0, 10)).score(reading(5)).value == 0.5
    assert scale_of([3], named=(5, 1)).score(reading(5)).value == 0.0


def test_without_either_numbers_between_0_and_1_are_scores_and_others_are_a_guess_that_is_said():
    unit, guess = scale_of([0.2, 0.9]), scale_of([1, 4, 5])
    assert (unit.taken_from, unit.score(reading(0.2)).value) == ("unit", 0.2)
    assert (guess.taken_from, guess.score(reading(4)).value) == ("data", 0.75)
    assert scale_of([]).taken_from == "nothing"


@pytest.mark.parametrize(
    ("scale", "written", "why"),
    [
        (Scale(0, 1), reading(1.5), "outside its scale"),
        (Scale(0, 1), reading(label="fine"), "a label without a number"),
        (Scale(0, 1), reading(), "no number"),
        (Scale(0, 1), reading(math.nan), "no number"),
        (Scale(1, 5, labels={"five": 5}), reading(label="six"), "a label without a number"),
    ],
)
def test_what_is_no_number_on_the_scale_is_missing_and_says_why(scale, written, why):
    score = scale.score(written)
    assert score.is_missing
    assert why in (score.failure or "")
    assert score.label == written.label


def test_the_reason_given_becomes_feedback_and_what_was_written_stays():
    score = Scale(1, 5).score(reading(2, "poor", explanation="No time frame.", identifier="run-7"))
    assert (score.feedback, score.label) == ("No time frame.", "poor")
    assert score.details == {"kind": "LLM", "identifier": "run-7", "written": 2}
    assert len(Scale(0, 1).score(reading(1, explanation="x" * 10**6)).feedback) < 5_000


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_a_scale_without_length_is_refused(ends):
    with pytest.raises(UsageError, match="no length"):
        Scale(*ends)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_every_number_seen_lies_on_the_scale_taken_from_them_in_its_order(seen):
    scale = scale_of(seen)
    scores = [scale.score(reading(number)).value for number in sorted(seen)]
    assert None not in scores
    assert scores == sorted(scores)


@given(numbers, numbers, numbers)
def test_turning_the_direction_mirrors_the_score(low, high, written):
    if low >= high:
        return
    up, down = Scale(low, high), Scale(low, high, "minimize")
    one, other = up.score(reading(written)), down.score(reading(written))
    assert one.is_missing == other.is_missing == (not low <= written <= high)
    if one.value is not None and other.value is not None:
        assert one.value + other.value == pytest.approx(1)
