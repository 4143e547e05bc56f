"""Three Phoenix evaluators for the support desk: two ask a model and come from metrics/, one is code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from phoenix.evals import ClassificationEvaluator, Evaluator, create_evaluator
from phoenix.evals.llm import LLM

ROOT = Path(__file__).parent.parent
POLICY = (ROOT / "datasets" / "support_tickets" / "policy.md").read_text(encoding="utf-8")


@create_evaluator(name="brevity", kind="code")
def brevity(output: str) -> float:
    """1 up to 40 words, then falling in a straight line to 0 at 160."""
    return min(1.0, max(0.0, (160 - len(output.split())) / 120))


def from_file(path: Path, llm: LLM) -> ClassificationEvaluator:
    """A metric file holds Phoenix's own fields, so there is nothing to translate."""
    metric: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ClassificationEvaluator(
        name=metric["name"],
        llm=llm,
        prompt_template=metric["messages"],
        choices=metric["choices"],
        direction=metric["optimization_direction"],
    )


def evaluators(base_url: str, model: str) -> Mapping[str, Evaluator]:
    """The three, by name. The limiter is set free: its default is five calls a second."""
    llm = LLM(
        provider="openai", model=model, base_url=base_url, api_key="none", initial_per_second_request_rate=1_000_000
    )
    judges = [from_file(ROOT / "metrics" / f"{name}.yaml", llm) for name in ("helpfulness", "compliance")]
    return {evaluator.name: evaluator for evaluator in (*judges, brevity)}
