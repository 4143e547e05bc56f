"""Results out, to an experiment in Phoenix, where runs of the same examples stand side by side.

An experiment is recorded after the fact: its runs and their scores were made elsewhere, and Phoenix is only told. It
belongs to one version of one dataset (datasets.py, `push`), and every run to one of its examples, by the example's id.

A run that failed is recorded with its error, and a verdict that is missing as an evaluation with an error and no score,
so that Phoenix's means leave it out and count it. A run that was recorded cannot be changed; recording again makes
another experiment.

Not covered: removing an experiment that was recorded half before Phoenix went away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict, freeze
from dspy_selfimprove.sample import EvalKind
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry.annotations import LONGEST_LABEL, LONGEST_TEXT, _capped, _plain
from dspy_selfimprove.telemetry.client import clean_text, connect, refused
from dspy_selfimprove.telemetry.datasets import TIMEOUT, Pushed
from dspy_selfimprove.telemetry.server import locate

if TYPE_CHECKING:
    from phoenix.client import Client

_TAKEN: Final = 409  # what Phoenix answers to a run that it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One answer to one example, by the example's id in the dataset, and its scores by name."""

    example: str
    output: Any
    began: datetime
    seconds: float
    repeat: int = 0
    scores: Mapping[str, Score] = field(default_factory=FrozenDict)
    kinds: Mapping[str, EvalKind] = field(default_factory=FrozenDict)
    error: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", freeze(self.output))
        object.__setattr__(self, "scores", FrozenDict(self.scores))


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where it is now; `url` is the page that compares it with others. `missing` counts verdicts without a score."""

    id: str
    url: str
    runs: int
    scores: int
    missing: int = 0


def record(
    name: str,
    dataset: Pushed,
    runs: Iterable[Run],
    *,
    metadata: Mapping[str, Any] | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
) -> Recorded:
    """Record `runs` as the experiment `name` on this version of `dataset`."""
    runs = list(runs)
    if not name.strip():
        raise UsageError("An experiment needs a name.", remedy="Name it for what was tried, such as 'prompt-v7'.")
    if not runs:
        raise UsageError("An experiment needs a run.", remedy="Record at least one.")
    if len({(run.example, run.repeat) for run in runs}) != len(runs):
        raise UsageError("Two runs are of the same example and repeat.", remedy="Number the repeats from 0.")
    address = locate(endpoint, api_key)
    scores = missing = 0
    with connect(address, timeout=TIMEOUT) as phoenix:
        try:
            nodes = _nodes(phoenix, dataset)
            if strangers := [run for run in runs if run.example not in nodes]:
                raise UsageError(
                    f"{len(strangers)} runs are of examples that this version of the dataset lacks.",
                    remedy="Push the examples first, each with its id.",
                )
            made = phoenix.experiments.create(
                dataset_id=dataset.id,
                dataset_version_id=dataset.version_id,
                experiment_name=clean_text(name),
                experiment_metadata=_plain(metadata or {}),
                repetitions=1 + max(run.repeat for run in runs),
                timeout=TIMEOUT,
            )
            for run in runs:
                run_id = _log(phoenix, made["id"], nodes[run.example], run)
                for metric, score in run.scores.items():
                    missing += _evaluated(phoenix, run_id, metric, score, run)
                    scores += 1
        except httpx.HTTPStatusError as error:
            raise refused(error) from None
    assert address is not None
    url = f"{address.shown}/datasets/{dataset.id}/compare?experimentId={made['id']}"
    return Recorded(made["id"], url, len(runs), scores - missing, missing)


def _nodes(phoenix: Client, dataset: Pushed) -> dict[str, str]:
    """Phoenix's own ids of the examples, which alone a run can be recorded under."""
    held = phoenix.datasets.get_dataset(dataset=dataset.id, version_id=dataset.version_id, timeout=TIMEOUT)
    found: list[Any] = list(held.examples)
    return {str(example["id"]): str(example["node_id"]) for example in found}


def _log(phoenix: Client, experiment: str, node: str, run: Run) -> str:
    end = run.began + timedelta(seconds=run.seconds)
    try:
        made = phoenix.experiments.log_run(
            experiment_id=experiment,
            dataset_example_id=node,
            output=_plain(run.output),
            start_time=run.began,
            end_time=end,
            repetition_number=run.repeat + 1,
            error=None if run.error is None else _capped(run.error, LONGEST_TEXT),
            timeout=TIMEOUT,
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != _TAKEN:
            raise
        # Our own first attempt, whose answer was lost on the way.
        held: Any = phoenix.experiments.get_experiment(experiment_id=experiment)
        same = (each for each in held["task_runs"] if each["dataset_example_id"] == node)
        return str(next(each["id"] for each in same if each["repetition_number"] == run.repeat + 1))
    return str(made["id"])


def _evaluated(phoenix: Client, run_id: str, metric: str, score: Score, run: Run) -> bool:
    """Record one verdict; whether it is missing."""
    explanation = _capped(score.feedback, LONGEST_TEXT) if score.feedback else None
    phoenix.experiments.log_evaluation(
        experiment_run_id=run_id,
        name=clean_text(metric),
        annotator_kind=run.kinds.get(metric, "CODE"),
        start_time=run.began,
        score=score.value,
        label=None if score.label is None else _capped(score.label, LONGEST_LABEL),
        explanation=explanation,
        error=None if score.failure is None else _capped(score.failure, LONGEST_TEXT),
        metadata=_plain(score.details),
        timeout=TIMEOUT,
    )
    return score.is_missing
