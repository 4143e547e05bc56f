"""Which spans count, against a plain walk up the parents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.telemetry.nesting import LeftOut, Nesting
from dspy_selfimprove.telemetry.rows import ID, KIND, NAME, PARENT, RUN, TRACE

KINDS = st.sampled_from(["LLM", "LLM", "CHAIN", "EVALUATOR", "TOOL", "UNKNOWN"])


@st.composite
def forests(draw):
    """Spans whose parents come before them, shuffled, some of them strangers, cut into tables."""
    count = draw(st.integers(0, 25))
    spans = []
    for number in range(count):
        parent = draw(st.none() | st.integers(0, max(0, number - 1)) | st.just("elsewhere"))
        above = f"{parent:016x}" if isinstance(parent, int) and number else None
        spans.append({
            ID: f"{number:016x}",
            PARENT: "f" * 16 if parent == "elsewhere" else above,
            TRACE: draw(st.sampled_from(["t1", "t2", "t3", None])),
            KIND: draw(KINDS),
            NAME: "x",
            RUN: draw(st.sampled_from([None] * 9 + ["r1"])),
        })  # fmt: skip
    return draw(st.permutations(spans)), draw(st.integers(1, 7))


def tables(spans, size=100):
    for start in range(0, len(spans), size):
        part = spans[start : start + size]
        yield {column: [span[column] for span in part] for column in (ID, TRACE, PARENT, KIND, NAME, RUN)}


def expected(spans):
    by_id = {span[ID]: span for span in spans}

    def above(span):
        while span := by_id.get(span[PARENT]):
            yield span

    outer = {each[ID] for span in spans if span[KIND] == "LLM" for each in above(span) if each[KIND] == "LLM"}
    own = {span[TRACE] for span in spans if span[RUN] and span[TRACE]}
    found = {}
    for span in spans:
        judged = any(each[KIND] == "EVALUATOR" for each in (span, *above(span)))
        if span[RUN] or span[TRACE] in own:
            found[span[ID]] = LeftOut.OWN
        elif judged:
            found[span[ID]] = LeftOut.JUDGED
        else:
            found[span[ID]] = LeftOut.OUTER if span[ID] in outer else None
    return found


@given(forests())
def test_the_innermost_counts_and_what_is_judged_or_ours_does_not(forest):
    spans, size = forest
    nesting = Nesting(tables(spans, size))
    ids = [span[ID] for span in spans]
    assert dict(zip(ids, nesting.verdicts(ids), strict=True)) == expected(spans)
    assert len(nesting) == len(spans)
    assert nesting.verdicts(["unheard of", None]) == [None, None]


def test_a_long_chain_and_a_circle_come_to_an_end():
    rest = {TRACE: "t", NAME: "", RUN: None}
    deep = [
        {ID: str(n), PARENT: str(n - 1) if n else None, KIND: "LLM" if n else "EVALUATOR", **rest} for n in range(5000)
    ]
    assert set(Nesting(tables(deep)).verdicts([span[ID] for span in deep])) == {LeftOut.JUDGED}
    circle = [
        {ID: a, PARENT: b, TRACE: "t", KIND: kind, NAME: "Prog.forward", RUN: None}
        for a, b, kind in (("1", "2", "CHAIN"), ("2", "1", "CHAIN"), ("3", "3", "LLM"))
    ]
    nesting = Nesting(tables(circle))
    assert nesting.verdicts(["1", "2", "3"]) == [None, None, None]
    assert nesting.path("1") == ("Prog", "Prog")


def test_paths_leave_out_twins_and_strangers():
    def span(number, parent, name, kind="CHAIN"):
        return {ID: str(number), PARENT: parent and str(parent), TRACE: "t", KIND: kind, NAME: name, RUN: None}

    spans = [
        span(1, None, "http request", "UNKNOWN"),
        span(2, 1, "Prog.forward"),
        span(3, 2, "a tool", "TOOL"),
        span(4, 3, "ChainOfThought.aforward"),
        span(5, 4, "Predict.aforward"),
        span(6, 5, "Predict(StringSignature).aforward"),
        span(7, 6, "ChatAdapter.acall"),
        span(8, 2, "Predict(Other).forward"),
        span(9, 2, "Prog.forward"),
    ]
    nesting = Nesting(tables(spans))
    paths = {each[ID]: nesting.path(each[ID]) for each in spans}
    assert paths == {
        "1": (), "2": ("Prog",), "3": (), "4": ("Prog", "ChainOfThought"),
        "5": ("Prog", "ChainOfThought", "Predict"), "6": (), "7": (), "8": ("Prog", "Predict"), "9": ("Prog", "Prog"),
    }  # fmt: skip
    assert nesting.predictor("6") == nesting.predictor("5") != 0
    assert nesting.predictor("8") not in (0, nesting.predictor("5"))
    assert nesting.predictor("7") == nesting.predictor(None) == nesting.predictor("unheard of") == 0
