import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.message import canonical, digest, freeze, text_of, thaw

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_freezing_and_thawing_gives_back_the_same_json(value):
    assert thaw(freeze(value)) == value
    assert canonical(freeze(value)) == canonical(value)
    assert digest(freeze(value)) == digest(value)


@given(json_values)
def test_a_frozen_value_is_hashable_json_and_survives_copies(value):
    frozen = freeze(value)
    hash(frozen)
    assert json.loads(json.dumps(frozen)) == json.loads(json.dumps(value))
    assert pickle.loads(pickle.dumps(frozen)) == frozen == copy.deepcopy(frozen)


def test_a_frozen_message_refuses_every_change():
    frozen = freeze({"role": "user", "content": [{"type": "text", "text": "hi"}]})
    for change in (
        lambda: frozen.__setitem__("role", "system"),
        lambda: frozen.update(role="system"),
        lambda: frozen.pop("role"),
        lambda: frozen.__ior__({"role": "system"}),
        lambda: frozen["content"][0].clear(),
        lambda: frozen.__delitem__("role"),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    assert frozen == {"role": "user", "content": ({"type": "text", "text": "hi"},)}


def test_thawing_shares_nothing():
    source = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    frozen = freeze(source)
    source["content"][0]["text"] = "changed"
    given = thaw(frozen)
    given["content"][0]["text"] = "changed"
    assert thaw(frozen)["content"][0]["text"] == "hi"


def test_the_text_of_a_message():
    assert text_of({"role": "user", "content": "plain"}) == "plain"
    assert text_of({"role": "assistant", "content": None, "tool_calls": []}) == ""
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
    ]
    assert text_of({"role": "user", "content": parts}) == "a\nb"


def test_canonical_json_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="JSON"):
        canonical({"score": float("nan")})
