"""`make demo` as a user runs it: a real Phoenix, a real server, real spans; read back through Phoenix's own API."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from filelock import FileLock
from phoenix.client import Client

from dspy_selfimprove.errors import PhoenixUnreachable
from dspy_selfimprove.telemetry import server

DEMO = Path(__file__).parent.parent / "examples" / "demo.py"
pytestmark = pytest.mark.slow


@contextmanager
def project(tmp_path_factory):
    """A folder of its own, whose Phoenix is stopped in the end whatever the demo did."""
    folder = tmp_path_factory.mktemp("demo")
    try:
        yield folder
    finally:
        server.stop(folder / ".selfimprove")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with project(tmp_path_factory) as folder:
        yield folder


def start(folder):
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, str(DEMO)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(folder):
    with start(folder) as demo:
        said, _ = demo.communicate(timeout=600)
    return demo.returncode, said


@pytest.fixture(scope="module")
def said(folder):
    code, said = run(folder)
    assert code == 0, said
    return said


def test_it_says_what_landed_and_where_to_look(said, folder):
    for metric in ("brevity", "compliance", "helpfulness"):
        assert re.search(rf"{metric}\s*│ 300\s*│ 0\.\d\d\s*│ 0", said), said
    phoenix = server.status(folder / ".selfimprove")
    assert phoenix is not None, "Phoenix stays up so that the user can look"
    assert phoenix.project_url("support-desk-demo") in said


def test_it_goes_on_to_a_checkpoint_and_a_split_dataset(said, folder):
    for told in (
        r"spans\s+600 read: 300 CHAIN, 300 LLM",
        r"samples\s+300",
        r"prompts\s+[0-9a-f]{16}: 300 samples, since \d{4}-\d\d-\d\d \d\d:\d\d; slots: slot_1, plan, date",
        r"clusters\s+120, of 1 to \d+ samples",
        r"dataset\s+support-desk-demo-[0-9a-f]{6}: 100 train, 40 validation, 60 test \(sealed\)",
    ):
        assert re.search(told, said), told
    (dataset,) = (folder / ".selfimprove" / "datasets").iterdir()
    assert {path.name for path in dataset.glob("*.jsonl")} >= {"train.jsonl", "validation.jsonl", "test.jsonl"}


def test_spans_nested_spans_and_annotations_are_in_phoenix(said, folder):
    client = Client(base_url=server.status(folder / ".selfimprove").url)
    spans, calls = (
        client.spans.get_spans(project_identifier="support-desk-demo", span_kind=kind, limit=1_000, timeout=60)
        for kind in ("CHAIN", "LLM")
    )
    assert len(spans) == len(calls) == 300
    parents = {span["context"]["span_id"]: span for span in spans}
    tickets = set()
    for call in calls:
        parent = parents[call["parent_id"]]
        assert parent["context"]["trace_id"] == call["context"]["trace_id"]
        assert parent["attributes"]["output.value"] == call["attributes"]["llm.output_messages.0.message.content"]
        assert call["attributes"]["session.id"] == parent["attributes"]["session.id"]
        assert call["attributes"]["user.id"].startswith("C")
        tickets.add(call["attributes"]["session.id"])
    assert len(tickets) == 300
    some = [call["context"]["span_id"] for call in calls[:100]]
    annotations = client.spans.get_span_annotations(span_ids=some, project_identifier="support-desk-demo", limit=1_000)
    assert len(annotations) == 300
    assert {each["name"] for each in annotations} == {"brevity", "compliance", "helpfulness"}
    judged = [each for each in annotations if each["annotator_kind"] == "LLM"]
    assert all(each["result"]["label"] and each["result"]["explanation"] for each in judged)
    kept = {path.name.split(".")[0] for path in (folder / ".selfimprove" / "evaluators").iterdir()}
    assert kept == {"brevity", "compliance", "helpfulness"}


def test_a_second_run_adds_nothing_and_minds_no_stranger(said, folder):
    client = Client(base_url=server.status(folder / ".selfimprove").url)
    span = {
        "name": "somebody else's call",
        "context": {"trace_id": "f" * 32, "span_id": "f" * 16},
        "span_kind": "LLM",
        "start_time": "2026-10-01T00:00:00Z",
        "end_time": "2026-10-01T00:00:01Z",
        "status_code": "OK",
        "attributes": {"input.value": "no JSON", "output.value": "none either"},
    }
    client.spans.log_spans(project_identifier="support-desk-demo", spans=[span])
    code, again = run(folder)
    assert code == 0, again
    table = re.search(r"What landed.*?└", said, re.DOTALL)[0]
    assert table in again
    assert len(client.spans.get_spans(project_identifier="support-desk-demo", limit=1_000, timeout=60)) == 601


def has_begun(folder):
    """The demo holds its lock by now: what comes after it is there."""
    return (folder / ".selfimprove" / "phoenix").is_dir()


def has_phoenix(folder):
    try:
        return server.status(folder / ".selfimprove") is not None
    except PhoenixUnreachable:
        return False


def has_traces(folder):
    """The tickets are answered, and their traces are arriving."""
    if not has_phoenix(folder):
        return False
    client = Client(base_url=server.status(folder / ".selfimprove").url)
    try:
        return bool(client.spans.get_spans(project_identifier="support-desk-demo", limit=1))
    except httpx.HTTPError:
        return False


def until(true, demo, folder):
    while not true(folder):
        assert demo.poll() is None, demo.stdout.read()
        time.sleep(0.02)


def test_a_second_demo_at_the_same_time_is_refused(tmp_path_factory):
    with project(tmp_path_factory) as folder:
        with start(folder) as first:
            until(has_begun, first, folder)
            first.send_signal(signal.SIGSTOP)  # so that it surely is still there
            code, second = run(folder)
            first.send_signal(signal.SIGCONT)
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=180)
        assert (code, second.strip()) == (1, "Another demo is running in this folder. Wait for it to end.")


@pytest.mark.parametrize(
    "moment",
    [None, has_begun, has_phoenix, has_traces],
    ids=["at once", "Phoenix starts", "the desk answers", "the traces arrive"],
)
def test_ctrl_c_at_any_moment_leaves_nothing_running(tmp_path_factory, moment):
    with project(tmp_path_factory) as folder:
        with start(folder) as demo:
            if moment is None:
                # The interpreter itself has to be up; before that the signal is its own affair.
                began = time.monotonic()
                subprocess.run([sys.executable, "-c", "pass"], check=True)
                time.sleep(0.2 + time.monotonic() - began)
            else:
                until(moment, demo, folder)
            for _ in range(3):  # people press it again when nothing seems to happen
                demo.send_signal(signal.SIGINT)
                time.sleep(0.1)
            said, _ = demo.communicate(timeout=180)
        # Where an interrupt lands in a destructor, Python says so by itself and goes on; the next one counts.
        said = re.sub(r"Exception ignored in.*?KeyboardInterrupt: ?\n", "", said, flags=re.DOTALL)
        assert "Traceback" not in said
        assert demo.returncode == 130
        assert not has_phoenix(folder)
        if moment is not None:
            FileLock(folder / ".selfimprove" / "demo.lock").acquire(timeout=0).lock.release()


@pytest.mark.parametrize("moment", [has_phoenix, has_traces], ids=["the desk answers", "the traces arrive"])
def test_phoenix_killed_in_the_middle_is_one_sentence(tmp_path_factory, moment):
    with project(tmp_path_factory) as folder:
        with start(folder) as demo:
            until(moment, demo, folder)
            os.kill(server.status(folder / ".selfimprove").pid, signal.SIGKILL)
            said, _ = demo.communicate(timeout=300)
        assert demo.returncode == 1, said
        assert "Traceback" not in said
        assert "Phoenix" in said.splitlines()[-1]
        if moment is has_traces:
            return
        code, said = run(folder)
        assert code == 0, said
        assert len(re.findall(r"│ 300\s*│ 0\.\d\d\s*│ 0", said)) == 3
