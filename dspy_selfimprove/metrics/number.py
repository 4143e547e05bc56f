"""Numbers: how near the number in an answer is to the one expected, and mean errors over a set.

An answer is text, so its number has to be found: the last one in it, since answers come last ("17 + 4 is 21"). Commas
separate thousands where one to three digits that do not begin with 0 stand before the first, and exactly three after
each: 1,250 is 1250. Any other single comma is a decimal one: 0,125 is an eighth. Digits that belong to a word (T0001,
GPT-4o) are no number. Units and percent signs are left to the caller.

Not covered: numbers in words, fractions, dates; a decimal comma before three digits (1,250 for one and a quarter).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.score import Score

Number: TypeAlias = float | int | str

_NUMBER = re.compile(
    r"(?<![\w.,])(?<![^\W\d_]-)(?:(?<![\w)\]])(?P<sign>[-+\u2212]))?"
    r"(?P<whole>[1-9]\d{0,2}(?:[\u00a0\u202f'\u2019]\d{3})+(?!\d)|\d[\d.,]*\d|\d|\.\d+)"
    r"(?P<power>[eE][-+]?\d+)?(?![a-zA-Z_]*\d)"
)


def number_in(text: Number | None) -> float | None:
    """The last number in a text, or None.

    >>> number_in("It costs 1,299.50 euros."), number_in("about 3,5 %"), number_in("ticket T0001")
    (1299.5, 3.5, None)
    """
    if text is None or isinstance(text, bool):
        return None
    if not isinstance(text, str):
        return float(text) if math.isfinite(text) else None
    found = None
    for match in _NUMBER.finditer(text):
        value = _read(match["whole"], match["power"] or "")
        if value is not None and math.isfinite(value):
            found = -value if match["sign"] in ("-", "\u2212") else value
    return found


def band(value: float, full: float, none: float) -> float:
    """1 at `full` and beyond, 0 at `none` and beyond, a straight line in between; either may be the larger one.

    >>> band(100, full=40, none=160), band(0.9, full=0.8, none=0.5)
    (0.5, 1.0)
    """
    if full == none or not (math.isfinite(full) and math.isfinite(none)):
        raise UsageError(
            "A band needs two different ends.", remedy="Say where full credit ends and where none is left."
        )
    return min(1.0, max(0.0, (none - value) / (none - full)))


def closeness(output: Number, expected: Number, full: float = 0.0, none: float = 0.1, relative: bool = True) -> Score:
    """Full credit for an error up to `full`, none from `none` on, in between by a straight line.

    Errors are relative to what is expected; `relative=False` takes them as they are. Beside an expected 0 every error
    is infinitely large relative to it.
    """
    wanted = number_in(expected)
    if wanted is None:
        return Score.missing("the expected answer holds no number")
    if not 0 <= full < none:
        raise UsageError("A tolerance must grow.", remedy="Give full from 0 on, and none above it.")
    given = number_in(output)
    if given is None:
        return Score(0.0, feedback="The answer holds no number.")
    error = abs(given - wanted)
    if relative and error:
        error = error / abs(wanted) if wanted else math.inf
    value = band(error, full, none) if math.isfinite(error) else 0.0
    way = "high" if given > wanted else "low"
    return Score(value, feedback="" if error <= full else f"{given:g} is too {way}; {wanted:g} was expected.")


@dataclass(frozen=True, slots=True)
class Regression:
    """Errors over a set. `bias` is the mean signed error; `relative` leaves out what was expected to be 0.

    `within` is the share inside each tolerance, relative errors each; `missing` counts pairs without two numbers, which
    nothing else here counts.
    """

    mae: float
    rmse: float
    bias: float
    relative: float
    within: Mapping[float, float] = field(default_factory=dict)
    n: int = 0
    missing: int = 0


def regression(
    outputs: Sequence[Number | None], expected: Sequence[Number | None], tolerances: Iterable[float] = (0.01, 0.05, 0.1)
) -> Regression:
    """Mean errors of the numbers in `outputs`; NaN where nothing can be said.

    >>> regression(["4", "about 11"], [5, 10]).mae
    1.0
    """
    if len(outputs) != len(expected):
        raise UsageError("There are not as many answers as expected ones.", remedy="Give one of each per example.")
    found = [(number_in(given), number_in(wanted)) for given, wanted in zip(outputs, expected, strict=True)]
    pairs = [(given, wanted) for given, wanted in found if given is not None and wanted is not None]
    errors = [given - wanted for given, wanted in pairs]
    shares = [abs(given - wanted) / abs(wanted) for given, wanted in pairs if wanted]
    inside = [
        math.inf if given != wanted and not wanted else abs(given - wanted) / abs(wanted or 1)
        for given, wanted in pairs
    ]
    frozen: Any = FrozenDict  # its keys are typed as texts
    return Regression(
        mae=_mean([abs(error) for error in errors]),
        rmse=math.sqrt(_mean([error * error for error in errors])),
        bias=_mean(errors),
        relative=_mean(shares),
        within=frozen({each: _mean([float(share <= each) for share in inside]) for each in tolerances}),
        n=len(pairs),
        missing=len(found) - len(pairs),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _read(digits: str, power: str) -> float | None:
    """A number as it is written, with separators of thousands, a point or a comma."""
    bare = re.sub(r"[\u00a0\u202f'\u2019]", "", digits)
    if bare.count(",") and bare.count("."):
        # Both stand in it: the one that comes last is the decimal one.
        thousands, point = (",", ".") if bare.rfind(".") > bare.rfind(",") else (".", ",")
        if bare.startswith("0"):
            return None
        bare = bare.replace(thousands, "").replace(point, ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", bare):
        bare = bare.replace(",", "")
    elif bare.count(",") == 1:
        bare = bare.replace(",", ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3}){2,}", bare):
        bare = bare.replace(".", "")
    try:
        return float(bare + power)
    except ValueError:  # 1.2.3, a version or a date
        return None
