"""Applications as they are out there, each a process of its own: `python applications.py NAME COLLECTOR MODEL TRUTH N`.

Each is instrumented by one call, asks a model N times in every way it knows, and writes to TRUTH what it asked and what
it got, as it saw it itself: one JSON line for each exchange or step, found again by the number in the span's metadata.
"""

import json
import os
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
APPLICATIONS = ("desk", "program", "hidden", "silent")

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "additionalProperties": False},
    },
}
SYSTEM = {"role": "system", "content": "You answer customers.\n\tBe {kind} — ü 💥  "}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object", "properties": {}}},
}


def asked(number):
    """The requests of one round, by what is special about them."""
    user = {"role": "user", "content": f"Where is order {number}?", "name": "Ana"}
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"order": "7"}'}}
    history = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "on its way"},
    ]
    return {
        "plain": {"messages": [SYSTEM, user], "temperature": 0.2, "seed": number},
        "tools": {"messages": [SYSTEM, user], "tools": [TOOL], "tool_choice": "auto"},
        "results": {"messages": [SYSTEM, user, *history], "tools": [TOOL]},
        "choices": {"messages": [SYSTEM, user], "n": 3},
        "stream": {"messages": [SYSTEM, user], "stream": True, "stream_options": {"include_usage": True}},
        "stream tools": {"messages": [SYSTEM, user], "stream": True, "tools": [TOOL]},
        "stream choices": {"messages": [SYSTEM, user], "stream": True, "n": 2},
        "parts": {
            "messages": [
                {"role": "developer", "content": "Say what you see."},
                {"role": "user", "content": [{"type": "text", "text": f"Picture {number}"}, PICTURE]},
            ]
        },
        "form": {"messages": [SYSTEM, user], "response_format": SCHEMA, "stop": ["\n\n", "END"], "max_tokens": 50},
        "fails": {"messages": [{"role": "user", "content": "fail"}]},
        "breaks off": {"messages": [SYSTEM, user], "stream": True},
    }


class Application:
    def __init__(self, name, collector, model, truth, rounds):
        import openai

        from dspy_selfimprove.telemetry.instrument import instrument

        self.number = APPLICATIONS.index(name) * 100_000
        self.rounds = int(rounds)
        self.model = model
        self.truth = Path(truth).open("w", encoding="utf-8")  # noqa: SIM115 - closed below
        self.sending = instrument("applications", endpoint=collector)
        self.client = openai.OpenAI(base_url=model, api_key="k", max_retries=0)
        getattr(self, name)()
        assert self.sending.stop(30), "not everything was taken"
        self.truth.close()

    def tell(self, **seen):
        self.truth.write(json.dumps({"call": self.number, **seen}) + "\n")

    def marked(self, **more):
        from dspy_selfimprove.telemetry.instrument import using_attributes

        self.number += 1
        more.setdefault("metadata", {})["call"] = self.number
        return using_attributes(**more)

    def ask(self, way, request):
        """One call of the model, and what came of it."""
        import openai

        body = {"model": "support-1", **request}
        try:
            answer = self.client.chat.completions.create(**body)
        except openai.BadRequestError:
            self.tell(way=way, reason="the call failed")
            return
        if not body.get("stream"):
            seen = answer.model_dump(exclude_unset=True)
            choices = seen["choices"]
            usage = seen["usage"]
        else:
            choices, usage = assembled(answer, first_only=way == "breaks off")
            if way == "breaks off":
                self.tell(way=way, reason="the answer was broken off")
                return
        self.tell(
            way=way,
            request=body,
            messages=[choice["message"] for choice in choices],
            finish_reason=choices[0]["finish_reason"],
            tokens=usage and [usage["prompt_tokens"], usage["completion_tokens"]],
        )

    def desk(self):
        """A support desk on the OpenAI client, with a judge beside it and a run of this package in the same process."""
        for number in range(self.rounds):
            for way, request in asked(number).items():
                with self.marked(
                    session_id=f"s{number}",
                    user_id="u1",
                    metadata={"nest": {"a": [1, "ü"]}},
                    tags=["a", "b"],
                    prompt_template="T {{x}}",
                    prompt_template_variables={"x": "1"},
                    prompt_template_version="v2",
                ):
                    self.ask(way, request)
            plain = asked(number)["plain"]
            span = self.sending.tracer.start_as_current_span
            with self.marked(), span("judge.evaluate", openinference_span_kind="evaluator"):
                self.client.chat.completions.create(model="judge", **plain)
            with self.marked(metadata={"dspy_selfimprove.run": "r1"}):
                self.client.chat.completions.create(model="support-1", **plain)

    def program(self):
        """A DSPy program of two predictors, half of the time through LiteLLM, whose call is traced a second time."""
        import dspy

        owner = self

        class Desk(dspy.Module):
            def __init__(self):
                super().__init__()
                self.think = dspy.ChainOfThought("question -> answer")
                self.polish = dspy.Predict(dspy.Signature("draft, question -> answer", 'Be "terse".\nSay it\'s so.'))

            def forward(self, question):
                one = self.think(question=question)
                two = self.polish(draft=one.answer, question=question)
                told = "Given the fields `question`, produce the fields `answer`."
                given, draft = {"question": question}, {"draft": one.answer, "question": question}
                owner.tell(step=["Desk", "ChainOfThought"], inputs=given, outputs=one.toDict())
                owner.tell(step=["Desk", "ChainOfThought", "Predict"], inputs=given, outputs=one.toDict(), told=told)
                said = 'Be "terse".\nSay it\'s so.'
                owner.tell(step=["Desk", "Predict"], inputs=draft, outputs=two.toDict(), told=said)
                return two

        engines = [
            dspy.LM("openai/support-1", api_base=self.model, api_key="k", cache=False, temperature=0.3, **more)
            for more in ({}, {"engine": "litellm"})
        ]
        desk = Desk()
        for number in range(2 * self.rounds):
            lm = engines[number % 2]
            lm.history.clear()
            with self.marked(session_id=f"s{number}"), dspy.context(lm=lm):
                found = desk(question=f"question {number}?")
            self.tell(step=["Desk"], inputs={"question": f"question {number}?"}, outputs=found.toDict())
            for entry in lm.history:
                messages = [{"role": "assistant", "content": text} for text in entry["outputs"]]
                self.tell(way="dspy", asked=entry["messages"], messages=messages, exact=number % 2 == 1)

    def hidden(self):
        """Inputs are hidden."""
        for number in range(self.rounds):
            with self.marked():
                self.client.chat.completions.create(model="support-1", **asked(number)["tools"])
            self.tell(way="hidden", reason="what was asked is redacted")

    def silent(self):
        """Outputs are hidden."""
        for number in range(self.rounds):
            with self.marked():
                self.client.chat.completions.create(model="support-1", **asked(number)["plain"])
            self.tell(way="silent", reason="what was answered is redacted")


def assembled(stream, *, first_only):
    """What a stream said, put together as an application would."""
    choices, usage = {}, None
    for chunk in stream:
        usage = chunk.usage.model_dump() if chunk.usage else usage
        for part in chunk.choices:
            start = {"message": {"role": "assistant", "content": None}, "finish_reason": None}
            choice = choices.setdefault(part.index, start)
            message = choice["message"]
            if part.delta.content is not None and not (part.delta.content == "" and message["content"] is None):
                message["content"] = (message["content"] or "") + part.delta.content
            for call in part.delta.tool_calls or ():
                if call.id:
                    function = {"name": call.function.name, "arguments": call.function.arguments}
                    message.setdefault("tool_calls", []).append(
                        {"id": call.id, "type": "function", "function": function}
                    )
                else:
                    message["tool_calls"][-1]["function"]["arguments"] += call.function.arguments
            choice["finish_reason"] = part.finish_reason or choice["finish_reason"]
        if first_only and any(choice["message"]["content"] for choice in choices.values()):
            stream.close()
            break
    return [choices[index] for index in sorted(choices)], usage


if __name__ == "__main__":
    Application(*sys.argv[1:])
