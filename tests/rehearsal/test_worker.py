"""The worker does what its prompt states, as often as `follow` says, and reads nothing but text."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.rehearsal.catalogue import ANSWER, BY_TASK, QUERY, RULE, SUPPORT, TOPIC, shown
from dspy_selfimprove.rehearsal.reading import Demo, OutputField, Reading, Turn
from dspy_selfimprove.rehearsal.rule import Task
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.worker import (
    Request,
    compose_query,
    evidence,
    follow,
    name_in,
    query_shows,
    reply,
    request_of,
    rounded,
    shows,
    work,
)

DESK = "You answer customers. The customer is Maria, on the Plus plan. Today is 2026-03-14."
CONTEXT = (
    "[D11] Aurora K7 2023: net weight 47 kg and noise level 31 dB.\n"
    "[D12] Aurora K7 2024: net weight 52 kg and noise level 29 dB."
)
QUESTION = "What is the net weight of the Aurora K7 in 2023?"


def ticket(instructions: str, topic: str = "late_delivery", demos: tuple[tuple[str, str], ...] = ()) -> Request:
    return Request("support", instructions, "My parcel is late.", demos=demos, topic=TOPIC[topic])


def chat(instructions: str, message: str, history: tuple[Turn, ...] = (), demos: tuple[Demo, ...] = ()) -> Reading:
    return Reading(
        role="worker",
        form="text",
        instructions=instructions,
        inputs={"message": message},
        outputs=(OutputField("reply"),),
        demos=demos,
        history=history,
    )


# --- follow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["support", "query", "answer"])
def test_an_empty_prompt_leaves_every_behaviour_at_its_natural_rate(task: Task) -> None:
    for topic in ("late_delivery",) if task == "support" else ("found", "missing"):
        for name, chance in follow("", topic=topic, task=task, named=True).items():
            assert chance == RULE[name].natural
            assert RULE[name].applies(topic)


@pytest.mark.parametrize("rule", [*SUPPORT, *QUERY, *ANSWER], ids=lambda rule: rule.name)
def test_stating_a_rule_makes_it_likely_and_forbidding_it_unlikely(rule) -> None:  # type: ignore[no-untyped-def]
    topic = min(rule.topics) if rule.topics else "general" if rule.task == "support" else "found"
    asked = [
        follow(ask.text, topic=topic, task=rule.task, named=True, reliability=0.97)[rule.name] for ask in rule.asks
    ]
    forbidden = follow(rule.forbids[0], topic=topic, task=rule.task, named=True)[rule.name]
    assert asked[0] == pytest.approx(0.97)
    assert asked == sorted(asked, reverse=True)
    assert forbidden < 0.1 * rule.natural


def test_a_rule_bound_to_topics_happens_nowhere_else() -> None:
    assert "photo" in follow("Ask for a photo of damaged items.", topic="damaged_item")
    assert "photo" not in follow("Ask for a photo of damaged items.", topic="login")


def test_a_longer_and_a_fuller_prompt_is_followed_less() -> None:
    short = follow("Give a time frame.", topic="login")["time_frame"]
    longer = follow("Give a time frame." + " Nothing to see here at all." * 60, topic="login")["time_frame"]
    fuller = "Give a time frame. " + " ".join(r.asks[0].text for r in SUPPORT if r.name not in ("time_frame", "casual"))
    assert longer < 0.75 * short
    assert follow(fuller, topic="login")["time_frame"] < 0.6 * short


def test_a_contradiction_costs_both_sides() -> None:
    clear = follow("Give a time frame.", topic="login")["time_frame"]
    assert follow("Give a time frame. Do not give a time frame.", topic="login")["time_frame"] < 0.6 * clear
    both = follow("Keep a formal tone. Keep a casual tone.", topic="login")
    assert max(both["formal"], both["casual"]) < 0.6 * clear


def test_examples_pull_towards_what_they_show() -> None:
    telling = ("My parcel is late.", "We will be in touch within two business days.")
    silent = ("My parcel is late.", "At your disposal.")
    chances = [
        follow("", topic="login", demos=demos)["time_frame"]
        for demos in ((), (telling,), (telling,) * 4, (telling,) * 40)
    ]
    assert chances == sorted(chances)
    assert 0.5 < chances[2] < chances[3] <= 0.9
    assert follow("", topic="login", demos=[silent] * 4)["padding"] < 0.5 * RULE["padding"].natural
    assert follow("Give a time frame.", topic="login", demos=[silent] * 9)["time_frame"] == pytest.approx(0.97)


def test_an_earlier_turn_that_shows_nothing_is_no_example() -> None:
    asking = ("My parcel is late.", "Could you describe it in a little more detail?")
    assert follow("", topic="login", demos=[asking] * 5) == follow("", topic="login")


def test_only_examples_where_a_rule_could_show_count() -> None:
    elsewhere = ("I cannot log in.", "The reset link on our sign-in page lets you in again.")
    assert follow("", topic="damaged_item", demos=[elsewhere] * 4)["photo"] == RULE["photo"].natural


def test_a_name_can_be_used_only_if_it_can_be_read() -> None:
    asking = "Greet the customer by first name."
    assert follow(asking, topic="login")["greet_name"] == 0.0
    assert follow(f"{asking} The customer is Maria.", topic="login")["greet_name"] > 0.9


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The customer is Maria, on the Plus plan.", "Maria"),
        ("Customer name: Zoë", "Zoë"),
        ("Customer: Kofi\nPlan: Solo", "Kofi"),
        ("You are writing to Ingrid, who is on the Solo plan.", "Ingrid"),
        ("The customer's first name is Priya.", "Priya"),
        ("You help customers. Always be kind.", None),
        ("You answer for Northwind Home.", None),
        ("Greet the customer: Always by name.", None),
        ("", None),
    ],
)
def test_where_a_name_is_read(text: str, name: str | None) -> None:
    assert name_in(text) == name


# --- replies ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rules=st.lists(st.sampled_from(SUPPORT), max_size=10, unique=True),
    topic=st.sampled_from(sorted(TOPIC)),
    seed=st.integers(0, 999),
)
def test_a_perfect_worker_shows_what_is_stated_and_has_the_words_of_what_it_shows(rules, topic, seed) -> None:  # type: ignore[no-untyped-def]
    prompt = "\n".join([DESK, *(rule.asks[0].text for rule in rules[:5])])
    text = reply(ticket(prompt, topic), Temper.perfect(), random.Random(seed))
    seen = shown(text)
    opposing = {"formal", "casual"} <= {rule.name for rule in rules[:5]}
    assert {rule.name for rule in rules[:5] if rule.applies(topic)} <= seen or opposing
    assert len(text.split()) == 7 + sum(RULE[name].words for name in seen)
    assert TOPIC[topic].label in text


def test_behaviours_happen_as_often_as_follow_says() -> None:
    prompt = f"{DESK} Give a time frame. Show that you understand the trouble. Never promise a refund."
    chances = follow(prompt, topic="late_delivery")
    dice = random.Random(5)
    count = 3000
    seen = [shown(reply(ticket(prompt), Temper(), dice)) for _ in range(count)]
    for name, chance in chances.items():
        share = sum(name in one for one in seen) / count
        assert abs(share - chance) < 4.5 * math.sqrt(max(chance * (1 - chance), 1e-3) / count), name


@settings(max_examples=40)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_prompt_and_any_message_get_an_answer(instructions: str, message: str) -> None:
    values = work(chat(instructions, message), Temper(), random.Random(1))
    assert values["reply"].strip()


def test_what_is_read_in_the_prompt_appears_in_the_reply() -> None:
    prompt = f"{DESK} Greet the customer by first name. Mention the customer's plan. Promise a definite date."
    text = reply(ticket(prompt), Temper.perfect(), random.Random(0))
    assert "Maria" in text
    assert "Plus plan" in text
    assert "2026-03-14" in text


def test_a_follow_up_is_about_what_was_said_before() -> None:
    history = (Turn("user", "My parcel is late."), Turn("assistant", "Could you tell me more?"))
    text = work(chat(DESK, "Any news?", history), Temper(), random.Random(0))["reply"]
    assert "late delivery" in text


def test_the_same_dice_give_the_same_reply_in_every_process() -> None:
    """The order of a set differs from process to process; the reply must not."""
    text = reply(ticket(f"{DESK} Keep a formal tone. Give a time frame."), Temper(), random.Random(7))
    assert text == (
        "It is always a pleasure to hear from our customers and we hope that your day is going very well. We have"
        " looked into your late delivery. Your next step is to open the account page and choose Support. You can follow"
        " the parcel by the tracking number we mailed. You will get a full refund for the order in question. You will"
        " hear from us within two business days. Please tell us whether this has solved the problem for you. We thank"
        " you for your inquiry and remain at your disposal."
    )


def test_examples_and_history_reach_the_worker_as_pairs() -> None:
    demo = Demo({"message": "My parcel is late."}, {"reply": "You will hear from us within two business days."})
    request = request_of(chat(DESK, "I cannot log in.", demos=(demo,)))
    assert request.demos == (("My parcel is late.", "You will hear from us within two business days."),)
    assert request.topic.name == "login"


def test_a_question_with_its_passages_in_one_message_is_answered_from_them() -> None:
    text = work(chat("Answer.", f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"), Temper.perfect(), random.Random(3))
    assert {"47", "31", "50"} & set(text["reply"].replace(".", " ").split())


def test_other_fields_get_something_that_fits() -> None:
    outputs = (
        OutputField("reasoning"),
        OutputField("topic", "choice", ("late delivery", "login problem", "gift card")),
        OutputField("count", "int"),
        OutputField("urgent", "bool"),
    )
    reading = Reading("worker", "chat", "Classify the ticket.", {"ticket": "My 3 parcels are late."}, outputs)
    values = work(reading, Temper(), random.Random(0))
    assert values["topic"] == "late delivery"
    assert values["count"] == "3"
    assert values["urgent"] in ("True", "False")
    assert values["reasoning"]


# --- queries and answers ----------------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from([rule.name for rule in QUERY])))
def test_a_query_shows_what_was_done_to_it(done: set[str]) -> None:
    question = "Could you tell me the NWT of the Aurora K7 in 2023?"
    found = query_shows(question, compose_query(question, done))
    assert found & {"name_product", "add_year", "keywords", "quotes", "expand"} == done - {"synonyms"}


def test_lay_words_are_translated_only_by_synonyms() -> None:
    question = "How heavy is the Aurora K7 of 2023?"
    assert "net weight" in compose_query(question, {"synonyms"})
    assert "net weight" not in compose_query(question, {"expand", "keywords", "name_product"})
    assert "synonyms" in query_shows(question, compose_query(question, {"synonyms"}))


def test_the_passage_that_answers_is_recognised_by_product_year_and_property() -> None:
    known = evidence(QUESTION, CONTEXT)
    assert (known.found, known.source, known.figure, known.other) == (True, "D11", "47", "31")
    assert evidence("How loud is the Aurora K7 of 2024?", CONTEXT).figure == "29"
    assert not evidence(QUESTION.replace("2023", "2019"), CONTEXT).found
    assert not evidence("What is the cable length of the Aurora K7 in 2023?", CONTEXT).found


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(ANSWER), max_size=5, unique=True), st.sampled_from(["2023", "2019"]), st.integers(0, 99)
)
def test_an_answer_has_the_words_of_what_it_shows(rules, year, seed) -> None:  # type: ignore[no-untyped-def]
    request = Request("answer", "\n".join(r.asks[0].text for r in rules), QUESTION.replace("2023", year), CONTEXT)
    text = reply(request, Temper.perfect(), random.Random(seed))
    seen = shown(text, "answer")
    instead = [RULE[name] for name in seen if RULE[name].instead]
    plain = 0 if instead else 3
    assert len(text.split()) == plain + sum(RULE[name].words for name in seen)
    assert {rule.name for rule in rules if rule.applies("found" if year == "2023" else "missing")} <= seen


def test_a_query_and_an_answer_through_their_fields() -> None:
    asked = Reading(
        "worker", "chat", "Name the product. Add the year.", {"question": QUESTION}, (OutputField("search_query"),)
    )
    query = work(asked, Temper.perfect(), random.Random(0))["search_query"]
    assert "Aurora K7" in query
    assert "2023" in query
    given = Reading(
        "worker",
        "chat",
        "Quote the passage you rely on.",
        {"context": CONTEXT, "question": QUESTION},
        (OutputField("answer"),),
    )
    assert "47" in work(given, Temper.perfect(), random.Random(0))["answer"]


@given(st.integers(11, 99_999))
def test_rounding_never_gives_the_figure_itself(figure: int) -> None:
    near = int(rounded(str(figure)))
    assert near != figure
    assert abs(near - figure) <= 10 ** (len(str(figure)) - 1)


def test_behaviours_of_a_task_are_its_own() -> None:
    for task, rules in BY_TASK.items():
        topic = "login" if task == "support" else "found"
        assert set(follow("", topic=topic, task=task)) == {rule.name for rule in rules if rule.applies(topic)}
    assert shows((QUESTION, "Aurora K7 net weight 2023"), "query") >= {"name_product", "add_year", "keywords"}
