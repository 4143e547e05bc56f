"""The judge reads its criteria in its own prompt, errs at known rates, and explains in other words."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.rehearsal.catalogue import RULE, SUPPORT, blamed
from dspy_selfimprove.rehearsal.judge import (
    Criterion,
    case_of,
    conversation,
    criteria_in,
    judge,
    lift_chance,
    notch_of,
    ranked,
    verdict,
)
from dspy_selfimprove.rehearsal.reading import OutputField, Reading, read
from dspy_selfimprove.rehearsal.temper import Temper

LABELS = ("bad", "poor", "fair", "good", "excellent")
POLICY = """You are an evaluator. Rate the reply by this policy:
1. Greet the customer by first name.
2. Never promise a refund.
3. If an item arrived damaged, ask for a photo; this is most important.
Give a label and explain the reason for your rating."""
GOOD = "Hello Maria,\n\nPlease send us a photo that shows the damage clearly."
BAD = "We will refund the full amount of your order to you."


def case(reply: str, asked: str = "My lamp arrived broken.", prompt: str = POLICY, **more: str) -> Reading:
    outputs = (OutputField("explanation"), OutputField("label", "choice", LABELS))
    inputs = {"input": asked, "output": reply, **more}
    return Reading("judge", "tool", prompt, inputs, outputs)


PERFECT = Temper.perfect()


def label_of(reading: Reading, temper: Temper = PERFECT, seed: int = 0) -> str:
    return judge(reading, temper, random.Random(seed))["label"]


# --- criteria ---------------------------------------------------------------------------------------------------------


def test_criteria_are_read_from_the_prompt_and_only_there() -> None:
    assert set(criteria_in(POLICY)) == {
        Criterion("greet_name", True),
        Criterion("promise_refund", False),
        Criterion("photo", True, 2),
    }
    assert criteria_in("Rate this reply. Explain why you chose the label. Give the reason for your rating.") == ()


def test_items_of_a_list_in_lower_case_are_items() -> None:
    listed = "A good reply\n- says where to turn if that does not help\n- in a case of damage, asks for a photo\n"
    assert set(criteria_in(listed)) == {Criterion("escalation", True), Criterion("photo", True)}


def test_the_verdict_is_the_share_of_what_applies() -> None:
    assert label_of(case(GOOD)) == "excellent"
    assert label_of(case(BAD)) == "bad"
    assert label_of(case("Hello Maria, all is well.")) == "fair"  # 2 of 4, the photo counting twice
    assert label_of(case("Hello Maria, all is well.", asked="I cannot log in.")) == "excellent"  # nothing is damaged


def test_a_policy_given_as_data_counts_as_well() -> None:
    reading = case(BAD, prompt="Rate the reply by the policy.", policy=POLICY)
    assert label_of(reading) == "bad"
    assert case_of(reading).reply == BAD


@given(st.integers(2, 9), st.floats(0, 1))
def test_a_share_lands_on_the_nearest_notch(notches: int, share: float) -> None:
    notch = notch_of(share, notches)
    assert abs(notch / (notches - 1) - share) <= 0.5 / (notches - 1) + 1e-9


# --- the planted errors -----------------------------------------------------------------------------------------------


def mean_notch(criteria: tuple[Criterion, ...], reply: str, temper: Temper, count: int = 4000) -> tuple[float, float]:
    dice = random.Random(1)
    notches = [
        verdict(criteria, topic="login", reply=reply, notches=11, temper=temper, dice=dice).notch / 10
        for _ in range(count)
    ]
    mean = sum(notches) / count
    return mean, math.sqrt(sum((notch - mean) ** 2 for notch in notches) / count / count)


def test_noise_is_as_large_as_planted() -> None:
    criteria = tuple(Criterion(rule.name, True) for rule in SUPPORT[:10])
    mean, error = mean_notch(criteria, "", Temper(judge_noise=0.1, judge_length_bias=0.0))
    assert abs(mean - 0.1) < 4 * error


def test_length_is_rewarded_as_much_as_planted() -> None:
    criteria = tuple(Criterion(rule.name, True) for rule in SUPPORT[:10])
    temper = Temper(judge_noise=0.0, judge_length_bias=0.2)
    for words in (0, 100, 200):
        mean, error = mean_notch(criteria, "word " * words, temper)
        assert abs(mean - 0.1 * lift_chance(words, temper)) <= 4 * error
    assert lift_chance(200, temper) == pytest.approx(0.4)


def test_without_noise_the_verdict_never_changes() -> None:
    assert len({label_of(case(GOOD), seed=seed) for seed in range(30)}) == 1
    noisy = {label_of(case(GOOD), Temper(judge_noise=0.3), seed) for seed in range(30)}
    assert len(noisy) > 2


# --- the explanation --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_an_explanation_blames_only_what_is_wrong_and_something_that_is(seed: int) -> None:
    words = judge(case(BAD), Temper.perfect(), random.Random(seed))["explanation"]
    found = blamed(words, "support")
    assert found
    assert found.items() <= {"greet_name": True, "promise_refund": False, "photo": True}.items()


def test_sometimes_only_one_fault_is_named() -> None:
    counts = [len(blamed(judge(case(BAD), Temper.perfect(), random.Random(s))["explanation"])) for s in range(200)]
    assert 0.25 < counts.count(1) / 200 < 0.55
    assert counts.count(3) > 60


def test_an_explanation_of_a_perfect_reply_blames_nothing() -> None:
    assert blamed(judge(case(GOOD), Temper.perfect(), random.Random(0))["explanation"]) == {}


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "worst_to_best"),
    [
        (("good", "bad"), ("bad", "good")),
        (("correct", "incorrect"), ("incorrect", "correct")),
        (("helpful", "not helpful"), ("not helpful", "helpful")),
        (("5", "1", "3"), ("1", "3", "5")),
        (("full", "most", "half", "little", "none"), ("none", "little", "half", "most", "full")),
        (("excellent", "good", "fair", "poor", "useless"), ("useless", "poor", "fair", "good", "excellent")),
        (("hallucinated", "factual"), ("hallucinated", "factual")),
        (("zig", "zag"), ("zag", "zig")),  # says nothing: as given, the best first
    ],
)
def test_choices_are_ordered_by_what_they_mean(choices: tuple[str, ...], worst_to_best: tuple[str, ...]) -> None:
    assert ranked(choices) == worst_to_best


def test_numbers_and_yes_or_no_are_scales_too() -> None:
    number = OutputField.of("score", {"type": "integer", "minimum": 1, "maximum": 5})
    fraction = OutputField.of("score", {"type": "number", "minimum": 0, "maximum": 1})
    truth = OutputField.of("passed", {"type": "boolean"})
    for reply, values in ((GOOD, ("5", "1.00", "True")), (BAD, ("1", "0.00", "False"))):
        for field, value in zip((number, fraction, truth), values, strict=True):
            reading = Reading("judge", "schema", POLICY, {"input": "My lamp is broken.", "output": reply}, (field,))
            assert judge(reading, Temper.perfect(), random.Random(0))[field.name] == value


# --- without criteria -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "better", "worse", "more"),
    [
        ("Is the answer correct?", "It weighs 47 kg.", "It weighs 12 kg.", {"reference": "47 kg"}),
        (
            "Is the answer grounded in the context?",
            "The lamp weighs 47 kg.",
            "Penguins weigh 12 kg.",
            {"context": "The lamp weighs 47 kg and is loud."},
        ),
        ("Rate the tone of the reply.", "Thank you, please wait, kind regards.", "That is ridiculous.", {}),
        ("Did the assistant refuse?", "I cannot help with that.", "Here it is.", {}),
        ("Is the format valid JSON?", '{"a": 1}', "a: 1", {}),
        (
            "How good is this reply?",
            "We are sorry about your broken lamp. Your next step is to send it back within two days.",
            "No.",
            {},
        ),
    ],
)
def test_plain_questions_are_judged_by_plain_features(
    prompt: str, better: str, worse: str, more: dict[str, str]
) -> None:
    scores = [LABELS.index(label_of(case(reply, prompt=prompt, **more))) for reply in (better, worse)]
    assert scores[0] > scores[1]


def test_a_recorded_request_is_judged_by_what_the_customer_said() -> None:
    messages = [
        {"role": "system", "content": "We deliver parcels late."},
        {"role": "user", "content": "My lamp is broken."},
    ]
    assert conversation(json.dumps({"messages": messages})) == "My lamp is broken."
    assert conversation(json.dumps(messages)) == "My lamp is broken."
    assert conversation("[not json") == "[not json"


def test_a_judge_prompt_in_one_message_is_taken_apart() -> None:
    text = f"{POLICY}\n<input>\nMy lamp is broken.\n</input>\n<output>\n{BAD}\n</output>"
    schema = {"type": "object", "properties": {"label": {"enum": list(LABELS)}, "explanation": {"type": "string"}}}
    body = {
        "messages": [{"role": "user", "content": text}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    reading = read(body)
    assert reading.role == "judge"
    assert label_of(reading) == "bad"


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gets_a_verdict_on_the_scale(prompt: str, reply: str) -> None:
    values = judge(case(reply, prompt=prompt), Temper(), random.Random(0))
    assert values["label"] in LABELS
    assert values["explanation"]


def test_every_criterion_can_be_met_and_missed() -> None:
    for rule in SUPPORT:
        topic = min(rule.topics) if rule.topics else "login"
        sentence = rule.does[0].format(name="Maria", plan="Plus", topic="gift card", date="2026-03-14", ref="NH-1000")
        for wanted in (True, False):
            criteria = (Criterion(rule.name, wanted),)
            shares = [
                verdict(
                    criteria, topic=topic, reply=text, notches=5, temper=Temper.perfect(), dice=random.Random(0)
                ).share
                for text in (sentence, "We looked into it.")
            ]
            assert shares == ([1.0, 0.0] if wanted else [0.0, 1.0])
    assert RULE["photo"].applies("damaged_item")
