"""Calls of an application reach a real Phoenix; and whatever happens to Phoenix, the application does not notice."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.telemetry import outbox
from dspy_selfimprove.telemetry.instrument import instrument, suppress_tracing, using_attributes

ROOT = Path(__file__).parents[2]
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """No test finds a Phoenix that somebody runs for this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")


def ask(url: str, text: str = "hello", **more):
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    return client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": text}], **more)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PHOENIX_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**environment, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What arrives.


def test_openai_calls_arrive_with_their_content(phoenix, chat, project, spans_in):
    async def ask_async():
        client = openai.AsyncOpenAI(base_url=chat.url, api_key="k", max_retries=0)
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "from async"}]
        return await client.chat.completions.create(model="gpt-x", messages=messages)

    with instrument(project=project, endpoint=phoenix.url) as sending:
        ask(chat.url, "from sync", temperature=0.2)
        asyncio.run(ask_async())
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(chat.url, "from stream", stream=True))
        assert sending.flush()
    assert streamed == "Yousaid:fromstream"
    sync, asynchronous, stream = (span["attributes"] for span in spans_in(project, 3))
    assert json.loads(sync["input.value"])["messages"] == [{"role": "user", "content": "from sync"}]
    assert json.loads(sync["input.value"])["temperature"] == 0.2
    assert sync["llm.output_messages.0.message.content"] == "You said: from sync"
    assert sync["llm.token_count.total"] == 5
    assert asynchronous["llm.input_messages.0.message.content"] == "Be kind."
    assert asynchronous["llm.output_messages.0.message.content"] == "You said: from async"
    assert stream["llm.output_messages.0.message.content"] == streamed


def test_spans_of_dspy_keep_their_parents_in_threads(phoenix, chat, project, spans_in):
    model = dspy.LM("openai/gpt-x", api_base=chat.url, api_key="k", cache=False)
    program = dspy.ChainOfThought("question -> answer")
    with instrument(project=project, endpoint=phoenix.url) as sending, dspy.context(lm=model):
        with sending.tracer.start_as_current_span("request", openinference_span_kind="chain"):
            parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
            parallel([(program, {"question": f"question {number}"}) for number in range(4)])
        with sending.tracer.start_as_current_span("pool") as pool_span, ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: ask(chat.url, str(number)), range(2)))
        assert sending.flush()
    spans = spans_in(project, 1 + 4 * 5 + 1 + 2)
    by_id = {span["context"]["span_id"]: span for span in spans}

    def lineage(span):
        names = [span["name"]]
        while span["parent_id"]:
            span = by_id[span["parent_id"]]
            names.append(span["name"])
        return names

    models = [span for span in spans if span["name"] == "LM.__call__"]
    assert len(models) == 4
    assert all(lineage(span)[-2:] == ["ChainOfThought.forward", "request"] for span in models)
    assert {span["span_kind"] for span in models} == {"LLM"}
    calls = [span for span in spans if span["name"] == "ChatCompletion"]
    own = f"{pool_span.get_span_context().span_id:016x}"
    assert [span["parent_id"] for span in calls] == [own, own]


def test_sessions_users_and_metadata_arrive_and_suppressed_calls_do_not(phoenix, chat, project, spans_in):
    with instrument(project=project, endpoint=phoenix.url):
        with using_attributes(session_id="s-1", user_id="u-1", metadata={"plan": "pro"}):
            ask(chat.url)
        with suppress_tracing():
            ask(chat.url, "not this one")
        ask(chat.url, "last")
    first, last = spans_in(project, 2)
    assert (first["attributes"]["session.id"], first["attributes"]["user.id"]) == ("s-1", "u-1")
    assert first["attributes"]["metadata.plan"] == "pro"
    assert "session.id" not in last["attributes"]


def test_hostile_text_arrives_and_takes_no_other_span_with_it(phoenix, project, spans_in):
    texts = {
        "nul": "a\x00b",
        "surrogate": "half \ud83d",
        "bidi": "\u202egnp.exe",
        "huge": "x" * 1_000_000,
        "plain": "p",
    }
    with instrument(project=project, endpoint=phoenix.url) as sending:
        for name, text in texts.items():
            with sending.tracer.start_as_current_span(f"{name} {text[:8]}") as span:
                span.set_attribute("input.value", text)
                span.set_attribute("tag.tags", [text[:10], "second"])
                span.add_event("seen", {"text": text[:10]})
        assert sending.flush()
    arrived = {span["name"].split(" ")[0]: span["attributes"]["input.value"] for span in spans_in(project, 5)}
    assert arrived.pop("surrogate") == "half \ufffd"
    assert arrived == {name: text for name, text in texts.items() if name != "surrogate"}


def test_a_failed_call_raises_as_ever_and_arrives_as_an_error(phoenix, project, spans_in):
    with instrument(project=project, endpoint=phoenix.url), pytest.raises(openai.APIConnectionError):
        ask(DEAD)
    (span,) = spans_in(project, 1)
    assert span["status_code"] == "ERROR"


# What the application does not notice.

APPLICATION = """
    import sys
    from dspy_selfimprove.telemetry.instrument import instrument
    endpoint, url = sys.argv[1:]
    sending = instrument("app", endpoint=endpoint or None) if endpoint != "none" else None
    import openai
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    for number in range(20):
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(number)}])
        print(answer.choices[0].message.content)
"""


def test_with_a_dead_collector_the_application_prints_the_same_and_warns_once(chat):
    plain = run(APPLICATION, "none", chat.url)
    dead = run(APPLICATION, DEAD, chat.url)
    assert plain.returncode == dead.returncode == 0
    assert dead.stdout == plain.stdout
    assert plain.stderr == ""
    (line,) = dead.stderr.splitlines()
    assert line.startswith("Phoenix at http://127.0.0.1:9 does not take spans; they wait in memory. Start it with ")


def test_a_collector_that_never_answers_does_not_hold_up_the_exit(chat):
    """It accepts connections and is silent, so that each attempt costs its full time."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = run(APPLICATION, f"http://127.0.0.1:{silent.getsockname()[1]}", chat.url)  # fails after 60 s
    assert ended.returncode == 0


def test_what_is_left_at_exit_is_sent(collector, chat):
    ended = run(APPLICATION, collector.url, chat.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert collector.names == ["ChatCompletion"] * 20


def test_a_collector_that_is_gone_for_a_while_loses_nothing(collector, chat, until, monkeypatch):
    monkeypatch.setattr(outbox, "PERIOD", 0.05)
    with instrument("app", endpoint=collector.url) as sending:
        ask(chat.url, "before")
        assert sending.flush()
        collector.stop()
        answers = [ask(chat.url, str(number)).choices[0].message.content for number in range(3)]
        assert not sending.flush()
        collector.start()
        assert until(lambda: len(collector.names) == 4)
        assert sending.flush()
        assert sending.lost == 0
    assert answers == ["You said: 0", "You said: 1", "You said: 2"]
    assert len({span.span_id for span in collector.spans}) == 4


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, "text/plain", "does not accept our key"),
        (503, "text/plain", "takes no spans now"),
        (200, "text/html", "is not Phoenix"),
        (405, "text/plain", "is not Phoenix"),
    ],
)
def test_flush_tells_the_truth_and_spans_wait(collector, caplog, status, kind, says):
    collector.status, collector.kind = status, kind
    with instrument("app", endpoint=collector.url, api_key="secret-key") as sending:
        for name in ("one", "two", "three"):
            with sending.tracer.start_as_current_span(name):
                pass
        assert [sending.flush() for _ in range(3)] == [False] * 3
        collector.status, collector.kind = 200, "application/x-protobuf"
        assert sending.flush()
    assert collector.names == ["one", "two", "three"]
    assert [record.message for record in caplog.records if says in record.message] != []
    assert len(caplog.records) == 1
    assert "secret-key" not in caplog.text + repr(sending)
    assert set(collector.keys) == {"Bearer secret-key"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_no_delivery_and_takes_the_key_nowhere(collector, elsewhere, caplog, status):
    collector.status, collector.headers = status, {"location": f"{elsewhere.url}/v1/traces"}
    with instrument("app", endpoint=collector.url, api_key="secret-key") as sending:
        with sending.tracer.start_as_current_span("one"):
            pass
        assert not sending.flush()
        assert (elsewhere.attempts, elsewhere.keys) == (0, [])
        assert "Check the address" in caplog.text
        collector.status, collector.headers = 200, {}
        assert sending.flush()
    assert collector.names == ["one"]


def test_a_user_in_the_address_is_sent_along_and_shown_nowhere(collector, caplog):
    with instrument("app", endpoint=collector.url.replace("//", "//bob:hunter%402@"), api_key="k") as sending:
        with sending.tracer.start_as_current_span("one"):
            pass
        assert sending.flush()
        collector.status = 503
        with sending.tracer.start_as_current_span("two"):
            pass
        assert not sending.flush()
        assert sending.endpoint == collector.url
        collector.status = 200
        assert "hunter" not in caplog.text + repr(sending)
    assert collector.names == ["one", "two"]
    assert set(collector.keys) == {f"Basic {base64.b64encode(b'bob:hunter@2').decode()}"}


def test_a_batch_that_will_never_be_taken_is_lost_once_and_told_once(collector, caplog):
    collector.status = 422
    with instrument("app", endpoint=collector.url) as sending:
        with sending.tracer.start_as_current_span("bad"):
            pass
        assert not sending.flush()
        assert sending.lost == 1
        collector.status = 200
        assert sending.flush()
        with sending.tracer.start_as_current_span("good"):
            pass
        assert sending.flush()
    assert collector.names == ["good"]
    assert len(caplog.records) == 1


def test_memory_is_bounded_by_number_and_by_size_and_the_oldest_go(collector, monkeypatch):
    monkeypatch.setattr(outbox, "HELD_SPANS", 5)
    monkeypatch.setattr(outbox, "HELD_CHARACTERS", 1000)
    collector.status = 503
    with instrument("app", endpoint=collector.url) as sending:
        for number in range(8):
            with sending.tracer.start_as_current_span(str(number)):
                pass
        assert not sending.flush()
        assert sending.lost == 3
        with sending.tracer.start_as_current_span("big") as span:
            span.set_attribute("input.value", "x" * 950)
        with sending.tracer.start_as_current_span("bigger") as span:
            span.set_attribute("input.value", "x" * 2000)
        collector.status = 200
        assert not sending.flush()  # it took all that was left, but not everything
        assert sending.flush()
    assert collector.names == ["bigger"]
    assert sending.lost == 9


def test_large_batches_are_split(collector, monkeypatch):
    monkeypatch.setattr(outbox, "BATCH_SPANS", 3)
    with instrument("app", endpoint=collector.url) as sending:
        for number in range(8):
            with sending.tracer.start_as_current_span(str(number)):
                pass
        assert sending.flush()
    assert collector.names == [str(number) for number in range(8)]
    assert all(len(post.resource_spans[0].scope_spans[0].spans) <= 3 for post in collector.posts)


def test_many_threads_lose_nothing(collector):
    with instrument("app", endpoint=collector.url) as sending:

        def work(worker: int) -> None:
            for number in range(200):
                with sending.tracer.start_as_current_span(f"{worker}-{number}"):
                    pass

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sending.flush(timeout=20)
    assert sorted(collector.names) == sorted(f"{worker}-{number}" for worker in range(8) for number in range(200))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_sends_its_own_spans_and_none_of_its_parents(collector):
    ended = run(
        """
        import os, sys
        from dspy_selfimprove.telemetry.instrument import instrument
        sending = instrument("app", endpoint=sys.argv[1])
        def span(name):
            with sending.tracer.start_as_current_span(name): pass
        span("parent, held")
        child = os.fork()
        if child == 0:
            span("child")
            os._exit(0 if sending.flush() else 1)
        assert os.waitpid(child, 0)[1] == 0
        span("parent, later")
        """,
        collector.url,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(collector.names) == ["child", "parent, held", "parent, later"]


def test_an_import_in_another_thread_is_not_waited_for_while_it_waits_for_us(tmp_path):
    """One thread is in `instrument`, importing; the other in the import it needs, and at our hook there."""
    modules = {
        "library_one": "",
        "library_two": "",
        "switch": """
            class Switch:
                is_instrumented_by_opentelemetry = False
                def instrument(self, **_): print("on", type(self).__name__, flush=True)
                def uninstrument(self): pass
        """,
        "switch_one": """
            from switch import Switch
            class One(Switch): pass
        """,
        "switch_two": """
            import sys, threading
            from switch import Switch
            other = threading.Thread(target=lambda: __import__("library_one"), daemon=True)
            other.start()
            while "library_one" not in sys.modules:
                other.join(0.01)
            import library_one  # complete only when our hook has run
            class Two(Switch): pass
        """,
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    ended = run(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import library_two
        from dspy_selfimprove.telemetry import instrument as module
        module.LIBRARIES = {"library_one": "switch_one:One", "library_two": "switch_two:Two"}
        with module.instrument("app", endpoint="http://127.0.0.1:9") as sending: pass
        """,
        str(tmp_path),
    )
    assert (ended.stderr, sorted(ended.stdout.splitlines())) == ("", ["on One", "on Two"])


def test_nothing_is_imported_for_the_application(collector, chat):
    ended = run(
        """
        import sys
        from dspy_selfimprove.telemetry.instrument import instrument
        sending = instrument("app", endpoint=sys.argv[1])
        print(sorted({"openai", "dspy", "pandas", "phoenix"} & set(sys.modules)))
        import dspy
        class Answer:
            def complete(self, request):
                reply = dspy.lm15.Message.assistant([dspy.lm15.TextPart("[[ ## answer ## ]]\\nyes")])
                return dspy.lm15.Response(id=None, model="m", message=reply, finish_reason="stop",
                    usage=dspy.lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2))
        with dspy.context(lm=dspy.LM("any/name", engine=Answer(), cache=False)):
            print(dspy.Predict("question -> answer")(question="q").answer)
        """,
        collector.url,
    )
    assert (ended.stdout, ended.stderr) == ("[]\nyes\n", "")
    assert "LM.__call__" in collector.names


# One at a time, and gone without a trace.


def test_the_same_call_again_is_the_same_instrumentation(collector, chat):
    with instrument("app", endpoint=collector.url) as sending:
        assert instrument("app", endpoint=collector.url) is sending
        with pytest.raises(UsageError, match="already sends its calls to the project 'app'"):
            instrument("another", endpoint=collector.url)
        ask(chat.url)
    assert collector.names == ["ChatCompletion"]
    with instrument("another", endpoint=collector.url):
        ask(chat.url)
    assert collector.names == ["ChatCompletion"] * 2


@pytest.mark.parametrize("name", ["", " ", "a/b", "a?b", "a#b", "a\nb", "UHJvamVjdDox"])
def test_a_project_that_phoenix_could_not_find_again_is_refused(name):
    with pytest.raises(UsageError, match="cannot name a Phoenix project"):
        instrument(name)


def test_a_wrong_address_is_refused_and_leaves_nothing_behind(collector):
    with pytest.raises(UsageError):
        instrument("app", endpoint="localhost:6006")
    with instrument("app", endpoint=collector.url):
        pass


def _attributes():
    classes = [
        openai.OpenAI, openai.AsyncOpenAI, threading.Thread, threading.Timer, ThreadPoolExecutor, dspy.LM, dspy.BaseLM,
        dspy.Predict, dspy.Module, dspy.Adapter, dspy.Tool, dspy.Retrieve, dspy.ColBERTv2, dspy.utils.DummyLM,
    ]  # fmt: skip
    return {(owner, name): value for owner in classes for name, value in vars(owner).items() if callable(value)}


def test_stop_puts_every_function_back(collector, chat):
    before = _attributes()
    with instrument("app", endpoint=collector.url) as sending:
        during = _attributes()
    after = _attributes()
    changed = {key for key in during if during[key] is not before.get(key)}
    assert {(dspy.Module, "__call__"), (openai.OpenAI, "request"), (threading.Thread, "start")} <= changed
    assert after.keys() == before.keys()
    assert [key for key in before if after[key] is not before[key]] == []
    ask(chat.url)
    assert sending.stop()
    assert collector.names == []


def test_stop_leaves_what_somebody_else_put_on_top(collector, chat, monkeypatch):
    seen = []
    with instrument("app", endpoint=collector.url):
        inner = openai.OpenAI.request

        def request(self, *arguments, **options):
            seen.append("asked")
            return inner(self, *arguments, **options)

        monkeypatch.setattr(openai.OpenAI, "request", request)
    ask(chat.url)
    assert seen == ["asked"]
    assert collector.names == []


def test_an_application_with_its_own_opentelemetry_keeps_it(collector, chat):
    exported = InMemorySpanExporter()
    own = TracerProvider()
    own.add_span_processor(SimpleSpanProcessor(exported))
    before = trace.get_tracer_provider()
    with instrument("app", endpoint=collector.url) as sending:
        with own.get_tracer("host").start_as_current_span("request") as request:
            ask(chat.url)
        assert sending.flush()
    assert trace.get_tracer_provider() is before
    assert [span.name for span in exported.get_finished_spans()] == ["request"]
    (ours,) = collector.spans
    assert ours.trace_id == request.get_span_context().trace_id.to_bytes(16, "big")
    assert ours.parent_span_id == request.get_span_context().span_id.to_bytes(8, "big")


def test_what_the_application_does_not_sample_it_still_does_not_and_we_still_do(collector):
    exported = InMemorySpanExporter()
    own = TracerProvider(sampler=ALWAYS_OFF)
    own.add_span_processor(SimpleSpanProcessor(exported))
    below = TracerProvider()  # as OpenTelemetry's default: what the parent decided
    below.add_span_processor(SimpleSpanProcessor(exported))
    with instrument("app", endpoint=collector.url) as sending:
        with (
            own.get_tracer("host").start_as_current_span("request"),
            sending.tracer.start_as_current_span("ours"),
            below.get_tracer("host").start_as_current_span("http"),
        ):
            pass
        assert sending.flush()
    assert collector.names == ["ours"]
    assert exported.get_finished_spans() == ()


def test_an_instrumentor_that_the_application_switched_on_is_left_alone(collector, chat, caplog):
    from openinference.instrumentation.openai import OpenAIInstrumentor

    exported = InMemorySpanExporter()
    own = TracerProvider()
    own.add_span_processor(SimpleSpanProcessor(exported))
    OpenAIInstrumentor().instrument(tracer_provider=own)
    try:
        with instrument("app", endpoint=collector.url):
            ask(chat.url)
        ask(chat.url)
    finally:
        OpenAIInstrumentor().uninstrument()
    assert [span.name for span in exported.get_finished_spans()] == ["ChatCompletion"] * 2
    assert collector.names == []
    assert [record.message for record in caplog.records] == [
        "The application already traces openai its own way; those calls stay there."
    ]


def test_an_application_with_predictors_of_its_own_is_traced(collector, chat, caplog):
    class Careful(dspy.Predict):
        def forward(self, **inputs):
            return super().forward(**inputs)

    model = dspy.LM("openai/gpt-x", api_base=chat.url, api_key="k", cache=False)
    with instrument("app", endpoint=collector.url), dspy.context(lm=model):
        assert Careful("question -> answer")(question="q").answer == "yes"
    assert "LM.__call__" in collector.names
    assert not hasattr(dspy, "Careful")
    assert caplog.records == []


def test_a_phoenix_that_is_started_later_gets_what_waited(collector, monkeypatch, caplog):
    with instrument("app") as sending:
        assert sending.endpoint is None
        with sending.tracer.start_as_current_span("early"):
            pass
        assert not sending.flush()
        monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", f"{collector.url}/v1/traces")
        assert sending.endpoint == collector.url
        assert sending.flush()
    assert collector.names == ["early"]
    assert len(caplog.records) == 1
    assert "spans wait in memory" in caplog.text


def test_the_phoenix_of_the_project_is_found_after_a_change_of_directory(phoenix, project, spans_in, monkeypatch):
    home = Path(phoenix.database.removeprefix("sqlite:///")).parents[1]
    monkeypatch.chdir(home.parent)
    with instrument(project) as sending:
        monkeypatch.chdir("/")
        assert sending.endpoint == phoenix.url
        with sending.tracer.start_as_current_span("one"):
            pass
        assert sending.flush()
    assert [span["name"] for span in spans_in(project, 1)] == ["one"]


def test_a_busy_log_is_not_written_to(collector, chat, caplog):
    with caplog.at_level(logging.DEBUG), instrument("app", endpoint=collector.url) as sending:
        with sending.tracer.start_as_current_span("one"):
            pass
        assert sending.flush()
    assert caplog.records == []
