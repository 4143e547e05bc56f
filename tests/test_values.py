"""Score, Scorecard, Sample, EvalSpec, Candidate: records that cannot change and come back from JSON as they were."""

import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.score import Score, Scorecard

scores = st.builds(
    Score,
    value=st.floats(0, 1),
    label=st.none() | st.text(),
    feedback=st.text(),
    details=st.dictionaries(st.text(), st.integers()),
) | st.builds(Score.missing, st.text(min_size=1))


@given(scores)
def test_a_score_comes_back_from_json(score):
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    assert pickle.loads(pickle.dumps(score)) == score


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.001, 1.001, 7])
def test_a_value_outside_zero_to_one_is_refused(value):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Score(value)


def test_missing_is_not_zero():
    missing = Score.missing("the judge was away")
    assert missing.is_missing
    assert not Score(0.0).is_missing
    assert missing != Score(0.0)
    with pytest.raises(UsageError, match="must say why"):
        Score(None)
    with pytest.raises(UsageError, match="not both"):
        Score(0.5, failure="away")


def test_a_scorecard_gives_rows_with_nan_for_what_is_missing():
    card = Scorecard("e1", {"helpful": Score(0.5), "brief": Score.missing("429")})
    row = card.row(("brief", "helpful", "never asked"))
    assert math.isnan(row[0])
    assert row[1] == 0.5
    assert math.isnan(row[2])
    assert card.missing == ("brief",)
    assert list(card) == ["helpful", "brief"]
    assert Scorecard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_records_refuse_to_change():
    sample = Sample(
        id="s",
        chat_history=({"role": "user", "content": "hi"},),
        output={"role": "assistant", "content": "hello"},
        scores={"q": Score(1.0)},
        variables={"plan": "free"},
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.weight = 2.0
    for record in (sample.chat_history[0], sample.output, sample.scores, sample.variables):
        with pytest.raises(TypeError, match="frozen"):
            record["x"] = 1


def test_an_eval_spec_knows_its_versions():
    spec = EvalSpec(
        name="helpful",
        kind="LLM",
        messages=({"role": "user", "content": "Rate {{output}}"},),
        choices={"good": 1, "bad": 0},
        model="gpt-4o",
    )
    again = EvalSpec.from_json(json.loads(json.dumps({**spec.to_json(), "a field of a later version": 1})))
    assert again == spec
    assert again.version == spec.version
    for change in (
        {"choices": {"good": 1, "bad": 0.5}},
        {"model": "gpt-4o-mini"},
        {"optimization_direction": "minimize"},
    ):
        assert dataclasses.replace(spec, **change).version != spec.version


def test_equal_records_are_one_in_a_set():
    assert len({Scorecard("e", {"q": Score(1)}), Scorecard("e", {"q": Score(1.0)})}) == 1
    assert Candidate({"a": "x"}, parameters={"t": 1}).id == Candidate({"a": "x"}, parameters={"t": 1.0}).id
    one, other = (
        EvalSpec(name="q", kind="LLM", choices=choices)
        for choices in ({"good": 1, "bad": 0}, {"bad": 0.0, "good": 1.0})
    )
    assert one != other, "the order of the choices is part of the request"
    assert one == EvalSpec(name="q", kind="LLM", choices={"good": 1.0, "bad": 0})


def test_a_candidate_is_its_content():
    base = Candidate({"answer": "Be kind."}, parameters={"temperature": 0.5})
    child = base.child("edit", texts={"answer": "Be brief."}, also=(Candidate({"answer": "x"}),))
    assert child.parents == (base.id, Candidate({"answer": "x"}).id)
    assert child.parameters == {"temperature": 0.5}
    assert child.id == Candidate({"answer": "Be brief."}, parameters={"temperature": 0.5}, origin="other").id
    assert child.child("undo", texts={"answer": "Be kind."}).id == base.id
    assert Candidate.from_json(json.loads(json.dumps(child.to_json()))) == child
    with pytest.raises(UsageError, match="'query' is not a predictor"):
        base.child("edit", texts={"query": "x"})
    with pytest.raises(UsageError, match="at least one predictor"):
        Candidate({})
    with pytest.raises(UsageError, match="demonstrations for 'query'"):
        Candidate({"answer": "x"}, demos={"query": ({"q": "a"},)})
