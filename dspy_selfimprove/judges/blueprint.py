"""An evaluator and its record: built again from an EvalSpec, and the version that its verdicts are kept under.

Building a code evaluator imports the module its record names: that runs the code found there, so a record from a
stranger is to be read before it is used.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.fingerprint import fingerprint
from dspy_selfimprove.message import digest, thaw
from dspy_selfimprove.model import Model
from dspy_selfimprove.sample import EvalSpec

logger = logging.getLogger("dspy_selfimprove.judge")

PHOENIX: Final = "phoenix.evals.evaluators"
# What nobody can make up for: the evaluator would not be the one that was recorded.
_ESSENTIAL: Final = re.compile(r"source|arguments|input_mapping\..*")


def built(spec: EvalSpec) -> Any:
    """The evaluator that `spec` records; an LLM one has no model yet."""
    lost = [name for name in spec.unrecorded if _ESSENTIAL.fullmatch(name)]
    if lost:
        raise UsageError(
            f"The evaluator {spec.name!r} cannot be built again: its record lacks {', '.join(lost)}.",
            remedy="Pass the evaluator itself.",
        )
    if spec.kind == "HUMAN":
        raise UsageError(f"The verdicts of {spec.name!r} are people's: no judge can be built.", remedy="Use another.")
    evaluator = _classifier(spec) if spec.choices and spec.source is None else _imported(spec)
    if spec.unrecorded:
        logger.warning(
            "The judge %r is built without what its record left out: %s.", spec.name, ", ".join(spec.unrecorded)
        )
    if spec.input_mapping:
        evaluator.bind(dict(spec.input_mapping))
    return evaluator


def _classifier(spec: EvalSpec) -> Any:
    from phoenix.evals import ClassificationEvaluator
    from phoenix.evals.llm.prompts import PromptTemplate, TemplateFormat

    form = None if spec.template_format is None else TemplateFormat(spec.template_format)
    choices: Any = dict(spec.choices)
    if spec.descriptions:
        choices = {label: (number, spec.descriptions.get(label, "")) for label, number in choices.items()}
    elif all(number is None for number in choices.values()):
        choices = list(choices)
    nobody: Any = None  # whoever judges is put in place later
    try:
        return ClassificationEvaluator(
            name=spec.name,
            llm=nobody,
            prompt_template=PromptTemplate(template=thaw(spec.messages), template_format=form),
            choices=choices,
            include_explanation=spec.include_explanation,
            direction=spec.optimization_direction,
            **thaw(spec.invocation_parameters),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The messages of the judge {spec.name!r} are none that Phoenix takes ({type(error).__name__}).",
            remedy="Give it at least one message, each with a role and a content.",
        ) from error


def _imported(spec: EvalSpec) -> Any:
    from phoenix.evals import Evaluator

    if spec.source is None:
        raise UsageError(
            f"The record of the evaluator {spec.name!r} has neither choices nor code.", remedy="Pass the evaluator."
        )
    module, _, path = spec.source.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        evaluator = found() if isinstance(found, type) else found
    except Exception as error:
        raise UsageError(
            f"The code of the evaluator {spec.name!r}, {spec.source}, cannot be loaded ({type(error).__name__}).",
            remedy="Make it importable here, or pass the evaluator itself.",
        ) from error
    if not isinstance(evaluator, Evaluator):
        raise UsageError(f"{spec.source} is no Phoenix evaluator.", remedy="Pass the evaluator itself.")
    return copy.copy(evaluator)  # the module's own is everybody's, and may be bound to something else below


def is_all_data(evaluator: Any) -> bool:
    """Whether it is a classifier by Phoenix's own code, so that its settings are all there is to it."""
    methods = ("evaluate", "async_evaluate", "_evaluate", "_async_evaluate")
    return hasattr(evaluator, "labels") and all(is_phoenixs(evaluator, name) for name in methods)


def is_phoenixs(evaluator: Any, method: str) -> bool:
    return bool(getattr(type(evaluator), method).__module__ == PHOENIX)


def judged_by(spec: EvalSpec, model: Model) -> EvalSpec:
    """`spec` with the model that will really be asked, and that model's own parameters below the evaluator's."""
    parameters = {**model.parameters, **spec.invocation_parameters}
    return replace(spec, provider=model.provider, model=model.id, invocation_parameters=parameters)


def place_of(model: Model) -> str | None:
    """Where a model is served, if somewhere of its own: the same name may be another model there.

    On this machine ports change from run to run, so its servers are not told apart: name their models differently.
    """
    url = urlsplit(model.base_url or "")
    if url.hostname in (None, "localhost", "127.0.0.1", "::1"):
        return None
    return f"{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"


def version_of(spec: EvalSpec, evaluator: Any, **chosen: Any) -> str:
    """The spec's own version; if more than the spec can change a verdict, a hash of all of it."""
    more = {name: value for name, value in chosen.items() if value is not None}
    if not is_all_data(evaluator):
        more["code"], more["state"] = _code(evaluator), _state(evaluator)
    return digest({"spec": spec.version, **more}) if more else spec.version


def _code(evaluator: Any) -> str:
    return digest(fingerprint(getattr(evaluator, "_fn", None) or type(evaluator)))


def _state(evaluator: Any) -> str:
    """What the evaluator was made with, as far as it is data: a pattern, a threshold. Hashed, so no secret is kept."""
    return digest({name: fingerprint(value) for name, value in vars(evaluator).items() if name not in ("_fn", "llm")})


def check_choices(evaluator: Any) -> None:
    """Refuse choices that can never give a number."""
    numbers: Mapping[str, Any] = evaluator.label_score_map or {}
    if not any(number is not None for number in numbers.values()):
        raise UsageError(
            f"The choices of the judge {evaluator.name!r} carry no numbers.",
            remedy="Give each label one, for example {'good': 1, 'bad': 0}.",
        )
    for label, number in numbers.items():
        if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
            raise UsageError(
                f"The choice {label!r} of the judge {evaluator.name!r} is no number.", remedy="Give each label one."
            )


def check_template(evaluator: Any) -> None:
    """Render once with stand-ins, so that a template that cannot be rendered costs nothing."""
    template = evaluator.prompt_template
    kinds = template.variable_types
    try:
        template.render(variables={name: {} if kinds.get(name) == "section" else "x" for name in template.variables})
    except Exception as error:
        raise UsageError(
            f"The template of the judge {evaluator.name!r} cannot be rendered ({type(error).__name__}).",
            remedy="Write its variables as {{name}}, above all where the text has braces of its own.",
        ) from error
