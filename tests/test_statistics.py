"""What the intervals and tests promise, measured: coverage, false alarms, power and bias, on seeded simulations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.statistics import (
    ConfidenceSequence,
    Estimate,
    estimate_difference,
    estimate_mean,
    estimate_population,
    estimate_winner,
    evidence,
)

NAN = math.nan
Floats = NDArray[np.float64]
Races = Callable[[np.random.Generator, tuple[int, int]], Floats]

scores = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30)
holed = st.lists(st.one_of(st.floats(0.0, 1.0), st.just(NAN)), min_size=1, max_size=30)


def coverage(draw: Callable[[int], Estimate], truth: float, times: int) -> float:
    estimates = [draw(i) for i in range(times)]
    return sum(e.low <= truth <= e.high for e in estimates) / times


# --- one mean and the paired difference ---


@given(holed)
def test_missing_is_left_out_and_counted_never_a_zero(values: list[float]) -> None:
    observed = [v for v in values if not math.isnan(v)]
    estimate = estimate_mean(values)
    assert (estimate.n, estimate.missing) == (len(observed), len(values) - len(observed))
    if observed:
        assert estimate.value == pytest.approx(np.mean(observed))
        assert estimate == replace(estimate_mean(observed), missing=estimate.missing)


@given(scores, st.integers(0, 5))
def test_an_interval_holds_its_value_and_stays_within_the_bounds(values: list[float], seed: int) -> None:
    estimate = estimate_mean(values, seed=seed)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate == estimate_mean(values, seed=seed)


@given(scores)
def test_a_difference_changes_sign_with_its_sides(values: list[float]) -> None:
    other = values[::-1]
    assert estimate_difference(values, other).value == pytest.approx(-estimate_difference(other, values).value)


def test_a_pair_with_one_score_missing_is_missing() -> None:
    estimate = estimate_difference([1.0, NAN, 0.5, 0.5], [0.5, 0.5, NAN, 0.5])
    assert (estimate.value, estimate.n, estimate.missing) == (0.25, 2, 2)


def test_a_wider_level_is_a_wider_interval() -> None:
    values = np.linspace(0.2, 0.9, 30)
    narrow, wide = estimate_mean(values, level=0.8), estimate_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_agreement_in_a_small_sample_is_not_certainty() -> None:
    estimate = estimate_mean([1.0] * 20)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert 0.8 < estimate.low < 0.95


def test_pairing_removes_what_the_examples_share() -> None:
    generator = np.random.default_rng(0)
    easy = generator.random(60) * 0.8
    estimate = estimate_difference(easy + 0.1 + 0.05 * generator.random(60), easy)
    assert estimate.low > 0.05


def test_weights_count_an_example_as_often_as_they_say() -> None:
    values = [0.2, 0.8, 0.5]
    assert estimate_mean(values, weights=[1, 3, 1]).value == pytest.approx((0.2 + 2.4 + 0.5) / 5)
    assert estimate_mean(values, weights=[7, 7, 7]) == estimate_mean(values)
    difference = estimate_difference(values, [0.1, 0.1, 0.1], weights=[1, 3, 1])
    assert difference.value == pytest.approx((0.1 + 2.1 + 0.4) / 5)


@pytest.mark.parametrize("n", [10, 50])
def test_the_paired_interval_covers_the_true_difference(n: int) -> None:
    generator = np.random.default_rng(n)

    def draw(_: int) -> Estimate:
        return estimate_difference(generator.random(n) < 0.8, generator.random(n) < 0.7)

    assert coverage(draw, 0.1, 400) >= 0.93


@pytest.mark.parametrize("truth", [0.98, 0.7])
def test_the_interval_of_a_mean_covers_even_near_a_bound(truth: float) -> None:
    generator = np.random.default_rng(3)
    assert coverage(lambda _: estimate_mean(generator.random(20) < truth), truth, 400) >= 0.93


# --- a sample drawn with unequal chances ---


@pytest.fixture(scope="module")
def population() -> tuple[Floats, Floats]:
    """Scores of a thousand examples, and chances to be drawn that depend on what decides the score."""
    generator = np.random.default_rng(11)
    size = generator.lognormal(0.0, 0.7, 1_000)
    values = (generator.random(1_000) < 1.0 / (1.0 + size**-0.8 * 0.5)).astype(float)
    return values, np.minimum(1.0, 120 * size / size.sum())


def test_the_weighted_mean_recovers_the_populations(population: tuple[Floats, Floats]) -> None:
    values, chances = population
    truth = values.mean()
    generator = np.random.default_rng(12)
    weighted, plain, covered, times = [], [], 0, 1_500
    for _ in range(times):
        drawn = generator.random(len(values)) < chances
        estimate = estimate_population(values[drawn], 1.0 / chances[drawn])
        weighted.append(estimate.value)
        plain.append(values[drawn].mean())
        covered += estimate.low <= truth <= estimate.high
    error = np.std(weighted) / math.sqrt(times)
    assert abs(np.mean(plain) - truth) > 0.05
    assert abs(np.mean(weighted) - truth) < 3 * error + 0.002  # a ratio is biased by the order of 1/n
    assert covered / times >= 0.93


@pytest.mark.parametrize("each", [1, 3])
def test_a_stratified_sample_covers_with_one_example_per_stratum_or_several(each: int) -> None:
    generator = np.random.default_rng(13)
    sizes = generator.integers(5, 60, 40)
    members = [(generator.random(size) < generator.uniform(0.3, 1.0)).astype(float) for size in sizes]
    truth = float(np.concatenate(members).mean())
    strata = np.repeat(np.arange(40), each).tolist()
    weights = np.repeat(sizes / each, each)

    def draw(_: int) -> Estimate:
        sample = np.concatenate([generator.choice(member, each, replace=False) for member in members])
        return estimate_population(sample, weights, strata=strata)

    estimates = [draw(i) for i in range(800)]
    assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.93
    assert np.mean([e.value for e in estimates]) == pytest.approx(truth, abs=0.01)


def test_spread_between_strata_does_not_count() -> None:
    generator = np.random.default_rng(14)
    strata = [i // 10 for i in range(60)]
    values = np.clip(np.array(strata) / 6 + 0.05 * generator.random(60), 0.0, 1.0)
    alone = estimate_population(values, np.ones(60))
    stratified = estimate_population(values, np.ones(60), strata=strata)
    assert stratified.value == alone.value
    assert stratified.high - stratified.low < 0.3 * (alone.high - alone.low)


def test_strata_of_one_are_as_wide_as_no_strata() -> None:
    values = np.random.default_rng(15).random(30)
    assert estimate_population(values, np.ones(30), strata=list(range(30))).low == pytest.approx(
        estimate_population(values, np.ones(30)).low
    )


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.01, 100.0)), min_size=1, max_size=20))
def test_only_the_ratios_of_weights_matter(pairs: list[tuple[float, float]]) -> None:
    values, weights = zip(*pairs, strict=True)
    once = estimate_population(values, weights)
    scaled = estimate_population(values, [7.5 * w for w in weights])
    assert (once.value, once.low, once.high) == pytest.approx((scaled.value, scaled.low, scaled.high), abs=1e-6)
    assert 0.0 <= once.low <= once.value <= once.high <= 1.0


def test_a_missing_value_takes_its_weight_with_it() -> None:
    assert estimate_population([0.2, NAN, 0.6], [1.0, 50.0, 1.0]).value == pytest.approx(0.4)


# --- a race, looked at after every example ---


def equal_coins(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (g.random(shape) < 0.7).astype(float) - (g.random(shape) < 0.7)


def mostly_ties(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.where(g.random(shape) < 0.05, g.choice([-1.0, 1.0], shape), 0.0)


def rare_gains(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.where(g.random(shape) < 0.1, 0.9, -0.1)


def rare_disasters(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """It wins a little nearly always, and loses everything one time in fifty-one."""
    return np.where(g.random(shape) < 1 / 51, -1.0, 0.02)


def noise(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.clip(g.normal(0.0, 0.3, shape), -1.0, 1.0)


def bold_when_behind(g: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Fair at every step, and its spread depends on how the race stands: no two examples alike."""
    signs = g.choice([-1.0, 1.0], shape)
    values, total = np.empty(shape), np.zeros(shape[0])
    for step in range(shape[1]):
        values[:, step] = np.where(total < 0.0, 1.0, 0.1) * signs[:, step]
        total += values[:, step]
    return values


NULLS: list[Races] = [equal_coins, mostly_ties, rare_gains, rare_disasters, noise, bold_when_behind]


@pytest.mark.parametrize("null", NULLS)
def test_false_alarms_over_2000_null_races_stay_under_alpha(null: Races) -> None:
    races = null(np.random.default_rng(20), (2_000, 400))
    above = evidence(races).max(axis=1)
    below = evidence(-races).max(axis=1)
    for alpha in (0.05, 0.2):
        assert (above >= 1 / alpha).mean() <= alpha
        assert (below >= 1 / alpha).mean() <= alpha
        assert ((above >= 2 / alpha) | (below >= 2 / alpha)).mean() <= alpha


def test_a_worse_candidate_is_declared_better_less_often_still() -> None:
    races = np.clip(noise(np.random.default_rng(21), (2_000, 400)) - 0.05, -1.0, 1.0)
    assert (evidence(races).max(axis=1) >= 20).mean() <= 0.01


def test_a_difference_of_a_tenth_is_found_in_a_hundred_examples() -> None:
    races = np.clip(np.random.default_rng(22).normal(0.1, 0.3, (500, 400)), -1.0, 1.0)
    found = evidence(races) >= 40
    steps = np.where(found.any(axis=1), found.argmax(axis=1) + 1, np.inf)
    assert np.median(steps) <= 100
    assert np.quantile(steps, 0.9) <= 200


def test_a_margin_asks_for_more() -> None:
    races = np.full(60, 0.1)
    assert evidence(races)[-1] > evidence(races, margin=0.05)[-1] > 1.0 > evidence(races, margin=0.15)[-1]


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_evidence_depends_on_the_examples_and_not_on_their_order(values: list[float], random: Random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert evidence(shuffled)[-1] == pytest.approx(evidence(values)[-1])


@settings(max_examples=60)
@given(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.2, 1.0, NAN]), max_size=60), st.integers(1, 999))
def test_the_sequence_refutes_a_mean_exactly_when_its_evidence_says_so(values: list[float], step: int) -> None:
    alpha, margin = 0.4, -1.0 + 2.0 * step / 1_000
    sequence = ConfidenceSequence(alpha)
    for value in values:
        after = sequence.update(value)
        assert after.low >= sequence.low
        assert after.high <= sequence.high
        sequence = after
    above = _peak(values, margin)
    below = _peak([-v for v in values], -margin)
    assert (sequence.low >= margin - 1e-9) == (above >= 2 / alpha)
    assert (sequence.high <= margin + 1e-9) == (below >= 2 / alpha)


def _peak(values: list[float], margin: float) -> float:
    return max(evidence(values, margin=margin).tolist(), default=1.0)


def test_one_side_gets_there_sooner_and_leaves_the_other_open() -> None:
    values = np.clip(np.random.default_rng(23).normal(0.1, 0.3, 80), -1.0, 1.0)
    both, above, below = (
        ConfidenceSequence(),
        ConfidenceSequence(side="above"),
        ConfidenceSequence(side="below"),
    )
    for value in values:
        both, above, below = both.update(value), above.update(value), below.update(value)
    assert above.low > both.low
    assert above.high == 1.0
    assert below.low == -1.0
    assert below.high < both.high < 1.0


def test_a_state_is_a_value_that_an_update_leaves_alone() -> None:
    start = ConfidenceSequence()
    first, again = start.update(1.0), start.update(1.0)
    assert (start.n, start.low, start.high) == (0, -1.0, 1.0)
    assert first.estimate == again.estimate


def test_a_missing_value_changes_nothing_but_the_count() -> None:
    sequence = ConfidenceSequence()
    for value in [0.5, NAN, 0.5, None] * 20:
        sequence = sequence.update(value)
    without = ConfidenceSequence()
    for _ in range(40):
        without = without.update(0.5)
    assert (sequence.n, sequence.missing) == (40, 40)
    assert (sequence.low, sequence.high) == (without.low, without.high)
    assert sequence.low > 0.3
    assert evidence([0.5, NAN, 0.5])[-1] == evidence([0.5, 0.5])[-1]


def test_a_long_race_neither_overflows_nor_loses_the_truth() -> None:
    sequence = ConfidenceSequence(bounds=(0.0, 1.0))
    for value in (np.random.default_rng(24).random(5_000) < 0.9).astype(float):
        sequence = sequence.update(value)
    assert 0.87 < sequence.low < 0.9 < sequence.high < 0.93
    assert np.isfinite(evidence(np.ones(5_000))).all()


# --- the best of k ---


def best_of(truths: list[float], examples: int, times: int, seed: int) -> tuple[float, float, float]:
    """The bias of the naive mean and of the estimate, and the coverage, against the true score of the one picked."""
    generator = np.random.default_rng(seed)
    naive, honest, covered = [], [], 0
    for i in range(times):
        winner = estimate_winner(generator.random((examples, len(truths))) < truths, seed=i)
        assert winner.index is not None
        truth = truths[winner.index]
        naive.append(winner.naive - truth)
        honest.append(winner.estimate.value - truth)
        covered += winner.estimate.low <= truth <= winner.estimate.high
    return float(np.mean(naive)), float(np.mean(honest)), covered / times


def test_the_best_of_twenty_equal_candidates_is_no_better_than_they_are() -> None:
    naive, honest, covered = best_of([0.7] * 20, examples=50, times=500, seed=30)
    assert naive > 0.1
    assert abs(honest) < 0.015
    assert covered >= 0.93


def test_one_clearly_better_candidate_keeps_its_score() -> None:
    naive, honest, covered = best_of([0.7] * 19 + [0.95], examples=50, times=500, seed=31)
    assert abs(honest) < 0.015
    assert naive < 0.03
    assert covered >= 0.9


def test_the_interval_of_a_winner_allows_for_having_picked_another() -> None:
    _, honest, covered = best_of(np.linspace(0.5, 0.8, 20).tolist(), examples=50, times=500, seed=34)
    assert abs(honest) < 0.015
    assert covered >= 0.92


def test_a_candidate_with_few_scores_does_not_win_by_luck_unnoticed() -> None:
    generator = np.random.default_rng(32)
    table = (generator.random((60, 10)) < 0.6).astype(float)
    table[2:, 4], table[:2, 4] = NAN, 1.0
    winner = estimate_winner(table)
    assert (winner.index, winner.naive) == (4, 1.0)
    assert winner.estimate.low < 0.7


def test_a_single_candidate_needs_no_correction() -> None:
    column = np.random.default_rng(33).random((25, 1))
    winner = estimate_winner(column)
    assert winner.index == 0
    assert winner.estimate.value == pytest.approx(column.mean())


def test_ties_go_to_the_first_candidate() -> None:
    table = np.tile(np.array([[0.1], [0.2], [0.7]]), (4, 3))
    assert estimate_winner(table).index == 0


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1_000))
def test_a_winner_with_holes_is_estimated_from_what_there_is(examples: int, candidates: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = np.where(generator.random((examples, candidates)) < 0.4, NAN, generator.random((examples, candidates)))
    winner = estimate_winner(table)
    assert winner.estimate.n + winner.estimate.missing == examples
    assert (winner.index is None) == bool(np.isnan(table).all())
    assert 0.0 <= winner.estimate.low <= winner.estimate.high <= 1.0
    if winner.estimate.n:
        assert winner.estimate.low - 1e-9 <= winner.estimate.value <= winner.estimate.high + 1e-9


# --- the edges ---


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_nothing_observed_says_nothing(values: list[float]) -> None:
    missing = len(values)
    for estimate, bounds in (
        (estimate_mean(values), (0.0, 1.0)),
        (estimate_difference(values, values), (-1.0, 1.0)),
        (estimate_population(values, [1.0] * missing), (0.0, 1.0)),
        (estimate_winner(np.full((missing, 2), NAN)).estimate, (0.0, 1.0)),
    ):
        assert math.isnan(estimate.value)
        assert (estimate.low, estimate.high) == bounds
        assert (estimate.n, estimate.missing) == (0, missing)
    assert math.isnan(ConfidenceSequence().estimate.value)


def test_one_example_leaves_nearly_everything_open() -> None:
    for estimate in (estimate_mean([0.6]), estimate_population([0.6], [3.0])):
        assert estimate.value == pytest.approx(0.6)
        assert estimate.high - estimate.low > 0.6
    assert estimate_winner([[0.6, 0.4]]).estimate.n == 0


def test_an_estimate_reads_well() -> None:
    assert str(Estimate(0.8, 0.7123, 0.9, 0.95, 50, 2)) == "0.800 [0.712, 0.900] (n=50, 2 missing)"
    assert str(Estimate(0.8, 0.7, 0.9, 0.95, 50)) == "0.800 [0.700, 0.900] (n=50)"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: estimate_mean([[0.1, 0.2]]),
        lambda: estimate_mean(["good"]),
        lambda: estimate_mean([1.2]),
        lambda: estimate_mean([math.inf]),
        lambda: estimate_mean([0.5], level=95),
        lambda: estimate_mean([0.5], bounds=(1.0, 0.0)),
        lambda: estimate_mean([0.5, 0.6], weights=[1.0]),
        lambda: estimate_mean([0.5, 0.6], weights=[1.0, 0.0]),
        lambda: estimate_difference([0.5], [0.5, 0.6]),
        lambda: estimate_difference([0.5], [-0.5]),
        lambda: estimate_population([0.5, 0.6], [1.0, -2.0]),
        lambda: estimate_population([0.5, 0.6], [1.0, NAN]),
        lambda: estimate_population([0.5, 0.6], [1.0, 1.0], strata=["a"]),
        lambda: estimate_winner([0.5, 0.6]),
        lambda: estimate_winner([[0.5, 3.0]]),
        lambda: evidence([2.0]),
        lambda: evidence(0.5),
        lambda: evidence([0.5], margin=-1.0),
        lambda: ConfidenceSequence(alpha=0.0),
        lambda: ConfidenceSequence(bounds=(0.0, math.inf)),
        lambda: ConfidenceSequence(side="left"),
        lambda: ConfidenceSequence().update(1.5),
    ],
)
def test_a_mistake_is_refused_in_one_sentence_with_a_remedy(mistake: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        mistake()
    assert caught.value.problem.count(". ") == 0
    assert caught.value.remedy.endswith(".")
