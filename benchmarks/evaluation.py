"""What an evaluation of a chat program with two judges takes at 50 ms a call, beside dspy.Evaluate with the same ones.

One server in a process of its own answers each call after exactly 50 ms (judge_throughput.py's, no model): a verdict to
whoever asks, also to the program, which does not mind. Ways take turns; figures are medians of the rounds. `ideal` is
all calls of the run, one rollout and two verdicts for each example, times the latency, divided by the slots. CPU is
this process's alone. `aevaluate` is the same threads, awaited; `acall on one loop` is what was not built: program and
judges on one event loop behind a semaphore.

    python benchmarks/evaluation.py [examples] [rounds]

Read ratios, not rates: the machine is shared, and the server takes its part of it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_found = importlib.util.spec_from_file_location("judge_throughput", Path(__file__).with_name("judge_throughput.py"))
assert _found is not None
assert _found.loader is not None
throughput: Any = importlib.util.module_from_spec(_found)
sys.modules["judge_throughput"] = throughput  # its server's process finds its function by this name
_found.loader.exec_module(throughput)

CALLS = 3  # of each example: one answer, two verdicts


def main(count: int, rounds: int) -> None:
    import dspy

    from dspy_selfimprove.evaluation import aevaluate, evaluate
    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.metric import Metrics, metric_of
    from dspy_selfimprove.model import Model, Models
    from dspy_selfimprove.program import ChatProgram
    from dspy_selfimprove.prompt import ChatPrompt

    program = ChatProgram(ChatPrompt(system="You answer support tickets. " * 20))

    def examples() -> list[Any]:
        stamp = time.perf_counter_ns()
        turns = [[{"role": "user", "content": f"Where is my parcel {stamp}-{number}?"}] for number in range(count)]
        return [dspy.Example(conversation=each).with_inputs("conversation") for each in turns]

    def ways(url: str, slots: int) -> dict[str, Callable[[], Any]]:
        models = Models(Model(name="openai/gpt-judge", base_url=url, api_key="none"), slots=slots)
        spec = Path(__file__).parent.parent / "metrics"
        metrics = Metrics(metric_of(spec / f"{name}.yaml", models=models) for name in ("helpfulness", "tone"))
        lm = models.lm("worker")
        journal = Journal.open(Path(tempfile.mkdtemp()) / "run.db")

        def stock() -> None:
            dspy.Evaluate(devset=examples(), metric=metrics, num_threads=slots, display_progress=False)(program)

        async def one_loop() -> None:
            gate = asyncio.Semaphore(slots)

            async def one(example: Any) -> None:
                async with gate:
                    prediction = await program.acall(**example.inputs())
                await asyncio.gather(*(metric.ascore(example, prediction) for metric in metrics))

            await asyncio.gather(*(one(example) for example in examples()))

        return {
            "dspy.Evaluate": stock,
            "evaluate": lambda: evaluate(program, examples(), metrics, show=False),
            "evaluate, half as many threads again": lambda: evaluate(
                program, examples(), metrics, slots=slots * 3 // 2, show=False
            ),
            "evaluate, with a journal": lambda: evaluate(program, examples(), metrics, journal=journal, show=False),
            "aevaluate": lambda: asyncio.run(aevaluate(program, examples(), metrics, show=False)),
            "acall on one loop": lambda: asyncio.run(one_loop()),
            "lm": lm,
        }

    with throughput.server() as url:
        for slots in throughput.SLOTS:
            calls = ways(url, slots)
            lm = calls.pop("lm")
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            cpu: dict[str, list[float]] = {name: [] for name in calls}
            with dspy.context(lm=lm):
                for number in range(rounds + 1):
                    for name, call in calls.items():
                        start, used = time.perf_counter(), time.process_time()
                        call()
                        if number:  # the first round warms up
                            seconds[name].append(time.perf_counter() - start)
                            cpu[name].append(1e3 * (time.process_time() - used) / count)
            ideal = count * CALLS * throughput.LATENCY / slots
            print(f"\n{slots} slots, {count} examples: ideal {ideal:.2f} s", flush=True)
            print(f"{'':<38}{'seconds':>9}{'of ideal':>10}{'of dspy.Evaluate':>18}{'CPU ms a rollout':>18}")
            base = statistics.median(seconds["dspy.Evaluate"])
            for name in calls:
                took = statistics.median(seconds[name])
                cost = statistics.median(cpu[name])
                print(f"{name:<38}{took:>9.2f}{ideal / took:>10.2f}{base / took:>18.2f}{cost:>18.1f}")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:3]) if len(sys.argv) > 2 else (320, 3))
