"""Examples reach a dataset in a real Phoenix, and the same content is the same version."""

from __future__ import annotations

import uuid

import pytest
from phoenix.client import Client

from dspy_selfimprove.errors import PhoenixUnreachable, UsageError
from dspy_selfimprove.message import freeze
from dspy_selfimprove.telemetry.datasets import push


@pytest.fixture
def name():
    return f"set {uuid.uuid4().hex[:12]}/ü"


ROWS = [
    {
        "id": "e1",
        "input": {"messages": [{"role": "user", "content": "Hi 💥\x00"}], "n": 1.0},
        "output": {"content": "Hello."},
        "metadata": {"weight": 0.5},
        "splits": "train",
    },
    {"id": "e2", "input": freeze({"messages": [{"role": "user", "content": "Bye"}]}), "splits": ["validation"]},
]


def test_rows_arrive_and_the_same_again_is_the_same_version(phoenix, name):
    first = push(name, ROWS, description="two", endpoint=phoenix.url)
    again = push(name, ROWS, endpoint=phoenix.url)
    assert first == again
    assert first.count == 2
    assert first.url == f"{phoenix.url}/datasets/{first.id}/examples"
    held = Client(base_url=phoenix.url).datasets.get_dataset(dataset=first.id)
    by_id = {example["id"]: example for example in held.examples}
    assert held.description == "two"
    assert by_id["e1"]["input"] == {"messages": [{"role": "user", "content": "Hi 💥\ufffd"}], "n": 1.0}
    assert (by_id["e1"]["output"], by_id["e1"]["metadata"]) == ({"content": "Hello."}, {"weight": 0.5})
    assert (by_id["e2"]["input"], by_id["e2"]["output"]) == ({"messages": [{"role": "user", "content": "Bye"}]}, {})
    only = Client(base_url=phoenix.url).datasets.get_dataset(dataset=first.id, splits=["validation"])
    assert [example["id"] for example in only.examples] == ["e2"]


def test_other_rows_are_a_new_version_and_replace_the_old(phoenix, name):
    first = push(name, ROWS, endpoint=phoenix.url)
    second = push(name, [ROWS[0], {"id": "e3", "input": {"q": 1}}], endpoint=phoenix.url)
    assert (first.id, first.version_id != second.version_id) == (second.id, True)
    client = Client(base_url=phoenix.url)
    ids = [
        {
            example["id"]
            for example in client.datasets.get_dataset(dataset=first.id, version_id=each.version_id).examples
        }
        for each in (first, second)
    ]
    assert ids == [{"e1", "e2"}, {"e1", "e3"}]


def test_a_row_can_name_the_span_it_came_from(phoenix, name, project, spans_in):
    from dspy_selfimprove.telemetry.instrument import instrument

    with instrument(project, endpoint=phoenix.url) as sending:
        with sending.tracer.start_as_current_span("call") as span:
            span_id = f"{span.get_span_context().span_id:016x}"
        assert sending.flush()
    spans_in(project, 1)
    pushed = push(name, [{"input": {"q": 1}, "output": {"a": 2}, "span_id": span_id}], endpoint=phoenix.url)
    (example,) = Client(base_url=phoenix.url).datasets.get_dataset(dataset=pushed.id).examples
    assert example["source"]["span_id"] == span_id


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "needs a row"),
        ([{"output": {"a": 1}}], r"Row 0 needs `input`"),
        ([{"input": "text"}], r"Row 0 needs `input`"),
        ([{"input": {"q": 1}, "output": "text"}], r"Row 0 needs `output`"),
        ([{"input": {"q": 1}, "score": 1}], r"keeps no `score` \(row 0\)"),
        ([{"id": "a", "input": {"q": 1}}, {"id": "a", "input": {"q": 2}}], "same id"),
    ],
)
def test_what_phoenix_could_not_take_is_refused_at_once(rows, says):
    with pytest.raises(UsageError, match=says):
        push("set", rows, endpoint="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="needs a name"):
        push(" ", ROWS, endpoint="http://127.0.0.1:9")


def test_nobody_there(monkeypatch):
    from dspy_selfimprove.telemetry import client

    monkeypatch.setattr(client, "_PAUSE", 0.01)
    with pytest.raises(PhoenixUnreachable, match="cannot be reached"):
        push("set", ROWS, endpoint="http://127.0.0.1:9")
