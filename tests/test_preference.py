"""Preferences: the reward is bounded, never falls when a value rises, and keeps floors and priorities apart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.pareto import choose
from dspy_selfimprove.preference import Goal, Preference

NAMES = ("a", "b", "c")
units = st.floats(0, 1)
goals = st.builds(
    Goal,
    weight=st.floats(0.01, 10),
    priority=st.integers(1, 3),
    at_least=st.none() | st.floats(0.01, 1),
)
preferences = st.lists(goals, min_size=3, max_size=3).map(lambda each: Preference(dict(zip(NAMES, each, strict=True))))
rows = st.lists(units, min_size=3, max_size=3).map(lambda each: dict(zip(NAMES, each, strict=True)))


@given(preferences, rows)
def test_a_reward_lies_between_0_and_1_and_reaches_both_ends(preference, values):
    reward = preference.reward(values)
    assert reward is not None
    assert 0 <= reward <= 1
    assert preference.reward(dict.fromkeys(NAMES, 0.0)) == 0
    assert preference.reward(dict.fromkeys(NAMES, 1.0)) == pytest.approx(1)


@given(preferences, rows, st.sampled_from(NAMES), units)
def test_a_better_value_never_lowers_it(preference, values, name, higher):
    better = {**values, name: max(values[name], higher)}
    assert preference.reward(better) >= preference.reward(values) - 1e-12


@given(preferences, rows, rows)
def test_what_holds_every_floor_beats_what_does_not(preference, one, other):
    def holds(values):
        return all(goal.at_least is None or values[name] >= goal.at_least for name, goal in preference.items())

    if holds(one) and not holds(other):
        assert preference.reward(one) > preference.reward(other)


@given(rows, rows, st.floats(0.01, 10))
def test_a_step_in_what_comes_first_outweighs_all_that_comes_later(one, other, weight):
    preference = Preference({"a": Goal(), "b": Goal(weight=weight, priority=2), "c": Goal(priority=2)})
    if one["a"] >= other["a"] + 1 / 20 + 1e-9:
        assert preference.reward(one) > preference.reward(other)
    same = {**other, "a": one["a"]}
    if weight * (one["b"] - same["b"]) + one["c"] - same["c"] > 1e-6:
        assert preference.reward(one) > preference.reward(same)


@given(preferences, rows, st.sampled_from(NAMES))
def test_without_a_value_that_counts_there_is_no_reward(preference, values, name):
    assert preference.reward({**values, name: None}) is None
    assert preference.reward({**values, name: math.nan}) is None
    assert preference.reward({key: value for key, value in values.items() if key != name}) is None


def test_a_metric_without_weight_and_floor_may_be_missing():
    preference = Preference({"a": Goal(), "seen": Goal(weight=0)})
    assert preference.reward({"a": 0.5}) == 0.5
    assert preference.wanted == ("a",)


def test_below_a_floor_nearer_is_better_and_so_is_the_rest():
    preference = Preference({"a": Goal(at_least=0.8), "b": Goal()})
    far, near, nearer = ({"a": value, "b": 0.5} for value in (0.0, 0.4, 0.79))
    assert 0 < preference.reward(far) < preference.reward(near) < preference.reward(nearer) < 0.5
    assert preference.reward({"a": 0.4, "b": 0.5}) < preference.reward({"a": 0.4, "b": 0.6})
    # By hand: the floor is half reached, the quality is 0.45.
    assert preference.reward(near) == pytest.approx(0.5 * (0.75 * 0.5 + 0.25 * 0.45))
    assert preference.reward({"a": 0.8, "b": 0.4}) == pytest.approx(0.5 + 0.5 * 0.6)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.data())
def test_one_choice_by_weights_is_the_same_as_on_a_front(matrix, data):
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
    preference = Preference({name: Goal(weight=weight) for name, weight in zip(NAMES, weights, strict=True)})
    rewards = [preference.reward(dict(zip(NAMES, row, strict=True))) for row in matrix]
    chosen = choose(matrix, weights=preference.weights, floors=preference.floors)
    assert rewards[chosen] == pytest.approx(max(rewards))


def test_floors_and_weights_go_to_the_front_as_they_are():
    preference = Preference({"a": Goal(weight=2, at_least=0.5), "b": Goal()})
    points = np.array([[0.4, 1.0], [0.6, 0.2], [0.9, 0.0]])
    assert (preference.weights, preference.floors) == ((2, 1), {0: 0.5})
    assert choose(points, weights=preference.weights, floors=preference.floors) == 2


@given(preferences, st.dictionaries(st.sampled_from(NAMES), units, min_size=1))
def test_following_keeps_the_sum_of_the_weights_and_everything_else(preference, means):
    after = preference.following(means)
    assert math.fsum(after.weights) == pytest.approx(math.fsum(preference.weights))
    assert all(weight > 0 for weight in after.weights)
    assert [(goal.priority, goal.at_least) for goal in after.values()] == [
        (goal.priority, goal.at_least) for goal in preference.values()
    ]


def test_following_weighs_what_falls_short_most():
    after = Preference(dict.fromkeys(NAMES, Goal())).following({"a": 0.4, "b": 0.8, "c": 1.0})
    assert after.weights == pytest.approx([3 * 0.6 / 0.85, 3 * 0.2 / 0.85, 3 * 0.05 / 0.85])
    unknown = Preference(dict.fromkeys(NAMES, Goal())).following({"a": 0.4, "b": 0.8})
    assert unknown["c"].weight == pytest.approx(3 * 0.4 / 1.2)
    with pytest.raises(UsageError, match="No metric has a mean"):
        after.following({})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"at_least": 1.2}, "between 0 and 1"),
        ({"at_least": 0}, "not above 0"),
        ({"at_least": True}, "floor of True"),
        ({"at_least": math.nan}, "not above 0"),
        ({"weight": -1}, "zero or more"),
        ({"weight": math.inf}, "zero or more"),
        ({"weight": "2"}, "zero or more"),
        ({"priority": 0}, "from 1 on"),
        ({"priority": 1.5}, "whole number"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Goal(**wrong)


def test_a_preference_wants_something_and_takes_only_scores():
    with pytest.raises(UsageError, match="no metric has a weight"):
        Preference({"a": Goal(weight=0)})
    with pytest.raises(UsageError, match="not between 0 and 1"):
        Preference({"a": Goal()}).reward({"a": 75})
