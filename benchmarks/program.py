"""What a call of ChatProgram costs in CPU, beside a bare dspy.Predict and beside the plain openai client.

Nobody is waited for: DSPy's calls are answered by an engine that returns one response, the client's by a transport that
does. So a figure is what the code around a call takes, and none is the network's. `production` is a chat with five
tools, nine turns and two demonstrations; DSPy's own predictor gets the same texts as fields, and no tools. Trust the
ratios, which come from one run with the ways taking turns, and not the figures, which belong to the machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import dspy

from dspy_selfimprove.program import ChatProgram
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.wire import use_local_prices

CALLS, ROUNDS = 300, 7
ANSWER = "It left our warehouse on Monday."
MESSAGE = {"role": "assistant", "content": ANSWER}
SYSTEM = "You answer {{name}}'s support tickets for a small shop. Be polite, and say what happens next. " * 5
TURNS = [
    {"role": "assistant" if turn % 2 else "user", "content": f"Turn {turn}: my parcel was due on Monday. " * 4}
    for turn in range(9)
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": "Looks something up in the shop's books.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {f"field_{each}": {"type": "string", "description": "One of them."} for each in range(6)},
                "required": [f"field_{each}" for each in range(6)],
                "additionalProperties": False,
            },
        },
    }
    for number in range(5)
]


class Engine:
    """Answers at once: the same text to a body of our own and to a request of DSPy's."""

    def complete(self, request: Any) -> Any:
        from dspy.lm15 import Message, Response, Usage

        text = ANSWER if request.config.extensions else f"[[ ## reply ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"
        return Response(
            id=None,
            model="m",
            message=Message.assistant(text),
            finish_reason="stop",
            usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
            provider_data={"message": MESSAGE, "finish_reason": "stop"},
        )


class AsyncEngine(Engine):
    async def complete(self, request: Any) -> Any:
        return super().complete(request)


def openai_client() -> Any:
    import httpx
    import openai

    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    body = json.dumps(answer).encode()
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, content=body, headers={"content-type": "application/json"})
    )
    return openai.OpenAI(api_key="none", max_retries=0, http_client=httpx.Client(transport=transport))


def ways(production: bool) -> dict[str, Callable[[], Any]]:
    """Each way to make the same call, by name."""
    turns = TURNS if production else TURNS[:1]
    prompt = ChatPrompt(
        system=SYSTEM if production else "Answer {{name}}.",
        model="m",
        temperature=0.2,
        tools=tuple(TOOLS) if production else None,
    )
    demos = [dspy.Example(conversation=TURNS[:1], variables={}, output=ANSWER) for _ in range(2 if production else 0)]
    program = ChatProgram(prompt)
    program.chat.demos = demos
    predict = dspy.Predict(dspy.Signature("name, conversation: list -> reply", prompt.system))
    predict.demos = [dspy.Example(name="Ana", conversation=TURNS[:1], reply=ANSWER) for _ in demos]
    client = openai_client()
    request = program.prompt.request(turns, name="Ana")

    async def loop() -> None:
        for _ in range(CALLS):
            await program.acall(conversation=turns, variables={"name": "Ana"})

    def again(call: Callable[[], Any]) -> Callable[[], None]:
        return lambda: [call() for _ in range(CALLS)] and None

    return {
        "openai client": again(lambda: client.chat.completions.create(**request)),
        "dspy.Predict": again(lambda: predict(name="Ana", conversation=turns)),
        "ChatProgram": again(lambda: program(conversation=turns, variables={"name": "Ana"})),
        "ChatProgram.acall": lambda: asyncio.run(loop()),
    }


def main() -> None:
    use_local_prices()
    lm = dspy.LM("none/m", engine=Engine(), async_engine=AsyncEngine(), cache=False, num_retries=0)
    print(f"{'':>12}{'':>20}{'µs of CPU per call':>20}{'of dspy.Predict':>18}{'of openai client':>18}")
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        for production in (False, True):
            calls = ways(production)
            spent: dict[str, list[float]] = {name: [] for name in calls}
            for number in range(ROUNDS + 1):
                for name, call in calls.items():
                    start = time.process_time()
                    call()
                    if number:  # the first round warms up
                        spent[name].append((time.process_time() - start) / CALLS * 1e6)
            middle = {name: statistics.median(each) for name, each in spent.items()}
            for name, cost in middle.items():
                kind = "production" if production else "small"
                ratios = (cost / middle["dspy.Predict"], cost / middle["openai client"])
                print(f"{kind:>12}{name:>20}{cost:>20,.0f}" + "".join(f"{ratio:>18.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
