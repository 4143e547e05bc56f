"""The language: what is asked for, done and blamed is understood, in our words and in those of others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.rehearsal.catalogue import BY_TASK, RULE, RULES, SUPPORT, blamed, shown, stated, topic_of
from dspy_selfimprove.rehearsal.rule import EXPLICIT, Rule, sentences

NAMES = st.sampled_from(["Maria", "Jonas", "Aisha", "Yuki"])
TOPIC_LABELS = st.sampled_from(["late delivery", "refund request", "plan change", "gift card"])


@st.composite
def sentences_of(draw: st.DrawFn, rule: Rule) -> str:
    slots = {
        "name": draw(NAMES),
        "plan": draw(st.sampled_from(["Solo", "Plus"])),
        "topic": draw(TOPIC_LABELS),
        "date": "2026-03-14",
        "ref": f"NH-{draw(st.integers(1000, 9999))}",
        "source": f"D{draw(st.integers(10, 99))}",
        "rounded": str(draw(st.integers(1, 9)) * 100),
        "figures": "112, 405, 33, 871, 64, 219",
        "passage": "Aurora K7 2023: net weight 47 kg and noise level 31 dB",
    }
    return draw(st.sampled_from(rule.does)).format(**slots)


@given(st.sampled_from(RULES).flatmap(lambda rule: st.tuples(st.just(rule), st.sampled_from(rule.asks))))
def test_every_request_is_understood_as_its_rule_and_no_other(case: tuple[Rule, tuple[str, float]]) -> None:
    rule, (text, strength) = case
    found = stated(text, rule.task)
    assert {name: (s.strength, s.negated) for name, s in found.items()} == {rule.name: (strength, False)}


@given(st.sampled_from(RULES).flatmap(lambda rule: st.tuples(st.just(rule), st.sampled_from(rule.forbids))))
def test_every_prohibition_is_understood_as_the_contrary_of_its_rule(case: tuple[Rule, str]) -> None:
    rule, text = case
    found = stated(text, rule.task)
    assert {name: (s.strength, s.negated) for name, s in found.items()} == {rule.name: (EXPLICIT, True)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_judge_says_is_understood_as_missing_or_unwanted(rule: Rule) -> None:
    assert [blamed(text, rule.task) for text in rule.missed] == [{rule.name: True}] * len(rule.missed)
    assert [blamed(text, rule.task) for text in rule.overdone] == [{rule.name: False}] * len(rule.overdone)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_judge_never_repeats_the_words_of_a_request(rule: Rule) -> None:
    assert not {ask.text for ask in rule.asks} & {*rule.missed, *rule.overdone}


@given(
    st.sampled_from([rule for rule in RULES if rule.does]).flatmap(
        lambda rule: st.tuples(st.just(rule), sentences_of(rule))
    )
)
def test_every_sentence_shows_its_rule_and_no_other(case: tuple[Rule, str]) -> None:
    rule, text = case
    assert shown(text) == {rule.name}
    assert len(text.split()) == rule.words


@given(
    st.sets(st.sampled_from(SUPPORT), min_size=1, max_size=12).flatmap(
        lambda rules: st.tuples(*map(sentences_of, sorted(rules, key=lambda r: r.place)))
    )
)
def test_sentences_side_by_side_show_what_each_shows_alone(parts: tuple[str, ...]) -> None:
    assert shown(" ".join(parts)) == frozenset().union(*(shown(part) for part in parts))


@given(st.lists(st.sampled_from(SUPPORT), min_size=1, max_size=8, unique=True), st.sampled_from(["- ", "* ", "", "# "]))
def test_a_list_of_requests_states_each_of_them(rules: list[Rule], bullet: str) -> None:
    text = "\n".join(f"{bullet}{rule.asks[0].text}" for rule in rules)
    assert set(stated(text, "support")) == {rule.name for rule in rules}


def test_rules_are_complete_and_named_once() -> None:
    assert len(RULE) == len(RULES)
    for rule in RULES:
        assert rule.asks[0].strength == EXPLICIT
        assert min(len(rule.forbids), len(rule.missed), len(rule.overdone)) >= 1
        assert rule.opposes <= set(RULE)
        assert bool(rule.does) == (rule.task != "query")
    assert set(BY_TASK) == {"support", "query", "answer"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Start each message with the customer's given name.", {"greet_name": False}),
        ("Don't forget to greet by first name, and never use emoji.", {"greet_name": False, "exclaim": True}),
        ("Say sorry for the trouble, then explain what to do next and by when.",
         {"acknowledge": False, "next_step": False, "time_frame": False}),
        ("Under no circumstances should a refund be promised.", {"promise_refund": True}),
        ("Refund promises are not allowed.", {"promise_refund": True}),
        ("We never offer discounts or account credit.", {"discount": True, "goodwill": True}),
        ("Never ask for a credit card number.", {"ask_secret": True}),
        ("Criticising the courier is forbidden.", {"blame": True}),
        ("If something arrived broken, request a picture of it.", {"photo": False}),
        ("Confirm to them that erasure happens within thirty days.", {"deletion_period": False}),
        ("Mention the customer's plan only when it matters to the answer.", {"mention_plan": True}),
        ("Be concise.", {"padding": True}),
        ("Do not be verbose.", {"padding": True}),
        ("Close every mail with the signature of the Northwind Home team.", {"sign_off": False}),
        ("Ask for\na photo when an item\nis damaged.", {"photo": False}),
    ],
)  # fmt: skip
def test_paraphrases_are_understood(text: str, expected: dict[str, bool]) -> None:
    assert {name: statement.negated for name, statement in stated(text, "support").items()} == expected


def test_hedges_weaken_and_contradictions_are_seen() -> None:
    assert stated("Try to give a time frame.")["time_frame"].strength < EXPLICIT
    both = stated("Give a time frame. Do not give a time frame.")["time_frame"]
    assert both.disputed
    assert both.count == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "You are a helpful assistant.",
        "You help people who bought our devices.",
        "The customer is Maria, on the Plus plan.",
        "Refunds, deliveries and subscriptions are handled here.",
        "🙂 ~~~ {{}} \x00",
    ],
)
def test_other_text_states_nothing(text: str) -> None:
    assert stated(text) == {}


@pytest.mark.parametrize(
    ("feedback", "expected"),
    [
        ("It should have asked for a photo.", {"photo": True}),
        ("The reply should not promise a refund.", {"promise_refund": False}),
        ("The reply promised a refund although that is against the policy.", {"promise_refund": False}),
        ("The sign-off is missing and nobody is greeted by first name.", {"sign_off": True, "greet_name": True}),
        ("Too wordy.", {"padding": False}),
    ],
)  # fmt: skip
def test_feedback_of_others_is_understood(feedback: str, expected: dict[str, bool]) -> None:
    assert blamed(feedback, "support") == expected


def test_numbered_lists_keep_their_sentences() -> None:
    assert sentences("1. Greet them.\n2. Never shout. Be kind.\n10. Go.") == [
        "Greet them.",
        "Never shout.",
        "Be kind.",
        "Go.",
    ]


def test_a_topic_is_read_from_ordinary_words() -> None:
    assert topic_of("the parcel with my lamp never showed up, the courier is two weeks late").name == "late_delivery"
    assert topic_of("please erase everything you know about me, gdpr").name == "privacy_deletion"
    assert topic_of("what a day").name == "general"
