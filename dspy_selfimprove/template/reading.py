"""Template: a text with slots, and how a rendered text is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from dspy_selfimprove.prompt import fill, parts
from dspy_selfimprove.template.tokens import cuts, tokenize

AMBIGUOUS = "ambiguous boundaries"

# Steps of the search for readings of a template that uses a slot twice.
_STEPS = 2_000


@dataclass(frozen=True, slots=True)
class Template:
    """A text in ChatPrompt's own form: `{{name}}` is a slot if `slots` lists it, and ordinary characters otherwise.

    >>> template = Template("Greet {{name}}, a {{plan}} customer.", ("name", "plan"))
    >>> template.match("Greet Ana, a Plus customer.")
    {'name': 'Ana', 'plan': 'Plus'}
    >>> template.render({"name": "Bo", "plan": "Basic"})
    'Greet Bo, a Basic customer.'
    """

    text: str
    slots: tuple[str, ...] = ()

    def render(self, values: Mapping[str, object]) -> str:
        return fill(self.text, values, self.slots)

    def match(self, text: str) -> dict[str, str] | None:
        """The values that give `text`, which `render` then gives back exactly; None if there are none or several.

        Of several readings one is taken only if it alone cuts no word, date or number, the way slots are inferred.
        """
        values = read(self, text)
        return values if isinstance(values, dict) else None


def read(template: Template, text: str) -> dict[str, str] | str | None:
    """The values, None if the text is not of this template, or AMBIGUOUS."""
    constants, names = _parsed(template)
    if not names:
        return {} if text == constants[0] else None
    start, end = len(constants[0]), len(text) - len(constants[-1])
    if start > end or not text.startswith(constants[0]) or not text.endswith(constants[-1]):
        return None
    middle = constants[1:-1]
    places = _first(text, middle, start, end)
    if places is None:
        return None
    if places != _last(text, middle, start, end):
        if len(set(names)) < len(names):
            return _consistent(text, middle, names, start, end)
        closer = _narrowed(text, middle, start, end)
        if closer is None:
            return AMBIGUOUS
        places = closer
    return _values(text, middle, names, places, start, end)


def doubtful(template: Template, text: str) -> list[int]:
    """Which constants stand at different places in different readings, by number; for a text that has a reading."""
    constants, _ = _parsed(template)
    start, end = len(constants[0]), len(text) - len(constants[-1])
    first = _first(text, constants[1:-1], start, end) or []
    last = _last(text, constants[1:-1], start, end) or []
    return [nth for nth, (a, b) in enumerate(zip(first, last, strict=True), start=1) if a != b]


@lru_cache(maxsize=4096)
def _parsed(template: Template) -> tuple[tuple[str, ...], tuple[str, ...]]:
    pieces = parts(template.text, template.slots)
    return pieces[::2], pieces[1::2]


def _values(
    text: str, middle: Sequence[str], names: Sequence[str], places: Sequence[int], start: int, end: int
) -> dict[str, str] | None:
    """The texts between the constants; None if a slot used twice would hold two values."""
    values: dict[str, str] = {}
    ends = [*places, end]
    for name, until, constant in zip(names, ends, [*middle, ""], strict=True):
        value = text[start:until]
        if values.setdefault(name, value) != value:
            return None
        start = until + len(constant)
    return values


def _first(
    text: str, middle: Sequence[str], start: int, end: int, fits: Callable[[int], bool] | None = None
) -> list[int] | None:
    """The places of the constants in the reading that has each as early as can be."""
    places = []
    for constant in middle:
        at = text.find(constant, start, end)
        while at >= 0 and fits and not (fits(at) and fits(at + len(constant))):
            at = text.find(constant, at + 1, end)
        if at < 0:
            return None
        places.append(at)
        start = at + len(constant)
    return places


def _last(
    text: str, middle: Sequence[str], start: int, end: int, fits: Callable[[int], bool] | None = None
) -> list[int] | None:
    """The same with each as late as can be: if both agree, there is no other reading."""
    places = []
    for constant in reversed(middle):
        at = text.rfind(constant, start, end)
        while at >= 0 and fits and not (fits(at) and fits(at + len(constant))):
            at = text.rfind(constant, start, at + len(constant) - 1)
        if at < 0:
            return None
        places.append(at)
        end = at
    return places[::-1]


def _narrowed(text: str, middle: Sequence[str], start: int, end: int) -> list[int] | None:
    """The one reading that cuts no word; if there are several, the one that cuts no token."""

    def whole(at: int) -> bool:
        return not cuts(text, at)

    places = _first(text, middle, start, end, whole)
    if places is None or places == _last(text, middle, start, end, whole):
        return places
    ends = {0, *accumulate(map(len, tokenize(text)))}
    places = _first(text, middle, start, end, ends.__contains__)
    return places if places == _last(text, middle, start, end, ends.__contains__) else None


def _consistent(
    text: str, middle: Sequence[str], names: Sequence[str], start: int, end: int
) -> dict[str, str] | str | None:
    """The one reading that gives a slot used twice one value."""
    found: list[dict[str, str]] = []
    todo: list[tuple[int, ...]] = [()]
    for _ in range(_STEPS):
        if not todo or len(found) > 1:
            return AMBIGUOUS if len(found) > 1 else found[0] if found else None
        places = todo.pop()
        if len(places) == len(middle):
            if values := _values(text, middle, names, places, start, end):
                found.append(values)
            continue
        constant = middle[len(places)]
        at = text.find(constant, places[-1] + len(middle[len(places) - 1]) if places else start, end)
        while at >= 0 and len(todo) < _STEPS:
            todo.append((*places, at))
            at = text.find(constant, at + 1, end)
    return AMBIGUOUS
