"""Near-duplicates: planted ones are found, nothing else is joined, and the answer depends on the texts alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.duplicates import THRESHOLD, near_duplicates
from dspy_selfimprove.errors import UsageError

VOCABULARY = ["".join(Random(i).choices("abcdefghijklmnoprstuvw", k=3 + i % 6)) for i in range(4_000)]


def text(random: Random, words: int = 40) -> list[str]:
    return random.choices(VOCABULARY, k=words)


def changed(words: Sequence[str], count: int, random: Random) -> list[str]:
    result = list(words)
    for place in random.sample(range(len(result)), count):
        result[place] = random.choice(VOCABULARY)
    return result


def overlap(a: str, b: str) -> float:
    """Jaccard's measure over pairs of words, written down once more and slowly."""
    pairs = []
    for each in (a, b):
        words = ["<", *re.findall(r"[a-z]+", each.lower()), ">"]
        pairs.append(set(pairwise(words)))
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def test_planted_near_duplicates_are_found_and_nothing_else_is_joined() -> None:
    random = Random(1)
    originals = [text(random) for _ in range(3_000)]
    sources = [*range(3_000), *(random.randrange(3_000) for _ in range(1_000))]
    copies = [changed(originals[source], random.randint(1, 4), random) for source in sources[3_000:]]
    texts = [" ".join(words) for words in [*originals, *copies]]
    labels = near_duplicates(texts).labels
    found = [labels[i] == labels[sources[i]] for i in range(3_000, 4_000)]
    assert np.mean(found) >= 0.99
    home: dict[int, int] = {}
    assert all(home.setdefault(int(label), source) == source for label, source in zip(labels, sources, strict=True))


def test_no_pair_at_the_threshold_is_left_apart() -> None:
    """Against all pairs, compared slowly: what the bands did not propose must be what is not near."""
    random = Random(2)
    texts = []
    for _ in range(40):
        words = text(random, 30)
        texts += [" ".join(changed(words, random.randint(0, 6), random)) for _ in range(4)]
    labels = near_duplicates(texts).labels
    pairs = [(i, j) for i in range(len(texts)) for j in range(i) if overlap(texts[i], texts[j]) >= THRESHOLD]
    assert len(pairs) > 60
    assert sum(labels[i] != labels[j] for i, j in pairs) <= len(pairs) // 100


def test_a_group_is_held_together_by_near_pairs_only() -> None:
    random = Random(3)
    texts = []
    for _ in range(60):
        words = text(random, 12)
        texts += [" ".join(changed(words, random.randint(0, 3), random)) for _ in range(3)]
    found = near_duplicates(texts)
    for i, stand_in in enumerate(found.stand_ins):
        assert i == stand_in or overlap(texts[i], texts[stand_in]) >= THRESHOLD
        assert found.labels[i] == found.labels[stand_in]
        assert found.stand_ins[stand_in] == stand_in
    for label in range(found.groups):
        members = np.flatnonzero(found.labels == label).tolist()
        reached = {members[0]}
        while more := {
            j for j in members if j not in reached and any(overlap(texts[i], texts[j]) >= THRESHOLD for i in reached)
        }:
            reached |= more
        assert reached == set(members)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Where is my order 4711?", "where is my order 4712"),
        ("Where is order 4711?", "Where is order A-17/B 9?"),
        ("Café au lait, please!", "cafe\u0301 au lait please"),
        ("\uff26\uff35\uff2c\uff2c width", "full WIDTH"),
        ("", "   \n"),
        ("???", "? ? ?"),
        ("订单什么时候到达北京", "订单什么时候到达北京\uff1f"),
        ("It costs 12.50 EUR and/or 3", "it costs 1,200.99 EUR and or 17:30"),
        ("Straße", "STRASSE"),
        ("\ud800 lost", "lost \ud800"),
    ],
)
def test_what_does_not_count(a: str, b: str) -> None:
    assert near_duplicates([a, b]).groups == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("yes", "no"),
        ("", "?"),
        ("👍", "👎"),
        ("cancel my order", "cancel my account"),
        ("the dog bites the man in the old park", "in the old park the man bites the dog at last"),
        ("订单什么时候到", "怎么取消我的账户"),
    ],
)
def test_what_does(a: str, b: str) -> None:
    assert near_duplicates([a, b]).groups == 2


anything = st.lists(st.text(max_size=30), max_size=25)


@given(anything)
@settings(max_examples=60)
def test_any_text_has_a_place(texts: list[str]) -> None:
    found = near_duplicates(texts)
    assert len(found) == len(texts) == len(found.stand_ins)
    firsts = list(dict.fromkeys(found.labels.tolist()))
    assert firsts == list(range(found.groups))  # numbered by appearance, without gaps
    assert [found.labels[i] for i in found.stand_ins] == found.labels.tolist()
    assert near_duplicates(iter(texts)).labels.tolist() == found.labels.tolist()
    for index, touched in enumerate(found.touched_by(texts)):
        assert found.labels[index] in touched


@given(anything, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_the_texts_does_not_matter(texts: list[str], random: Random) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    here, there = near_duplicates(texts).labels, near_duplicates([texts[i] for i in order]).labels
    same = {(here[i], there[place]) for place, i in enumerate(order)}
    assert len(same) == len({a for a, _ in same}) == len({b for _, b in same})


def chain(length: int, random: Random) -> list[str]:
    """Texts each near the one before, the last with nothing left of the first."""
    words = text(random, 40)
    steps = [list(words)]
    for step in range(length):
        words = list(words)
        words[step % 40] = random.choice(VOCABULARY)
        words[(step + 20) % 40] = random.choice(VOCABULARY)
        steps.append(words)
    return [" ".join(each) for each in steps]


def test_a_chain_is_one_group_with_several_stand_ins_and_is_said() -> None:
    texts = chain(60, Random(4))
    found = near_duplicates(texts)
    assert found.groups == 1
    assert overlap(texts[0], texts[-1]) < 0.1
    assert 8 < len(found.kept) < 40
    assert all(overlap(texts[i], texts[s]) >= THRESHOLD for i, s in enumerate(found.stand_ins))
    assert "linked in chains" in found.notes[0]


def test_new_texts_touch_the_groups_they_are_near_also_several() -> None:
    random = Random(5)
    left, right = text(random, 40), None
    middle = [*changed(left, 3, random)]
    right = changed(middle, 4, random)
    known = [" ".join(left), " ".join(text(random)), " ".join(right)]
    found = near_duplicates(known)
    assert found.groups == 3, "the ends of the bridge must not be near each other"
    new = [" ".join(middle), known[1].upper(), " ".join(text(random)), ""]
    assert found.touched_by(new) == ((0, 2), (1,), (), ())
    assert near_duplicates([]).touched_by(["a"]) == ((),)


def test_a_crowd_with_one_boilerplate_stays_apart_and_its_twins_are_found() -> None:
    """Two thousand texts that share half of their words: each band is crowded, and only true twins may join."""
    random = Random(6)
    opening = " ".join(text(random, 20))
    texts = [f"{opening} {' '.join(text(random, 12))}" for _ in range(2_000)]
    twins = [" ".join(changed(texts[i].split(), 2, random)) for i in range(0, 2_000, 20)]
    found = near_duplicates([*texts, *twins])
    together = [found.labels[2_000 + place] == found.labels[i] for place, i in enumerate(range(0, 2_000, 20))]
    assert np.mean(together) >= 0.99
    assert found.groups >= 1_990


def test_one_template_with_many_fillings_is_one_group() -> None:
    random = Random(7)
    body = " ".join(text(random, 40))
    texts = [f"Dear {random.choice(VOCABULARY)}, {body}" for _ in range(3_000)]
    found = near_duplicates([*texts, "something else entirely"])
    assert (found.groups, len(found.kept)) == (2, 2)
    assert "holds 3,000 of 3,001 texts." in found.notes[0]


def test_a_threshold_that_cannot_be_kept_is_refused() -> None:
    for threshold in (0.2, 1.1, float("nan")):
        with pytest.raises(UsageError, match="not between"):
            near_duplicates(["a"], threshold)
    assert near_duplicates(["a b c d", "a b c e"], 1.0).groups == 2
