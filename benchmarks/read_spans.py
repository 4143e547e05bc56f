"""Reading production out of Phoenix: ours against its own client's call, in time and in memory, in one run.

Fifty thousand spans with prompts and answers of one to two kilobytes lie in a real Phoenix: a few hundred come in the
ordinary way, through OTLP, and the rest are copies of their rows, made inside the database while the server is down,
because it takes in only some 200 spans a second. A twentieth of them carry an annotation. Then each reader runs in a
process of its own and asks a Phoenix just started (the client's call leaves Phoenix a heap that slows the next
answers by a third): `get_spans_dataframe`, which gives a frame and keeps nothing, and `pull`, which lists,
fetches, reads annotations and leaves everything on disk; then `pull` again into the same folder, which finds nothing
new; then the reading of all exchanges from that folder. Peak memory is what the system says of the process, imports
included. Trust the ratios, and not the figures, which belong to the machine.

    python benchmarks/read_spans.py [how many spans]
"""

from __future__ import annotations

import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

SPANS, SEEDS, ROUNDS, ANNOTATED = 50_000, 300, 2, 20
PROJECT = "reading"
BEGAN = datetime(2026, 6, 1, tzinfo=UTC)
TOPICS = """
the of parcel delay customer refund order please tracking number warehouse invoice address monday morning account plan
upgrade billing cancel sorry within days return label courier address confirm email receipt charge policy
"""
WORDS = TOPICS.split()
STAMP = "%Y-%m-%d %H:%M:%S.%f"


def text(chance: random.Random, size: int) -> str:
    found: list[str] = []
    while size > 0:
        found.append(chance.choice(WORDS))
        size -= len(found[-1]) + 1
    return " ".join(found)


def seed(url: str) -> None:
    """The first spans, as an instrumented application would send them."""
    import httpx
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    chance = random.Random(1)
    request = ExportTraceServiceRequest()
    part = request.resource_spans.add()
    about = part.resource.attributes.add()
    about.key, about.value.string_value = "openinference.project.name", PROJECT
    spans = part.scope_spans.add().spans
    for number in range(SEEDS):
        messages = [
            {"role": "system", "content": text(chance, chance.randint(900, 1600))},
            {"role": "user", "content": text(chance, chance.randint(100, 400))},
        ]
        said = {"role": "assistant", "content": text(chance, chance.randint(200, 700))}
        body = {"messages": messages, "model": "support-1", "temperature": 0.2}
        usage = {"prompt_tokens": 400, "completion_tokens": 90, "total_tokens": 490}
        choice = {"index": 0, "finish_reason": "stop", "message": {**said, "refusal": None}}
        answer = {
            "id": f"c{number}",
            "object": "chat.completion",
            "model": "support-1",
            "choices": [choice],
            "usage": usage,
        }
        written: dict[str, object] = {
            "openinference.span.kind": "LLM",
            "input.value": json.dumps(body),
            "input.mime_type": "application/json",
            "output.value": json.dumps(answer),
            "output.mime_type": "application/json",
            "llm.system": "openai",
            "llm.model_name": "support-1",
            "llm.finish_reason": "stop",
            "llm.invocation_parameters": json.dumps({"model": "support-1", "temperature": 0.2}),
            "llm.token_count.prompt": 400,
            "llm.token_count.completion": 90,
            "llm.token_count.total": 490,
            "session.id": f"s{number % 50}",
            "metadata": json.dumps({"release": "2026.6"}),
        }
        for name, message in (("input", messages[0]), ("input", messages[1]), ("output", said)):
            at = messages.index(message) if name == "input" else 0
            written[f"llm.{name}_messages.{at}.message.role"] = message["role"]
            written[f"llm.{name}_messages.{at}.message.content"] = message["content"]
        span = spans.add(name="ChatCompletion", span_id=chance.randbytes(8), trace_id=chance.randbytes(16))
        span.start_time_unix_nano = int((BEGAN + timedelta(seconds=number)).timestamp()) * 10**9
        span.end_time_unix_nano = span.start_time_unix_nano + 1_500_000_000
        span.status.code = 1  # type: ignore[assignment]
        for key, value in written.items():
            attribute = span.attributes.add()
            attribute.key = key
            if isinstance(value, int):
                attribute.value.int_value = value
            else:
                attribute.value.string_value = str(value)
    headers = {"content-type": "application/x-protobuf"}
    httpx.post(f"{url}/v1/traces", content=request.SerializeToString(), headers=headers).raise_for_status()


def arrived(url: str) -> int:
    from phoenix.client import Client
    from phoenix.client.types.spans import SpanQuery

    query = SpanQuery().select("span_id")
    reading = Client(base_url=url).spans
    return len(reading.get_spans_dataframe(query=query, project_identifier=PROJECT, limit=10**7, timeout=120))


def multiply(database: Path, total: int) -> None:
    """Copy the rows of the spans and their traces, each copy with ids and a time of its own."""
    chance = random.Random(2)
    with sqlite3.connect(database) as connection:
        spans = columns(connection, "spans")
        traces = columns(connection, "traces")
        rows = [dict(zip(spans, row, strict=True)) for row in connection.execute("SELECT * FROM spans ORDER BY id")]
        above = {row[0]: dict(zip(traces, row, strict=True)) for row in connection.execute("SELECT * FROM traces")}
        next_trace, next_span = max(above) + 1, rows[-1]["id"] + 1
        for number in range(total - len(rows)):
            span = rows[number % len(rows)]
            began = BEGAN + timedelta(days=1, seconds=30 * number, microseconds=chance.randrange(10**6))
            times = {"start_time": began.strftime(STAMP), "end_time": (began + timedelta(seconds=1.5)).strftime(STAMP)}
            trace = {
                **above[span["trace_rowid"]],
                **times,
                "id": next_trace + number,
                "trace_id": chance.randbytes(16).hex(),
            }
            insert(connection, "traces", trace)
            again = {"id": next_span + number, "trace_rowid": trace["id"], "span_id": chance.randbytes(8).hex()}
            insert(connection, "spans", {**span, **times, **again})
        note = "INSERT INTO span_annotations (span_rowid, name, label, score, explanation, metadata, annotator_kind, "
        note += "identifier, source) SELECT id, 'tone', 'fair', 0.5, 'It is polite.', '{}', 'LLM', 'judge', 'API' "
        connection.execute(f"{note} FROM spans WHERE id % {ANNOTATED} = 0")


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def read(how: str, url: str, folder: str, total: int) -> None:
    """One reader, in this process; says how many spans, seconds and bytes of memory."""
    began = time.perf_counter()
    if how == "client":
        from phoenix.client import Client

        reading = Client(base_url=url).spans
        count = len(reading.get_spans_dataframe(project_identifier=PROJECT, limit=total + 1, timeout=3600))
    elif how == "exchanges":
        from dspy_selfimprove.telemetry.spans import Pull

        count = sum(1 for _ in Pull(folder).exchanges())
    else:
        from dspy_selfimprove.telemetry.spans import pull

        count = len(pull(PROJECT, BEGAN - timedelta(days=1), into=folder, endpoint=url))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps([count, seconds, peak]))


def measured(how: str, url: str, folder: Path, total: int) -> tuple[float, float]:
    """Spans a second and MiB at the peak."""
    command = [sys.executable, __file__, "--read", how, url, str(folder), str(total)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    assert count == total, f"{how} read {count} of {total} spans"
    return count / seconds, peak / 2**20


def main(total: int) -> None:
    from dspy_selfimprove.telemetry.server import running

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / ".selfimprove"
        with running(home) as phoenix:
            seed(phoenix.url)
            while arrived(phoenix.url) < SEEDS:
                time.sleep(0.2)
        multiply(home / "phoenix" / "phoenix.db", total)
        seen: dict[str, list[tuple[float, float]]] = {}
        for number in range(ROUNDS):
            held = Path(folder) / f"pull-{number}"
            for name, how in (
                ("client", "client"),
                ("ours", "pull"),
                ("ours again", "pull"),
                ("exchanges", "exchanges"),
            ):
                with running(home) as phoenix:
                    assert arrived(phoenix.url) == total
                    seen.setdefault(name, []).append(measured(how, phoenix.url, held, total))
        size = sum(file.stat().st_size for file in held.iterdir()) / 2**20
    best = {name: (max(rate for rate, _ in rounds), max(peak for _, peak in rounds)) for name, rounds in seen.items()}
    rate, peak = best["client"]
    print(f"{total:,} spans, {size:.0f} MiB on disk; the best time and the worst memory of {ROUNDS} rounds")
    print(f"{'':<12}{'spans/s':>9}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}")
    for name, (fast, large) in best.items():
        print(f"{name:<12}{fast:>9,.0f}{fast / rate:>8.2f}{large:>10,.0f}{large / peak:>8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(*sys.argv[2:5], total=int(sys.argv[5]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else SPANS)
