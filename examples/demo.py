"""`make demo`: the whole job, as far as it is built, on the stand-in model. No key, no network.

A support desk answers 300 tickets and is traced to a real Phoenix; three Phoenix evaluators judge the answers; their
scores go back onto the spans. Then the product sets in: the traces become a checkpoint (the prompt's template and slots
are found again, every sample has its variables and scores) and a diverse sample of them a dataset with a sealed test.
Run it again and it goes on where it was: tickets already answered and answers already judged are left alone. Phoenix
stays up at the end, so that you can look; after ctrl-C or an error, what the demo started goes down with it. A Phoenix
named in PHOENIX_COLLECTOR_ENDPOINT is used instead.

The model is a stand-in that only reads its prompt: the scores show that the machinery works, and nothing else.
"""

# ruff: noqa: E402 - ctrl-C is answered from the first moment on, also while the rest is being imported

from __future__ import annotations

import os
import signal
import sys

# Nothing is started yet, so there is nothing to clean up, and no exception that an import could swallow.
signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from statistics import mean
from types import FrameType
from typing import Any

import support_desk
from filelock import FileLock, Timeout
from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspy_selfimprove import files, instrument, track_evaluators
from dspy_selfimprove.errors import PhoenixUnreachable, SelfImproveError, SetupError
from dspy_selfimprove.rehearsal import Latency, RehearsalModel, serve
from dspy_selfimprove.runner import Runner
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry import annotations, server
from dspy_selfimprove.telemetry.annotations import Annotation
from dspy_selfimprove.telemetry.client import Address, connect

PROJECT = "support-desk-demo"
TICKETS = 300
SAMPLES = 200  # drawn of them
MODEL = "rehearsal-worker"
JUDGE = "rehearsal-judge"
PATIENCE = 60.0  # seconds without another span showing up in Phoenix
ROOM = 100 * 2**20  # bytes that Phoenix's database and logs may need
LOG = ".selfimprove/phoenix/phoenix.log"

console = Console()


@contextmanager
def alone() -> Iterator[None]:
    """One demo at a time in this folder."""
    lock = FileLock(files.home() / "demo.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SetupError("Another demo is running in this folder.", remedy="Wait for it to end.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def phoenix() -> Iterator[server.Phoenix]:
    """The Phoenix to use. One that was started here stays up if all goes well, and goes down with the demo if not."""
    try:
        before = server.status()
    except PhoenixUnreachable:
        before = None  # it died; or it is stuck, and then start says so
    with console.status("Starting Phoenix ...") as status:
        running = server.start(progress=lambda doing: status.update(escape(doing)))
    if not running.ours:
        console.print(f"Using the Phoenix at {escape(running.url)}.", soft_wrap=True)
    try:
        yield running
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another ctrl-C must not interrupt the cleaning up
        print("\nStopping ...", file=sys.stderr)
        if running.ours and (before is None or before.pid != running.pid):
            server.stop()
        raise


def answered(phoenix: server.Phoenix) -> dict[str, dict[str, Any]]:
    """What Phoenix has of the desk's model calls, by ticket: the span, the conversation and the reply."""
    from phoenix.client.types.spans import SpanQuery

    query = (
        SpanQuery()
        .where("span_kind == 'LLM' and status_code == 'OK'")
        .select("metadata", "input.value", "output.value")
    )
    with connect(Address.parse(phoenix.url, phoenix.api_key)) as client:
        frame = client.spans.get_spans_dataframe(query=query, project_identifier=PROJECT, limit=100_000, timeout=60)
    found = {}
    for span_id, row in frame.iterrows():
        if not isinstance(row["metadata"], dict) or "ticket" not in row["metadata"]:
            continue  # somebody else's call in this project
        messages = json.loads(row["input.value"])["messages"]
        reply = json.loads(row["output.value"])["choices"][0]["message"]["content"]
        turns = [f"{message['role']}: {message['content']}" for message in messages if message["role"] != "system"]
        found[row["metadata"]["ticket"]] = {"span": str(span_id), "input": "\n\n".join(turns), "output": reply}
    return found


def answer_tickets(base_url: str, phoenix: server.Phoenix, progress: Progress) -> dict[str, dict[str, Any]]:
    """Have the desk answer what it has not answered yet; give back everything it ever answered, read from Phoenix."""
    tickets = list(islice(support_desk.tickets(), TICKETS))
    done = answered(phoenix)
    waiting = [ticket for ticket in tickets if ticket["id"] not in done]
    desk = progress.add_task("The desk answers tickets", total=TICKETS, completed=TICKETS - len(waiting))
    if waiting:
        client = OpenAI(base_url=base_url, api_key="none", max_retries=2)
        with instrument(PROJECT, endpoint=phoenix.url, api_key=phoenix.api_key) as telemetry:
            for _ in support_desk.serve(client, waiting, model=MODEL, tracer=telemetry.tracer):
                progress.advance(desk)
            if not telemetry.flush(timeout=PATIENCE):
                raise PhoenixUnreachable("Phoenix stopped taking spans.", remedy="Run make demo again to go on.")
    landing = progress.add_task("The traces arrive in Phoenix", total=TICKETS)
    wanted, deadline, before = {ticket["id"] for ticket in tickets}, time.monotonic() + PATIENCE, 0
    while len(done := {name: row for name, row in answered(phoenix).items() if name in wanted}) < TICKETS:
        progress.update(landing, completed=len(done))
        if len(done) > before:
            deadline, before = time.monotonic() + PATIENCE, len(done)
        if time.monotonic() > deadline:
            raise PhoenixUnreachable(
                "Some traces did not arrive in Phoenix.", remedy=f"Look into its log, {LOG}; then run make demo again."
            )
        time.sleep(0.5)
    progress.update(landing, completed=TICKETS)
    return done


def judge(evaluator: Any, row: Mapping[str, Any]) -> Score:
    """One verdict. A judge that fails leaves none: missing is not zero."""
    from support_evaluators import POLICY

    try:
        (verdict,) = evaluator.evaluate({"policy": POLICY, "input": row["input"], "output": row["output"]})
    except Exception as error:
        return Score.missing(type(error).__name__)
    return Score(verdict.score, label=verdict.label, feedback=verdict.explanation or "")


def judge_answers(
    base_url: str, rows: Mapping[str, Mapping[str, Any]], phoenix: server.Phoenix, progress: Progress
) -> None:
    """Judge every answer that has no verdict yet, and write the verdicts onto the spans."""
    from support_evaluators import evaluators

    where = {"endpoint": phoenix.url, "api_key": phoenix.api_key}
    spans = [row["span"] for row in rows.values()]
    known = {(found.span_id, found.name) for found in annotations.read(spans, project=PROJECT, **where)}
    with track_evaluators(), ThreadPoolExecutor(8) as judges:
        for name, evaluator in evaluators(base_url, JUDGE).items():
            waiting = [row for row in rows.values() if (row["span"], name) not in known]
            task = progress.add_task(f"Phoenix evaluates {name}", total=len(rows), completed=len(rows) - len(waiting))
            verdicts = [(row["span"], judges.submit(judge, evaluator, row)) for row in waiting]
            try:
                scored = []
                for span, verdict in verdicts:
                    scored.append(Annotation(span, name, verdict.result(), kind="CODE" if name == "brevity" else "LLM"))
                    progress.advance(task)
            except BaseException:
                judges.shutdown(cancel_futures=True)
                raise
            annotations.write(scored, **where)


def summary(rows: Mapping[str, Mapping[str, Any]], phoenix: server.Phoenix) -> Table:
    """What landed, read back from Phoenix."""
    spans = [row["span"] for row in rows.values()]
    found = annotations.read(spans, project=PROJECT, endpoint=phoenix.url, api_key=phoenix.api_key)
    table = Table("metric", "answers judged", "mean score", "no verdict", title="What landed in Phoenix")
    for name in sorted({reading.name for reading in found}):
        scores = [reading.score for reading in found if reading.name == name and reading.score is not None]
        table.add_row(name, str(len(scores)), f"{mean(scores):.2f}", str(len(rows) - len(scores)))
    return table


def collect(phoenix: server.Phoenix) -> Runner:
    """From the traces to a dataset: what `dspy-selfimprove collect` does."""
    os.environ["PHOENIX_COLLECTOR_ENDPOINT"] = phoenix.url
    if phoenix.api_key:
        os.environ["PHOENIX_API_KEY"] = phoenix.api_key
    runner = Runner(PROJECT, since="7d")
    runner.run(SAMPLES)
    return runner


def check_room() -> None:
    """A full disk shows late and in strange ways, so it is asked for first."""
    if (free := shutil.disk_usage(files.home()).free) < ROOM:
        raise SetupError(
            f"The disk of this folder has {free // 2**20} MB left, and the demo may need {ROOM // 2**20}.",
            remedy="Free some space.",
        )


def run() -> None:
    check_room()
    with alone(), phoenix() as running, serve(RehearsalModel(seed=1), latency=Latency.lognormal(0.02)) as rehearsal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            rows = answer_tickets(rehearsal.url, running, progress)
            judge_answers(rehearsal.url, rows, running, progress)
        console.print(summary(rows, running))
        found = collect(running)
        console.print(f"\n[bold]What became of it[/bold]\n{escape(str(found.summary()))}\n", soft_wrap=True)
        if running.ours and server.status() is None:
            raise PhoenixUnreachable(
                "Phoenix is gone.", remedy="Was .selfimprove removed meanwhile? Run make demo again."
            )
        lines = [
            f"{len(rows)} conversations are in the project {PROJECT}; the scores are on each ChatCompletion:",
            f"  {running.project_url(PROJECT)}",
            f"The evaluators that ran are recorded in {files.home() / 'evaluators'}.",
            "The model was a stand-in: these scores show that the machinery works, and nothing about a model.",
        ]
        if running.ours:
            lines.insert(3, "Phoenix stays up; `.venv/bin/dspy-selfimprove phoenix stop` ends it.")
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C is a KeyboardInterrupt; a moment later if an import is under way, which may swallow it."""
    if frame is not None and "importlib" in frame.f_code.co_filename:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        return
    raise KeyboardInterrupt


def main() -> None:
    """Run it, with every mistake of the world as one sentence and an exit code."""
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run()
    except SelfImproveError as error:
        print(f"{error.problem} {error.remedy}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Interrupted. What the demo started is stopped; make demo goes on from here.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
