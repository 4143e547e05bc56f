"""A judge that is all data: a template, choices, and a model that is shown both.

It takes the shortest way: Phoenix renders the template, Phoenix's adapter asks, and what Phoenix checks of the answer
is checked here. Nothing of the evaluator's own would run in between, so nothing is left out but spans and copies.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.judges.desk import Desk, adapter_of, llm_of
from dspy_selfimprove.judges.slip import NO_LABEL, WRONG_LABEL, Slip


class Classifier:
    """Phoenix's ClassificationEvaluator, asked through our own calls."""

    def __init__(self, evaluator: Any, desk: Desk) -> None:
        from phoenix.evals.llm.types import ObjectGenerationMethod
        from phoenix.evals.llm.wrapper import generate_classification_schema

        llm = llm_of(desk, None)
        self._adapter = adapter_of(llm._sync_client)
        self._template = _parsed(evaluator.prompt_template)
        self._parameters = dict(evaluator.invocation_parameters)
        self._labels = tuple(evaluator.labels)
        self._numbers = dict(evaluator.label_score_map or {})
        self._schema = generate_classification_schema(evaluator.labels, evaluator.include_explanation)
        described = isinstance(evaluator.labels, dict)
        self._method = ObjectGenerationMethod.TOOL_CALLING if described else ObjectGenerationMethod.AUTO
        self._name = evaluator.name

    def read(self, fields: Mapping[str, Any]) -> Reading:
        prompt = self._template.render(variables=fields)
        found = self._adapter.generate_object(prompt, self._schema, method=self._method, **self._parameters)
        label, why = found.get("label"), found.get("explanation")
        if label is None:
            raise Slip(NO_LABEL)
        if label not in self._labels:
            raise Slip(WRONG_LABEL)
        number = self._numbers.get(label)
        written = None if number is None else float(number)
        explanation = why if isinstance(why, str) else None
        return Reading("", self._name, "LLM", score=written, label=label, explanation=explanation)


def _parsed(template: Any) -> Any:
    """The same template with its texts parsed once; Phoenix parses them for every prompt, the longest part of it."""
    import pystache
    from phoenix.evals.llm.prompts import TemplateFormat

    template = copy.deepcopy(template)
    for part in [part for message in template._messages for part in message._content_templates]:
        if part.format is TemplateFormat.MUSTACHE:
            part.text = pystache.parse(part.text)
    return template
