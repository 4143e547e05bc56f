"""Agreement: figures checked by hand, against scikit-learn and SciPy where they have them, and by how often intervals
hold what they promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from dspy_selfimprove.agreement import (
    Agreement,
    confusion,
    estimate_correlation,
    estimate_kappa,
    estimate_same,
    kappa,
)
from dspy_selfimprove.errors import UsageError

GRADES = ("bad", "poor", "fair", "good")
grade = st.sampled_from(GRADES)
pairs = st.lists(st.tuples(grade, grade), min_size=2, max_size=30)
numbers = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30)


def undefined(truth, said):
    return len(set(truth)) == len(set(said)) == 1 and truth[0] == said[0]


# --- by hand ---


def test_kappa_worked_out_by_hand():
    # 35 of 50 agree: .7. By chance 25/50 * 30/50 + 25/50 * 20/50 = .5. So (.7 - .5) / (1 - .5).
    assert kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    # Agreement as chance has it, none at all, and always.
    assert kappa([[25, 25], [25, 25]]) == pytest.approx(0.0)
    assert kappa([[0, 10], [10, 0]]) == pytest.approx(-1.0)
    assert kappa([[7, 0], [0, 3]]) == 1.0


def test_weighted_kappa_worked_out_by_hand():
    table = [[4, 1, 0], [1, 2, 1], [0, 0, 1]]
    # Cost met: three near misses. By chance, rows 5 4 1 and columns 5 3 2 over 10: near (5*3 + 4*5 + 4*2 + 1*3) / 10
    # = 4.6, far (5*2 + 1*5) / 10 = 1.5, which costs 2 (linear) or 4 (quadratic).
    assert kappa(table, "linear") == pytest.approx(1 - 3 / (4.6 + 2 * 1.5))
    assert kappa(table, "quadratic") == pytest.approx(1 - 3 / (4.6 + 4 * 1.5))


def test_correlation_worked_out_by_hand():
    # Deviations -1 0 1 and -2 1 1: 3 / sqrt(2 * 6).
    assert estimate_correlation([1, 2, 3], [0, 3, 3]).value == pytest.approx(3 / math.sqrt(12))
    # Ranks 1 2 3 and 1 2.5 2.5: 1.5 / sqrt(2 * 1.5).
    assert estimate_correlation([1, 2, 3], [0, 3, 3], ranks=True).value == pytest.approx(1.5 / math.sqrt(3))


def test_several_verdicts_on_a_row_count_for_their_share():
    table = confusion(["good", "bad"], [("good", "good", "bad", None), "bad"], ["bad", "good"])
    assert table.tolist() == [[1.0, 0.0], [pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert estimate_same(["good", "bad"], [("good", "bad"), "bad"], ["bad", "good"]).value == pytest.approx(0.75)


# --- against others ---


@given(pairs)
@settings(max_examples=30)
def test_kappa_is_scikit_learns(rows):
    truth, said = map(list, zip(*rows, strict=True))
    table = confusion(truth, said, GRADES)
    assert table.tolist() == confusion_matrix(truth, said, labels=GRADES).tolist()
    for weighting in (None, "linear", "quadratic"):
        ours = kappa(table, weighting)
        if undefined(truth, said):
            assert math.isnan(ours)
        else:
            assert ours == pytest.approx(cohen_kappa_score(truth, said, labels=list(GRADES), weights=weighting))


@given(numbers)
@settings(max_examples=30)
def test_correlations_are_scipys(rows):
    a, b = map(list, zip(*rows, strict=True))
    for ranks, theirs in ((False, stats.pearsonr), (True, stats.spearmanr)):
        found = estimate_correlation(a, b, ranks=ranks)
        if len(set(a)) == 1 or len(set(b)) == 1:
            assert math.isnan(found.value)
            assert (found.low, found.high) == (-1.0, 1.0)
        else:
            assert found.value == pytest.approx(theirs(a, b)[0], abs=1e-9)


# --- what must always hold ---


@given(pairs, st.integers(0, 3))
@settings(max_examples=20)
def test_an_interval_holds_its_value_and_missing_is_left_out_and_counted(rows, holes):
    truth, said = map(list, zip(*rows, strict=True))
    found = estimate_kappa(truth, said, GRADES, "quadratic")
    assert math.isnan(found.value) or -1.0 <= found.low <= found.value <= found.high <= 1.0
    holed = estimate_kappa([*truth, *[None] * holes, "bad"], [*said, *["good"] * holes, None], GRADES, "quadratic")
    assert (holed.n, holed.missing) == (len(rows), holes + 1)
    np.testing.assert_equal((holed.value, holed.low, holed.high), (found.value, found.low, found.high))


@given(numbers)
@settings(max_examples=20)
def test_a_correlation_does_not_care_for_units_and_turns_with_a_side(rows):
    a, b = (np.array(side, dtype=float) for side in zip(*rows, strict=True))
    plain, scaled = estimate_correlation(a, b), estimate_correlation(3 * a + 7, b)
    np.testing.assert_allclose([plain.value, plain.low, plain.high], [scaled.value, scaled.low, scaled.high], atol=1e-6)
    np.testing.assert_allclose(estimate_correlation(-a, b).value, -plain.value, atol=1e-9)
    assert math.isnan(plain.value) or plain.low <= plain.value <= plain.high
    holed = estimate_correlation([*a, math.nan], [*b, 1.0])
    assert (holed.missing, holed.n) == (1, len(rows))


def test_thirteen_rows_in_agreement_are_not_certainty():
    labels = ["bad", "good"] * 6 + ["good"]
    found = estimate_kappa(labels, labels, ["bad", "good"])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.4 < found.low < 0.8


@pytest.mark.parametrize(("rows", "accuracy"), [(13, 0.8), (30, 0.9), (60, 0.7)])
def test_the_interval_of_kappa_covers(rows, accuracy):
    generator = np.random.default_rng(3)
    labels = ("a", "b", "c")
    chance = np.full((3, 3), (1 - accuracy) / 2)
    np.fill_diagonal(chance, accuracy)
    truth = kappa(chance)
    held = 0
    for seed in range(50):
        right = generator.integers(3, size=rows)
        said = [labels[generator.choice(3, p=chance[at])] for at in right]
        found = estimate_kappa([labels[at] for at in right], said, labels, seed=seed)
        held += found.low <= truth <= found.high
    assert held / 50 >= 0.9


@pytest.mark.parametrize(("rows", "ranks"), [(13, False), (40, True)])
def test_the_interval_of_a_correlation_covers(rows, ranks):
    generator = np.random.default_rng(4)
    truth = 6 / math.pi * math.asin(0.6 / 2) if ranks else 0.6
    held = 0
    for seed in range(50):
        a = generator.standard_normal(rows)
        b = 0.6 * a + 0.8 * generator.standard_normal(rows)
        found = estimate_correlation(a, b, ranks=ranks, seed=seed)
        held += found.low <= truth <= found.high
    assert held / 50 >= 0.9


# --- what cannot be ---


@pytest.mark.parametrize(
    ("truth", "said", "labels"),
    [
        (["good"], ["good", "bad"], ["bad", "good"]),
        (["good"], ["excellent"], ["bad", "good"]),
        (["good"], ["good"], ["good"]),
        (["good"], ["good"], ["good", "good"]),
    ],
)
def test_what_cannot_be_paired_is_refused_and_no_label_is_quoted(truth, said, labels):
    with pytest.raises(UsageError) as raised:
        estimate_kappa(truth, said, labels)
    assert "excellent" not in str(raised.value)


def test_columns_of_two_lengths_are_refused():
    with pytest.raises(UsageError, match="paired"):
        estimate_correlation([1, 2], [1, 2, 3])


def test_a_side_that_always_says_the_same_decides_nothing():
    found = estimate_kappa(["good"] * 9, ["good", "bad", "bad"] * 3, ["bad", "good"])
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)


def test_with_nothing_to_compare_there_is_no_figure():
    found = estimate_kappa([None], ["good"], ["bad", "good"])
    assert math.isnan(found.value)
    assert (found.n, found.missing, found.low, found.high) == (0, 1, -1.0, 1.0)
    assert math.isnan(estimate_correlation([1.0], [1.0]).value)


def test_an_agreement_comes_back_from_json():
    labels = ["bad", "good"] * 4
    whole = Agreement(
        8,
        0,
        estimate_correlation([0, 1] * 4, [0, 1] * 4),
        estimate_correlation([0, 1] * 4, [0, 1] * 4, ranks=True),
        same=estimate_same(labels, labels, ["bad", "good"]),
        kappa=estimate_kappa(labels, labels, ["bad", "good"]),
        labels=("bad", "good"),
        confusion=((4.0, 0.0), (0.0, 4.0)),
    )
    assert Agreement.from_json(json.loads(json.dumps(whole.to_json()))) == whole
