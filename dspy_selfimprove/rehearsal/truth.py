"""Expected scores, exactly: what an infinite number of asks would average to.

A reply is a set of behaviours, each shown with the probability `worker.follow` gives it, independently. From that the
two things a metric looks at have known distributions: which criteria a judge perceives as met (with its planted noise
and its planted taste for length), and how many words the reply has. Both are computed by adding one behaviour after the
other, for many prompts at once: a row of `chance` is a prompt, a column a rule.

Exact as long as the length bias stays a probability (see `judge.lift_chance`, which cuts at 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_selfimprove.rehearsal.judge import Criterion, lift_chance, notch_of
from dspy_selfimprove.rehearsal.rule import Rule
from dspy_selfimprove.rehearsal.temper import Temper

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Situation:
    """A share of all requests in which the same rules apply. `plain_words` is a reply that shows no behaviour."""

    probability: float
    topic: str
    plain_words: int

    def words(self, rule: Rule) -> int:
        """What a behaviour adds to the length."""
        return rule.words - self.plain_words if rule.instead else rule.words


def judged(
    chance: Floats,
    rules: Sequence[Rule],
    situation: Situation,
    criteria: Sequence[Criterion],
    notches: int,
    temper: Temper,
) -> Floats:
    """The expected score of a judge with these criteria, one per row of `chance`."""
    asked = {c.rule: c for c in criteria if _rule(rules, c.rule).applies(situation.topic)}
    total = sum(criterion.weight for criterion in asked.values())
    met = np.zeros((len(chance), total + 1))
    met[:, 0] = 1.0
    length = np.zeros_like(met)  # the expected number of words, split by what is met
    words = np.full(len(chance), float(situation.plain_words))
    for column, rule in enumerate(rules):
        if not rule.applies(situation.topic):
            continue
        shown, added = chance[:, column : column + 1], situation.words(rule)
        if (criterion := asked.get(rule.name)) is None:
            words += shown[:, 0] * added
            continue
        if_shown = 1.0 - temper.judge_noise if criterion.wanted else temper.judge_noise
        fulfilled = shown * if_shown + (1.0 - shown) * (1.0 - if_shown)
        further, longer = _shift(met, criterion.weight), _shift(length, criterion.weight)
        length = (1.0 - fulfilled) * length + fulfilled * longer
        length += added * shown * ((1.0 - if_shown) * met + if_shown * further)
        met = (1.0 - fulfilled) * met + fulfilled * further
    length += words[:, None] * met
    notch = np.array([notch_of(count / total if total else 1.0, notches) for count in range(total + 1)])
    score = notch / (notches - 1)
    gain = np.minimum(notch + 1, notches - 1) / (notches - 1) - score
    return np.asarray(met @ score + lift_chance(1.0, temper) * (length @ gain))


def short(chance: Floats, rules: Sequence[Rule], situations: Sequence[Situation], low: int, high: int) -> Floats:
    """The expected brevity over all situations, one per row of `chance`: 1 up to `low` words, 0 from `high` on."""
    varying = [column for column in range(len(rules)) if np.ptp(chance[:, column]) > 0]
    values: dict[tuple[int, tuple[int, ...]], Floats] = {}
    for situation in situations:
        top = max(1, high - situation.plain_words)
        length = situation.plain_words + np.arange(top + 1)
        value = np.clip((high - length) / (high - low), 0.0, 1.0)
        for column, rule in enumerate(rules):
            if rule.applies(situation.topic) and column not in varying:
                later = value[np.minimum(np.arange(top + 1) + situation.words(rule), top)]
                value = value + chance[0, column] * (later - value)
        applying = tuple(column for column in varying if rules[column].applies(situation.topic))
        key = (situation.plain_words, applying)
        values[key] = values.get(key, np.zeros(top + 1)) + situation.probability * value
    expected = np.zeros(len(chance))
    for (plain_words, applying), value in values.items():
        some = Situation(1.0, "", plain_words)
        for rows in np.array_split(np.arange(len(chance)), max(1, len(chance) // 2048)):
            share = np.zeros((len(rows), len(value)))
            share[:, 0] = 1.0
            for column in applying:
                shown = chance[rows, column : column + 1]
                share = share + shown * (_push(share, some.words(rules[column])) - share)
            expected[rows] += share @ value
    return expected


def _rule(rules: Sequence[Rule], name: str) -> Rule:
    return next(rule for rule in rules if rule.name == name)


def _shift(table: Floats, by: int) -> Floats:
    moved = np.zeros_like(table)
    moved[:, by:] = table[:, : table.shape[1] - by]
    return moved


def _push(table: Floats, by: int) -> Floats:
    """Shifted to the right; what would fall off stays in the last column."""
    width = table.shape[1]
    moved = np.zeros_like(table)
    if by < width:
        moved[:, by:] = table[:, : width - by]
    moved[:, -1] += table[:, max(0, width - by) :].sum(axis=1)
    return moved
