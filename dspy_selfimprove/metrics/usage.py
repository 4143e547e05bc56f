"""What an answer takes: words to read, seconds to wait, dollars to pay. Full credit, then less, then none.

The reader of a long answer pays too, which is why brevity is here. `seconds` and `dollars` are found where our own
evaluation or the trace recorded them; without them there is no verdict. DSPy's evaluator records neither.
"""

from __future__ import annotations

from dspy_selfimprove.metrics.number import band
from dspy_selfimprove.score import Score


def brevity(output: str, full: float = 40, none: float = 160) -> Score:
    """1 up to `full` words, then falling in a straight line to 0 at `none`.

    >>> brevity("Your parcel arrives tomorrow.").value
    1.0
    """
    count = len(str(output).split())
    return Score(band(count, full, none), feedback=f"{count} words; up to {full:g} would do." if count > full else "")


def length(output: str, low: float, high: float) -> Score:
    """1 between `low` and `high` words; less in proportion below, and the same way above."""
    count = len(str(output).split())
    if low <= count <= high:
        return Score(1.0)
    value = count / low if count < low else high / count
    return Score(value, feedback=f"{count} words; {low:g} to {high:g} are wanted.")


def latency(seconds: float | None = None, full: float = 1.0, none: float = 10.0) -> Score:
    """1 up to `full` seconds, 0 from `none` on."""
    if seconds is None:
        return Score.missing("the time was not recorded")
    return Score(band(seconds, full, none), feedback=f"It took {seconds:.1f} s." if seconds > full else "")


def cost(dollars: float | None = None, full: float = 0.0, none: float = 0.01) -> Score:
    """1 up to `full` dollars for the answer, 0 from `none` on."""
    if dollars is None:
        return Score.missing("the cost was not recorded")
    return Score(band(dollars, full, none), feedback=f"It cost ${dollars:.4f}." if dollars > full else "")
