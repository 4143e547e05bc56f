"""What can vary of a program: read as a Candidate from any DSPy module, and changed in a copy of it.

Predictors go by DSPy's own names. What DSPy holds frozen (a compiled part of a larger program) has no name there, so
it is neither read nor changed; a predictor found in two places has one name and changes in both.

Parameters are the whole program's, so that a search can vary a temperature without knowing what is inside: what all
predictors' own settings agree on, and for a `ChatProgram` what its prompt says besides tools and the form of the
answer, which are the application's contract. What differs from predictor to predictor, and what an LM was given, stays
with the program.

Not covered: the descriptions of fields, prefixes (COPRO changes them, no ChatProgram sends them), tools, and a
module's own attributes. DSPy keeps the instructions of an ordinary signature without their indentation, so there a
text with tabs or outer blank lines does not read back as it was applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import dspy

from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import thaw
from dspy_selfimprove.program.chat import ChatProgram
from dspy_selfimprove.program.verbatim import EXECUTION, VerbatimMeta
from dspy_selfimprove.prompt import DELIVERY, PARAMETERS

_CONTRACT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})


def read_candidate(program: dspy.Module) -> Candidate:
    """The instructions, demonstrations and call parameters of `program` as they stand.

    Of a demonstration the predictor's own fields are kept, as JSON, and of a chat's also the whole `message`: ids,
    weights and marks beside them are never shown to a model.

    >>> program = dspy.ChainOfThought(dspy.Signature("question -> answer", "Answer briefly."))
    >>> read_candidate(program).texts["predict"]
    'Answer briefly.'
    """
    predictors = _predictors(program)
    chats = {id(module.chat): module for _, module in program.named_sub_modules(ChatProgram)}
    first, *others = [_settings(predictor, chats.get(id(predictor))) for predictor in predictors.values()]
    demos = {name: tuple(_plain(name, each, demo) for demo in each.demos) for name, each in predictors.items()}
    return Candidate(
        texts={name: predictor.signature.instructions for name, predictor in predictors.items()},
        demos={name: shown for name, shown in demos.items() if shown},
        parameters={
            name: value for name, value in first.items() if all(name in each and each[name] == value for each in others)
        },
    )


def apply_candidate(candidate: Candidate, program: dspy.Module) -> dspy.Module:
    """A copy of `program` with the candidate's texts, demonstrations and parameters; `program` stays as it is.

    A predictor that the candidate names gets exactly its demonstrations, none if it has none; one that it does not name
    stays as it was. Parameters go over every predictor's own settings. `model` is for chat programs alone, whose
    exported prompt then names it; which model answers is the LM's choice in any program.

    >>> from dspy_selfimprove.prompt import ChatPrompt
    >>> program = ChatProgram(ChatPrompt(system="Answer."))
    >>> better = read_candidate(program).child("edit", texts={"chat": "Answer in one sentence."})
    >>> apply_candidate(better, program).prompt.system, program.prompt.system
    ('Answer in one sentence.', 'Answer.')
    """
    _refuse_strangers(candidate, program)
    copied = _copy(program)
    for name, predictor in copied.named_predictors():
        # A class of its own also for a text that stays: some optimizers write into the one they find.
        text = candidate.texts.get(name, predictor.signature.instructions)
        predictor.signature = predictor.signature.with_instructions(text)
        predictor.signature.instructions = text  # DSPy takes an empty text for none and writes one of its own
        predictor.config = {**predictor.config, **thaw(candidate.parameters)}
        if name in candidate.texts:
            predictor.demos = [dspy.Example(**thaw(demo)) for demo in candidate.demos.get(name, ())]
    return copied


def _predictors(program: dspy.Module) -> dict[str, Any]:
    predictors = dict(program.named_predictors())
    if not predictors:
        raise UsageError(
            "The program has no predictor that could be improved.",
            remedy="Pass a dspy.Module that holds a dspy.Predict, and not only inside a compiled part.",
        )
    return predictors


def _settings(predictor: Any, chat: ChatProgram | None) -> dict[str, Any]:
    """The call parameters of one predictor; what says something to DSPy and nothing to the model is left out."""
    own = {name: value for name, value in predictor.config.items() if name not in DELIVERY | EXECUTION}
    if chat is None:
        return own
    said = chat.prompt.parameters
    return {name: value for name, value in said.items() if name in (PARAMETERS - _CONTRACT) | own.keys()}


def _plain(name: str, predictor: Any, demo: Mapping[str, Any]) -> dict[str, Any]:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    shown = {*predictor.signature.fields, *(["message"] if _is_chat(predictor) else [])}
    try:
        return cast("dict[str, Any]", to_jsonable_python({key: demo[key] for key in demo if key in shown}))
    except PydanticSerializationError:
        raise UsageError(
            f"A demonstration of {name!r} holds something that is not data.",
            remedy="Give it values that can be written as JSON.",
        ) from None


def _is_chat(predictor: Any) -> bool:
    return isinstance(predictor.signature, VerbatimMeta)


def _refuse_strangers(candidate: Candidate, program: dspy.Module) -> None:
    predictors = _predictors(program)
    if strangers := sorted(set(candidate.texts) - set(predictors)):
        raise UsageError(
            f"The program has no predictor {strangers[0]!r}.",
            remedy=f"It has {', '.join(sorted(predictors))}; read_candidate(program) gives a candidate that fits.",
        )
    if fixed := sorted(set(candidate.parameters) & {*DELIVERY, *EXECUTION, "messages"}):
        raise UsageError(f"{fixed[0]!r} is no parameter that a candidate can vary.", remedy="Leave it out.")
    if "model" in candidate.parameters and not all(_is_chat(predictor) for predictor in predictors.values()):
        raise UsageError(
            "A DSPy program does not choose its model; its LM does.",
            remedy="Leave `model` out of the candidate's parameters, and run the program on another LM.",
        )


def _copy(program: dspy.Module) -> dspy.Module:
    """A copy with predictors of its own, and the same LMs: their histories are long, and their slots are one."""
    lms = {id(predictor.lm): predictor.lm for predictor in program.predictors() if predictor.lm is not None}
    try:
        copied = deepcopy(program, lms)
    except Exception:  # something inside refuses to be copied (a lock, a client): DSPy's way copies what can be
        copied = program.deepcopy()
    before, after = dict(program.named_predictors()), dict(copied.named_predictors())
    if list(before) != list(after) or {*map(id, before.values())} & {*map(id, after.values())}:
        raise UsageError(
            "The program cannot be copied: it holds an object that refuses it, beside or inside its predictors.",
            remedy="Give that object a __deepcopy__, or keep it outside the program.",
        )
    return copied
