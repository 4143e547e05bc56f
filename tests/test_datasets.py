"""What ships in datasets/ and metrics/: the cards tell the truth, and the metric files speak Phoenix's fields."""

import hashlib
import json
import re
from collections import Counter

import pytest
import yaml

from dspy_selfimprove.files import definitions

DATASETS = sorted(path.parent for path in definitions("datasets").glob("*/dataset.yaml"))
METRICS = sorted(definitions("metrics").glob("*.yaml"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_a_card_says_what_is_there(folder):
    card = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
    assert card["name"] == folder.name
    assert all(card[field] for field in ("description", "origin", "licence", "fields", "known_limits"))
    for split in card["splits"].values():
        raw = (folder / split["file"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == split["sha256"]
        assert raw.endswith(b"\n")


def test_the_support_tickets_are_what_the_card_counts():
    folder = definitions("datasets") / "support_tickets"
    card = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
    splits = {name: rows(folder / split["file"]) for name, split in card["splits"].items()}
    tickets = [ticket for split in splits.values() for ticket in split]
    assert len(tickets) >= 400
    assert len({ticket["id"] for ticket in tickets}) == len(tickets)
    assert Counter(ticket["topic"] for ticket in tickets) == {
        topic: counts["tickets"] for topic, counts in card["topics"].items()
    }
    assert len(card["topics"]) >= 10
    for name, split in splits.items():
        assert len(split) == card["splits"][name]["tickets"]
        assert len({ticket["customer"]["id"] for ticket in split}) == card["splits"][name]["customers"]
    customers = [{ticket["customer"]["id"] for ticket in split} for split in splits.values()]
    assert sum(map(len, customers)) == len(set().union(*customers)), "a customer is in two splits"


def test_no_two_tickets_are_near_duplicates():
    folder = definitions("datasets") / "support_tickets"
    tickets = [ticket for path in sorted(folder.glob("*.jsonl")) for ticket in rows(path)]
    words = [
        set(re.findall(r"\w+", " ".join(turn["content"].lower() for turn in ticket["turns"] if turn["role"] == "user")))
        for ticket in tickets
    ]
    nearest = max(len(a & b) / len(a | b) for place, a in enumerate(words) for b in words[:place])
    assert nearest < 0.6


@pytest.mark.parametrize("path", METRICS, ids=lambda path: path.stem)
def test_a_metric_file_has_phoenixs_fields(path):
    metric = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert metric["name"] == path.stem
    assert metric["kind"] in ("LLM", "CODE")
    assert metric["optimization_direction"] in ("maximize", "minimize", "neutral")
    assert metric["description"]
    if metric["kind"] == "CODE":
        assert re.fullmatch(r"[\w.]+:\w+", metric["function"])
        return
    text = " ".join(message["content"] for message in metric["messages"])
    assert set(re.findall(r"\{\{(\w+)\}\}", text)) == set(metric["inputs"])
    assert set(metric["choices"].values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {0.0, 1.0} <= set(metric["choices"].values())
