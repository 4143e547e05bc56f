"""Results reach a real Phoenix as an experiment, and what is missing there is not a zero."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import dspy
import pytest
from phoenix.client import Client

from dspy_selfimprove.errors import PhoenixUnreachable, UsageError
from dspy_selfimprove.evaluation import evaluate
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.score import Score
from dspy_selfimprove.telemetry.datasets import Pushed, push
from dspy_selfimprove.telemetry.experiments import Run, record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def dataset(phoenix):
    rows = [{"id": f"e{n}", "input": {"n": n}, "output": {"n": n}} for n in range(3)]
    return push(f"set {uuid.uuid4().hex[:12]}", rows, endpoint=phoenix.url)


def held(phoenix, recorded):
    return Client(base_url=phoenix.url).experiments.get_experiment(experiment_id=recorded.id)


def test_runs_and_scores_arrive_and_missing_ones_are_errors(phoenix, dataset):
    runs = [
        Run(
            example="e0",
            output={"output": "Hi 💥\x00"},
            began=NOW,
            seconds=1.5,
            scores={"tone": Score(0.75, label="good", feedback="Kind."), "brief": Score.missing("the judge was away")},
            kinds={"tone": "LLM"},
        ),
        Run(example="e1", output={}, began=NOW, seconds=0.5, error="the program raised KeyError"),
        Run(example="e2", output="text", began=NOW, seconds=0, scores={"tone": Score(0.0)}),
    ]
    done = record("prompt-v7", dataset, runs, metadata={"candidate": "abc"}, endpoint=phoenix.url)
    assert (done.runs, done.scores, done.missing) == (3, 2, 1)
    assert done.url == f"{phoenix.url}/datasets/{dataset.id}/compare?experimentId={done.id}"
    found = held(phoenix, done)
    assert found["experiment_metadata"] == {"candidate": "abc"}
    assert found["dataset_version_id"] == dataset.version_id
    outputs = [run["output"] for run in found["task_runs"]]
    assert {"output": "Hi \U0001f4a5\ufffd"} in outputs
    assert "text" in outputs
    assert [run["error"] for run in found["task_runs"] if run.get("error")] == ["the program raised KeyError"]
    listed = Client(base_url=phoenix.url)._client.get(f"v1/experiments/{done.id}/json").json()
    noted = {
        (each["name"], each["score"], each["label"], each["error"]) for run in listed for each in run["annotations"]
    }
    assert noted == {
        ("tone", 0.75, "good", None),
        ("brief", None, None, "the judge was away"),
        ("tone", 0.0, None, None),
    }


def test_repeats_are_runs_of_the_same_example(phoenix, dataset):
    runs = [Run(example="e0", repeat=n, output={"n": n}, began=NOW, seconds=1) for n in range(3)]
    found = held(phoenix, record("again", dataset, runs, endpoint=phoenix.url))
    assert sorted(run["repetition_number"] for run in found["task_runs"]) == [1, 2, 3]


def test_two_evaluations_of_the_same_examples_share_a_dataset(phoenix):
    class Add(dspy.Module):
        def __init__(self, more):
            super().__init__()
            self.more = more

        def forward(self, left, right):
            if left == 3:
                raise KeyError
            return dspy.Prediction(answer=left + right + self.more)

    examples = [
        dspy.Example(left=n, right=1, total=n + 1, weight=1 + n % 2, cluster=n % 2).with_inputs("left", "right")
        for n in range(8)
    ]
    exact = metric_of(lambda answer, total: answer == total, name="exact")
    name, done = f"sums {uuid.uuid4().hex[:12]}", []
    for more in (0, 1):
        found = evaluate(Add(more), examples, [exact], most_missing=0.5, repeats=2, show=False)
        done.append(found.record(f"plus {more}", name, endpoint=phoenix.url))
    first, second = (held(phoenix, each) for each in done)
    assert first["dataset_version_id"] == second["dataset_version_id"]
    assert (done[0].runs, done[0].scores, done[0].missing) == (16, 14, 2)
    assert first["experiment_metadata"]["metrics"] == {"exact": exact.version}
    for experiment, value in ((first, 1.0), (second, 0.0)):
        scores = [each.result["score"] for each in experiment["evaluation_runs"] if each.result]
        assert scores == [value] * 14
    rows = Client(base_url=phoenix.url).datasets.get_dataset(dataset=first["dataset_id"]).examples
    assert {"left": 2, "right": 1} in [row["input"] for row in rows]
    assert {"total": 3} in [row["output"] for row in rows]
    assert sorted(row["metadata"]["weight"] for row in rows) == [1] * 4 + [2] * 4


def test_what_phoenix_could_not_take_is_refused(phoenix, dataset):
    run = Run(example="e0", output={}, began=NOW, seconds=1)
    for name, runs, says in (
        (" ", [run], "needs a name"),
        ("x", [], "needs a run"),
        ("x", [run, run], "same example and repeat"),
        ("x", [Run(example="nobody", output={}, began=NOW, seconds=1)], "1 runs are of examples"),
    ):
        with pytest.raises(UsageError, match=says):
            record(name, dataset, runs, endpoint=phoenix.url)


def test_nobody_there(monkeypatch):
    from dspy_selfimprove.telemetry import client

    monkeypatch.setattr(client, "_PAUSE", 0.01)
    run = Run(example="e0", output={}, began=NOW, seconds=1)
    with pytest.raises(PhoenixUnreachable):
        record("x", Pushed("RGF0YXNldDox", "v", "", 1), [run], endpoint="http://127.0.0.1:9")
