"""DSPy's Examples from what production left: from a sample for a ChatProgram, from traced steps for any program.

Not covered: telling apart two predictors that take and give the same fields in the same place of a program and were
told the same; and a program that has changed its fields since: its calls are counted as unmatched.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_selfimprove.exchange import Step
from dspy_selfimprove.message import text_of, thaw
from dspy_selfimprove.program.verbatim import VerbatimMeta
from dspy_selfimprove.sample import Sample


def example_of(sample: Sample) -> dspy.Example:
    """A sample for a `ChatProgram`: its inputs, production's answer as reference, and what is known of it.

    `output` and `message` are the reference; `id`, `weight`, `scores` and `human` (Score by name) are for metrics and
    reports.

    >>> question, answer = {"role": "user", "content": "Late!"}, {"role": "assistant", "content": "Sorry."}
    >>> example = example_of(Sample(id="T1", chat_history=(question,), output=answer, parameters={"seed": 7}))
    >>> example.output, example.inputs().keys()
    ('Sorry.', ['conversation', 'variables', 'parameters'])
    """
    return dspy.Example(
        conversation=thaw(sample.chat_history),
        variables=thaw(sample.variables),
        parameters=thaw(sample.parameters),
        output=text_of(sample.output),
        message=thaw(sample.output),
        id=sample.id,
        weight=sample.weight,
        scores=dict(sample.scores),
        human=dict(sample.human),
    ).with_inputs("conversation", "variables", "parameters")


@dataclass(frozen=True, slots=True)
class Examples:
    """What traces show of a program: examples of the whole, and of each predictor by name.

    `unmatched` counts calls of a predictor, or of a whole program, that could not be placed here for certain.
    """

    program: tuple[dspy.Example, ...]
    predictors: Mapping[str, tuple[dspy.Example, ...]]
    unmatched: int


def examples_of(steps: Iterable[Step], program: dspy.Module) -> Examples:
    """The traced calls of `program` and of its predictors as examples, inputs set; a step's id is kept as `id`.

    A predictor's call is placed by its field names and by the classes it was called through (a step without a parent by
    its fields alone), and where that fits several by its instructions. Whatever still fits several is not guessed.
    Calls of modules in between (a ChainOfThought around its predictor) are passed over: they say the same once more.

    >>> step = Step(id="S1", module="Predict", path=("Predict",), inputs={"question": "2+2?"}, outputs={"answer": "4"})
    >>> found = examples_of([step], dspy.Predict("question -> answer"))
    >>> found.predictors["self"][0].inputs().toDict(), found.unmatched
    ({'question': '2+2?'}, 0)
    """
    name = type(program).__name__
    places = [_Place.of(each, predictor, program) for each, predictor in program.named_predictors()]
    kinds = {path[-1] for place in places for path in place.paths}
    whole: list[dspy.Example] = []
    parts: dict[str, list[dspy.Example]] = defaultdict(list)
    unmatched = 0
    for step in steps:
        path = step.path if step.path[-1:] == (step.module,) else (*step.path, step.module)
        path = path[path.index(name) :] if name in path else path  # the program may itself be a part of what ran
        placed = False
        if path == (name,) and (inputs := _accepted(program, step.inputs)) is not None:
            whole.append(_example(step.id, inputs, step.outputs))
            placed = True
        if path[-1] in kinds and (place := _placed(step, path, places)):
            outputs = {field: step.outputs[field] for field in step.outputs if field in place.shown}
            parts[place.name].append(_example(step.id, step.inputs, outputs))
            placed = True
        unmatched += not placed and (len(path) == 1 or path[-1] in kinds)
    return Examples(tuple(whole), {place.name: tuple(parts[place.name]) for place in places}, unmatched)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a program a predictor is called, and what its calls look like."""

    name: str
    paths: frozenset[tuple[str, ...]]
    inputs: frozenset[str]
    outputs: frozenset[str]
    shown: frozenset[str]
    instructions: str

    @classmethod
    def of(cls, name: str, predictor: Any, program: dspy.Module) -> _Place:
        outputs = frozenset(predictor.signature.output_fields)
        return cls(
            name=name,
            paths=frozenset(_paths(program, predictor)),
            inputs=frozenset(predictor.signature.input_fields),
            outputs=outputs,
            shown=outputs | {"message"} if isinstance(predictor.signature, VerbatimMeta) else outputs,
            instructions=predictor.signature.instructions,
        )


def _paths(module: Any, predictor: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The classes from `module` down to `predictor`, once for each way: a shared predictor has several."""
    if any(module is each for each in above):
        return
    line = (*above, module)
    if module is predictor:
        yield tuple(type(each).__name__ for each in line)
    for value in vars(module).values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        for part in inside:
            if isinstance(part, dspy.Module):
                yield from _paths(part, predictor, line)


def _placed(step: Step, path: tuple[str, ...], places: Iterable[_Place]) -> _Place | None:
    fitting = [
        place
        for place in places
        if step.inputs and place.inputs >= set(step.inputs) and place.outputs <= set(step.outputs)
        if path in place.paths or len(path) == 1
    ]
    if len(fitting) > 1 and step.instructions is not None:
        told = step.instructions.strip()
        fitting = [place for place in fitting if place.instructions.strip() == told]
    return fitting[0] if len(fitting) == 1 else None


def _accepted(program: dspy.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs of a traced call if `program` takes them; None if not."""
    if isinstance(program, dspy.Predict):
        return dict(given) if given and set(given) <= set(program.signature.input_fields) else None
    call = inspect.signature(type(program).forward)
    rest = next((name for name, each in call.parameters.items() if each.kind is each.VAR_KEYWORD), None)
    inputs = dict(given)
    if rest is not None and isinstance(nested := inputs.get(rest), Mapping):
        inputs = {**{name: value for name, value in inputs.items() if name != rest}, **nested}  # as traces show **rest
    try:
        call.bind(program, **inputs)
    except TypeError:
        return None
    return inputs


def _example(name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dspy.Example:
    content = thaw({"id": name, **outputs, **inputs})
    return dspy.Example(**content).with_inputs(*inputs)
