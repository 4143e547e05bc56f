"""The way to Arize AX: its SDK runs in a process of its own. A stand-in for the SDK checks how it is called."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dspy_selfimprove.errors import SetupError, TelemetryError, UsageError
from dspy_selfimprove.telemetry import arize

SINCE, UNTIL = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 8, tzinfo=timezone(timedelta(hours=1)))

SDK = """
import json
from datetime import datetime, timezone
import numpy as np
import pandas as pd

class Spans:
    def export_to_df(self, *, space_id, project_name, start_time, end_time, where="", columns=None):
        if project_name == "broken":
            raise RuntimeError("what a customer said")
        assert (space_id, project_name) == ("space-1", "support"), (space_id, project_name)
        assert start_time == datetime(2026, 11, 1, tzinfo=timezone.utc), start_time
        assert end_time == datetime(2026, 11, 7, 23, tzinfo=timezone.utc), end_time
        message = lambda role, content: {"message.role": role, "message.content": content}
        called = [{"tool_call.id": "c", "tool_call.function.name": "f"}]
        tool = {"message.role": "assistant", "message.tool_calls": called}
        return pd.DataFrame([
            {
                "context.span_id": f"a{number}", "context.trace_id": "t", "name": "chat",
                "start_time": pd.Timestamp("2026-11-02", tz="UTC") + pd.Timedelta(number, "min"),
                "end_time": pd.Timestamp("2026-11-02T01:00", tz="UTC"),
                "attributes.openinference.span.kind": "LLM", "status_code": "OK",
                "attributes.llm.input_messages": np.array([message("user", "Hi"), tool][: number + 1], dtype=object),
                "attributes.llm.output_messages": [message("assistant", f"Hello {number}.")],
                "attributes.metadata": {"n": number} if number else json.dumps({"n": 0}),
                "eval.tone.score": 0.5, "eval.tone.label": "fair", "annotation.good.label": "yes",
            }
            for number in range(2)
        ])

class ArizeClient:
    def __init__(self, api_key):
        assert api_key == "secret-key"
        self.spans = Spans()
"""


@pytest.fixture
def python(tmp_path):
    """An interpreter that finds the stand-in, as one of another environment would find the SDK."""
    package = tmp_path / "site" / "arize"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SDK)
    shim = tmp_path / "python"
    shim.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(package.parent))} exec {shlex.quote(sys.executable)} "$@"\n'
    )
    shim.chmod(0o755)
    return shim


def fetch(python, into, project="support", api_key="secret-key"):
    return arize.fetch(project, SINCE, UNTIL, space_id="space-1", python=python, into=into, api_key=api_key)


def test_spans_come_as_exchanges_with_their_verdicts(python, tmp_path):
    into = tmp_path / "ax.parquet"
    found = list(fetch(python, into).exchanges())
    assert [each.output["content"] for each in found] == ["Hello 0.", "Hello 1."]
    assert [len(each.messages) for each in found] == [1, 2]
    assert [each.metadata for each in found] == [{"n": 0}, {"n": 1}]
    assert found[1].messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert {(reading.name, reading.kind, reading.label) for reading in found[0].readings} == {
        ("tone", "LLM", "fair"), ("good", "HUMAN", "yes"),
    }  # fmt: skip
    assert into.exists()


def test_a_failure_in_the_other_environment_is_told_without_its_words(python, tmp_path):
    into = tmp_path / "ax.parquet"
    with pytest.raises(TelemetryError, match=r"did not export the spans \(RuntimeError\)") as raised:
        fetch(python, into, "broken")
    assert "customer" not in str(raised.value)
    with pytest.raises(TelemetryError, match="AssertionError") as raised:
        fetch(python, into, api_key="wrong-key")
    assert "key" not in raised.value.problem
    assert not into.exists()


def test_an_environment_without_the_sdk_and_one_that_is_none(tmp_path):
    with pytest.raises(SetupError, match="lacks the Arize SDK"):
        fetch(sys.executable, tmp_path / "ax.parquet")
    with pytest.raises(SetupError, match="is not a Python that runs"):
        fetch(tmp_path / "none", tmp_path / "ax.parquet")
    with pytest.raises(UsageError, match="no time zone"):
        arize.fetch(
            "p", datetime(2026, 11, 1), UNTIL, space_id="s", python=sys.executable, into=tmp_path / "x"
        )  # fmt: skip
