"""How many verdicts a second a judge gives at 50 ms a call, beside every way Phoenix offers and the bare client.

One server in a process of its own answers each call with the same verdict after exactly 50 ms (aiohttp, no model: the
rehearsal model's own work would be the bound). All ways ask it the same prompts, each with an input of its own, in
rounds that take turns in changing order. Rates and costs are medians over the rounds, `of raw openai` is the median of
the ratios within each round. `ideal` is slots / latency. CPU is this process's alone.

    python benchmarks/judge_throughput.py [seconds per measurement]

Read ratios, not rates: the machine is shared, and the server takes its part of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

LATENCY = 0.05
SLOTS = (16, 64)
ROUNDS = 9
SECONDS = 0.7
VERDICT = {"explanation": "It names no time frame and no link. " * 4, "label": "fair"}
METRIC = yaml.safe_load((Path(__file__).parent.parent / "metrics" / "helpfulness.yaml").read_text(encoding="utf-8"))
OUTPUT = "It left our warehouse on Monday and should be with you soon. " * 4


def serve(pipe: Connection) -> None:
    from aiohttp import web

    message = {"role": "assistant", "content": json.dumps(VERDICT), "refusal": None}
    answer = json.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": "gpt-judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 350},
        }
    ).encode()

    async def handle(request: web.Request) -> web.Response:
        await asyncio.gather(request.read(), asyncio.sleep(LATENCY))
        return web.Response(body=answer, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.to_thread(pipe.recv)
        await runner.cleanup()

    asyncio.run(run())


@contextmanager
def server() -> Iterator[str]:
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        here.send(None)
        process.join()


def evaluator(url: str) -> Any:
    from phoenix.evals import ClassificationEvaluator
    from phoenix.evals.llm import LLM

    llm = LLM(provider="openai", model="gpt-judge", base_url=url, api_key="none", initial_per_second_request_rate=1e6)
    return ClassificationEvaluator(
        name=METRIC["name"], llm=llm, prompt_template=METRIC["messages"], choices=METRIC["choices"]
    )


def inputs(count: int) -> list[dict[str, str]]:
    stamp = time.perf_counter_ns()
    return [{"input": f"Where is my parcel {stamp}-{number}?", "output": OUTPUT} for number in range(count)]


def in_threads(slots: int, work: Callable[[dict[str, str]], Any], count: int) -> None:
    with ThreadPoolExecutor(slots) as threads:
        list(threads.map(work, inputs(count)))


# The ways. Each makes what it needs once, and returns what is then measured for a number of verdicts.


def ours(url: str, slots: int) -> Callable[[int], None]:
    judge = _judge(url, slots)
    return lambda count: in_threads(slots, judge.score, count)


def ours_journaled(url: str, slots: int) -> Callable[[int], None]:
    from dspy_selfimprove.journal import Journal

    judge = _judge(url, slots, journal=Journal.open(Path(tempfile.mkdtemp()) / "run.db"))
    return lambda count: in_threads(slots, judge.score, count)


def ours_async(url: str, slots: int) -> Callable[[int], None]:
    judge = _judge(url, slots)

    async def run(count: int) -> None:
        await asyncio.gather(*(judge.ascore(each) for each in inputs(count)))

    return lambda count: asyncio.run(run(count))


def _judge(url: str, slots: int, **settings: Any) -> Any:
    from dspy_selfimprove.judge import Judge
    from dspy_selfimprove.model import Model, Models

    models = Models(Model(name="openai/gpt-judge", base_url=url, api_key="none"), slots=slots)
    return Judge(evaluator(url), models, **settings)


def raw_openai(url: str, slots: int) -> Callable[[int], None]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    template = METRIC["messages"][0]["content"]
    schema = {
        "type": "object",
        "properties": {
            "explanation": {"type": "string", "description": "A brief explanation of your reasoning."},
            "label": {"type": "string", "enum": list(METRIC["choices"])},
        },
        "required": ["explanation", "label"],
        "additionalProperties": False,
    }
    form = {
        "type": "json_schema",
        "json_schema": {"name": "extract_structured_data", "schema": schema, "strict": True},
    }

    def ask(each: dict[str, str]) -> Any:
        text = template.replace("{{input}}", each["input"]).replace("{{output}}", each["output"])
        messages: Any = [{"role": "system", "content": text}]
        done: Any = client.chat.completions.create(model="gpt-judge", messages=messages, response_format=form)  # type: ignore[call-overload]
        return json.loads(done.choices[0].message.content)["label"]

    return lambda count: in_threads(slots, ask, count)


def evaluate_one_llm(url: str, slots: int) -> Callable[[int], None]:
    shared = evaluator(url)
    return lambda count: in_threads(slots, shared.evaluate, count)


def evaluate_llm_per_thread(url: str, slots: int) -> Callable[[int], None]:
    free = [evaluator(url) for _ in range(slots)]
    local = threading.local()

    def run(count: int) -> None:
        left = list(free)

        def own() -> None:
            local.evaluator = left.pop()

        with ThreadPoolExecutor(slots, initializer=own) as threads:
            list(threads.map(lambda each: local.evaluator.evaluate(each), inputs(count)))

    return run


def async_dataframe(url: str, slots: int) -> Callable[[int], None]:
    import pandas as pd
    from phoenix.evals import async_evaluate_dataframe

    def run(count: int) -> None:
        frame = pd.DataFrame(inputs(count))
        asyncio.run(
            async_evaluate_dataframe(
                dataframe=frame, evaluators=[evaluator(url)], concurrency=slots, hide_tqdm_bar=True
            )
        )

    return run


WAYS = (
    raw_openai,
    ours,
    ours_async,
    ours_journaled,
    evaluate_one_llm,
    evaluate_llm_per_thread,
    async_dataframe,
)


def main(seconds: float) -> None:
    # async_evaluate_dataframe leaves clients behind on loops that ended; what they complain of is no figure.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with server() as url:
        for slots in SLOTS:
            ideal = slots / LATENCY
            ways = {way.__name__: way(url, slots) for way in WAYS}
            # The first call of each finds out how much it can do in the time.
            counts = {}
            for name, run in ways.items():
                run(slots)
                start = time.perf_counter()
                run(2 * slots)
                rate = 2 * slots / (time.perf_counter() - start)
                counts[name] = max(slots, int(rate * seconds))
            rates: dict[str, list[float]] = {name: [] for name in ways}
            costs: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(ROUNDS):
                for name in random.Random(turn).sample(list(ways), len(ways)):
                    start, cpu = time.perf_counter(), time.process_time()
                    ways[name](counts[name])
                    rates[name].append(counts[name] / (time.perf_counter() - start))
                    costs[name].append(1e3 * (time.process_time() - cpu) / counts[name])
            print(f"\n{slots} slots, {1000 * LATENCY:.0f} ms: ideal {ideal:,.0f} verdicts/s")
            print(f"{'':<26}{'verdicts/s':>12}{'of ideal':>10}{'of raw openai':>15}{'CPU ms each':>13}")
            for name in ways:
                rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
                pairs = zip(rates[name], rates["raw_openai"], strict=True)
                share = statistics.median(mine / raw for mine, raw in pairs)
                print(f"{name:<26}{rate:>12,.0f}{rate / ideal:>10.2f}{share:>15.2f}{cost:>13.2f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
