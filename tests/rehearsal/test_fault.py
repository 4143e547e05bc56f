"""Latency and faults: what the text forms mean, and that draws repeat and come as often as they should."""

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.rehearsal.fault import Fault, Faults, Latency, uniform

SECONDS = st.floats(0, 1e6)
SPREAD = st.floats(1e-3, 1e3)
LATENCIES = st.one_of(
    st.builds(Latency.fixed, SECONDS),
    st.builds(Latency.lognormal, SECONDS, SPREAD),
    st.builds(Latency.heavy, SECONDS, SPREAD),
)
RATES = st.fixed_dictionaries({str(fault): st.just(0.0) | st.floats(0, 1 / len(Fault)) for fault in Fault})
FAULTS = st.builds(lambda rates, wait, hang: Faults(**rates, retry_after=wait, hang=hang), RATES, SECONDS, SECONDS)
KEYS = [f"key/{index}" for index in range(20_000)]
# Texts near the grammar find more than texts that are far from everything.
NEARLY = st.text(alphabet=string.digits + ".:,=%ems-+ inflognrhavytu_", max_size=30)


@given(LATENCIES)
def test_a_latency_reads_back_from_its_text(latency):
    assert Latency.parse(str(latency)) == latency


@given(FAULTS)
def test_faults_read_back_from_their_text(faults):
    assert Faults.parse(str(faults)) == faults


@given(st.one_of(NEARLY, st.text(max_size=30)))
def test_any_text_is_understood_or_refused_with_a_remedy(text):
    for parse in (Latency.parse, Faults.parse):
        remedy = "none needed"
        try:
            parse(text)
        except UsageError as error:
            remedy = error.remedy
        assert remedy


@pytest.mark.parametrize(
    ("text", "latency"),
    [
        ("50ms", Latency.fixed(0.05)),
        ("2", Latency.fixed(2.0)),
        ("fixed: 1.5 s", Latency.fixed(1.5)),
        ("lognormal:50ms:0.5", Latency.lognormal(0.05, 0.5)),
        ("lognormal:50ms", Latency.lognormal(0.05)),
        ("heavy:50ms", Latency.heavy(0.05)),
        ("heavy:50ms:3", Latency.heavy(0.05, 3.0)),
    ],
)
def test_latencies_in_words(text, latency):
    assert Latency.parse(text) == latency


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("none", Faults()),
        ("", Faults()),
        ("10%", Faults.mixed(0.1)),
        ("429=5%,500=2%", Faults(rate_limit=0.05, server_error=0.02)),
        ("torn=0.1, hang=5s, retry_after=20ms", Faults(torn=0.1, hang=5.0, retry_after=0.02)),
        ("40%,hang=1s", Faults.mixed(0.4, hang=1.0)),
    ],
)
def test_faults_in_words(text, faults):
    assert Faults.parse(text) == faults


@pytest.mark.parametrize(
    "text", ["", "fast", "-1s", "inf", "50%", "lognormal", "heavy:50ms:0", "heavy:1:2:3", "5 ms ms"]
)
def test_what_is_no_latency_is_refused(text):
    with pytest.raises(UsageError, match="is not a latency"):
        Latency.parse(text)


@pytest.mark.parametrize(
    "text",
    ["often", "429", "429=5ms", "429=120%", "429=1%,rate_limit=1%", "10%,429=1%", "torn=60%,empty=60%", "hang=5%"],
)
def test_what_is_no_faults_is_refused(text):
    with pytest.raises(UsageError, match="does not say what goes wrong"):
        Faults.parse(text)


@given(LATENCIES, st.integers(0, 9), st.text(max_size=5))
def test_a_latency_is_finite_and_bounded_and_repeats(latency, seed, key):
    seconds = latency.draw(seed, key)
    assert 0.0 <= seconds <= 100.0 * latency.median * (1 + 1e-12)
    assert latency.draw(seed, key) == seconds


@pytest.mark.parametrize("latency", [Latency.lognormal(2.0, 0.7), Latency.heavy(2.0)])
def test_half_of_the_draws_lie_below_the_median(latency):
    below = sum(latency.draw(1, key) < 2.0 for key in KEYS) / len(KEYS)
    assert below == pytest.approx(0.5, abs=0.02)


def test_the_heavy_tail_follows_its_exponent():
    """A Pareto tail: twice as far out is 2 ** -1.5 as likely."""
    draws = [Latency.heavy(1.0, 1.5).draw(1, key) for key in KEYS]
    beyond = {far: sum(draw > far for draw in draws) / len(draws) for far in (2.0, 4.0, 8.0)}
    assert beyond[2.0] == pytest.approx(0.5 * 2**-1.5, rel=0.1)
    assert beyond[4.0] / beyond[2.0] == pytest.approx(2**-1.5, rel=0.15)
    assert beyond[8.0] / beyond[4.0] == pytest.approx(2**-1.5, rel=0.25)


def test_mixed_faults_come_as_often_as_asked_and_all_alike():
    faults = Faults.mixed(0.1)
    seen = Counter(faults.draw(3, key) for key in KEYS)
    assert set(seen) == {None, *Fault}
    assert 1 - seen[None] / len(KEYS) == pytest.approx(0.1, abs=0.01)
    for fault in Fault:
        assert seen[fault] / len(KEYS) == pytest.approx(0.1 / len(Fault), abs=0.004)
    assert seen == Counter(faults.draw(3, key) for key in KEYS)
    assert seen != Counter(faults.draw(4, key) for key in KEYS)


def test_a_fault_that_is_certain_always_comes():
    for fault in Fault:
        assert {Faults(**{fault: 1.0}).draw(0, key) for key in KEYS[:200]} == {fault}


@given(st.integers(), st.text(max_size=3), st.text(max_size=3))
def test_a_chance_is_strictly_between_none_and_one(seed, purpose, key):
    assert 0.0 < uniform(seed, purpose, key) < 1.0
