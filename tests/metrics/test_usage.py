"""What an answer takes: full credit up to a point, none from another, and nothing without a measurement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.metrics.usage import brevity, cost, latency, length


@given(st.integers(0, 400), st.integers(0, 400))
def test_a_longer_reply_is_never_better(fewer, more):
    assert brevity("word " * (fewer + more)).value <= brevity("word " * fewer).value


def test_values_by_hand():
    assert brevity("word " * 40).value == 1
    assert brevity("word " * 100).value == pytest.approx(0.5)
    assert brevity("word " * 160).value == 0
    assert brevity("word " * 100).feedback == "100 words; up to 40 would do."
    assert length("word " * 30, low=20, high=40).value == 1
    assert length("word " * 10, low=20, high=40).value == 0.5
    assert length("word " * 80, low=20, high=40).value == 0.5
    assert latency(5.5).value == pytest.approx(0.5)
    assert cost(0.0025).value == pytest.approx(0.75)
    assert latency(None).is_missing
    assert cost(None).is_missing
