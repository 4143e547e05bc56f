"""What many token rows have in common, in order: constant runs and the gaps between them.

The rows are aligned all at once and not pair by pair, so nothing depends on which comes first. What all begin and end
with is constant. Inside, the longest runs of tokens that occur equally often in every row anchor the rest, as far as
they come in the same order everywhere; between two anchors the search goes on with shorter runs. Two chance matches
of a word in free text are therefore no anchor: it would have to occur equally often in each of the rows.

An anchor of punctuation alone is weak. It counts from `ENOUGH` rows on, if it occurs once, and neither at the end of
sentences nor between long values, where a comma or line break belongs to the value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from dspy_selfimprove.template.tokens import is_word, kind_of

Row: TypeAlias = Sequence[str]
Constant: TypeAlias = tuple[str, ...]
Gap: TypeAlias = list[tuple[int, int]]  # where it lies in each row
Block: TypeAlias = tuple[list[int], int]  # where a run begins in each row, and how long it is

# Fewer rows say little about chance: there an anchor needs two words.
ENOUGH = 8
_LENGTHS = (24, 8, 4, 2, 1)
# How often a run may occur in each row and still be an anchor.
_TIMES = 4
# Tokens of the values that a comma or a line break may separate; and a full stop.
_SHORT, _SHORTER = 15, 9
_SOFT = frozenset(" \n\t\r\n.,;:!?-'\"()")
# Up to this share of the rows, and always one, may repeat what is constant in the others.
_FEW = 0.05
_PARAGRAPH = ("\n", "\n")
_TYPED = frozenset({"date", "time", "email", "url", "amount", "phone"})


class Misfits(Exception):
    """A few rows hold a constant once more than all the others, so it anchors nothing: align without them."""

    def __init__(self, rows: frozenset[int]) -> None:
        super().__init__("Some rows repeat a constant.")
        self.rows = rows


def align(rows: Sequence[Row]) -> list[Constant | Gap]:
    """Constant runs and gaps by turns; each row is its own gaps put between the constants."""
    pieces: list[Constant | Gap] = []
    for piece in _between(rows, [(0, len(row)) for row in rows]):
        if pieces and isinstance(piece, tuple) and isinstance(pieces[-1], tuple):
            pieces[-1] += piece
        elif piece:
            pieces.append(piece)
    return pieces


def _between(rows: Sequence[Row], gap: Gap) -> list[Constant | Gap]:
    head, gap = _common(rows, gap, 1)
    tail, gap = _common(rows, gap, -1)
    if all(start == end for start, end in gap):
        return [head, tail]
    anchors = next(filter(None, (_anchors(rows, gap, length) for length in _LENGTHS)), [])
    stop = 1 if tail[:1] and tail[0] in {".", "!", "?"} else 0
    if not anchors and len(rows) >= ENOUGH and tail[stop : stop + 1] == ("\n",):
        # The line break that ends an optional line and the one before it are one where the line is missing.
        wider = [(start, end + stop + 1) for start, end in gap]
        if anchors := _anchors(rows, wider, 2):
            gap, tail = wider, tail[stop + 1 :]
    if not anchors:
        if odd := _odd(rows, gap):
            raise Misfits(odd)
        return [head, gap, tail]
    pieces: list[Constant | Gap] = [head]
    starts = [start for start, _ in gap]
    for anchor, size in anchors:
        # Leading line breaks are left to the gap before, which takes them as its tail: see above.
        breaks = next((n for n in range(size) if rows[0][anchor[0] + n] != "\n"), 0)
        places, length = [place + breaks for place in anchor], size - breaks
        pieces += _between(rows, list(zip(starts, places, strict=True)))
        pieces.append(tuple(rows[0][places[0] : places[0] + length]))
        starts = [place + length for place in places]
    pieces += _between(rows, [(start, end) for start, (_, end) in zip(starts, gap, strict=True)])
    return [*pieces, tail]


def _common(rows: Sequence[Row], gap: Gap, step: int) -> tuple[Constant, Gap]:
    """The tokens that all rows share at one end of the gap, and what is left of it."""
    room = min(end - start for start, end in gap)
    ends = [start if step > 0 else end - 1 for start, end in gap]
    length = 0
    while length < room and len({row[end + step * length] for row, end in zip(rows, ends, strict=True)}) == 1:
        length += 1
    first, (start, end) = rows[0], gap[0]
    if step > 0:
        return tuple(first[start : start + length]), [(start + length, end) for start, end in gap]
    return tuple(first[end - length : end]), [(start, end - length) for start, end in gap]


def _anchors(rows: Sequence[Row], gap: Gap, length: int) -> list[Block]:
    """Runs that split the gap, in order: where each begins in every row, and how long it is."""
    if min(end - start for start, end in gap) < length:
        return []
    shared = _shared(rows, gap, length)
    starts = sorted((places for all_places in shared for places in zip(*all_places, strict=True)), key=lambda p: p[0])
    blocks: list[Block] = []
    for places in starts:
        if blocks:
            before, size = blocks[-1]
            shift = places[0] - before[0]
            if shift <= size and all(b - a == shift for a, b in zip(before, places, strict=True)):
                blocks[-1] = (before, shift + length)
                continue
        blocks.append((list(places), length))
    first = rows[0]
    chosen = _chain([block for block in blocks if _strong(first[block[0][0] : block[0][0] + block[1]], len(rows))])
    if not chosen and len(rows) >= ENOUGH and length <= 2:
        weak = [b for b in blocks if _weak(rows, gap, b)]
        chosen = weak[:1]
    return chosen


def _odd(rows: Sequence[Row], gap: Gap) -> frozenset[int]:
    """The few rows whose values repeat what would be an anchor, if it is one in all the others."""
    if len(rows) < ENOUGH:
        return frozenset()
    short = sorted(range(len(rows)), key=lambda i: gap[i][1] - gap[i][0])[:2]
    for length in (8, 4):
        runs = [
            Counter(tuple(row[place : place + length]) for place in range(start, end - length + 1))
            for row, (start, end) in zip(rows, gap, strict=True)
        ]
        for run in sorted(set().union(*(runs[i] for i in short))):
            more = frozenset(i for i, here in enumerate(runs) if here[run] > 1)
            once = sum(here[run] == 1 for here in runs)
            few = 0 < len(more) <= max(1, _FEW * len(rows))
            if few and once + len(more) == len(rows) and sum(map(is_word, run)) > 1:
                return more
    return frozenset()


def _shared(rows: Sequence[Row], gap: Gap, length: int) -> list[list[list[int]]]:
    """For each run that every row has equally often: its places, row by row."""
    order = sorted(range(len(rows)), key=lambda i: gap[i][1] - gap[i][0])
    found: dict[tuple[str, ...], list[list[int]]] = {}
    for nth, i in enumerate(order):
        row, (start, end) = rows[i], gap[i]
        here: dict[tuple[str, ...], list[int]] = {}
        for place in range(start, end - length + 1):
            run = tuple(row[place : place + length])
            if not nth or run in found:
                here.setdefault(run, []).append(place)
        if not nth:
            found = {
                run: [places]
                for run, places in here.items()
                if len(places) <= _TIMES and (any(map(str.strip, run)) or run == _PARAGRAPH)
            }
        else:
            found = {
                run: [*places, here[run]]
                for run, places in found.items()
                if run in here and len(here[run]) == len(places[0])
            }
        if not found:
            return []
    back = sorted(range(len(order)), key=order.__getitem__)
    return [[places[k] for k in back] for places in found.values()]


def _strong(run: Row, rows: int) -> bool:
    return sum(map(is_word, run)) >= (1 if rows >= ENOUGH else 2)


def _weak(rows: Sequence[Row], gap: Gap, block: Block) -> bool:
    """Whether punctuation separates two values here, rather than being part of one."""
    places, length = block
    run = tuple(rows[0][places[0] : places[0] + length])
    if any(
        Counter(row[start:end])[token] != run.count(token)
        for token in run
        if token.strip()
        for row, (start, end) in zip(rows, gap, strict=True)
    ):
        return False
    if not all(token in _SOFT for token in run) or "---" in "".join(run) or run == _PARAGRAPH:
        return True
    most = _SHORT if not any(sign in run for sign in ".!?") else _SHORTER
    return all(
        place - start <= most and end - place - length <= most for (start, end), place in zip(gap, places, strict=True)
    )


def _chain(blocks: list[Block]) -> list[Block]:
    """The heaviest blocks that follow each other in every row without overlap."""
    if len(blocks) < 2:
        return blocks
    starts = np.array([places for places, _ in blocks])
    lengths = np.array([length for _, length in blocks])
    best, previous = lengths.astype(float), np.full(len(blocks), -1)
    for i in range(1, len(blocks)):
        before = np.nonzero((starts[:i] + lengths[:i, None] <= starts[i]).all(axis=1))[0]
        if before.size:
            j = before[np.argmax(best[before])]
            best[i], previous[i] = best[i] + best[j], j
    chosen, at = [], int(np.argmax(best))
    while at >= 0:
        chosen.append(blocks[at])
        at = int(previous[at])
    return chosen[::-1]


def typed_pair(values: Sequence[Row], of: Callable[[str], str] = kind_of) -> bool:
    """Whether each value is two tokens with a space between, one of a kind (a date, an address) and one that is not."""
    if any(len(value) != 3 or value[1] != " " for value in values):
        return False
    sides = [{of(value[side]) for value in values} for side in (0, 2)]
    return any(a <= _TYPED and not b & a and "number" not in b for a, b in (sides, sides[::-1]))
