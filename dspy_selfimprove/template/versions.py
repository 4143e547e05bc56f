"""Telling prompt versions apart, before anything is aligned.

What separates two versions is *wording that comes and goes together*. Every run of three words is noted with the set
of texts it occurs in; runs with the same set form a class. A class that all texts share is the common skeleton; one
that only some have is either a version's own wording or a value that happens to repeat. The rule that decides:

- Wording counts only in running text. What follows a label, a quote, a tag or a heading and fills its place
  (`Plan: Basic`, `<notes>...</notes>`, a block of context) is data, however long it is.
- Two to eight classes that share out the texts among them are versions if each has words of its own and they have on
  average at least four (six if there are more than three classes). A slot for `Plus` or `Basic`, or for a product of
  three words, is below that, and so is a version that differs in a word or two: it becomes a slot.
- Wording that some texts have and others merely lack is an optional block, hence a slot that may be empty, unless two
  separate places come and go together.
- Texts that share next to nothing with the rest are prompts of another kind.
- A version needs three different renderings, or one text that came ten times. What is below that, where the others
  all agree on the wording, is left out, and with it one odd text in thousands that would make a constant a slot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

Run: TypeAlias = tuple[str, ...]

RENDERINGS = 3
REPEATS = 10
_VERSIONS = 8
_WORDS, _WORDS_OF_MANY = 4.0, 6.0
# Below this share of the traffic, wording that differs is an accident and no optional block.
_ACCIDENT = 0.02
_ODD = 0.005
_CONSIDERED = 60
# What opens a place for data at the end of a line so far: an opening tag, quote or bracket.
_OPENER = re.compile(r"(?:<[^/<>\n][^<>\n]*>|(?:^|[\s:=(\[])[\"'`\u201c\u00ab]|[(\[|])$")
# A line that is a label, a heading, a tag or a fence.
_HEAD = re.compile(r"#.*|.*:[*_]*|<[^/<>][^<>]*>|[-~=*_`\"]{3,}\w*")
_FRAMES = frozenset('#<`=~"|[{]}')
# What may stand between two pieces of one value: the marks of a list, commas, brackets.
_JOINT = re.compile(r"[-*+.,;()\[\]\d]*")
_BLANK = re.compile(r"\r?\n\r?\n")
# The mark before a list's first item.
_MARK = re.compile(r"(?:^|(?<=\n))[ \t]*(?:[-*+]|\d+[.)]|\[\d+\])[ \t]*$")


@dataclass(frozen=True)
class Rendered:
    """A text of the sample: its tokens, how often it came, and what share of the traffic it stands for."""

    tokens: Sequence[str]
    count: int
    share: float

    @cached_property
    def words(self) -> list[int]:
        """Where the tokens are that are not space."""
        return [i for i, token in enumerate(self.tokens) if token.strip()]

    @cached_property
    def runs(self) -> list[Run]:
        padded = ["", "", *(self.tokens[i] for i in self.words), "", ""]
        return list(zip(padded, padded[1:], padded[2:], strict=False))

    @cached_property
    def pairs(self) -> list[Run]:
        padded = ["", *(self.tokens[i] for i in self.words), ""]
        return list(pairwise(padded))

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.tokens)


def told_apart(texts: Sequence[Rendered]) -> list[list[int]]:
    """The texts of each version, as indices. Those of none are left out."""
    found, todo = [], [list(range(len(texts)))]
    while todo:
        members = todo.pop()
        parts = _Group([texts[i] for i in members]).split()
        if len(parts) == 1 and len(parts[0]) == len(members):
            found.append(members)
        else:
            todo += [[members[i] for i in part] for part in parts]
    return sorted(found)


class _Group:
    """Texts that may be of one version, and which of them hold what. A set of texts is an int, a bit for each."""

    def __init__(self, texts: Sequence[Rendered]) -> None:
        self.texts = texts
        self.all = (1 << len(texts)) - 1
        self.holders: dict[Run, int] = {}
        for i, text in enumerate(texts):
            for run in set(text.runs):
                self.holders[run] = self.holders.get(run, 0) | 1 << i
        first = texts[0].counts
        self.everywhere = {
            token for token, count in first.items() if all(text.counts[token] == count for text in texts[1:])
        }
        pairs = Counter(pair for text in texts for pair in set(text.pairs))
        self.pairs = {pair for pair, count in pairs.items() if count == len(texts)}
        self.regions: dict[int, list[tuple[list[int], int]]] = {}

    def split(self) -> list[list[int]]:
        """The parts it falls into; itself if it is one version."""
        sizes = Counter(self.holders.values())
        del sizes[self.all]
        classes = sorted((-size, held) for held, size in sizes.items() if size > 1 and self.supported(held))
        own = {held: self.wording(held) for _, held in classes[:_CONSIDERED]}
        amounts = {held: sum(places) for held, places in own.items() if places}
        for held in sorted(amounts, key=lambda held: (-amounts[held], held)):
            rest = self.all & ~held
            if cover := self.cover(held, amounts):
                return [self.members(part) for part in cover]
            share = sum(self.texts[i].share for i in self.members(rest)) / sum(text.share for text in self.texts)
            few = rest.bit_count() < RENDERINGS and held.bit_count() >= REPEATS
            if amounts[held] >= _WORDS and held.bit_count() >= REPEATS and (few or share < _ACCIDENT):
                return [self.members(held)]
            if few and share < _ODD:
                return [self.members(held)]
            several = sum(places >= _WORDS for places in own[held]) > 1 and self.supported(rest)
            if several or 2 * amounts[held] > len(self.texts[self.members(held)[0]].words):
                return [self.members(held), self.members(rest)]
        return [list(range(len(self.texts)))]

    def members(self, held: int) -> list[int]:
        return [i for i in range(len(self.texts)) if held >> i & 1]

    def supported(self, held: int) -> bool:
        return held.bit_count() >= RENDERINGS or any(self.texts[i].count >= REPEATS for i in self.members(held))

    def cover(self, held: int, amounts: dict[int, int]) -> list[int]:
        """Classes that share out the texts with this one; nothing if they do not look like versions."""
        parts, left = [held], self.all & ~held
        for other in sorted(amounts, key=lambda other: (-other.bit_count(), -amounts[other], other)):
            if other & left == other:
                parts.append(other)
                left &= ~other
        if len(parts) == 1 or len(parts) > _VERSIONS or (left and self.supported(left)):
            return []
        mean = sum(amounts[part] for part in parts) / len(parts)
        return parts if mean >= (_WORDS if len(parts) <= 3 else _WORDS_OF_MANY) else []

    def wording(self, held: int) -> list[int]:
        """How many words of running text the class has to itself, place by place."""
        nth = self.members(held)[0]
        text = self.texts[nth]
        mine = [self.holders[run] == held for run in text.runs]
        places: dict[tuple[str, ...], int] = {}
        for stretch, start in self.stretches(nth):
            end = stretch[-1] + 1
            # Behind data a version may go on with words of its own. They are told from the data by always standing
            # there, next to what is common, in each of its texts.
            tail = end
            while tail > stretch[0] and mine[tail + 1] and (tail < end or mine[tail]):
                tail -= 1
            free = min(start, tail) if tail > stretch[0] else start
            words = [
                text.tokens[text.words[w]]
                for w in stretch
                if w >= free and any(mine[w : w + 3]) and not self.familiar(text, w)
            ]
            if amount := sum(word.isalpha() for word in words):
                places[tuple(words)] = amount
        return sorted(places.values())

    def familiar(self, text: Rendered, w: int) -> bool:
        """Whether a word stands beside the same neighbour, or equally often, in all texts: then it is nobody's own."""
        return text.tokens[text.words[w]] in self.everywhere or any(p in self.pairs for p in text.pairs[w : w + 2])

    def stretches(self, nth: int) -> list[tuple[list[int], int]]:
        """What is not common to all, as word numbers; and for each the word at which running text begins in it."""
        if nth not in self.regions:
            text = self.texts[nth]
            common = [self.holders[run] == self.all for run in text.runs]
            labels = {pair for pair in self.pairs if pair[1] in {":", "="} or pair[0] in _FRAMES}
            found: list[list[int]] = []
            for w in range(len(text.words)):
                if any(common[w : w + 3]) or any(pair in labels for pair in text.pairs[w : w + 2]):
                    continue
                between = range(found[-1][-1] + 1, w) if found else range(0)
                joint = "".join(text.tokens[text.words[b]] for b in between)
                if found and _JOINT.fullmatch(joint) and "---" not in joint:
                    found[-1].append(w)
                else:
                    found.append([w])
            self.regions[nth] = [(stretch, _running(text, stretch)) for stretch in found]
        return self.regions[nth]


def _running(text: Rendered, stretch: list[int]) -> int:
    """The word at which running text begins: the first, unless a label, a quote or a heading says that data comes.

    Data behind a label on the same line ends with the paragraph; data in quotes, in a tag or below a line that is a
    label or a heading goes on to the end, if it fills the place: a first rule among many is no data.
    """
    start, end = text.words[stretch[0]], text.words[stretch[-1]] + 1
    before = _MARK.sub("", "".join(text.tokens[max(0, start - 40) : start])).rstrip(" \t*_")
    if before[-1:] in {":", "="}:
        for w in stretch:
            gap = text.tokens[text.words[w - 1] + 1 : text.words[w]]
            if w > stretch[0] and sum("\n" in token for token in gap) > 1:
                line = "".join(text.tokens[text.words[w] : text.words[w] + 40]).split("\n", 1)[0].rstrip(" *_")
                return stretch[-1] + 1 if _HEAD.fullmatch(line) else w
        return stretch[-1] + 1
    if _OPENER.search(before):
        return stretch[-1] + 1
    line = before.rstrip().rsplit("\n", 1)[-1].strip()
    if not before.endswith("\n") or not _HEAD.fullmatch(line):
        return stretch[0]
    after = "".join(text.tokens[end : end + 12]).lstrip(" .!?")
    fills = (
        not after.strip() or _BLANK.match(after) or after.lstrip()[:1] in _FRAMES or after.lstrip().startswith("---")
    )
    return stretch[-1] + 1 if fills else stretch[0]
