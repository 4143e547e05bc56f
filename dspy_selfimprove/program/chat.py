"""ChatProgram: production's chat completion as a DSPy program.

The system template is its one predictor's instructions, character for character. So whatever rewrites instructions or
adds demonstrations (MIPROv2, COPRO, SIMBA, GEPA, BootstrapFewShot, our own) works on the prompt itself, and
`program.prompt` gives it back as it stands: what is exported is what was evaluated. No field markers and no rules of
form are added. It needs an LM that can send that: `Models(...).lm(...)` or `rehearsal.lm()` (verbatim.py).

What decides a parameter, the later winning: the prompt, the predictor's own settings (a candidate's), the call's. What
an LM was given (temperature and so on) is not sent: set it in the prompt. `stream`, `stream_options` and `n` say how a
reply is delivered, not what is asked, and are left out. A `{{slot}}` in a rewritten text that is no variable of the
prompt is sent, and exported, as those very characters: the search goes on, and the score shows what such a text is
worth.

A demonstration is shown as its conversation, its user turn if the prompt has a template for one, and its answer.
Left out is one with nothing asked or nothing answered, and one whose answer is a tool call: the API wants the tool's
result after it, and nobody knows that.

Not covered: streaming, several answers to one call, the Responses API, answers made of audio or images (`output` is
the text; `message` is whole), fine-tuning, hints that DSPy would write into a request (dspy.Refine: they do not reach
it), and which model answers: the LM decides that, whatever `prompt.model` says. Called directly, and not through the
program, its predictor is an ordinary one. As a part of a larger program, DSPy saves its instructions and
demonstrations, and not the rest of its prompt, which is in the code that builds it. Everything in a conversation and
in the variables may be shown to a coach; `parameters` only by an optimizer that prints whole examples (MIPROv2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import dspy

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import Message, text_of, thaw
from dspy_selfimprove.program.verbatim import EXECUTION, ChatSignature, VerbatimAdapter
from dspy_selfimprove.prompt import DELIVERY, PARAMETERS, ChatPrompt


class ChatProgram(dspy.Module):  # type: ignore[misc]
    """A chat-completion prompt as a DSPy program: call it with a conversation and the prompt's variables.

    The prediction holds `output` (the text), `message` (the whole reply, tool calls included) and `finish_reason`.
    `parameters` are this call's own, such as a seed or an end user's id; None takes one out.

    >>> from dspy_selfimprove.rehearsal import lm
    >>> program = ChatProgram(ChatPrompt(system="Answer {{name}} in one sentence.", temperature=0.2))
    >>> question = {"role": "user", "content": "Where is my parcel?"}
    >>> with dspy.context(lm=lm(seed=1)):
    ...     reply = program(conversation=[question], variables={"name": "Ana"})
    >>> reply.message["role"], reply.output == reply.message["content"]
    ('assistant', True)
    >>> program.prompt == ChatPrompt(system="Answer {{name}} in one sentence.", temperature=0.2)
    True
    """

    def __init__(self, prompt: ChatPrompt) -> None:
        super().__init__()
        self.chat = dspy.Predict(ChatSignature.with_instructions(prompt.system or ""))
        self._base = prompt
        self._last: tuple[Any, ChatPrompt] | None = None

    def forward(
        self,
        conversation: Iterable[Message] = (),
        variables: Mapping[str, object] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        with self._verbatim(parameters):
            return self.chat(**_inputs(conversation, variables))

    async def aforward(
        self,
        conversation: Iterable[Message] = (),
        variables: Mapping[str, object] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        with self._verbatim(parameters):
            return await self.chat.acall(**_inputs(conversation, variables))

    @property
    def prompt(self) -> ChatPrompt:
        """The prompt as it stands: the instructions as its system text, the demonstrations as few-shot turns."""
        return self._prompt_of(self.chat.signature.instructions, self.chat.demos)

    def _verbatim(self, parameters: Mapping[str, Any] | None) -> Any:
        # For the predictor's call alone: what else runs meanwhile, such as a coach, keeps DSPy's own adapter.
        return dspy.context(adapter=VerbatimAdapter(self._prompt_of, parameters or {}), send_stream=None)

    def _prompt_of(self, instructions: str, demos: Iterable[Any]) -> ChatPrompt:
        turns = _turns(self._base, demos)
        content = (instructions, turns, thaw(self.chat.config))
        last = self._last  # one look, for other threads write it too; composing costs more than the rest of a call
        if last is None or last[0] != content:
            last = self._last = (content, _composed(self._base, *content))
        return last[1]

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """DSPy's state, which is the instructions and the demonstrations, and the rest of the prompt."""
        rest = {"prompt": self._base.to_json(), "settings": dict(self.chat.config)}
        return {**super().dump_state(json_mode=json_mode), **rest}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        super().load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        if "prompt" in state:
            self._base, self._last = ChatPrompt.from_json(state["prompt"]), None
            self.chat.config = dict(state["settings"])

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A copy gets a signature of its own: InferRules writes into the class it finds.
        super().__setstate__(state)
        self.chat.signature = self.chat.signature.with_instructions(self.chat.signature.instructions)


def _inputs(conversation: Iterable[Message], variables: Mapping[str, object] | None) -> dict[str, Any]:
    if isinstance(conversation, str | Mapping):
        raise UsageError("A conversation is a list of messages.", remedy='Pass [{"role": "user", "content": ...}].')
    return {"conversation": thaw(list(conversation)), "variables": dict(variables or {})}


def _turns(prompt: ChatPrompt, demos: Iterable[Mapping[str, Any]]) -> list[Message]:
    """The demonstrations that can be shown, as messages."""
    bare: ChatPrompt | None = None
    turns: list[Message] = []
    for demo in demos:
        answer = demo.get("message") or {"content": demo.get("output")}
        if not text_of(answer) or answer.get("tool_calls") or answer.get("function_call"):
            continue
        bare = bare or ChatPrompt(user=prompt.user, variables=prompt.variables)
        known = {name: value for name, value in (demo.get("variables") or {}).items() if name in (bare.variables or ())}
        asked = bare.messages(demo.get("conversation") or (), **known)
        # Of a reply as it came, only what may be sent back.
        said: Any = {"role": "assistant", "content": thaw(answer["content"])}
        turns += [*asked, said] if asked else []
    return turns


def _composed(prompt: ChatPrompt, system: str, turns: list[Message], settings: Mapping[str, Any]) -> ChatPrompt:
    """The prompt with another text, more few-shot turns and other parameters; a parameter that is None is unset."""
    chosen = {name: value for name, value in settings.items() if name not in DELIVERY | EXECUTION}
    named = {name: value for name, value in chosen.items() if name in PARAMETERS}
    others = {name: value for name, value in {**prompt.extra, **chosen}.items() if name not in PARAMETERS}
    return replace(
        prompt,
        system=system,
        few_shot=(*prompt.few_shot, *turns),
        extra={name: value for name, value in others.items() if value is not None},
        **named,
    )
