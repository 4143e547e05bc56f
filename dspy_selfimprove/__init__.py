"""dspy-selfimprove: production traces in, a better prompt out, proven on data the search never saw.

The public face, in the order of the pipeline. Names are looked up when first used, so that importing this package
costs next to nothing and loads neither DSPy nor Phoenix nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_selfimprove.budget import Budget, Ledger, Spend
    from dspy_selfimprove.candidate import Candidate
    from dspy_selfimprove.checkpoint import Checkpoint
    from dspy_selfimprove.comparison import Comparison, compare
    from dspy_selfimprove.dataset import Dataset
    from dspy_selfimprove.errors import SelfImproveError
    from dspy_selfimprove.evaluation import Evaluation, aevaluate, evaluate
    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.judge import Judge
    from dspy_selfimprove.metric import Metric, Metrics, human, metric_of
    from dspy_selfimprove.model import Model, Models, Price
    from dspy_selfimprove.optimizer import Improvement, Optimizer, optimizer_of
    from dspy_selfimprove.program import ChatProgram
    from dspy_selfimprove.prompt import ChatPrompt
    from dspy_selfimprove.runner import Runner
    from dspy_selfimprove.sample import EvalSpec, Sample
    from dspy_selfimprove.score import Score, Scorecard
    from dspy_selfimprove.seal import open_test
    from dspy_selfimprove.slots import Slots
    from dspy_selfimprove.telemetry.evaluators import track_evaluators
    from dspy_selfimprove.telemetry.instrument import instrument

__version__ = "0.1.0"

_HOMES = {
    "instrument": "telemetry.instrument",
    "track_evaluators": "telemetry.evaluators",
    "Runner": "runner",
    "Checkpoint": "checkpoint",
    "Dataset": "dataset",
    "open_test": "seal",
    "Sample": "sample",
    "EvalSpec": "sample",
    "Judge": "judge",
    "Metric": "metric",
    "Metrics": "metric",
    "metric_of": "metric",
    "human": "metric",
    "evaluate": "evaluation",
    "aevaluate": "evaluation",
    "Evaluation": "evaluation",
    "compare": "comparison",
    "Comparison": "comparison",
    "optimizer_of": "optimizer",
    "Optimizer": "optimizer",
    "Improvement": "optimizer",
    "ChatPrompt": "prompt",
    "ChatProgram": "program.chat",
    "Score": "score",
    "Scorecard": "score",
    "Model": "model",
    "Models": "model",
    "Price": "model",
    "Slots": "slots",
    "Budget": "budget",
    "Ledger": "budget",
    "Spend": "budget",
    "Candidate": "candidate",
    "Journal": "journal",
    "SelfImproveError": "errors",
}

__all__ = [
    "Budget",
    "Candidate",
    "ChatProgram",
    "ChatPrompt",
    "Checkpoint",
    "Comparison",
    "Dataset",
    "EvalSpec",
    "Evaluation",
    "Improvement",
    "Journal",
    "Judge",
    "Ledger",
    "Metric",
    "Metrics",
    "Model",
    "Models",
    "Optimizer",
    "Price",
    "Runner",
    "Sample",
    "Score",
    "Scorecard",
    "SelfImproveError",
    "Slots",
    "Spend",
    "aevaluate",
    "compare",
    "evaluate",
    "human",
    "instrument",
    "metric_of",
    "open_test",
    "optimizer_of",
    "track_evaluators",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
