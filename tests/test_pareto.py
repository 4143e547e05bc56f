"""The mathematics of trade-offs, against the definitions written out the slow way."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.pareto import choose, contributions, dominates, front, hypervolume, normalise, ranks

NAN = math.nan
GRID = 4
Rows = list[list[float]]


@st.composite
def tables(draw: st.DrawFn, *, rows: int = 12) -> Rows:
    """Small grids, so that ties, duplicates and dominated points are common."""
    width = draw(st.integers(1, 5))
    value = st.integers(0, GRID).map(float)
    cell = st.one_of(value, value, value, st.just(NAN))
    return draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=rows))


def beats(a: list[float], b: list[float]) -> bool:
    """The definition, with missing as the worst value there is."""
    a, b = ([-math.inf if math.isnan(x) else x for x in row] for row in (a, b))
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def cells(rows: Rows) -> int:
    """The volume above the origin, by counting the unit cells below some point."""
    filled = np.zeros((GRID,) * len(rows[0]), dtype=bool)
    for row in rows:
        if not any(math.isnan(x) for x in row):
            filled[tuple(slice(0, int(x)) for x in row)] = True
    return int(filled.sum())


# --- dominance and the front ---


@given(tables())
def test_dominance_is_its_definition(rows: Rows) -> None:
    for a in rows:
        for b in rows:
            assert dominates(a, b) == beats(a, b)


@given(tables())
def test_front_members_are_mutually_non_dominated_and_every_other_is_dominated_by_one(rows: Rows) -> None:
    members = front(rows).tolist()
    assert members == sorted(set(members))
    assert not any(beats(rows[i], rows[j]) for i in members for j in members)
    for outsider in set(range(len(rows))) - set(members):
        assert any(beats(rows[i], rows[outsider]) for i in members)


@given(tables(rows=40))
def test_ranks_are_the_fronts_peeled_one_by_one(rows: Rows) -> None:
    expected = [-1] * len(rows)
    left, layer = set(range(len(rows))), 0
    while left:
        peeled = {i for i in left if not any(beats(rows[j], rows[i]) for j in left)}
        for i in peeled:
            expected[i] = layer
        left, layer = left - peeled, layer + 1
    assert ranks(rows).tolist() == expected


@given(tables(), st.integers(0, 4))
def test_a_point_that_lacks_an_objective_never_dominates_one_that_has_it(rows: Rows, objective: int) -> None:
    objective %= len(rows[0])
    for a in rows:
        for b in rows:
            if math.isnan(a[objective]) and not math.isnan(b[objective]):
                assert not dominates(a, b)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(rows: Rows, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = [rows[i] for i in order]
    origin = [0.0] * len(rows[0])
    assert sorted(order[i] for i in front(shuffled)) == front(rows).tolist()
    assert ranks(shuffled).tolist() == ranks(rows)[order].tolist()
    assert hypervolume(shuffled, origin) == pytest.approx(hypervolume(rows, origin))
    assert contributions(shuffled, origin) == pytest.approx(contributions(rows, origin)[order])


def test_missing_is_worst_and_two_missing_values_are_equal() -> None:
    assert dominates([1.0, 0.2], [1.0, NAN])
    assert not dominates([9.0, NAN], [1.0, 0.2])
    assert dominates([2.0, NAN], [1.0, NAN])
    assert not dominates([1.0, NAN], [1.0, NAN])


def test_a_point_with_a_missing_objective_stands_on_the_front_for_what_it_shows() -> None:
    assert front([[0.9, NAN], [0.5, 0.5], [0.5, NAN]]).tolist() == [0, 1]
    assert front([[NAN, NAN], [0.1, NAN]]).tolist() == [1]


def test_none_is_missing_too() -> None:
    assert front([[None, 1.0], [1.0, 1.0]]).tolist() == [1]


def test_copies_of_a_front_point_are_all_on_it_and_add_nothing() -> None:
    rows = [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]]
    assert front(rows).tolist() == [0, 1, 2]
    assert contributions(rows, [0.0, 0.0]).tolist() == [0.0, 1.0, 0.0]


def test_values_near_the_ends_of_floating_point_keep_their_order() -> None:
    rows = [[1e308, -1e308], [-1e308, 1e308], [-1e308, -1e308], [NAN, 1e308]]
    assert front(rows).tolist() == [0, 1]


def test_the_front_of_ten_thousand_points_is_the_one_found_by_a_sweep() -> None:
    points = np.random.default_rng(0).random((10_000, 3))
    found = front(points)
    inside = np.zeros(len(points), dtype=bool)
    inside[found] = True
    members = points[found]
    weaker = np.array([(members >= p).all(axis=1).any() for p in points])
    assert weaker.all()
    assert not any(((members >= m).all(axis=1) & (members > m).any(axis=1)).any() for m in members)


# --- directions ---


@given(tables(), st.data())
def test_mixed_directions_are_flipped_signs(rows: Rows, data: st.DataObject) -> None:
    width = len(rows[0])
    directions = data.draw(st.lists(st.sampled_from(["maximize", "minimize"]), min_size=width, max_size=width))
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    raw = np.array(rows) * signs
    turned = normalise(raw, directions)
    np.testing.assert_array_equal(turned, np.array(rows))
    np.testing.assert_array_equal(normalise(turned, directions), raw)
    assert front(turned).tolist() == front(rows).tolist()


def test_a_reference_is_turned_like_a_point() -> None:
    directions = ("maximize", "minimize")
    points = normalise([[0.8, 3.0], [0.9, 5.0]], directions)
    assert hypervolume(points, normalise([0.0, 10.0], directions)) == pytest.approx(0.8 * 7 + 0.1 * 5)


def test_normalising_nothing_keeps_the_number_of_objectives() -> None:
    assert normalise([], ["maximize", "minimize"]).shape == (0, 2)


# --- hypervolume ---


@given(tables(rows=10))
def test_hypervolume_is_the_number_of_cells(rows: Rows) -> None:
    assert hypervolume(rows, [0.0] * len(rows[0])) == pytest.approx(cells(rows))


@given(tables(rows=9), st.data())
def test_hypervolume_never_falls_when_a_point_is_added(rows: Rows, data: st.DataObject) -> None:
    width = len(rows[0])
    finite = st.floats(-1.0, 6.0, allow_nan=False)
    added = data.draw(st.lists(st.one_of(finite, st.just(NAN)), min_size=width, max_size=width))
    reference = data.draw(st.lists(st.floats(-1.0, 2.0), min_size=width, max_size=width))
    before = hypervolume(rows, reference)
    assert hypervolume([*rows, added], reference) >= before - 1e-9 * (1.0 + before)


@settings(max_examples=60)
@given(tables(rows=9))
def test_a_contribution_is_what_is_lost_without_the_point(rows: Rows) -> None:
    origin = [0.0] * len(rows[0])
    whole = hypervolume(rows, origin)
    added = contributions(rows, origin)
    for i, row in enumerate(rows):
        assert added[i] == pytest.approx(whole - cells([*rows[:i], [NAN] * len(row), *rows[i + 1 :]]))
        if any(math.isnan(x) for x in row):
            assert added[i] == 0.0
    assert added.sum() <= whole + 1e-9


def test_a_dominated_point_takes_from_the_contribution_of_the_one_above_it() -> None:
    assert contributions([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]], [0.0, 0.0]).tolist() == [5.0, 0.0, 0.0]


def test_points_beyond_the_reference_add_nothing() -> None:
    assert hypervolume([[5.0, -1.0], [0.0, 5.0], [1.0, 1.0]], [0.0, 0.0]) == 1.0
    assert contributions([[5.0, -1.0], [1.0, 1.0]], [0.0, 0.0]).tolist() == [0.0, 1.0]


# --- choice ---

DESK = [[0.70, 0.95, 5.0], [0.80, 0.90, 4.0], [0.90, 0.60, 3.0], [0.95, NAN, 2.0]]


def test_best_a_with_b_at_least_x() -> None:
    assert choose(DESK, objective=0, floors={1: 0.9}) == 1
    assert choose(DESK, objective=0, floors={1: 0.5}) == 2
    assert choose(DESK, objective=0) == 3


def test_a_floor_on_a_minimised_objective_is_a_ceiling() -> None:
    points = normalise([[0.9, 12.0], [0.8, 4.0]], ["maximize", "minimize"])
    assert choose(points, objective=0, floors={1: -5.0}) == 1


def test_nothing_meets_the_floors_is_none() -> None:
    assert choose(DESK, objective=0, floors={1: 0.99}) is None
    assert choose(DESK, weights=[1, 1, 0], floors={0: 0.99}) is None


def test_missing_meets_no_floor_and_is_never_chosen_for_what_it_lacks() -> None:
    assert choose(DESK, objective=0, floors={1: 0.0}) == 2
    assert choose([[NAN, 1.0]], objective=0) is None
    assert choose(DESK, weights=[1.0, 0.01, 0.0]) == 2


def test_weights_choose_and_a_zero_weight_ignores_an_objective() -> None:
    assert choose(DESK, weights=[1.0, 1.0, 0.0]) == 1
    assert choose(DESK, weights=[1.0, 0.0, 0.0]) == 3


def test_ties_go_to_the_first_unless_another_is_better_elsewhere() -> None:
    assert choose([[0.8, 0.5], [0.8, 0.5]], weights=[1, 1]) == 0
    assert choose([[0.8, 0.5], [0.8, 0.6]], objective=0) == 1


@given(tables(), st.data())
def test_the_choice_qualifies_and_no_other_that_qualifies_is_better(rows: Rows, data: st.DataObject) -> None:
    width = len(rows[0])
    objective, constrained = data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, width - 1)))
    floor = float(data.draw(st.integers(0, GRID)))
    fit = [i for i, row in enumerate(rows) if row[constrained] >= floor and not math.isnan(row[objective])]
    chosen = choose(rows, objective=objective, floors={constrained: floor})
    if chosen is None:
        assert not fit
    else:
        assert chosen in fit
        assert rows[chosen][objective] == max(rows[i][objective] for i in fit)
        assert not any(beats(rows[i], rows[chosen]) for i in fit)


# --- the edges ---


def test_no_points() -> None:
    assert front([]).tolist() == []
    assert ranks([]).tolist() == []
    assert hypervolume([], [0.0, 0.0]) == 0.0
    assert contributions([], [0.0, 0.0]).tolist() == []
    assert choose([], objective=0) is None
    assert choose([], weights=[1.0, 1.0]) is None


def test_one_point() -> None:
    assert front([[0.3, 0.4]]).tolist() == [0]
    assert ranks([[0.3, 0.4]]).tolist() == [0]
    assert contributions([[0.3, 0.4]], [0.0, 0.0]) == pytest.approx([0.12])
    assert choose([[0.3, 0.4]], weights=[0.5, 0.5]) == 0


def test_nothing_observed() -> None:
    rows = [[NAN, NAN], [NAN, NAN]]
    assert front(rows).tolist() == [0, 1]
    assert hypervolume(rows, [0.0, 0.0]) == 0.0
    assert contributions(rows, [0.0, 0.0]).tolist() == [0.0, 0.0]
    assert choose(rows, weights=[1.0, 1.0]) is None


TWO = [[0.1, 0.2], [0.2, 0.1]]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: front([0.1, 0.2]),
        lambda: front([[0.1], [0.1, 0.2]]),
        lambda: front([[], []]),
        lambda: front([["high", "low"]]),
        lambda: front([[math.inf, 0.0]]),
        lambda: dominates([1.0], [1.0, 2.0]),
        lambda: dominates(TWO, TWO),
        lambda: normalise(TWO, ["maximize"]),
        lambda: normalise(TWO, ["maximize", "up"]),
        lambda: hypervolume(TWO, [0.0]),
        lambda: hypervolume(TWO, [0.0, NAN]),
        lambda: contributions(TWO, [0.0, -math.inf]),
        lambda: choose(TWO),
        lambda: choose(TWO, objective=0, weights=[1.0, 1.0]),
        lambda: choose(TWO, objective=2),
        lambda: choose(TWO, objective=-1),
        lambda: choose(TWO, objective=0, floors={5: 0.1}),
        lambda: choose(TWO, objective=0, floors={1: NAN}),
        lambda: choose(TWO, weights=[0.0, 0.0]),
        lambda: choose(TWO, weights=[1.0, -1.0]),
        lambda: choose(TWO, weights=[1.0]),
        lambda: choose(TWO, weights=[1.0, NAN]),
    ],
)
def test_a_mistake_is_refused_in_one_sentence_with_a_remedy(mistake: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        mistake()
    assert caught.value.problem.count(". ") == 0
    assert caught.value.remedy.endswith(".")
