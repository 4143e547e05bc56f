"""Spans from files and frames: whatever wrote them, in the order of time, with the verdicts that came along."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.exchange import Aside, Exchange
from dspy_selfimprove.telemetry import exports, pages
from dspy_selfimprove.telemetry.nesting import LeftOut
from dspy_selfimprove.telemetry.pages import Pages, Source, write_page
from dspy_selfimprove.telemetry.rows import normalize

BEGAN = datetime(2026, 11, 3, tzinfo=UTC)


def record(number, minutes=None, **more):
    said = f"Answer {number}."
    body = {"model": "m", "messages": [{"role": "user", "content": f"Question {number}?"}]}
    answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}]}
    began = BEGAN + timedelta(minutes=number if minutes is None else minutes)
    return {
        "context.span_id": f"{number:016x}",
        "context.trace_id": f"{number:032x}",
        "name": "ChatCompletion",
        "span_kind": "LLM",
        "status_code": "OK",
        "start_time": began.isoformat(),
        "end_time": (began + timedelta(seconds=2)).isoformat(),
        "attributes.input.value": json.dumps(body),
        "attributes.output.value": json.dumps(answer),
        "attributes.session.id": f"s{number % 3}",
        **more,
    }


def lines(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def ids(source: Source):
    return [int(each.id, 16) for each in source.exchanges()]


@pytest.fixture(params=["frame", "indexed", "parquet", "jsonl", "json", "folder"])
def written(request, tmp_path):
    """The same records in one of the forms that `read` takes."""

    def write(records):
        frame = pd.DataFrame(records)
        if request.param == "frame":
            return frame
        if request.param == "indexed":
            return frame.set_index("context.span_id")
        if request.param == "parquet":
            frame.to_parquet(tmp_path / "spans.parquet")
            return tmp_path / "spans.parquet"
        if request.param == "jsonl":
            return lines(tmp_path / "spans.jsonl", records)
        if request.param == "json":
            (tmp_path / "spans.json").write_text(json.dumps(records))
            return str(tmp_path / "spans.json")
        half = len(records) // 2
        lines(tmp_path / "b.jsonl", records[:half])
        pd.DataFrame(records[half:]).set_index("context.span_id").to_parquet(tmp_path / "a.parquet")
        (tmp_path / "notes.txt").write_text("not a span")
        return tmp_path

    return write


def test_every_form_gives_the_same_exchanges_in_the_order_of_time(written):
    records = [record(number) for number in range(40)]
    random.Random(3).shuffle(records)
    found = exports.read(written(records))
    assert ids(found) == list(range(40))
    one = next(iter(found.exchanges()))
    assert isinstance(one, Exchange)
    assert (one.messages[0]["content"], one.output["content"]) == ("Question 0?", "Answer 0.")
    assert (one.exact, one.time, one.seconds, one.session_id) == (True, BEGAN, 2.0, "s0")
    assert (len(found), found.torn, found.repeated) == (40, 0, 0)
    frame = found.frame()
    assert list(frame["id"]) == [f"{number:016x}" for number in range(40)]
    assert list(frame["seconds"].unique()) == [2.0]
    assert frame["start"].is_monotonic_increasing


def test_a_window_takes_its_first_moment_and_leaves_its_last(written):
    source = written([record(number) for number in range(10)])
    found = exports.read(source, BEGAN + timedelta(minutes=2), BEGAN + timedelta(minutes=5))
    assert ids(found) == [2, 3, 4]
    assert len(found) == len(found.frame()) == 3
    assert ids(exports.read(source, since=BEGAN + timedelta(days=1))) == []


def test_verdicts_in_columns_are_readings():
    verdicts = {
        "eval.tone.score": 0.5, "eval.tone.label": "fair", "eval.tone.explanation": "A bit short.",
        "eval.length.score": 12, "eval.length.kind": "CODE", "eval.empty.score": None, "eval.empty.label": float("nan"),
        "annotation.good.label": "yes", "annotation.good.updated_at": "2026-11-04T00:00:00Z",
        "annotation.notes.label": "x", "eval.v1.0 tone.score": 1.0,
    }  # fmt: skip
    (one,) = exports.read(pd.DataFrame([record(1, **verdicts)])).exchanges()
    found = {reading.name: reading for reading in one.readings}
    assert found.keys() == {"tone", "length", "good", "v1.0 tone"}
    tone, good = found["tone"], found["good"]
    assert (tone.kind, tone.score, tone.label, tone.explanation) == ("LLM", 0.5, "fair", "A bit short.")
    assert (found["length"].kind, found["length"].score) == ("CODE", 12.0)
    assert (good.kind, good.label, good.time) == ("HUMAN", "yes", datetime(2026, 11, 4, tzinfo=UTC))
    nested = {**record(2), "eval": {"tone": {"score": np.float64(0.25)}}}
    (two,) = exports.read(pd.DataFrame([nested])).exchanges()
    assert [(reading.name, reading.score) for reading in two.readings] == [("tone", 0.25)]


def test_a_span_that_comes_twice_counts_once(tmp_path):
    path = lines(tmp_path / "spans.jsonl", [record(1), record(2), {**record(1), "attributes.output.value": "other"}])
    found = exports.read(path)
    assert [each.output["content"] for each in found.exchanges()] == ["Answer 1.", "Answer 2."]
    assert found.repeated == 1


def test_what_is_inside_what_holds_across_files_and_windows(tmp_path):
    outer = record(1, name="LM.__call__")
    inner = record(2, parent_id=outer["context.span_id"])
    judge = record(3, span_kind="EVALUATOR", name="judge")
    judged = record(4, parent_id=judge["context.span_id"])
    ours = record(5, **{"attributes.metadata": {"dspy_selfimprove.run": "r1"}})
    lines(tmp_path / "a.jsonl", [inner, judged])
    lines(tmp_path / "b.jsonl", [judge, outer, ours])
    found = exports.read(tmp_path)
    assert ids(found) == [2]
    assert found.left_out() == {LeftOut.OUTER: 1, LeftOut.JUDGED: 1, LeftOut.OWN: 1}
    later = exports.read(tmp_path, since=BEGAN + timedelta(minutes=4))
    assert (ids(later), later.left_out()) == ([], {LeftOut.JUDGED: 1, LeftOut.OWN: 1})


# What is broken.


def test_a_torn_last_line_is_counted_and_any_other_is_refused(tmp_path):
    path = lines(tmp_path / "spans.jsonl", [record(1), record(2)])
    whole = path.read_text()
    path.write_text(whole + json.dumps(record(3))[:100])
    found = exports.read(path)
    assert (ids(found), found.torn) == ([1, 2], 1)
    for broken, line in (
        ("{\n" + whole, 1), (whole + "{\n", 3), (whole + "oops\n\n" + whole, 3), (whole + "3\n", 3),
        (whole + "[4]\n", 3),
    ):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(UsageError, match=rf"Line {line} of spans\.jsonl is no JSON object\. Mend"):
            exports.read(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("spans.parquet", b"PAR1 and then nothing", r"spans\.parquet is no Parquet file that can be read"),
        ("spans.parquet", b"", r"spans\.parquet is no Parquet file that can be read"),
        ("spans.json", b'{\n"a":', r"spans\.json is no JSON \(line 2\)"),
        ("spans.json", b"[1]", r"Entry 0 of spans\.json is no JSON object"),
        ("spans.jsonl", b'{"name": "what a customer said"}\n', r"Line 1 of spans\.jsonl holds no span id"),
        ("spans.csv", b"a,b", r"spans\.csv is of no kind known here"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_never_quoted(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=says) as raised:
        exports.read(tmp_path / name)
    assert raised.value.remedy
    assert "customer" not in str(raised.value)


def test_a_parquet_file_that_lost_its_end_or_middle(tmp_path):
    path = tmp_path / "spans.parquet"
    pd.DataFrame([record(number) for number in range(3000)]).to_parquet(path, row_group_size=100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="can be read"):
        exports.read(path)
    path.write_bytes(whole[:2000] + bytes(2000) + whole[4000:])
    with pytest.raises(UsageError, match="can be read"):
        exports.read(path)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="is not there"):
        exports.read(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no spans"):
        exports.read(tmp_path)
    with pytest.raises(UsageError, match="no time zone"):
        exports.read(pd.DataFrame([record(1)]), since=datetime(2026, 11, 1))
    (tmp_path / "pull.json").write_text("{}")
    with pytest.raises(UsageError, match="was written by a pull"):
        exports.read(tmp_path)
    empty = exports.read(pd.DataFrame({"context.span_id": []}))
    assert (list(empty.exchanges()), list(empty.steps()), len(empty), dict(empty.left_out())) == ([], [], 0, {})
    assert list(empty.frame().columns)[:3] == ["id", "trace", "parent"]


def test_the_temporary_folder_goes_with_the_export():
    found = exports.read(pd.DataFrame([record(1)]))
    folder = found.folder
    assert list(folder.iterdir())
    del found
    assert not folder.exists()


# Pages.


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), max_size=6), st.integers(0, 31), st.integers(0, 31)
)
def test_pages_that_overlap_are_merged_in_the_order_of_time(tmp_path_factory, times, since, until):
    folder = tmp_path_factory.mktemp("pages")
    number = 0
    for page in times:
        records = [record(number + at, minutes) for at, minutes in enumerate(page)]
        number += len(page)
        write_page(folder, [normalize(each) for each in records])
    since_, until_ = BEGAN + timedelta(minutes=since), BEGAN + timedelta(minutes=until)
    found = [each.time for each in Pages(folder, since_, until_).exchanges()]
    wanted = sorted(minute for page in times for minute in page if since <= minute < until)
    assert found == [BEGAN + timedelta(minutes=minute) for minute in wanted]
    assert len(Pages(folder)) == number


def test_a_page_is_read_in_the_memory_of_a_few_rows(tmp_path, monkeypatch):
    """However many pages there are, only those whose time has come are open."""
    for page in range(30):
        write_page(tmp_path, [normalize(record(page * 10 + at)) for at in range(10)])
    opened = []
    batches = pages._batches
    monkeypatch.setattr(pages, "_batches", lambda path, *rest: opened.append(path) or batches(path, *rest))
    reading = Pages(tmp_path).exchanges()
    for _ in range(25):
        next(reading)
    assert len(opened) <= 4
    assert len([*reading]) == 275


def test_a_damaged_page_is_named(tmp_path):
    path = write_page(tmp_path, [normalize(record(1))])
    path.write_bytes(b"PAR1")
    with pytest.raises(SetupError, match=path.name):
        list(Pages(tmp_path).exchanges())


def test_half_an_emoji_and_a_nul_survive_the_disk(tmp_path):
    body = {"model": "m", "messages": [{"role": "user", "content": "half \ud83d, nul \x00"}]}
    odd = record(1, **{"attributes.input.value": json.dumps(body), "attributes.user.id": "\ud83d"})
    (one,) = exports.read(lines(tmp_path / "spans.jsonl", [odd])).exchanges()
    assert one.messages[0]["content"] == "half \ud83d, nul \x00"
    assert one.user_id == "\ufffd"


def test_asides_come_in_their_place():
    records = [record(1), record(2, status_code="ERROR"), record(3)]
    found = list(exports.read(pd.DataFrame(records)).exchanges())
    assert [type(each) for each in found] == [Exchange, Aside, Exchange]
