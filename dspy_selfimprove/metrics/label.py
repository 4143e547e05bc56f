"""Labels: the right one of several, nearly the right one, and how well each is recognised over a set.

Labels are compared without case and what surrounds them: quotes, brackets, Markdown, full stops. Signs that say
something stay: -1 is not 1, A+ not A, C# not C, <5 not 5, and a label may be a sign alone. Where the labels are known,
one that stands alone in a longer answer is found in it ("The topic is: refund."); an answer that names two has not
decided, and none is right.

Not covered: labels that are part of each other's words in other ways than as whole words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.score import Score


def label_in(text: str, labels: Iterable[str]) -> str | None:
    """The one label that a text gives: it is that label, or names it and no other; None if it does neither.

    >>> topics = ["refund", "late delivery"]
    >>> label_in("**Refund.**", topics), label_in("refund or late delivery?", topics)
    ('refund', None)
    """
    names = list(labels)
    known = {_bare(label): label for label in names}
    if len(known) < len({str(label) for label in names}):
        raise UsageError("Two labels differ in case or punctuation alone.", remedy="Rename one of them.")
    if (bare := _bare(text)) in known:
        return known[bare]
    said = _plain(text)
    # The longest first, and what is found is taken out: "not helpful" does not also name "helpful".
    found = []
    for bare in sorted(known, key=len, reverse=True):
        if not bare:
            continue
        # A digit after a sign or a point is another number, and a letter before a sign another label.
        before = r"(?<![\w.+<>\u2264\u2265-])" if bare[0].isdigit() else r"(?<!\w)"
        sought = re.compile(rf"{before}{re.escape(bare)}(?![\w+#]|-(?![\w-])|[.,]\d)")
        if sought.search(said):
            found.append(known[bare])
            said = sought.sub("\0", said)
    return found[0] if len(found) == 1 else None


def match(output: str, expected: str, labels: Sequence[str] = ()) -> Score:
    """1 for the right label. With `labels` the answer may hold it among other words."""
    given = label_in(output, labels) if labels else output
    right = given is not None and _bare(given) == _bare(expected)
    return Score(float(right), label=given if labels else None, feedback=_feedback(given, expected, right))


def graded(output: str, expected: str, order: Sequence[str]) -> Score:
    """Partial credit on an ordered scale: 1 for the right label, less for each step away, 0 at the other end.

    >>> graded("high", "urgent", order=("low", "normal", "high", "urgent")).value
    0.6666666666666667
    """
    if len({_bare(label) for label in order}) != len(order) or len(order) < 2:
        raise UsageError("An order needs two labels or more, each once.", remedy="List them from one end to the other.")
    wanted = label_in(expected, order)
    if wanted is None:
        return Score.missing("the expected label is none of the order")
    given = label_in(output, order)
    if given is None:
        return Score(0.0, feedback=_feedback(None, wanted, False))
    away = abs(order.index(given) - order.index(wanted))
    return Score(1.0 - away / (len(order) - 1), label=given, feedback=_feedback(given, wanted, away == 0))


def set_f1(output: str | Iterable[str], expected: str | Iterable[str]) -> Score:
    """Several labels at once: F1 of the two sets. Texts are split at commas, semicolons and line breaks."""
    given, wanted = _set(output), _set(expected)
    value = 2 * len(given & wanted) / (len(given) + len(wanted)) if given or wanted else 1.0
    lacks, extra = sorted(wanted - given), sorted(given - wanted)
    said = [f"Missing: {', '.join(lacks)}."] * bool(lacks) + [f"Not expected: {', '.join(extra)}."] * bool(extra)
    return Score(value, feedback=" ".join(said))


@dataclass(frozen=True, slots=True)
class Recognition:
    """How well one label is recognised. `precision` is NaN if it was never given, `recall` if it was never right."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Classification:
    """How well labels were given over a set; `missing` counts pairs without two labels, which nothing else counts.

    `macro_f1` is the mean over the labels that were given or expected, `micro_f1` counts every answer alike; for one
    label per answer it is the accuracy.
    """

    accuracy: float
    macro_f1: float
    micro_f1: float
    labels: Mapping[str, Recognition] = field(default_factory=FrozenDict)
    n: int = 0
    missing: int = 0


def classification(outputs: Sequence[str | None], expected: Sequence[str | None]) -> Classification:
    """Accuracy, and precision, recall and F1 for each label; None stands for a missing one.

    >>> report = classification(["spam", "spam", "ham"], ["spam", "ham", "ham"])
    >>> round(report.accuracy, 2), report.labels["spam"].precision, report.labels["spam"].recall
    (0.67, 0.5, 1.0)
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    if len(outputs) != len(expected):
        raise UsageError("There are not as many answers as expected ones.", remedy="Give one of each per example.")
    pairs = [
        (given, wanted)
        for given, wanted in zip(outputs, expected, strict=True)
        if given is not None and wanted is not None
    ]
    missing = len(outputs) - len(pairs)
    if not pairs:
        nothing = float("nan")
        return Classification(nothing, nothing, nothing, missing=missing)
    names = {_bare(label): label for pair in pairs for label in pair}
    given, wanted = ([_bare(pair[side]) for pair in pairs] for side in (0, 1))
    order = sorted(names)
    each = precision_recall_fscore_support(wanted, given, labels=order, zero_division=float("nan"))
    f1 = f1_score(wanted, given, labels=order, average=None, zero_division=0.0)
    return Classification(
        accuracy=float(accuracy_score(wanted, given)),
        macro_f1=float(f1.mean()),
        micro_f1=float(f1_score(wanted, given, labels=order, average="micro", zero_division=0.0)),
        labels=FrozenDict(
            {
                names[bare]: Recognition(float(each[0][at]), float(each[1][at]), float(f1[at]), int(each[3][at]))
                for at, bare in enumerate(order)
            }
        ),
        n=len(pairs),
        missing=missing,
    )


_QUOTES = r"\s\"'`\u00b4\u2018-\u201f\u00ab\u00bb\u2039\u203a()\[\]{}"
_EMOJI = r"(?:[\u2600-\u27bf\U0001f300-\U0001faff]\ufe0f?){1,3}"
# What may stand around a label, piece by piece: an answer may be long, and made of nothing else. Bullets, headings,
# quoted lines, dashes and decoration are signs with a space between.
_BEFORE = re.compile(
    rf"[{_QUOTES}:;,!?\u00a1\u00bf_*]|~~|\.(?!\d)|[-\u2010-\u2015\u2022\u00b7]\s|\#{{1,6}}\s|>\s(?!\d)|{_EMOJI}\s"
)
_AFTER = re.compile(rf"(?:[{_QUOTES}:;,.!?_]|(?<=\*)\*|~~|\s[-\u2010-\u2015]{{1,3}}|(?<=[^\W_])\s{_EMOJI})$")
_LONGEST = 8  # of those pieces
_EMPHASIS = frozenset("*_~")


def _plain(text: str) -> str:
    # A program may answer with a bool or an Enum; it is compared as it is written.
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().replace("\u2212", "-").split())


def _bare(label: str) -> str:
    text = _plain(label)
    start, end = 0, len(text)
    is_sign = not re.search(r"[^\W_]", text)  # a label may be: then nothing of it is decoration
    while end - start > 1:
        if text[start] == text[end - 1] and text[start] in _EMPHASIS and end - start > 2:
            start, end = start + 1, end - 1
        elif (last := _AFTER.search(text[max(start, end - _LONGEST) : end])) and not (is_sign and len(last[0]) > 1):
            end -= len(last[0])
            while last[0] == "*" and text[end - 1] == "*" and end - start > 1:  # the rest of two or more
                end -= 1
        elif (first := _BEFORE.match(text, start, end)) and not (is_sign and len(first[0]) > 1):
            start = first.end()
        else:
            break
    return text[start:end]


def _set(labels: str | Iterable[str]) -> set[str]:
    parts = re.split(r"[,;\n]", labels) if isinstance(labels, str) else labels
    return {bare for part in parts if (bare := _bare(part))}


def _feedback(given: str | None, expected: str, right: bool) -> str:
    if right:
        return ""
    return (
        f"{given!r} was given, {expected!r} expected."
        if given is not None
        else f"No single label; {expected!r} expected."
    )
