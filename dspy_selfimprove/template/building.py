"""From aligned rows to a template: slots moved to natural edges, doubtful separators dissolved, names given.

An alignment ends a slot where the texts begin to agree, and values agree by chance in how they open and close. So a
list takes the mark of its first item, a value with quotes or brackets inside the pair around it, and sentences that
fill a line their last full stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from dspy_selfimprove.template.alignment import Misfits, Row, align, typed_pair
from dspy_selfimprove.template.naming import name_slots
from dspy_selfimprove.template.reading import AMBIGUOUS, Template, doubtful, read
from dspy_selfimprove.template.tokens import is_word

# Values that differ, from which on two slots that are always equal are one.
_SAME = 5
# Texts that a separator without a word may make ambiguous before it is taken as part of the values.
_DOUBTFUL = 0.02
_MARK = re.compile(r"(?:^|\n)[ \t]*((?:([-*+•])|(\d+)[.)]|\[(\d+)\]) +)$")
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_QUOTES = frozenset("\"'`”")
_REACH = 12


class _Slot:
    """A gap while it moves: its value in each row, as tokens."""

    def __init__(self, values: list[list[str]]) -> None:
        self.values = values

    @property
    def texts(self) -> list[str]:
        return ["".join(value) for value in self.values]


def build(rows: Sequence[Row], said: Sequence[Mapping[str, str]] = ()) -> Template | None:
    """The template that the rows are renderings of, but for a few odd ones; None if they have too little in common."""
    while True:
        try:
            constants, slots = _pieces(rows)
            break
        except Misfits as misfits:
            kept = [i for i in range(len(rows)) if i not in misfits.rows]
            rows, said = [rows[i] for i in kept], [said[i] for i in kept] if said else ()
    if not _enough(rows, constants):
        return None
    for before in range(len(slots)):
        _settle(constants, slots, before)
    texts = ["".join(row) for row in rows]
    while True:
        template = _template(constants, slots, said)
        weak = _weakest(template, constants, texts)
        if weak is None:
            return template
        left, right = slots[weak - 1], slots[weak]
        joined = [[*a, *constants[weak], *b] for a, b in zip(left.values, right.values, strict=True)]
        slots[weak - 1 : weak + 1] = [_Slot(joined)]
        del constants[weak]


def _pieces(rows: Sequence[Row]) -> tuple[list[list[str]], list[_Slot]]:
    """Constants and slots, one constant more than slots; the first and the last may be empty."""
    constants: list[list[str]] = [[]]
    slots: list[_Slot] = []
    for piece in align(rows):
        if isinstance(piece, tuple):
            constants[-1] += piece
            continue
        values = [list(row[start:end]) for row, (start, end) in zip(rows, piece, strict=True)]
        if typed_pair(values):
            slots += [_Slot([value[:1] for value in values]), _Slot([value[2:] for value in values])]
            constants += [[" "], []]
        else:
            slots.append(_Slot(values))
            constants.append([])
    return constants, slots


def _enough(rows: Sequence[Row], constants: Sequence[Sequence[str]]) -> bool:
    if all(len(row) == 0 for row in rows):
        return True
    constant = sum(is_word(token) for piece in constants for token in piece)
    words = sorted(sum(map(is_word, row)) for row in rows)[len(rows) // 2]
    return len(rows) == 1 or constant >= 3 or (constant > 0 and 3 * constant >= words)


def _settle(constants: list[list[str]], slots: list[_Slot], nth: int) -> None:
    """Moves the edges of a slot to where a person would put them."""
    slot, before, after = slots[nth], constants[nth], constants[nth + 1]
    values = slot.texts

    def take(left: int, right: int) -> None:
        # The tokens next to the slot, from both sides; each row takes the same.
        head, tail = before[len(before) - left :], after[:right]
        slot.values = [[*head, *value, *tail] for value in slot.values]
        del before[len(before) - left :], after[:right]

    if turn := _line_turn(after, slot.values):
        # An optional line ends with its own line break, rather than beginning with that of the line before.
        head = after[:turn]
        slot.values = [[*value[turn:], *head] if value else [] for value in slot.values]
        before += head
        del after[:turn]
        values = slot.texts
    take(_mark(before, values), 0)
    take(*_lines(before, after, values))
    if reaches := _brackets(before, after, values):
        take(*reaches)
    if before and after:
        array = before[-1] == "[" and after[0] == "]" and any(text.startswith("{") for text in slot.texts)
        quoted = before[-1] == after[0] in _QUOTES and any(before[-1] in value for value in values)
        if array or quoted:
            take(1, 1)
    if after and after[0] in {".", "!", "?"} and _sentences(before, after, values):
        take(0, 1)


def _line_turn(after: Sequence[str], values: Sequence[Sequence[str]]) -> int:
    """How many tokens an optional value and the text after it both begin with, up to the last line break of them."""
    given = [value for value in values if value]
    if not given or len(given) == len(values):
        return 0
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(after, *given, strict=False))
    return max((nth for nth, tokens in enumerate(same, start=1) if tokens[0] == "\n"), default=0)


def _mark(before: Sequence[str], values: Sequence[str]) -> int:
    """How many tokens before the slot are the mark of a list's first item, when the values go on with such marks."""
    tail = "".join(before[-_REACH:])
    mark = _MARK.search(tail if len(before) > _REACH else "\n" + tail)
    if not mark:
        return 0
    bullet, number = mark.group(2, 3)
    more = re.escape(bullet) if bullet else r"\d+[.)]" if number else r"\[\d+\]"
    if not any(re.search(rf"\n[ \t]*{more} ", value) for value in values):
        return 0
    length, reach = len(mark.group(1)), 0
    while length > 0:
        reach += 1
        length -= len(before[-reach])
    return reach


def _lines(before: Sequence[str], after: Sequence[str], values: Sequence[str]) -> tuple[int, int]:
    """How much of the line before and after the slot opens and closes the lines inside the values too."""
    inner = [value.split("\n") for value in values if "\n" in value]
    if len(inner) < 2:
        return 0, 0
    left, right = _line(before[::-1])[::-1], _line(after)
    opens, closes = "".join(left), "".join(right)
    return (
        len(left) if all(line.startswith(opens) for lines in inner for line in lines[1:]) else 0,
        len(right) if all(line.endswith(closes) for lines in inner for line in lines[:-1]) else 0,
    )


def _line(tokens: Sequence[str]) -> list[str]:
    return list(takewhile(lambda token: "\n" not in token, tokens))


def _brackets(before: Sequence[str], after: Sequence[str], values: Sequence[str]) -> tuple[int, int] | None:
    """How far to go on both sides for the pair around values that close a bracket they did not open."""
    for opening, closing in _PAIRS.items():
        if not any(_closes_first(value, opening, closing) for value in values):
            continue
        head, tail = list(before[-_REACH:])[::-1], list(after[:_REACH])
        if opening in head and closing in tail:
            return head.index(opening) + 1, tail.index(closing) + 1
    return None


def _closes_first(value: str, opening: str, closing: str) -> bool:
    depth = 0
    for letter in value:
        depth += (letter == opening) - (letter == closing)
        if depth < 0:
            return True
    return False


def _sentences(before: Sequence[str], after: Sequence[str], values: Sequence[str]) -> bool:
    """Whether the full stop after the slot belongs to the values: they are sentences, and fill their place."""
    several = sum(bool(re.search(r"[.!?][\s\"')]", value)) for value in values)
    if 2 * several > len(values):
        return True
    closes = len(after) == 1 or "\n" in after[1] or after[1] in {"<", '"'}
    head = "".join(before[-_REACH:]).rstrip(" *_\"'")
    opens = not head or head[-1] in "\n:>"
    prose = sum(value[:1].isupper() and len(value.split()) >= 4 for value in values)
    return closes and opens and (several > 0 or 2 * prose > len(values))


def _template(
    constants: Sequence[Sequence[str]], slots: Sequence[_Slot], said: Sequence[Mapping[str, str]]
) -> Template:
    texts = ["".join(piece) for piece in constants]
    columns = [slot.texts for slot in slots]
    names = name_slots(texts, columns, said)
    first: dict[tuple[str, ...], str] = {}
    for nth, column in enumerate(columns):
        if len(set(column)) >= _SAME:
            names[nth] = first.setdefault(tuple(column), names[nth])
    filled = [f"{text}{{{{{name}}}}}" for text, name in zip(texts, names, strict=False)]
    return Template("".join([*filled, texts[-1]]), tuple(dict.fromkeys(names)))


def _weakest(template: Template, constants: Sequence[Sequence[str]], texts: Sequence[str]) -> int | None:
    """The separator to dissolve: of those that make texts ambiguous, the one with least to it, if it holds no word."""
    unsure = [text for text in texts if read(template, text) == AMBIGUOUS]
    if len(unsure) <= _DOUBTFUL * len(texts):
        return None
    guilty = sorted({place for text in unsure for place in doubtful(template, text)})
    weak = [place for place in guilty if not any(map(is_word, constants[place]))]
    return min(weak, key=lambda place: (len("".join(constants[place])), place)) if weak else None
