"""What `instrument` costs an application: time added per call, and time at exit, with Phoenix up and down.

A model's endpoint that answers at once runs in a process of its own, so that a call is as short, and the share that
tracing adds as large, as it can be; a real model takes seconds. `up` is a real Phoenix, which on the same machine also
takes processor time from the application while it stores what it got; `down` is a port where nothing listens; `silent`
takes connections and never answers. The states take turns in one run, and each shows its best round, since what else
the machine does can only add. `cpu` is processor time of the whole application per call, the sending included. Trust
the ratios, and not the figures, which belong to the machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

CALLS, ROUNDS, WARM, EXITS = 60, 15, 5, 5
TEXT = "My parcel was due on Monday and the tracking page shows nothing. Where is it? " * 10
ANSWER = "[[ ## answer ## ]]\nIt left our warehouse.\n\n[[ ## completed ## ]]"
COMPLETION = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "rehearsal",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 50, "total_tokens": 110},
}

APPLICATION = """
import sys, time
from contextlib import nullcontext
url, endpoint, calls, text = sys.argv[1:]
if endpoint:
    from dspy_selfimprove import instrument
    instrument("overhead", endpoint=endpoint)
import openai
client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
for _ in range(int(calls)):
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
print(time.monotonic(), flush=True)
"""


def model(pipe: Connection) -> None:
    from aiohttp import web

    answer = json.dumps(COMPLETION).encode()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        web.run_app(application, sock=listener, print=None, handle_signals=False)


@contextmanager
def endpoint() -> Iterator[str]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=model, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """The median time and the mean processor time of many calls, in milliseconds."""
    for _ in range(WARM):
        call()
    times = []
    busy = time.process_time()
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times), 1000 * (time.process_time() - busy) / CALLS


def per_call(url: str, states: dict[str, str]) -> None:
    import dspy
    import openai

    from dspy_selfimprove import instrument

    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    messages = [{"role": "user", "content": TEXT}]
    lm = dspy.LM("openai/rehearsal", api_base=url, api_key="k", cache=False)
    predict = dspy.Predict("question -> answer")
    predict.set_lm(lm)
    calls: dict[str, Callable[[], object]] = {
        "openai": lambda: client.chat.completions.create(model="m", messages=messages),
        "dspy": lambda: predict(question=TEXT),
    }
    print(f"{'per call':<10}{'state':<7}{'ms':>7}{'added':>8}{'ratio':>7}{'cpu ms':>9}{'added':>8}")
    for name, call in calls.items():
        seen: dict[str, list[tuple[float, float]]] = {state: [] for state in ("off", *states)}
        for _ in range(ROUNDS):
            for state, rounds in seen.items():
                with instrument("overhead", endpoint=states[state]) if state in states else nullcontext():
                    rounds.append(measure(call))
        best = {state: [min(values) for values in zip(*rounds, strict=True)] for state, rounds in seen.items()}
        (off, idle) = best["off"]
        for state, (wall, busy) in best.items():
            print(
                f"{name:<10}{state:<7}{wall:>7.2f}{wall - off:>8.2f}{wall / off:>7.2f}{busy:>9.2f}{busy - idle:>8.2f}"
            )


def at_exit(url: str, states: dict[str, str]) -> None:
    print(f"\n{'at exit':<10}{'seconds':>7}")
    for state, phoenix in {"off": "", **states}.items():
        times = []
        for _ in range(EXITS):
            done = subprocess.run(
                [sys.executable, "-c", APPLICATION, url, phoenix, str(3 * CALLS), TEXT],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            times.append(time.monotonic() - float(done.stdout))
        print(f"{state:<10}{min(times):>7.2f}")


def main() -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
    logging.disable()
    from dspy_selfimprove.telemetry.server import running

    with (
        tempfile.TemporaryDirectory() as folder,
        endpoint() as url,
        running(Path(folder) / ".selfimprove") as phoenix,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        states = {"up": phoenix.url, "down": "http://127.0.0.1:9"}
        per_call(url, states)
        at_exit(url, {**states, "silent": f"http://127.0.0.1:{silent.getsockname()[1]}"})


if __name__ == "__main__":
    main()
