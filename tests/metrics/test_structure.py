"""Form: full credit is the validator's word, partial credit follows the places, tool calls match in any order."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.metrics.structure import matches, schema, tool_calls

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["city", "zip"],
        },
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}
EITHER = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
PAIR = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False}
ANYTHING = {"not": {"type": "null"}}
SCHEMAS = [PERSON, TREE, EITHER, PAIR, ANYTHING, {}, {"enum": ["a", 1]}]

names = st.sampled_from(["name", "age", "address", "city", "zip", "tags", "value", "children", "other"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "Ana"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("rules", SCHEMAS, ids=lambda rules: next(iter(rules), "empty"))
@given(value=values)
def test_full_credit_is_exactly_what_the_validator_accepts(rules, value):
    score = schema(json.dumps(value), rules)
    assert 0 <= score.value <= 1
    assert (score.value == 1) == jsonschema.Draft202012Validator(rules).is_valid(value)
    assert bool(score.feedback) == (score.value < 1)
    assert schema(value, rules).value == score.value or isinstance(value, str)


RIGHT = {"name": "Ana", "age": 31, "address": {"city": "Rome", "zip": "00100"}, "tags": ["a", "b"]}


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        (RIGHT, 1),
        ({**RIGHT, "age": "31"}, 5 / 6),
        ({**RIGHT, "address": {"city": "Rome"}}, 5 / 6),
        ({name: value for name, value in RIGHT.items() if name != "address"}, 4 / 6),
        ({**RIGHT, "tags": ["a", 1]}, 5 / 6),
        ({**RIGHT, "extra": 1}, 6 / 7),
        ({**RIGHT, "tags": list("abcd")}, 8 / 9),  # every place is filled, and the list too long
        ([], 0),
        ({}, 0),
    ],
)
def test_partial_credit_by_hand(changed, share):
    assert schema(json.dumps(changed), PERSON).value == pytest.approx(share)


def test_a_fault_is_named_by_its_path():
    score = schema(json.dumps({**RIGHT, "age": "31", "address": {"city": 7, "zip": "1"}}), PERSON)
    assert "$.age breaks the rule 'type'." in score.feedback
    assert "$.address.city breaks the rule 'type'." in score.feedback


def test_json_among_words_earns_half():
    body = json.dumps(RIGHT)
    for around in (f"```json\n{body}\n```", f"Here you are:\n{body}\nAnything else?"):
        score = schema(around, PERSON)
        assert score.value == 0.5
        assert "stand alone" in score.feedback
    assert schema("There is none.", PERSON).value == 0
    assert schema('{"name": ', PERSON).value == 0
    assert schema('{"age": NaN}', PERSON).value == 0
    assert schema("[" * 100_000, PERSON).value == 0


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(UsageError, match="not a JSON Schema"):
        schema("{}", {"type": "strange"})
    with pytest.raises(UsageError, match="not a regular expression"):
        matches("a", "(")


def test_a_pattern_is_found_or_not():
    assert matches("Order 4711 is on its way.", r"\b\d{4}\b").value == 1
    assert matches("Order on its way.", r"\b\d{4}\b").feedback


def call(name, **arguments):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def message(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


calls = st.lists(
    st.builds(
        call,
        st.sampled_from(["find", "book"]),
        city=st.sampled_from(["Rome", "Oslo"]),
        nights=st.integers(1, 2),
        guests=st.lists(st.sampled_from(["Ana", "Bo"]), max_size=2),
    ),
    max_size=3,
)


@given(calls, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_the_same_is_whole(some, dice):
    shuffled = dice.sample(some, len(some))
    assert tool_calls(message(*shuffled), message(*some)).value == pytest.approx(1)


@given(calls, calls)
def test_tool_calls_are_bounded_and_symmetric(some, others):
    value = tool_calls(message(*some), message(*others)).value
    assert 0 <= value <= 1
    assert value == pytest.approx(tool_calls(message(*others), message(*some)).value)


def test_tool_calls_by_hand():
    wanted = message(call("book", city="Rome", nights=2))
    assert tool_calls(message(call("book", city="Rome", nights=3)), wanted).value == pytest.approx(0.75)
    assert tool_calls(message(call("book", city="Rome", nights=3)), wanted).feedback == "book: check nights."
    assert tool_calls(message(call("find", city="Rome", nights=2)), wanted).value == 0
    assert tool_calls(message(), wanted).value == 0
    assert tool_calls(message(call("book", city="Rome", nights=2), call("find")), wanted).value == pytest.approx(0.5)
    assert tool_calls({"role": "assistant", "content": "No."}, {"role": "assistant", "content": "No."}).value == 1
    assert tool_calls(wanted, [{"name": "book", "arguments": {"city": "Rome", "nights": 2.0}}]).value == 1
    torn = message({"function": {"name": "book", "arguments": '{"city": "Ro'}})
    assert tool_calls(torn, wanted).value == pytest.approx(0.5)
