"""Numbers: found as they are written, near by how far they are off, and summed up as the textbooks do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.metrics.number import band, closeness, number_in, regression

numbers = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(
    numbers,
    st.sampled_from(["{:.4f}", "{:,.2f}", "{:e}", "{!r}", "{:+.3f}"]),
    st.sampled_from(["", " euros", "%", "."]),
)
def test_a_number_is_read_as_it_is_written(value, form, after):
    written = form.format(value)
    found = number_in(f"After 3 steps and T0001 the answer is {written}{after}")
    assert found == pytest.approx(float(written.replace(",", "")))


@given(st.integers(0, 10**9))
def test_other_ways_to_separate_thousands(value):
    plain = f"{value:,}"
    for separator in ("'", "\u2019", "\u202f", "\u00a0"):
        assert number_in(plain.replace(",", separator)) == value
    assert number_in(plain.replace(",", ".") + ",25") == value + 0.25


@given(st.from_regex(r"(?:0|[1-9][0-9]{0,6}),[0-9]{1,6}", fullmatch=True), st.sampled_from(["", "-"]))
def test_a_single_comma_separates_thousands_or_is_a_decimal_one(written, sign):
    """Thousands: one to three digits that do not begin with 0, and exactly three after them."""
    whole, part = written.split(",")
    is_thousands = len(whole) <= 3 and whole != "0" and len(part) == 3
    value = float(whole + part if is_thousands else f"{whole}.{part}")
    assert number_in(f"It is {sign}{written} m.") == (-value if sign else value)


@given(st.text(max_size=80))
def test_any_text_gives_a_number_or_none(some):
    found = number_in(some)
    assert found is None or math.isfinite(found)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("17 + 4 is 21", 21),
        ("about 3,5 %", 3.5),
        ("1.234,56", 1234.56),
        ("0,125", 0.125),
        ("1,250", 1250),
        ("0,125,000", None),
        ("0.125,5", None),
        ("1,234,567", 1234567),
        ("minus: \u221212", -12),
        ("10-20", 20),
        ("-5", -5),
        ("5kg", 5),
        (".5", 0.5),
        ("6.02e23 of them", 6.02e23),
        ("ticket T0001", None),
        ("GPT-4o", None),
        ("version 1.2.3", None),
        ("none", None),
        ("", None),
        (None, None),
        (True, None),
        (7, 7),
        (math.nan, None),
        ("1e999", None),
    ],
)
def test_numbers_by_hand(written, number):
    assert number_in(written) == number


@given(numbers, numbers, numbers)
def test_a_band_is_bounded_and_keeps_order(one, other, value):
    if one != other:
        assert 0 <= band(value, one, other) <= 1
        assert (band(one, one, other), band(other, one, other)) == (1, 0)
        assert band(value, one, other) == pytest.approx(1 - band(value, other, one), abs=1e-6)


@given(numbers, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_larger_error_is_never_better(wanted, error, more):
    near = closeness(wanted + error, wanted, full=1, none=1000, relative=False).value
    far = closeness(wanted + error + more, wanted, full=1, none=1000, relative=False).value
    assert far <= near
    assert closeness(wanted, wanted).value == 1


def test_closeness_by_hand():
    assert closeness("It is 105.", "100", full=0.0, none=0.1).value == pytest.approx(0.5)
    assert closeness("It is 105.", "100", full=0.05, none=0.1).value == 1
    assert closeness("95", 100).feedback == "95 is too low; 100 was expected."
    assert closeness("no idea", 100).value == 0
    assert closeness("no idea", 100).feedback
    assert closeness("100", "unknown").is_missing
    assert closeness("0", 0).value == 1
    assert closeness("0.001", 0).value == 0
    with pytest.raises(UsageError, match="must grow"):
        closeness(1, 1, full=0.2, none=0.1)
    with pytest.raises(UsageError, match="two different ends"):
        band(1, 2, 2)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=20))
def test_mean_errors_are_scikit_learns(pairs):
    given_ones, wanted = zip(*pairs, strict=True)
    found = regression(given_ones, wanted)
    assert found.mae == pytest.approx(mean_absolute_error(wanted, given_ones))
    assert found.rmse == pytest.approx(root_mean_squared_error(wanted, given_ones))
    assert found.mae <= found.rmse + 1e-9
    assert abs(found.bias) <= found.mae + 1e-9
    assert sorted(found.within.values()) == list(found.within.values())


def test_regression_by_hand():
    found = regression(["4", "about 11", "?", "3", 5], [5, 10, 2, None, 0], tolerances=(0.1, 0.2))
    assert (found.n, found.missing) == (3, 2)
    assert found.mae == pytest.approx((1 + 1 + 5) / 3)
    assert found.bias == pytest.approx((-1 + 1 + 5) / 3)
    assert found.relative == pytest.approx((0.2 + 0.1) / 2)
    assert found.within == {0.1: pytest.approx(1 / 3), 0.2: pytest.approx(2 / 3)}
    assert math.isnan(regression([], []).mae)
    with pytest.raises(UsageError, match="as many"):
        regression([1], [])
