"""Near-duplicates: which texts say the same in nearly the same words.

Two texts are near-duplicates when the pairs of neighbouring words they are made of overlap by `threshold` (Jaccard's
measure). At the default of .65 that is about one word in ten changed: four in forty, one in nine, none in eight. Case,
punctuation and the encoding of accents do not count, and what has a digit in it, however many in a row, counts as one
number: "order 4711" and "order A-4712/B" are the same question, and for the sides of a split they must be. Scripts
without spaces (Chinese, Japanese, Thai) are compared by characters, a text without any word ("???") by its signs.

How: 128 minimum hashes per text, in 32 bands of four. Texts that agree in a band are then compared exactly, so a false
alarm of the hashes never joins anything. A pair right at the threshold is missed about once in 500, one at .75 never in
practice. No hash is random: the same texts give the same groups on every machine.

Groups are transitive. If A is near B and B near C, all three share a label even where A is not near C, because a split
that parts any of them leaks. Chains can make such a group wider than one question; `stand_ins` is the narrower
answer, in which each text is itself near the one that stands in for it.

Memory is 256 bytes a text and 4 a word. Where more than 64 texts share a band, each is compared with the 64 next to it
in the order of another band: work stays linear for a million texts with one boilerplate, at the price that two of
them, near each other, must be neighbours in one of the 32 orders to be found.

Not covered: paraphrase and translation, for which there are embeddings; sums that differ in nothing but numbers and
signs, which count as one; the order of longer passages, which matters only where they meet.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dspy_selfimprove.errors import UsageError

Labels: TypeAlias = NDArray[np.int32]
_Indices: TypeAlias = NDArray[np.intp]
_Words64: TypeAlias = NDArray[np.uint64]

THRESHOLD = 0.65

_HASHES, _ROWS = 128, 4
# Below a half, four rows to a band find too few of the pairs.
_LOWEST = 0.5
# An estimate from 128 hashes is off by .2 less than once in a hundred thousand pairs.
_SLACK = 0.2
# Neighbours that a text is compared with in one band, within a pool and against a known one.
_WINDOW, _REACH = 64, 256
# Rounds in which a group finds its stand-ins; a text still without one then stands for itself.
_ROUNDS = 256
_BATCH = 4_096
_PAIRS, _CELLS = 200_000, 4_000_000

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTERS = rf"[^\W{_UNSPACED}]+"
# What hangs together without a space: A-4712/B, 12.50, and/or.
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_LETTERS}(?:[-/_:#]{_LETTERS}|(?<=\d)[.,](?=\d){_LETTERS})*")
_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")
_NUMBER, _START, _END = 1, 2, 3


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """The near-duplicates of a pool of texts.

    `labels` numbers each text's group, in the order of appearance. `stand_ins` is, for each text, the index of one
    that is near it and stands for it (often itself): keeping only those removes the near-duplicates.

    >>> found = near_duplicates(["Where is my order 4711?", "where is my order 4712", "Cancel my plan, please."])
    >>> found.labels.tolist(), found.stand_ins.tolist(), found.groups
    ([0, 0, 1], [0, 0, 2], 2)
    >>> found.touched_by(["Where is my order?", "Where is my order 99?"])
    ((), (0,))
    """

    labels: Labels
    stand_ins: Labels
    threshold: float
    notes: tuple[str, ...] = ()
    _prints: _Prints = field(default_factory=lambda: _prints_of(()), repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> int:
        """How many groups there are; a text without a near-duplicate is one of its own."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    @property
    def kept(self) -> Labels:
        """The texts that stand for themselves: all that remains when near-duplicates are removed."""
        return np.flatnonzero(self.stand_ins == np.arange(len(self.stand_ins))).astype(np.int32)

    def touched_by(self, texts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """For each new text, the labels of the groups that hold a near-duplicate of it, in order.

        More than one means that the text would bridge them. The new texts are not compared with each other.
        """
        new, known = _prints_of(texts), self._prints
        distinct = np.unique(self._prints.first)
        found: set[tuple[int, int]] = set()
        waiting: list[tuple[_Indices, _Indices]] = []
        for band in range(_HASHES // _ROWS):
            keys = known.bands[distinct, band]
            order = np.argsort(keys, kind="stable")
            ordered, wanted = keys[order], new.bands[:, band]
            low, high = (np.searchsorted(ordered, wanted, side) for side in ("left", "right"))
            counts = np.minimum(high - low, _REACH)
            asking = np.repeat(np.arange(len(new)), counts)
            step = np.arange(len(asking)) - np.repeat(np.cumsum(counts) - counts, counts)
            spread = low[asking] + step * (high - low)[asking] // np.maximum(counts[asking], 1)
            waiting.append((asking, distinct[order[spread]]))
            if sum(len(a) for a, _ in waiting) > _PAIRS:
                found |= self._confirmed(new, waiting, found)
                waiting = []
        found |= self._confirmed(new, waiting, found)
        touched: list[list[int]] = [[] for _ in range(len(new))]
        for index, label in sorted(found):
            touched[index].append(label)
        return tuple(tuple(each) for each in touched)

    def _confirmed(
        self, new: _Prints, waiting: list[tuple[_Indices, _Indices]], found: set[tuple[int, int]]
    ) -> set[tuple[int, int]]:
        a, b = _unique_pairs(waiting)
        if found:
            done = np.array(sorted(found), dtype=np.int64)
            fresh = ~np.isin((a << 32) | self.labels[b], (done[:, 0] << 32) | done[:, 1])
            a, b = a[fresh], b[fresh]
        near = _near(new, a, self._prints, b, self.threshold)
        return set(zip(a[near].tolist(), self.labels[b[near]].tolist(), strict=True))


def near_duplicates(texts: Iterable[str], threshold: float = THRESHOLD) -> Duplicates:
    """Group `texts` by nearness; see the module for what counts as near. Texts are read once, in batches."""
    if not _LOWEST <= threshold <= 1.0:
        raise UsageError(
            f"A threshold of {threshold} is not between {_LOWEST} and 1.",
            remedy=f"{THRESHOLD} joins texts with about one word in ten changed; a higher one joins fewer.",
        )
    prints = _prints_of(texts)
    first = prints.first
    distinct, place = np.unique(first, return_inverse=True)
    joined = _joined(prints, distinct, threshold)
    stands = _stand_ins(prints, distinct, joined, threshold)
    # `joined` counts groups in the order of their first text, because `distinct` is in that order.
    labels = joined[place].astype(np.int32)
    stand_ins = distinct[stands][place].astype(np.int32)
    return Duplicates(labels, stand_ins, threshold, tuple(_notes(labels, stand_ins)), prints)


@dataclass(frozen=True, slots=True, eq=False)
class _Prints:
    """What is kept of texts: low halves of their minimum hashes, and their word pairs as sorted hashes, end to end."""

    signatures: NDArray[np.uint16]
    shingles: NDArray[np.uint32]
    starts: NDArray[np.int64]
    digests: _Words64

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def bands(self) -> _Words64:
        return self.signatures.view(np.uint64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    @property
    def first(self) -> _Indices:
        """For each text, the first one made of the same word pairs."""
        _, index, inverse = np.unique(self.digests, return_index=True, return_inverse=True)
        first = index[inverse]
        every = np.arange(len(self))
        near = np.ones(len(self), dtype=bool)
        again = np.flatnonzero(first != every)
        near[again] = _near(self, first[again], self, again, 1.0)
        return np.where(near, first, every)


def _prints_of(texts: Iterable[str]) -> _Prints:
    parts = [_fingerprint(batch) for batch in _batches(texts)]
    if not parts:
        empty = np.zeros(0, np.uint64)
        return _Prints(np.zeros((0, _HASHES), np.uint16), empty.astype(np.uint32), np.zeros(1, np.int64), empty)
    signatures, shingles, lengths, digests = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _Prints(signatures, shingles, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), digests)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def _fingerprint(
    texts: list[str],
) -> tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.int64], _Words64]:
    codes: list[int] = []
    ends: list[int] = []
    for text in texts:
        codes.append(_START)
        codes.extend(chain.from_iterable(map(_codes, _tokens(text))))
        codes.append(_END)
        ends.append(len(codes))
    words = np.array(codes, dtype=np.uint64)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff([0, *ends]))
    single = np.ones(len(words), dtype=bool)
    single[1:] = (words[1:] != _NUMBER) | (words[:-1] != _NUMBER)
    words, owners = words[single], owners[single]

    inside = owners[1:] == owners[:-1]
    pairs = _mixed((words[:-1] << np.uint64(32)) | words[1:])[inside] >> np.uint64(32)
    distinct = np.unique((owners[:-1][inside] << np.uint64(32)) | pairs)
    shingles = distinct & np.uint64(0xFFFFFFFF)
    lengths = np.bincount((distinct >> np.uint64(32)).astype(np.intp), minlength=len(texts))
    starts = np.cumsum(lengths) - lengths

    signatures = np.empty((len(texts), _HASHES), np.uint16)
    for column, (factor, shift) in enumerate(zip(_FACTORS, _SHIFTS, strict=True)):
        smallest = np.minimum.reduceat((shingles * factor + shift) >> np.uint64(32), starts)
        signatures[:, column] = smallest & np.uint64(0xFFFF)
    return signatures, shingles.astype(np.uint32), lengths, np.add.reduceat(_mixed(shingles), starts)


def _tokens(text: str) -> list[str]:
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return _TOKEN.findall(folded) or [sign for sign in folded if not sign.isspace()]


@lru_cache(maxsize=1 << 16)
def _codes(token: str) -> tuple[int, ...]:
    if _DIGIT.search(token):
        return (_NUMBER,)
    return tuple(zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _WORD.findall(token) or [token])


def _mixed(values: _Words64) -> _Words64:
    """A fixed permutation of 64-bit numbers that leaves no pattern (the finalizer of splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Not from numpy's generators, whose streams may change from version to version.
_FACTORS = _mixed(np.arange(_HASHES, dtype=np.uint64)) | np.uint64(1)
_SHIFTS = _mixed(np.arange(_HASHES, 2 * _HASHES, dtype=np.uint64))


def _joined(prints: _Prints, distinct: _Indices, threshold: float) -> _Indices:
    """The group of each distinct text, counted in the order of their first members."""
    groups = np.arange(len(distinct))
    bands = prints.bands[distinct]
    waiting: list[tuple[_Indices, _Indices]] = []
    for band in range(bands.shape[1]):
        keys = bands[:, band]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        if (ordered[_WINDOW:] == ordered[:-_WINDOW]).any():  # a crowd: let another band say who is next to whom
            order = np.lexsort((bands[:, (band + 1) % bands.shape[1]], keys))
        for offset in range(1, _WINDOW + 1):
            hits = np.flatnonzero(ordered[offset:] == ordered[:-offset])
            if not len(hits):
                break
            a, b = order[hits], order[hits + offset]
            apart = groups[a] != groups[b]
            waiting.append((np.minimum(a, b)[apart], np.maximum(a, b)[apart]))
            if sum(len(each) for each, _ in waiting) > _PAIRS:
                groups, waiting = _merged(prints, distinct, groups, waiting, threshold), []
    return _merged(prints, distinct, groups, waiting, threshold)


def _merged(
    prints: _Prints,
    distinct: _Indices,
    groups: _Indices,
    waiting: list[tuple[_Indices, _Indices]],
    threshold: float,
) -> _Indices:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = _unique_pairs(waiting)
    near = _near(prints, distinct[a], prints, distinct[b], threshold)
    a, b = groups[a[near]], groups[b[near]]
    if not len(a):
        return groups
    size = len(groups)
    _, parts = connected_components(coo_array((np.ones(len(a), np.int8), (a, b)), shape=(size, size)), directed=False)
    _, index, inverse = np.unique(parts[groups], return_index=True, return_inverse=True)
    ranks: _Indices = np.argsort(np.argsort(index))[inverse]
    return ranks


def _unique_pairs(waiting: list[tuple[_Indices, _Indices]]) -> tuple[_Indices, _Indices]:
    if not waiting:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    a, b = (np.concatenate(each) for each in zip(*waiting, strict=True))
    packed = np.unique((a << 32) | b)
    return packed >> 32, packed & 0xFFFFFFFF


def _near(left: _Prints, a: _Indices, right: _Prints, b: _Indices, threshold: float) -> NDArray[np.bool_]:
    """Which pairs are near-duplicates: ruled out by their hashes where these leave no doubt, else compared exactly."""
    near = np.zeros(len(a), dtype=bool)
    likely: list[_Indices] = []
    for start in range(0, len(a), _PAIRS):
        block = slice(start, start + _PAIRS)
        agree = (left.signatures[a[block]] == right.signatures[b[block]]).mean(axis=1)
        likely.append(start + np.flatnonzero(agree >= threshold - _SLACK))
    left_lengths, right_lengths = left.lengths, right.lengths
    for chosen in likely:
        cells = np.cumsum(left_lengths[a[chosen]] + right_lengths[b[chosen]])
        cuts = np.searchsorted(cells, np.arange(_CELLS, int(cells[-1]) if len(cells) else 0, _CELLS))
        for few in np.split(chosen, np.unique(cuts)):
            if len(few):
                near[few] = _overlap(left, a[few], right, b[few]) >= threshold
    return near


def _overlap(left: _Prints, a: _Indices, right: _Prints, b: _Indices) -> NDArray[np.float64]:
    """The share of word pairs that two texts have in common, of all that either has."""
    sizes = left.lengths[a], right.lengths[b]
    both = np.sort(np.concatenate([_gathered(left, a, sizes[0]), _gathered(right, b, sizes[1])]))
    shared = both[1:][both[1:] == both[:-1]] >> np.uint64(32)
    common = np.bincount(shared.astype(np.intp), minlength=len(a))
    share: NDArray[np.float64] = common / (sizes[0] + sizes[1] - common)
    return share


def _gathered(prints: _Prints, chosen: _Indices, sizes: NDArray[np.int64]) -> _Words64:
    pair = np.repeat(np.arange(len(chosen)), sizes)
    inner = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    cells: _Words64 = prints.shingles[prints.starts[chosen][pair] + inner].astype(np.uint64)
    return (pair.astype(np.uint64) << np.uint64(32)) | cells


def _stand_ins(prints: _Prints, distinct: _Indices, groups: _Indices, threshold: float) -> _Indices:
    """For each distinct text, the first of its group that is near it and stands for itself."""
    stands = np.arange(len(distinct))
    open_ = np.flatnonzero(np.bincount(groups)[groups] > 1) if len(groups) else stands
    for _ in range(_ROUNDS):
        if not len(open_):
            break
        _, index, inverse = np.unique(groups[open_], return_index=True, return_inverse=True)
        leaders = open_[index[inverse]]
        near = _near(prints, distinct[leaders], prints, distinct[open_], threshold)
        stands[open_[near]] = leaders[near]
        open_ = open_[~near]
    return stands


def _notes(labels: Labels, stand_ins: Labels) -> Iterator[str]:
    if not len(labels):
        return
    sizes = np.bincount(labels)
    widest, size = int(sizes.argmax()), int(sizes.max())
    if size < 20 or size < len(labels) // 20:
        return
    circles = len(np.unique(stand_ins[labels == widest]))
    chained = f", linked in chains: it takes {circles:,} of them to be near all" if circles > 1 else ""
    yield f"One group of near-duplicates holds {size:,} of {len(labels):,} texts{chained}."
