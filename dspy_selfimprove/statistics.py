"""How sure we may be: intervals for means and differences, a test to watch as data comes in, and an honest best-of-k.

A missing value (NaN or None) is never a zero: it is left out, and counted in `missing`. With nothing observed an
estimate has no value and its interval is the whole range, so it decides nothing. Scores are bounded, and every method
here uses the bounds; a value outside them is refused, because each guarantee rests on them.

What was chosen, and measured on bounded scores (coverage is of the 95 % interval):

- *One mean, and the paired difference*: a Bayesian bootstrap by example, with half a pseudo-example at the bound
  towards which the interval opens. The half stands for what a small sample has not seen. Without it, percentile, BCa
  and Student intervals of twenty all-but-perfect scores are a point: on Bernoulli(.98) with n = 20 they cover .36,
  this one .99. Over nine laws and n from 5 to 200 it covered .94 or more, but for one .92 (differences that are zero
  95 times in 100, at n = 50), where the percentile interval went down to .24. Its price in width is at most 12 % at
  n = 200; at n = 50 it is 3 % to 60 %, most where nearly all scores agree. A whole pseudo-example (Gaffke's bound)
  covers still more and doubles that price.
- *A sample drawn with unequal chances*: the self-normalised (Hájek) mean with its linearised variance, turned into a
  beta interval with an effective sample size. Student's interval covers as little as .54 where scores are near a
  bound; this one about .90 or more from n = 15 on, and .95 at n = 250, with weights that vary a hundredfold. The
  Horvitz-Thompson mean is left out on purpose: it can leave [0, 1], and a missing value in it is a zero.
- *Looking after every example*: a mixture of five bets. It needs no model, no sample size fixed in advance and no
  tuning, and its evidence does not depend on the order of the examples. For a difference of .1 with standard
  deviation .3 it decides at 95 % after a median of 77 examples (90 % of the races by 153); a test that may look only
  once needs 70 for four in five. The usual adaptive bets are as quick there and much slower on win-or-lose scores
  (a median of 852 against 300 for .8 over .7); the empirical-Bernstein sequence needs about twice as many.
- *The best of k*: repeated five-fold cross-fitting, selecting on four parts and scoring on the fifth. For twenty equal
  candidates on fifty examples the plain maximum is .117 too high and this within .01; with one candidate truly better
  it is .00 to .02 too low, where shrinking all towards their mean is .115 too low.

Not covered: dependence. Examples are taken as drawn independently of each other; several from one conversation make
every interval here too narrow, and belong in one example. Nor a verdict that goes missing *because* it would be bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dspy_selfimprove.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]
Bounds: TypeAlias = tuple[float, float]
Side: TypeAlias = Literal["both", "above", "below"]

SCORES: Bounds = (0.0, 1.0)
DIFFERENCES: Bounds = (-1.0, 1.0)

# Draws of the bootstrap: the ends of a 95 % interval then move by about 1 % of its width from seed to seed.
_DRAWS = 5_000
# What the bootstrap supposes it has not seen, in examples. One half matches Jeffreys' prior when scores are 0 or 1.
_UNSEEN = 0.5
# Cells of a block of draws: 16 MB, however many examples there are.
_BLOCK = 50_000
_FOLDS = 5
_REPEATS = 20
# Fractions staked, of the most that cannot end in ruin. The bold bets decide short races; the timid ones keep the
# interval shrinking in long ones and near a bound, for which a small share of the starting capital is enough.
_STAKES = np.array([0.01, 0.04, 0.15, 0.4, 0.95])
_SHARES = np.array([0.05, 0.1, 0.2, 0.3, 0.35])
# Means that a confidence sequence can tell apart: steps of .002 for differences.
_MEANS = np.arange(1, 1_001) / 1_000
_STAKE_PER_MEAN: Floats = _STAKES[:, None] / _MEANS
_KEPT: Floats = 1.0 - _STAKES[:, None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval. `n` values were observed and `missing` were not; `value` is NaN if `n` is 0."""

    value: float
    low: float
    high: float
    level: float
    n: int
    missing: int = 0

    def __str__(self) -> str:
        absent = f", {self.missing} missing" if self.missing else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n}{absent})"


@dataclass(frozen=True, slots=True)
class Winner:
    """The best of k. `naive` is the mean that made it win, and therefore too high; `estimate` is what to expect."""

    index: int | None
    naive: float
    estimate: Estimate


def estimate_mean(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bounds: Bounds = SCORES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of bounded values, with a bootstrap interval that is a function of the values and `seed` alone.

    For a sample drawn with unequal chances, `estimate_population` needs no seed and knows strata.
    """
    column = _column(values, bounds)
    return _bootstrap(column, _weights(weights, column), bounds, _level(level), seed)


def estimate_difference(
    a: ArrayLike, b: ArrayLike, *, weights: ArrayLike | None = None, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `a - b` over examples that both were scored on; a pair with one score missing is missing."""
    first, second = _column(a, SCORES), _column(b, SCORES)
    if first.shape != second.shape:
        raise UsageError(
            f"{len(first)} and {len(second)} scores cannot be paired.",
            remedy="Give both in the order of the same examples, NaN where one is missing.",
        )
    return _bootstrap(first - second, _weights(weights, first), DIFFERENCES, _level(level), seed)


def estimate_population(
    values: ArrayLike,
    weights: ArrayLike,
    *,
    strata: Sequence[object] | None = None,
    bounds: Bounds = SCORES,
    level: float = 0.95,
) -> Estimate:
    """The mean of the population that a biased sample was drawn from.

    `weights` are proportional to one over each example's chance of being drawn. With `strata`, spread between strata
    does not count; a stratum with a single example has no spread of its own, so its distance from the overall mean
    is used, which errs on the wide side. The population itself counts as a sample of what is to come: even a complete
    one leaves an interval.
    """
    column = _column(values, bounds)
    weight = _weights(weights, column)
    confidence = _level(level)
    if strata is not None and len(strata) != len(column):
        raise UsageError(f"{len(strata)} strata do not fit {len(column)} values.", remedy="Give one stratum per value.")
    seen = ~np.isnan(column)
    missing = int((~seen).sum())
    if not seen.any():
        return _unknown(bounds, confidence, missing)
    low, high = bounds
    unit, weight = (column[seen] - low) / (high - low), weight[seen]
    share = weight / weight.sum()
    mean = float(np.clip(share @ unit, 0.0, 1.0))
    groups = None if strata is None else _groups([s for s, kept in zip(strata, seen, strict=True) if kept])
    variance = _linearised(share * (unit - mean), groups)
    ends = _beta_interval(mean, variance, effective=float(1.0 / (share @ share)), level=confidence)
    return _scaled(mean, ends, bounds, confidence, int(seen.sum()), missing)


def estimate_winner(scores: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Winner:
    """The column with the highest mean (the first, if tied), and the score to expect of it on fresh examples.

    Rows are examples, columns candidates. A candidate is judged by the scores it has; with many missing, compare on
    examples that all were scored on. With one example and a choice, nothing can be held out and nothing is claimed.
    The interval includes the chance of having picked another; with twenty candidates it covered .87 to .99, least
    where a true winner stands out only now and then.
    """
    table = _numbers(scores)
    if table.ndim != 2:
        raise UsageError(
            f"Scores of shape {table.shape} are not a table.",
            remedy="Give one row per example, one column per candidate.",
        )
    _within(table, SCORES)
    confidence = _level(level)
    seen = ~np.isnan(table)
    missing = int((~seen.any(axis=1)).sum())
    if not seen.any():
        return Winner(None, float("nan"), _unknown(SCORES, confidence, missing))
    filled = np.where(seen, table, 0.0)
    means = _means(filled.sum(axis=0), seen.sum(axis=0).astype(np.float64))
    index = int(means.argmax())
    naive = float(means[index])

    held = _held_out(filled, seen, seed)
    counts = (~np.isnan(held)).sum(axis=1)
    held, counts = held[counts > 0], counts[counts > 0]
    n = int((~np.isnan(held)).any(axis=0).sum())
    if not n:
        return Winner(index, naive, _unknown(SCORES, confidence, len(table)))
    repeats = np.nanmean(held, axis=1)
    value = float(repeats.mean())
    # Within a repeat, the spread of examples; between repeats, that of the selections.
    within = np.nanvar(held, axis=1) / np.maximum(counts - 1, 1)
    ends = _beta_interval(value, float(within.mean() + repeats.var()), effective=float(n), level=confidence)
    return Winner(index, naive, _scaled(value, ends, SCORES, confidence, n, len(table) - n))


def evidence(values: ArrayLike, *, margin: float = 0.0, bounds: Bounds = DIFFERENCES) -> Floats:
    """The running evidence, along the last axis, that the mean lies above `margin`.

    If it does not, the chance that the evidence *ever* reaches 1/alpha is at most alpha, whenever and however often
    one looks: it is the capital of a gambler who stakes on "above", at odds that are fair at the margin. A missing
    value leaves it as it was. For the other side, pass the negated values, margin and bounds.
    """
    array = _numbers(values)
    _within(array, bounds)
    low, high = bounds
    if not array.ndim:
        raise UsageError("One number is not a race.", remedy="Give the values in the order they came.")
    if not low < margin < high:
        raise UsageError(
            f"A margin of {margin} is not inside the bounds {bounds}.",
            remedy="Give a margin the mean could exceed.",
        )
    odds = (array - low) / (margin - low)
    stakes, shares = (each.reshape(-1, *([1] * array.ndim)) for each in (_STAKES, _SHARES))
    growth = np.nan_to_num(np.log1p(stakes * (odds - 1.0)), nan=0.0)
    capital = np.logaddexp.reduce(np.log(shares) + growth.cumsum(axis=-1), axis=0)
    running: Floats = np.exp(np.minimum(capital, 700.0))  # a number, however long the race
    return running


@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceSequence:
    """An interval for a mean that holds at every moment of a race at once, with confidence 1 - alpha.

    Look after every example, stop when you like: `update` gives the next state in constant time (about 25 µs) and
    never widens the interval. `side` "above" or "below" spends all of alpha on one end, and leaves the other open.
    Ends lie on a grid of a thousand steps and are rounded outwards; every mean up to `low`, itself included, is
    refuted. Where the promise fails (alpha of the time, or a process that drifts) the ends may cross.
    """

    alpha: float = 0.05
    bounds: Bounds = DIFFERENCES
    side: Side = "both"
    n: int = 0
    missing: int = 0
    _total: float = field(default=0.0, repr=False)
    # For each end: how many means of the grid are refuted, and what each bet has made against each mean.
    _refuted: tuple[int, int] = field(default=(0, 0), repr=False)
    _capital: Floats = field(default_factory=lambda: np.tile(_SHARES[:, None], (2, 1, len(_MEANS))), repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise UsageError(f"An alpha of {self.alpha} is not a chance of error.", remedy="Say 0.05, for instance.")
        if self.side not in ("both", "above", "below"):
            raise UsageError(f"{self.side!r} is not a side.", remedy='Say "both", "above" or "below".')
        _range(self.bounds)

    def update(self, value: float | None) -> ConfidenceSequence:
        """The sequence after one more value; a missing one (NaN or None) is only counted."""
        if value is None or value != value:
            return replace(self, missing=self.missing + 1)
        low, high = self.bounds
        if not low <= value <= high:
            raise UsageError(f"{value} lies outside the bounds {self.bounds}.", remedy="Scale it, or widen the bounds.")
        unit = (value - low) / (high - low)
        with np.errstate(over="ignore"):
            capital = self._capital * (_KEPT + np.array([unit, 1.0 - unit])[:, None, None] * _STAKE_PER_MEAN)
            # Capital falls as the mean it is staked against rises, so what is refuted is a run from the bottom.
            won = (capital.sum(axis=1) >= self._price).sum(axis=1)
        above, below = self._refuted
        refuted = (max(above, int(won[0])), max(below, int(won[1])))
        return replace(self, n=self.n + 1, _total=self._total + value, _refuted=refuted, _capital=capital)

    @property
    def _price(self) -> float:
        return (2.0 if self.side == "both" else 1.0) / self.alpha

    @property
    def low(self) -> float:
        return self.bounds[0] + self._gain(0) if self.side != "below" else self.bounds[0]

    @property
    def high(self) -> float:
        return self.bounds[1] - self._gain(1) if self.side != "above" else self.bounds[1]

    def _gain(self, end: int) -> float:
        return (self.bounds[1] - self.bounds[0]) * self._refuted[end] / len(_MEANS)

    @property
    def estimate(self) -> Estimate:
        value = self._total / self.n if self.n else float("nan")
        return Estimate(value, self.low, self.high, 1.0 - self.alpha, self.n, self.missing)


def _bootstrap(values: Floats, weights: Floats, bounds: Bounds, level: float, seed: int) -> Estimate:
    seen = ~np.isnan(values)
    missing = int((~seen).sum())
    if not seen.any():
        return _unknown(bounds, level, missing)
    low, high = bounds
    share = weights[seen] / weights[seen].sum()
    unit = (values[seen] - low) / (high - low)
    mean = float(np.clip(share @ unit, 0.0, 1.0))
    generator = np.random.default_rng(seed)
    # With unequal weights the unseen example weighs what an example of the sample does, drawn by weight.
    unseen = generator.gamma(_UNSEEN, size=_DRAWS) * float(share @ share)
    totals, masses = np.empty(_DRAWS), np.empty(_DRAWS)
    step = max(1, _BLOCK // len(unit))
    for start in range(0, _DRAWS, step):
        block = slice(start, min(start + step, _DRAWS))
        draws = generator.standard_exponential((block.stop - start, len(unit)))
        totals[block], masses[block] = draws @ (share * unit), draws @ share
    tail = (1.0 - level) / 2.0
    lowest = float(np.quantile(totals / (masses + unseen), tail))
    highest = float(np.quantile((totals + unseen) / (masses + unseen), 1.0 - tail))
    ends = (min(max(lowest, 0.0), mean), max(min(highest, 1.0), mean))
    return _scaled(mean, ends, bounds, level, int(seen.sum()), missing)


def _held_out(scores: Floats, seen: NDArray[np.bool_], seed: int) -> Floats:
    """For each repeat and example, the score of the candidate that won without it; NaN where it has none."""
    examples, candidates = scores.shape
    generator = np.random.default_rng(seed)
    order = np.tile(np.arange(examples) % _FOLDS, (_REPEATS, 1))
    folds = generator.permuted(order, axis=1)
    inside = (folds[:, None, :] == np.arange(_FOLDS)[:, None]).astype(np.float64)
    counts = seen.astype(np.float64)
    means = _means(scores.sum(axis=0) - inside @ scores, counts.sum(axis=0) - inside @ counts)
    winners = means.argmax(axis=2)
    chosen = np.take_along_axis(winners, folds, axis=1)
    rows = np.arange(examples)
    held = np.where(seen[rows, chosen], scores[rows, chosen], np.nan)
    if candidates > 1:
        blind = np.isneginf(means.max(axis=2))
        held[np.take_along_axis(blind, folds, axis=1)] = np.nan
    return held


def _means(totals: Floats, counts: Floats) -> Floats:
    """Means to compare: none observed is worst, and sums that differ by rounding alone are tied."""
    return np.where(counts > 0.0, np.round(totals / np.maximum(counts, 1.0), 12), -np.inf)


def _linearised(deviations: Floats, groups: NDArray[np.intp] | None) -> float:
    """The variance of a ratio of sums, from each example's share of the deviation."""
    n = len(deviations)
    if n < 2:
        return 0.0
    if groups is None:
        return float(deviations @ deviations) * n / (n - 1)
    sizes = np.bincount(groups)[groups].astype(np.float64)
    centres = (np.bincount(groups, deviations) / np.maximum(np.bincount(groups), 1))[groups]
    alone = sizes == 1.0
    squares = np.where(alone, deviations, deviations - centres) ** 2
    factors = np.where(alone, n / (n - 1), sizes / np.maximum(sizes - 1.0, 1.0))
    return float(squares @ factors)


def _beta_interval(mean: float, variance: float, *, effective: float, level: float) -> tuple[float, float]:
    """The exact binomial interval for as many examples as the variance is worth (after Korn and Graubard).

    Without spread the variance knows nothing, and the effective number of examples stands in.
    """
    tail = (1.0 - level) / 2.0
    size = effective
    if variance > 1e-16 and 0.0 < mean < 1.0:
        student = special.stdtrit(max(effective - 1.0, 1.0), 1.0 - tail)
        size = mean * (1.0 - mean) / variance * (special.ndtri(1.0 - tail) / student) ** 2
    wins, losses = size * mean, size * (1.0 - mean)
    low = float(special.betaincinv(wins, losses + 1.0, tail)) if wins > 0.0 else 0.0
    high = float(special.betaincinv(wins + 1.0, losses, 1.0 - tail)) if losses > 0.0 else 1.0
    return min(low, mean), max(high, mean)


def _scaled(mean: float, ends: tuple[float, float], bounds: Bounds, level: float, n: int, missing: int) -> Estimate:
    low, high = bounds
    value, start, end = (low + (high - low) * unit for unit in (mean, *ends))
    return Estimate(value, start, end, level, n, missing)


def _unknown(bounds: Bounds, level: float, missing: int) -> Estimate:
    return Estimate(float("nan"), *bounds, level, 0, missing)


def _groups(labels: Sequence[object]) -> NDArray[np.intp]:
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.intp)


def _numbers(values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError("The values are not numbers.", remedy="Give numbers, and NaN where one is missing.") from None


def _column(values: ArrayLike, bounds: Bounds) -> Floats:
    array = _numbers(values)
    if array.ndim != 1:
        raise UsageError(f"Values of shape {array.shape} are not one column.", remedy="Give one value per example.")
    _within(array, bounds)
    return array


def _within(array: Floats, bounds: Bounds) -> None:
    _range(bounds)
    low, high = bounds
    if ((array < low) | (array > high)).any():
        raise UsageError(f"A value lies outside the bounds {bounds}.", remedy="Scale it, or widen the bounds.")


def _range(bounds: Bounds) -> None:
    if not -np.inf < bounds[0] < bounds[1] < np.inf:
        raise UsageError(f"{bounds} is not a range.", remedy="Give two finite bounds, the lower first.")


def _weights(weights: ArrayLike | None, values: Floats) -> Floats:
    if weights is None:
        return np.ones(len(values))
    array = _numbers(weights)
    if array.shape != values.shape:
        raise UsageError(
            f"Weights of shape {array.shape} do not fit {len(values)} values.",
            remedy="Give one weight per value.",
        )
    if not (np.isfinite(array) & (array > 0.0)).all():
        raise UsageError("A weight is not above zero.", remedy="Leave out the examples that should not count.")
    return array


def _level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise UsageError(f"A level of {level} is not a confidence.", remedy="Say 0.95, for instance.")
    return level
