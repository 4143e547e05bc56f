"""Wording: how near a text is to the one expected, from letter for letter to alike in meaning.

`expected` may be several texts that are each right; the nearest counts. Words are compared without case,
punctuation or the way an accent is encoded; in scripts without spaces every character is a word. Articles count like
other words: to leave them out would be a rule of one language.

Not covered: stemming, synonyms (see `likeness`), and whether a text is true.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from dspy_selfimprove.score import Score

Expected: TypeAlias = str | Sequence[str]

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:[.,:'][^\W_{_UNSPACED}]+)*")


class Embedder(Protocol):
    """Turns texts into vectors of length one, a row per text."""

    def embed(self, texts: Sequence[str]) -> Any: ...


def words(text: str) -> tuple[str, ...]:
    """The words of `text` as they are compared: `Don't pay 1,000!` is don't, pay, 1,000."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")))


def exact(output: str, expected: Expected) -> Score:
    """1 if the text is the one expected, outer whitespace aside."""
    return _best(output, expected, lambda given, wanted: float(given.strip() == wanted.strip()))


def normalised(output: str, expected: Expected) -> Score:
    """1 if the words are the ones expected, in their order."""
    return _best(output, expected, lambda given, wanted: float(words(given) == words(wanted)))


def contains(output: str, expected: Expected) -> Score:
    """1 if the expected words stand in the text, one after another."""

    def found(given: str, wanted: str) -> float:
        inside, sought = words(given), words(wanted)
        return float(any(inside[at : at + len(sought)] == sought for at in range(len(inside) - len(sought) + 1)))

    return _best(output, expected, found)


def token_f1(output: str, expected: Expected) -> Score:
    """The share of words in common: F1 of the two bags of words, whatever their order."""

    def overlap(given: str, wanted: str) -> float:
        first, second = Counter(words(given)), Counter(words(wanted))
        return _f1((first & second).total(), first.total(), second.total())

    return _best(output, expected, overlap)


def rouge_l(output: str, expected: Expected) -> Score:
    """The share of words in common and in the same order: F1 of the longest common subsequence (ROUGE-L)."""

    def overlap(given: str, wanted: str) -> float:
        first, second = words(given), words(wanted)
        return _f1(common_subsequence(first, second), len(first), len(second))

    return _best(output, expected, overlap)


def likeness(output: str, expected: Expected, embedder: Embedder) -> Score:
    """How alike two texts are in meaning: the cosine of their vectors, 0 where they have nothing in common.

    `embedder` is one with a model (`embedding.embedder("<model>")`): vectors made of word statistics mean nothing for
    a pair of texts alone.
    """
    choices = _choices(expected)
    if not choices:
        return Score.missing("there is no expected text")
    first, *others = embedder.embed([str(output), *choices])
    return Score(max(min(1.0, max(0.0, float(first @ other))) for other in others))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Bit-parallel (Crochemore et al. 2001): a row of the usual table is one whole number, so that texts of a thousand
    words take a millisecond.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & mask
    return len(first) - row.bit_count()


def _f1(common: int, given: int, wanted: int) -> float:
    return 2 * common / (given + wanted) if given + wanted else 1.0


def _best(output: str, expected: Expected, measure: Callable[[str, str], float]) -> Score:
    choices = _choices(expected)
    if not choices:
        return Score.missing("there is no expected text")
    value, nearest = max(((measure(str(output), each), each) for each in choices), key=lambda found: found[0])
    return Score(value, feedback="" if value == 1.0 else f"Expected: {_cut(nearest)}")


def _choices(expected: Expected) -> list[str]:
    # A program may answer with a number or a date; it is compared as it is written.
    return [str(each) for each in expected] if isinstance(expected, list | tuple | set) else [str(expected)]


def _cut(text: str, length: int = 500) -> str:
    return text if len(text) <= length else f"{text[:length]} ..."
