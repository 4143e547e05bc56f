"""What a checkpoint costs: composing it, loading it, looking at every sample; beside reading its Parquet file bare.

100,000 calls of one prompt with three slots, 1.5 kB of conversation each and two verdicts.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from dspy_selfimprove.checkpoint import Checkpoint, Origin
from dspy_selfimprove.composition import compose
from dspy_selfimprove.exchange import Exchange, Reading

SYSTEM = "You answer for Northwind Home.\nCustomer: {name}\nPlan: {plan}\nToday is {date}.\nBe friendly and brief.\n"
WORDS = ("parcel", "lamp", "invoice", "router", "refund", "late", "broken", "again", "please", "order", "Tuesday")


class Calls:
    def __init__(self, count: int) -> None:
        self.count = count

    def exchanges(self) -> Iterator[Exchange]:
        draw = random.Random(0)
        for number in range(self.count):
            system = SYSTEM.format(
                name=f"Ana {number % 9973}", plan=("Basic", "Plus")[number % 2], date=f"2026-11-{1 + number % 28:02}"
            )
            asked = " ".join(draw.choices(WORDS, k=200))
            span = f"{number:016x}"
            yield Exchange(
                id=span,
                request={
                    "model": "m",
                    "messages": [{"role": "system", "content": system}, {"role": "user", "content": asked}],
                },
                output={"role": "assistant", "content": asked[:300]},
                session_id=f"c{number // 3}",
                readings=tuple(Reading(span, name, "LLM", score=draw.random()) for name in ("tone", "help")),
            )


def timed(name: str, count: int, work: object) -> object:
    start = time.perf_counter()
    result = work()  # type: ignore[operator]
    seconds = time.perf_counter() - start
    print(f"{name:<34} {seconds:7.2f} s   {count / seconds:>10,.0f} samples/s")
    return result


def main(count: int = 100_000) -> None:
    folder = Path(tempfile.mkdtemp())
    timed("compose", count, lambda: compose(Calls(count), folder, origin=Origin("bench")))
    (file,) = folder.glob("*.parquet")
    print(f"on disk {file.stat().st_size / 1e6:.0f} MB")
    found = timed("load", count, lambda: Checkpoint.load(folder))
    timed("read the Parquet file, bare", count, lambda: pq.read_table(file))
    timed("make every sample", count, lambda: sum(1 for _ in found.samples))  # type: ignore[attr-defined]
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
