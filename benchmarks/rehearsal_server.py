"""How many calls a second the rehearsal server answers, against a bare aiohttp handler that returns a constant.

Each server runs in a process of its own, with no latency and no faults; the load comes from this one, over kept-alive
connections and with as little work per call as possible. `server` has a model that returns a constant, so it shows what
checking, counting and serializing cost; `rehearsal` has the real stand-in. Trust the ratios, which come from one run
with the servers taking turns, and not the figures, which belong to the machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

CLIENTS = (1, 16, 64)
SECONDS, ROUNDS = 1.0, 3

BODY = {
    "model": "rehearsal",
    "messages": [
        {
            "role": "system",
            "content": "You answer support tickets for a small online shop. Be polite, say what happens next, and "
            "keep it to a few sentences. Never promise a date that you do not know.",
        },
        {"role": "user", "content": "My parcel was due on Monday and the tracking page shows nothing. Where is it?"},
    ],
}
COMPLETION = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "rehearsal",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It left our warehouse. " * 10},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 60, "completion_tokens": 50, "total_tokens": 110},
}


class Constant:
    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return COMPLETION


def bare(pipe: Connection) -> None:
    from aiohttp import web

    answer = json.dumps(COMPLETION).encode()

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.to_thread(pipe.recv)
        await runner.cleanup()

    asyncio.run(run())


def server(pipe: Connection) -> None:
    from dspy_selfimprove.rehearsal.server import serve

    with serve(Constant()) as served:
        pipe.send(served.port)
        pipe.recv()


def rehearsal(pipe: Connection) -> None:
    from dspy_selfimprove.rehearsal.model import RehearsalModel
    from dspy_selfimprove.rehearsal.server import serve

    with serve(RehearsalModel()) as served:
        pipe.send(served.port)
        pipe.recv()


@contextmanager
def running(target: Callable[[Connection], None]):
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=target, args=(there,))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


async def load(port: int, clients: int) -> float:
    """Calls a second that `clients` connections get answered, each sending its next call when it has its answer."""
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    start = time.perf_counter()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        calls = 0
        while time.perf_counter() - start < SECONDS:
            writer.write(head + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError(answer.decode())
            await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
            calls += 1
        writer.close()
        return calls

    return sum(await asyncio.gather(*(client(*stream) for stream in streams))) / (time.perf_counter() - start)


def main() -> None:
    targets = (bare, server, rehearsal)
    with ExitStack() as stack:
        ports = {target.__name__: stack.enter_context(running(target)) for target in targets}
        for port in ports.values():
            asyncio.run(load(port, 1))
        print(
            f"{'clients':>8}"
            + "".join(f"{name + ' calls/s':>20}" for name in ports)
            + f"{'server/bare':>14}{'rehearsal/bare':>17}"
        )
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {name: [] for name in ports}
            for _ in range(ROUNDS):
                for name, port in ports.items():
                    rates[name].append(asyncio.run(load(port, clients)))
            middle = {name: statistics.median(found) for name, found in rates.items()}
            line = f"{clients:>8}" + "".join(f"{rate:>20,.0f}" for rate in middle.values())
            print(f"{line}{middle['server'] / middle['bare']:>14.2f}{middle['rehearsal'] / middle['bare']:>17.2f}")


if __name__ == "__main__":
    main()
