import functools
import json
import re
from dataclasses import dataclass

import dspy
import numpy as np
import pytest
from dspy.evaluate import SemanticF1
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.fingerprint import fingerprint


class Within:
    def __init__(self, most):
        self.most = most
        self.calls = 0

    def __call__(self, output):
        self.calls += 1
        return len(output) < self.most

    def judge(self, output):
        return self(output)


@dataclass(frozen=True, slots=True)
class Slotted:
    most: int


def closing_over(value):
    def metric(output):
        return output == value

    return metric


def with_default(most):
    def metric(output, most=most):
        return len(output) < most

    return metric


PAIRS = {
    "instances": (Within(1), Within(50)),
    "bound methods": (Within(1).judge, Within(50).judge),
    "slots": (Slotted(1), Slotted(50)),
    "nested": (closing_over(Within(1)), closing_over(Within(50))),
    "closures": (closing_over("a"), closing_over("b")),
    "closures over functions": (closing_over(closing_over(1)), closing_over(closing_over(2))),
    "defaults": (with_default(1), with_default(2)),
    "lambdas on one line": (lambda output: 1, lambda output: 0),
    "partials": (functools.partial(max, 1), functools.partial(max, 2)),
    "patterns": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "modules of DSPy": (SemanticF1(), SemanticF1(threshold=0.9)),
    "signatures": (dspy.Predict("a -> b"), dspy.Predict("a -> c")),
    "arrays": (np.arange(3), np.arange(4)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_does_something_else_has_another(pair):
    first, second = map(fingerprint, pair)
    assert first != second
    assert first == fingerprint(pair[0])
    json.dumps(first, allow_nan=False)


def test_code_typed_at_a_prompt_goes_by_what_it_does():
    spaces = [{}, {}, {}]
    for space, number in zip(spaces, (1, 2, 1), strict=True):
        exec(f"def metric(output): return len(output) > {number}", space)
    one, two, again = (fingerprint(space["metric"]) for space in spaces)
    assert one == again != two


def test_what_an_object_gathers_while_it_works_is_not_part_of_it():
    metric = Within(3)
    before = fingerprint(metric)
    metric("x")
    assert fingerprint(metric) == before


def test_a_library_object_goes_by_its_kind():
    model = dspy.LM("openai/x", api_key="k", cache=False)
    before = fingerprint(closing_over(model))
    model.history.append({"prompt": "x"})
    assert fingerprint(closing_over(model)) == before


def test_an_object_that_holds_itself_has_one():
    turning = Within(1)
    turning.most = turning
    json.dumps(fingerprint(turning))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(anything)
def test_any_data_has_one_that_is_strict_json(value):
    assert json.dumps(fingerprint(value), allow_nan=False) == json.dumps(fingerprint(value))
