"""The judges in metrics/ and their labelled sets: what is sent, what is offered, how the answer is read. Offline."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from dspy_selfimprove.definition import read
from dspy_selfimprove.files import definitions
from dspy_selfimprove.metric import metric_of
from dspy_selfimprove.model import Model, Models
from dspy_selfimprove.rehearsal import RehearsalModel, serve

JUDGES = sorted(path.stem for path in definitions("metrics").glob("*.yaml") if read(path).spec is not None)
NAMED = {"helpfulness", "compliance", "correctness", "groundedness", "tone", "refusal", "format"}


class Scripted:
    """The rehearsal model, or a label that it is made to say; keeps what it was asked."""

    def __init__(self) -> None:
        self.model = RehearsalModel(seed=1)
        self.asked: list[Mapping[str, Any]] = []
        self.label: str | None = None

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        completion = self.model.complete(body)
        if self.label is not None:
            said = json.dumps({"explanation": "Because of the second sentence.", "label": self.label})
            completion["choices"][0]["message"] = {"role": "assistant", "content": said, "refusal": None}
        return completion


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Scripted, Models]]:
    scripted = Scripted()
    with serve(scripted) as server:
        yield scripted, Models(Model(name="openai/rehearsal", base_url=server.url, api_key="none"), slots=4)


@pytest.fixture
def scripted(service: tuple[Scripted, Models]) -> Scripted:
    service[0].asked.clear()
    service[0].label = None
    return service[0]


@pytest.fixture
def models(service: tuple[Scripted, Models]) -> Models:
    return service[1]


def card_of(name: str) -> dict[str, Any]:
    path = definitions("datasets") / f"judge_{name}" / "dataset.yaml"
    card: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return card


def rows_of(name: str) -> list[dict[str, Any]]:
    path = definitions("datasets") / f"judge_{name}" / "test.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answered(row: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """A row as an example and the answer to it."""
    return {name: text for name, text in row["inputs"].items() if name != "output"}, row["inputs"]["output"]


def test_every_judge_that_is_promised_is_there() -> None:
    assert set(JUDGES) >= NAMED
    assert read("brevity").function == "dspy_selfimprove.metrics.usage:brevity"


@pytest.mark.parametrize("name", JUDGES)
def test_what_is_sent_is_the_prompt_with_every_input_in_its_place(
    name: str, scripted: Scripted, models: Models
) -> None:
    judge = metric_of(name, models=models)
    spec = read(name).spec
    assert spec is not None
    for row in rows_of(name)[:3]:
        judge.score(*answered(row))
        body = scripted.asked[-1]
        text = str(spec.messages[0]["content"])
        for variable, value in row["inputs"].items():
            text = text.replace(f"{{{{{variable}}}}}", value)
        assert [message["content"] for message in body["messages"]] == [text]
        assert "{{" not in text
        offered = body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"]
        assert offered == list(spec.choices)
        assert all(re.search(rf"\b{label}\b", text) for label in offered), "a choice that the prompt does not explain"


@pytest.mark.parametrize("name", JUDGES)
def test_each_choice_is_read_as_its_number(name: str, scripted: Scripted, models: Models) -> None:
    judge = metric_of(name, models=models)
    spec = read(name).spec
    assert spec is not None
    example, answer = answered(rows_of(name)[0])
    scores = {}
    for repeat, label in enumerate(spec.choices):
        scripted.label = label
        score = judge.score(example, answer, repeat=repeat)
        assert (score.label, score.feedback) == (label, "Because of the second sentence.")
        scores[label] = score.value
    turned = (lambda value: 1 - value) if judge.direction == "minimize" else (lambda value: value)
    assert scores == {label: turned(number) for label, number in spec.choices.items()}
    assert set(scores.values()) >= {0.0, 1.0}
    assert 3 <= len(scores) <= 5
    scripted.label = "no such label"
    assert judge.score(example, answer, repeat=99).is_missing


@pytest.mark.parametrize("name", JUDGES)
def test_a_labelled_set_fits_its_judge_and_its_card(name: str, models: Models) -> None:
    card, rows = card_of(name), rows_of(name)
    spec = read(name).spec
    assert spec is not None
    assert card["metric"] == name
    assert 10 <= len(rows) <= 20
    kinds = Counter(row["case"] for row in rows)
    split = card["splits"]["test"]
    assert (split["rows"], split["clear"], split["borderline"]) == (len(rows), kinds["clear"], kinds["borderline"])
    assert min(kinds["clear"], kinds["borderline"]) >= 4
    assert {row["label"] for row in rows} == set(spec.choices), "every choice is shown at least once"
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({json.dumps(row["inputs"]) for row in rows}) == len(rows)
    judge = metric_of(name, models=models)
    for row in rows:
        assert set(row) == set(card["fields"])
        assert row["why"].strip()
        assert set(judge.needs) == set(row["inputs"])
        judge.check(*answered(row))


@pytest.mark.parametrize("name", JUDGES)
def test_an_agreement_is_not_measured_or_names_its_model_and_date(name: str) -> None:
    said = str(card_of(name)["agreement"])
    assert said == "not measured" or re.search(r"\d{4}-\d{2}-\d{2}", said)


@pytest.mark.parametrize("name", JUDGES)
def test_every_row_gets_a_verdict(name: str, scripted: Scripted, models: Models) -> None:
    """From the rehearsal judge, which says nothing of how a model would do; only that nothing is lost on the way."""
    judge = metric_of(name, models=models)
    scores = [judge.score(*answered(row)) for row in rows_of(name)]
    assert not [score.failure for score in scores if score.is_missing]
    assert len(scripted.asked) == len(scores)
    assert len({score.value for score in scores}) > 1, "it tells nothing apart"
