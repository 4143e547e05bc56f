"""Sides: on which side of a split each sample falls. Pure: no disk, no clock, no random state.

**Groups.** What belongs together stays on one side: samples that share a session, a user, a trace or (nearly) the same
words, and whatever hangs together through a chain of these. Groups are placed largest first, each where its clusters
and prompt versions are furthest below their share; a hash of the seed breaks ties, so the order of the input does not
matter. Over all seeds a sample comes to a side as often as that side's share says, whether its topic is rare or common;
not so the few groups that are too large for a side's share. One larger than every side's share goes to train.

**New data.** What is held already keeps its side. A new sample joins the side of whatever it belongs to; one that would
join two sides gets none. Where new samples form a chain between two sides, as few as can be are taken out of it
(between three sides twice that at worst: the fewest would be a hard problem). Clusters of another pull are other
clusters, so new samples are balanced by cluster among themselves, and with the old ones by prompt version and number.

Not covered: near-duplicates that share no words; and a pair of them that `duplicates` misses.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Final, Literal, TypeAlias

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.sample import Sample

Side: TypeAlias = Literal["train", "validation", "test"]
_Feature: TypeAlias = tuple[str, object]

SIDES: Final[tuple[Side, ...]] = ("train", "validation", "test")
SHARES: Final = (0.5, 0.2, 0.3)
GROUPS: Final = ("session_id", "user_id", "trace_id", "text")


@dataclass(frozen=True, slots=True)
class Placement:
    """The side of each new sample (None: it would join two), and how many independent groups each side holds now.

    >>> def ticket(n):
    ...     turn = {"role": "user", "content": f"Question {chr(97 + n)}"}
    ...     return Sample(f"T{n}", (turn,), {"role": "assistant", "content": "Yes."}, user_id=f"U{n // 2}")
    >>> found = place([ticket(n) for n in range(20)])
    >>> Counter(found.sides) == {"train": 10, "validation": 4, "test": 6}
    True
    >>> [found.sides[n] == found.sides[n + 1] for n in range(0, 20, 2)] == [True] * 10
    True
    """

    sides: tuple[Side | None, ...]
    groups: Mapping[Side, int]
    notes: tuple[str, ...] = ()


def place(
    samples: Sequence[Sample],
    *,
    held: Mapping[Side, Sequence[Sample]] | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    groups: Iterable[str] = GROUPS,
) -> Placement:
    """Find a side for each of `samples`, beside those that are `held` already. Ids must be unique.

    `shares` are those of train, validation and test. `groups` names what must not straddle: fields of a sample, and
    `text` for near-duplicates.
    """
    shares, groups = checked_shares(shares), checked_groups(groups)
    old = [(sample, at) for at, side in enumerate(SIDES) for sample in (held or {}).get(side, ())]
    keys = _Keys([sample for sample, _ in old], samples, groups)
    ends: dict[int, int] = {}
    filled = _Fill(shares, seed)
    for (sample, side), own in zip(old, keys.old, strict=True):
        filled.add({("prompt", sample.prompt): 1}, 1, side)
        for key in own:
            ends[key] = ends.get(key, 0) | 1 << side
    ranks = [_rank(seed, sample.id) for sample in samples]
    kept = _without_bridges(keys.new, ends, ranks)
    links = _Links(ends)
    for at in kept:
        links.join(keys.new[at])

    found: list[int | None] = [None] * len(samples)
    free: dict[int, list[int]] = {}
    for at in kept:
        if mask := links.sides(keys.new[at]):
            side = found[at] = mask.bit_length() - 1
            filled.add(_features([samples[at]]), 1, side)
        else:
            free.setdefault(links.root(keys.new[at][0]), []).append(at)

    total = len(old) + len(kept)
    largest = max(shares) * total + _HAIR
    waiting = sorted(free.values(), key=lambda members: (-len(members), min(ranks[at] for at in members)))
    for done, members in enumerate(waiting):
        features = _features(samples[at] for at in members)
        giant = len(members) > largest
        side = filled.choose(features, len(members), total=total, left=len(waiting) - done, giant=giant)
        filled.add(features, len(members), side)
        for at in members:
            found[at] = side
    sides = [side for _, side in old] + found
    groups_now = _groups_now([*keys.old, *keys.new], sides)
    counts = Counter(sides[members[0]] for members in groups_now)
    return Placement(
        tuple(None if side is None else SIDES[side] for side in found),
        {side: counts[at] for at, side in enumerate(SIDES)},
        tuple(
            f"One group holds {len(members) / total:.0%} of the samples and is in {SIDES[sides[members[0]] or 0]}: "
            f"{keys.why(members)}"
            for members in groups_now
            if len(members) > largest
        ),
    )


def checked_shares(shares: Sequence[float]) -> tuple[float, ...]:
    wanted = tuple(float(share) for share in shares)
    if len(wanted) != 3 or not all(0 < share < 1 for share in wanted) or not math.isclose(sum(wanted), 1, abs_tol=1e-6):
        raise UsageError(
            "`shares` must be three numbers above 0 that add up to 1.", remedy="The default is (0.5, 0.2, 0.3)."
        )
    return wanted


def checked_groups(groups: Iterable[str]) -> tuple[str, ...]:
    chosen = (groups,) if isinstance(groups, str) else tuple(groups)
    if strange := [name for name in chosen if name not in GROUPS]:
        raise UsageError(f"{strange[0]!r} groups no samples.", remedy=f"Choose among {', '.join(GROUPS)}.")
    return chosen


# Who belongs together.


class _Keys:
    """What each sample shares with others, as numbers: two samples with a number in common stay together."""

    def __init__(self, old: Sequence[Sample], new: Sequence[Sample], groups: Sequence[str]) -> None:
        self._numbers: dict[tuple[str, object], int] = {}
        fields = [name for name in groups if name != "text"]
        own = [
            [(name, value) for name in fields if (value := getattr(sample, name)) is not None and value != ""]
            for sample in (*old, *new)
        ]
        if "text" in groups:
            self._add_texts(own, old, new)
        self._at = [[self._numbers.setdefault(pair, len(self._numbers)) for pair in pairs] for pairs in own]
        for pairs in self._at:
            if not pairs:
                pairs.append(self._numbers.setdefault(("alone", len(self._numbers)), len(self._numbers)))
        self.old, self.new = self._at[: len(old)], self._at[len(old) :]

    @staticmethod
    def _add_texts(own: list[list[tuple[str, object]]], old: Sequence[Sample], new: Sequence[Sample]) -> None:
        from dspy_selfimprove.duplicates import near_duplicates

        # Each new text is compared with the old ones by itself: among the new ones a chain is a group, but a chain of
        # old groups through a new sample is a bridge, and belongs to that sample alone.
        known, fresh = near_duplicates(each.asked for each in old), near_duplicates(each.asked for each in new)
        for pairs, label in zip(own, known.labels.tolist(), strict=False):
            pairs.append(("text", label))
        touched = known.touched_by(each.asked for each in new) if old else [()] * len(new)
        for pairs, label, groups in zip(own[len(old) :], fresh.labels.tolist(), touched, strict=True):
            pairs.extend([("new text", label), *(("text", group) for group in groups)])

    def why(self, members: Sequence[int]) -> str:
        """What holds a group together (counted from the old samples on), and what can be done."""
        counts = Counter(key for at in members for key in self._at[at])
        key, count = max(counts.items(), key=lambda item: (item[1], -item[0]))
        if 2 * count < len(members):
            return "it is a chain through many, such as a question that everybody asks. Draw without near-duplicates."
        kind = list(self._numbers)[key][0].removeprefix("new ")
        return f"most of it shares one {kind}. If that is a placeholder, split again without it (groups=...)."


class _Links:
    """Which keys hang together through samples, and which sides they lead to (a bit each). A union-find."""

    def __init__(self, ends: Mapping[int, int]) -> None:
        self._parent: dict[int, int] = {}
        self._ends = dict(ends)

    def root(self, key: int) -> int:
        parent = self._parent
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    def join(self, keys: Sequence[int]) -> None:
        first = self.root(keys[0])
        for key in keys[1:]:
            if (other := self.root(key)) != first:
                self._parent[other] = first
                self._ends[first] = self._ends.get(first, 0) | self._ends.get(other, 0)

    def sides(self, keys: Iterable[int]) -> int:
        found = 0
        for key in keys:
            found |= self._ends.get(self.root(key), 0)
        return found


def _groups_now(keys: Sequence[Sequence[int]], sides: Sequence[int | None]) -> list[list[int]]:
    """The independent groups among samples that have a side."""
    links = _Links({})
    # A key means one thing per side: two old groups that a bridge would have joined are two groups.
    here = {at: [3 * key + side for key in keys[at]] for at, side in enumerate(sides) if side is not None}
    for own in here.values():
        links.join(own)
    groups: dict[int, list[int]] = {}
    for at, own in here.items():
        groups.setdefault(links.root(own[0]), []).append(at)
    return list(groups.values())


# Where a group goes.

_HAIR: Final = 1e-9  # shares are floats


class _Fill:
    """How full each side is, over all and by feature, and where the next group should go."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        self._shares = shares
        self._seed = seed
        self._all = [0, 0, 0]
        self._by: dict[_Feature, list[int]] = {}
        self._starts: dict[_Feature, list[float]] = {}

    def add(self, features: Mapping[_Feature, int], size: int, side: int) -> None:
        self._all[side] += size
        for feature, count in features.items():
            self._by.setdefault(feature, [0, 0, 0])[side] += count

    def choose(self, features: Mapping[_Feature, int], size: int, *, total: int, left: int, giant: bool) -> int:
        """Where the features are furthest below their shares, among the sides with room; no side is left empty."""
        empty = [side for side in range(3) if not self._all[side]]
        if len(empty) >= left:
            return max(empty, key=self._shares.__getitem__)
        if giant:
            return 0
        room = [share * total - full for share, full in zip(self._shares, self._all, strict=True)]
        roomy = [side for side in range(3) if room[side] + _HAIR >= size]
        if not roomy:
            return max(range(3), key=room.__getitem__)
        counts = [(size, self._all, self._start(("all", None)))]
        counts += [(count, self._by.get(each, [0, 0, 0]), self._start(each)) for each, count in features.items()]
        return min(roomy, key=lambda side: self._pressure(side, counts))

    def _pressure(self, side: int, counts: Iterable[tuple[int, Sequence[int], Sequence[float]]]) -> float:
        # The slope of the sum of squares by which the sides miss their shares, from a random start: without it the
        # first of each cluster would go to the largest side, and rare topics be scarce in the test.
        return sum(count * (full[side] + count * start[side]) for count, full, start in counts) / self._shares[side]

    def _start(self, feature: _Feature) -> list[float]:
        if feature not in self._starts:
            draws = (int.from_bytes(_rank(self._seed, f"{feature!r}/{side}")) / 2**64 for side in SIDES)
            # Exponential: divided by its share, each side's is the least of the three as often as the share says.
            self._starts[feature] = [-math.log1p(-draw) for draw in draws]
        return self._starts[feature]


def _features(samples: Iterable[Sample]) -> dict[_Feature, int]:
    found: Counter[_Feature] = Counter()
    for sample in samples:
        found["prompt", sample.prompt] += 1
        if sample.cluster is not None:
            found["cluster", sample.cluster] += 1
    return found


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


# Bridges.


def _without_bridges(keys: Sequence[Sequence[int]], ends: Mapping[int, int], ranks: Sequence[bytes]) -> list[int]:
    """The samples that can stay, so that no chain of them joins two sides: as many as can be."""
    alone = _Links(ends)
    kept = [at for at, own in enumerate(keys) if alone.sides(own).bit_count() < 2]
    links = _Links(ends)
    for at in kept:
        links.join(keys[at])
    chains: dict[int, list[int]] = {}
    for at in kept:
        if links.sides(keys[at]).bit_count() > 1:
            chains.setdefault(links.root(keys[at][0]), []).append(at)
    out: set[int] = set()
    for members in chains.values():
        members.sort(key=ranks.__getitem__)
        out |= _fewest({at: keys[at] for at in members}, ends)
    return [at for at in kept if at not in out]


def _fewest(chain: Mapping[int, Sequence[int]], ends: Mapping[int, int]) -> set[int]:
    """The samples to take out of a chain so that it joins no two sides.

    For two sides a minimum cut. For three, two of them are cut off, each with a minimum cut, and whatever can be is put
    back: one sample in the middle of all three is found when it lies on a cut of each.
    """
    sides = sorted({ends[key].bit_length() - 1 for own in chain.values() for key in own if key in ends})
    if len(sides) == 2:
        return _cuts(chain, ends, sides[0])[0]
    cuts = [_cuts(chain, ends, side) for side in sides]
    unions = [one | other for left, right in combinations(cuts, 2) for one, other in product(left, right)]
    return min((_less(union, chain, ends) for union in unions), key=len)


def _less(out: set[int], chain: Mapping[int, Sequence[int]], ends: Mapping[int, int]) -> set[int]:
    """`out` without those that can be put back and still join no two sides."""
    links = _Links(ends)
    for at, own in chain.items():
        if at not in out:
            links.join(own)
    still = set()
    for at, own in chain.items():
        if at in out:
            if links.sides(own).bit_count() < 2:
                links.join(own)
            else:
                still.add(at)
    return still


def _cuts(chain: Mapping[int, Sequence[int]], ends: Mapping[int, int], side: int) -> tuple[set[int], set[int]]:
    """The fewest samples without which nothing in the chain leads from `side` to the others.

    Where there are several such sets: the one nearest to the side, and the one farthest from it.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    # A sample is a pipe of width one between two nodes of its own; a key is a node where any number of pipes meet.
    pipe = {at: (2 + 2 * n, 3 + 2 * n) for n, at in enumerate(chain)}
    shared = dict.fromkeys(key for own in chain.values() for key in own)
    meet = {key: 2 + 2 * len(pipe) + n for n, key in enumerate(shared)}
    wide = len(pipe) + 1
    flows = [(start, stop, 1) for start, stop in pipe.values()]
    for at, own in chain.items():
        for key in own:
            flows += [(meet[key], pipe[at][0], wide), (pipe[at][1], meet[key], wide)]
    flows += [
        (0, node, wide) if ends[key] == 1 << side else (node, 1, wide) for key, node in meet.items() if key in ends
    ]
    starts, stops, widths = (np.array(column, dtype=np.int32) for column in zip(*flows, strict=True))
    graph = csr_matrix((widths, (starts, stops)), shape=(2 + 2 * len(pipe) + len(meet),) * 2, dtype=np.int32)
    rest = csr_matrix(graph - maximum_flow(graph, 0, 1).flow)
    rest.eliminate_zeros()
    onward = set(breadth_first_order(rest, 0, return_predecessors=False).tolist())
    back = set(breadth_first_order(csr_matrix(rest.T), 1, return_predecessors=False).tolist())
    near = {at for at, (start, stop) in pipe.items() if start in onward and stop not in onward}
    far = {at for at, (start, stop) in pipe.items() if stop in back and start not in back}
    return near, far
