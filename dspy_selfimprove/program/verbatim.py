"""What makes a program verbatim: a signature that keeps its text, and an adapter that sends the prompt's own request.

Each replaces a part of DSPy that would change a prompt on its way. What goes out is a body of our own
(`Config.extensions[BODY]`, see wire.py), and the reply comes back whole in `provider_data`. An engine that does not
know of this sends something else without a word, so it is refused: DSPy's own before the call, a stranger's after its
first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, TypeAlias, cast

import dspy
from dspy.signatures.signature import SignatureMeta

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import Message, canonical, text_of, thaw
from dspy_selfimprove.prompt import DELIVERY, ChatPrompt
from dspy_selfimprove.wire import BODY, Body

EXECUTION = frozenset({"cache", "rollout_id"})  # what a predictor's settings say to DSPy, and no model is told

PromptOf: TypeAlias = Callable[[str, Iterable[Any]], ChatPrompt]


class VerbatimMeta(SignatureMeta):  # type: ignore[misc]
    """DSPy cleans instructions like a docstring: tabs, indentation and outer blank lines are lost. Here they stay."""

    @property
    def instructions(self) -> str:
        return self.__doc__ or ""

    @instructions.setter
    def instructions(self, text: str) -> None:
        self.__doc__ = text


class VerbatimSignature(dspy.Signature, metaclass=VerbatimMeta):  # type: ignore[misc]
    """"""

    # No docstring: it would be the instructions. DSPy makes an ordinary signature of each changed one; these do not.

    @classmethod
    def _of(cls, signature: Any, text: str) -> Any:
        import pydantic

        entries = {name: (entry.annotation, deepcopy(entry)) for name, entry in signature.fields.items()}
        # A name of no class in this file: what shows a program's source to a coach would show that class instead.
        made: Any = pydantic.create_model("Chat", __base__=VerbatimSignature, **cast(Any, entries))
        made.instructions = text  # as an argument, an empty text would count as none
        return made

    @classmethod
    def with_instructions(cls, instructions: str) -> Any:
        return cls._of(cls, instructions)

    @classmethod
    def append_instructions(cls, instructions: str) -> Any:
        return cls._of(cls, f"{cls.instructions}\n\n{instructions}")

    @classmethod
    def with_updated_fields(cls, name: str, type_: Any = None, **changes: Any) -> Any:
        return cls._of(super().with_updated_fields(name, type_, **changes), cls.instructions)

    @classmethod
    def insert(cls, index: int, name: str, field: Any, type_: Any = None) -> Any:
        return cls._of(super().insert(index, name, field, type_), cls.instructions)

    @classmethod
    def delete(cls, name: str) -> Any:
        return cls._of(super().delete(name), cls.instructions)

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> Any:
        return cls._of(super().load_state(state), state["instructions"])


class ChatSignature(VerbatimSignature):
    """"""

    # Everything a search may show to a coach: so no seeds and no end user's id.
    conversation: list[Any] = dspy.InputField(desc="the chat so far; its last message is to be answered")
    variables: dict[str, Any] = dspy.InputField(desc="what is filled into the {{slots}} of the instructions")
    output: str = dspy.OutputField(desc="the reply")


class VerbatimAdapter(dspy.Adapter):  # type: ignore[misc]
    """One call's way out and back: the request of `prompt_of(instructions, demos)`, and the reply as it came.

    `parameters` are the call's own and win over the prompt's; None takes one out. The LM's own are not sent, since
    production's call does not know them. The exception is another try at the same call (`rollout_id`): it is meant to
    give another answer, so the LM's temperature counts, and a seed does not.
    """

    def __init__(self, prompt_of: PromptOf, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        if "messages" in parameters:
            raise UsageError("Messages are no parameter of a call.", remedy="Pass them as the conversation.")
        self._prompt_of, self._parameters = prompt_of, parameters
        self._prompt: ChatPrompt | None = None

    def format(self, signature: Any, demos: Iterable[Any], inputs: Mapping[str, Any]) -> list[Message]:
        self._prompt = self._prompt_of(signature.instructions, demos)
        return self._prompt.messages(inputs["conversation"], **inputs["variables"])

    def parse(self, signature: Any, completion: Any) -> dict[str, Any]:
        reply = completion.provider_data or {}
        if "message" not in reply:
            raise _unfit()
        message = thaw(reply["message"])
        return {"output": text_of(message), "message": message, "finish_reason": reply.get("finish_reason")}

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        request, execution = self._request(lm, lm_kwargs, signature, demos, inputs)
        return [self.parse(signature, lm(request, **execution))]

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        request, execution = self._request(lm, lm_kwargs, signature, demos, inputs)
        return [self.parse(signature, await lm.acall(request, **execution))]

    def _request(
        self, lm: Any, lm_kwargs: Mapping[str, Any], signature: Any, demos: Any, inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """What the LM is to send, and what is said to DSPy itself."""
        if isinstance(getattr(lm, "engine", None), str | None):
            raise _unfit()
        if any((each.get(name) or 1) != 1 for each in (lm_kwargs, lm.kwargs) for name in ("n", "num_generations")):
            raise UsageError("One call gives one answer.", remedy="Take n out, and call again for another answer.")
        messages = self.format(signature, demos, inputs)
        if not messages:
            raise UsageError("The request would hold no message.", remedy="Pass the conversation.")
        assert self._prompt is not None
        execution = {name: lm_kwargs.get(name, lm.kwargs.get(name)) for name in EXECUTION}
        body = {**self._prompt.parameters, **thaw(self._parameters)}
        if execution["rollout_id"] is not None:
            body["seed"] = None
            if lm.kwargs.get("temperature") is not None:
                body["temperature"] = lm.kwargs["temperature"]
        body = {name: value for name, value in body.items() if value is not None and name not in DELIVERY}
        request = _carrying({**body, "messages": messages}, lm.model)
        return request, {name: value for name, value in execution.items() if value is not None}


def _unfit() -> UsageError:
    return UsageError(
        "This LM would not send the prompt's own request.",
        remedy='Use Models(...).lm("worker"), or rehearsal.lm() to try it without a model.',
    )


def _carrying(body: Body, model: str) -> Any:
    """DSPy's request around the body. Its texts are there a second time, for DSPy's history to show."""
    from dspy.lm15 import Config, Request

    first, *rest = body["messages"]
    head = first if first.get("role") == "system" and rest else None
    return Request(
        model=model,
        system=(text_of(head) or None) if head else None,
        messages=tuple(_shown(message) for message in (rest if head else body["messages"])),
        config=Config(extensions={BODY: body}),
    )


def _shown(message: Mapping[str, Any]) -> Any:
    from dspy.lm15 import Message

    text = text_of(message) or canonical(message.get("tool_calls") or message.get("content") or "")
    if message.get("role") == "tool":
        return Message.tool(str(message.get("tool_call_id")), text)
    say = {"user": Message.user, "assistant": Message.assistant}.get(message.get("role", ""), Message.developer)
    return say(text)
