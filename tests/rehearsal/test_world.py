"""Worlds: frozen, honest, different, in conflict with themselves; and the truth about them is exact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_selfimprove import pareto
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.prompt import ChatPrompt, fill, slots_of
from dspy_selfimprove.rehearsal.catalogue import ANSWER, QUERY, RULE, SUPPORT, TOPIC, stated, topic_of
from dspy_selfimprove.rehearsal.judge import criteria_in, verdict
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.reading import read
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.ticket import ASKING_BACK, FIRST_NAMES, Example, templates, write_ticket
from dspy_selfimprove.rehearsal.worker import Request, compose_query, evidence, name_in, reply
from dspy_selfimprove.rehearsal.world import Kind, World

KINDS: tuple[Kind, ...] = ("support", "retrieval")
SEEDS = range(10)
TEMPER = Temper()


@cache
def world(kind: Kind, seed: int) -> World:
    return World.draw(kind, seed)


def every_world() -> list[World]:
    return [world(kind, seed) for kind in KINDS for seed in SEEDS]


def points(found: World) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([point.scores for point in found.front()])


# --- the generator ----------------------------------------------------------------------------------------------------

GOLDEN: dict[tuple[Kind, int], tuple[str, list[float]]] = {
    ("support", 0): ("8d76ea1a26a2817c", [0.442134, 0.462141, 0.455574]),
    ("support", 1): ("7f87c608cb3f403a", [0.524071, 0.438653, 0.519393]),
    ("support", 7): ("481656c2940386e0", [0.484839, 0.440679, 0.535811]),
    ("retrieval", 0): ("07bd9eed2c2bbcea", [0.462882, 0.495958, 0.347218]),
    ("retrieval", 1): ("7ce1daeb29860abc", [0.463772, 0.406466, 0.322609]),
    ("retrieval", 7): ("1d1abf68709949cb", [0.538191, 0.482531, 0.413927]),
}


@pytest.mark.parametrize(("kind", "seed"), GOLDEN)
def test_the_generator_is_frozen(kind: Kind, seed: int) -> None:
    """A new fingerprint means a new GENERATOR_VERSION: results on old and new worlds cannot be compared."""
    fingerprint, scores = GOLDEN[kind, seed]
    found = World.draw(kind, seed)
    assert list(found.expected(found.prompts).values()) == pytest.approx(scores, abs=1e-6)
    assert found.fingerprint == fingerprint


def test_worlds_differ_in_what_matters() -> None:
    for kind in KINDS:
        hidden = [frozenset((c.rule, c.wanted) for cs in world(kind, s).criteria.values() for c in cs) for s in SEEDS]
        assert len(set(hidden)) >= 9
        assert len({tuple(world(kind, seed).prompts.values()) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_best_in_one_world_is_not_in_another(kind: Kind) -> None:
    best = [max(world(kind, seed).front(), key=lambda point: sum(point.scores)) for seed in SEEDS]
    lost = []
    for here, there in combinations(SEEDS, 2):
        own = sum(best[there].scores) / 3
        theirs = sum(world(kind, there).expected(world(kind, there).prompt(best[here].choice)).values()) / 3
        assert theirs < own + 0.005  # it may happen to forbid a habit that this world's front leaves alone
        lost.append(own - theirs)
    assert np.median(lost) > 0.05


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="poetry"):
        World.draw("poetry")  # type: ignore[arg-type]


# --- honesty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", every_world(), ids=lambda w: f"{w.kind}-{w.seed}")
def test_the_judge_is_told_exactly_the_hidden_criteria(found: World) -> None:
    task = "support" if found.kind == "support" else "answer"
    for name, spec in found.judges.items():
        told = criteria_in(str(spec.messages[0]["content"]), task)
        assert Counter(told) == Counter(found.criteria[name])
        assert list(spec.choices.values()) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("found", every_world(), ids=lambda w: f"{w.kind}-{w.seed}")
def test_the_frame_around_the_rules_asks_for_nothing(found: World) -> None:
    assert [stated(text) for text in found.prompt({}).values()] == [{}] * len(found.prompts)


def test_every_ticket_is_understood_as_its_topic_and_gives_no_name_away() -> None:
    dice = random.Random(0)
    assert set(templates()) == set(TOPIC) - {"general"}
    for topic, bodies in templates().items():
        for _ in range(40 * len(bodies)):
            text = write_ticket(topic, dice)
            assert topic_of(text).name == topic, text
            assert name_in(text) is None, text


def test_a_conversation_is_understood_as_its_topic_by_worker_and_judge() -> None:
    found = world("support", 0)
    turns = Counter(len(example.conversation) for example in found.examples(300))
    assert 0.1 < turns[3] / 300 < 0.3
    for example in found.examples(300):
        assert topic_of(example.text).name == example.topic
        body = ChatPrompt(system=found.prompts["system"]).request(example.conversation, **example.variables)
        reading = read(body)
        assert name_in(reading.instructions) == example.variables["customer_name"]
    assert topic_of(ASKING_BACK).name == "general"


def test_names_are_no_words_of_the_language() -> None:
    for name in FIRST_NAMES:
        assert stated(f"The customer is {name}.") == {}
        assert topic_of(name).name == "general"


def test_customers_write_more_than_once_and_topics_have_a_long_tail() -> None:
    found = world("support", 3)
    examples = found.examples(400)
    customers = Counter(example.group for example in examples)
    assert customers.most_common(1)[0][1] >= 5
    assert len(customers) > 60
    by_customer: dict[str, set[str]] = {}
    for example in examples:
        by_customer.setdefault(example.group, set()).add(example.variables["customer_name"])
    assert all(len(names) == 1 for names in by_customer.values())
    shares = sorted(found.topics.values(), reverse=True)
    assert len(shares) == 16
    assert shares[0] > 6 * shares[-1]
    assert sum(shares) == pytest.approx(1.0)
    assert found.example(17) == World.draw("support", 3).example(17)


def test_one_passage_answers_each_question() -> None:
    found = world("retrieval", 1)
    for question, reference, _ in found.questions:
        holding = [text for text in found.documents if evidence(question, text).found]
        assert [reference in text for text in holding] == [True]
        assert evidence(question, "\n".join(found.documents)).figure == reference
        assert not evidence(question, "\n".join(set(found.documents) - set(holding))).found


def test_the_retriever_is_deterministic_and_always_gives_three() -> None:
    found = world("retrieval", 1)
    for query in ("", "zzz", found.questions[0][0]):
        assert len(found.retrieve(query)) == 3
        assert found.retrieve(query) == World.draw("retrieval", 1).retrieve(query)


# --- the truth --------------------------------------------------------------------------------------------------------


def simulate(found: World, prompts: Mapping[str, str], demos: Mapping[str, Any], count: int) -> list[list[float]]:
    """Scores of `count` asks, straight from the worker and the judge."""
    rows = []
    for index in range(count):
        example, dice = found.example(index), random.Random(f"{found.kind}/{found.seed}/{index}/{prompts}")
        if found.kind == "support":
            system = fill(prompts["system"], example.variables, slots_of(prompts["system"]))
            request = Request(
                "support", system, example.text, demos=tuple(demos.get("system", ())), topic=TOPIC[example.topic]
            )
            text, context, topic = reply(request, TEMPER, dice), "", example.topic
        else:
            asked = Request("query", prompts["query"], example.question, demos=tuple(demos.get("query", ())))
            context = "\n".join(found.retrieve(reply(asked, TEMPER, dice)))
            topic = evidence(example.question, context).topic
            given = Request("answer", prompts["answer"], example.question, context, tuple(demos.get("answer", ())))
            text = reply(given, TEMPER, dice)
        rows.append([score(found, metric, example, text, topic, dice) for metric in found.metrics])
    return rows


def score(found: World, metric: str, example: Example, text: str, topic: str, dice: random.Random) -> float:
    if metric not in found.judges:
        value = found.code_score(metric, example, text).value
        assert value is not None
        return value
    task = "support" if found.kind == "support" else "answer"
    criteria = criteria_in(str(found.judges[metric].messages[0]["content"]), task)
    notch = verdict(criteria, topic=topic, reply=text, notches=5, temper=TEMPER, dice=dice, task=task).notch
    return notch / 4


def assert_exact(found: World, rows: list[list[float]], expected: Mapping[str, float]) -> None:
    scores = np.array(rows)
    error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
    off = np.abs(scores.mean(axis=0) - [expected[metric] for metric in found.metrics])
    assert (off <= 4 * error + 1e-9).all(), (scores.mean(axis=0), expected, off / error)


DEMOS: dict[str, list[tuple[str, str]]] = {
    "system": [
        ("My parcel is late.", "Hello Ana,\n\nWe will be in touch within two business days. In short, we check this."),
        ("I cannot log in.", "The reset link on our sign-in page lets you in again."),
        (
            "The lamp is broken.",
            "Hello Jo,\n\nPlease attach a photo. We are sorry for the trouble that this has caused.",
        ),
    ],
    "query": [("What is the NWT of the Ember T4 in 2021?", "Ember T4 net weight 2021")] * 3,
    "answer": [("What is the NWT of the Ember T4 in 2021?", "It is 47. Source: D12.")] * 3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["seed", "empty", "helpful", "balanced", "with examples", "long and torn"])
def test_expected_scores_are_what_asking_gives(kind: Kind, which: str) -> None:
    found = world(kind, 4)
    front = found.front()
    prompts = {
        "seed": dict(found.prompts),
        "empty": dict.fromkeys(found.prompts, ""),
        "helpful": found.prompt(front[0].choice),
        "balanced": found.prompt(max(front, key=lambda point: sum(point.scores)).choice),
        "with examples": dict(found.prompts),
        "long and torn": {
            name: "\n".join(
                [
                    text,
                    *(rule.asks[0].text for rule in (*SUPPORT, *QUERY, *ANSWER)),
                    *(RULE[name].forbids[0] for name in ("padding", "abstain", "add_year")),
                ]
            )
            for name, text in found.prompt({}).items()
        },
    }[which]
    demos = DEMOS if which == "with examples" else {}
    assert_exact(found, simulate(found, prompts, demos, 1500), found.expected(prompts, demos))


def test_expected_scores_are_what_the_model_itself_gives_on_a_desk() -> None:
    """The whole way: requests as production sends them, judged by the judge prompt, through the model's own door."""
    found, model = world("support", 5), RehearsalModel(seed=11)
    prompt = ChatPrompt(system=found.prompts["system"])
    rows = []
    for example in found.examples(500):
        body = prompt.request(example.conversation, **example.variables)
        text = model.complete(body)["choices"][0]["message"]["content"]
        rows.append([ask_judge(found, metric, model, example, text) for metric in found.metrics])
    assert_exact(found, rows, found.expected(found.prompts))


def test_expected_scores_are_what_a_dspy_program_gives_on_questions() -> None:
    found, model = world("retrieval", 5), RehearsalModel(seed=12)
    adapter = dspy.ChatAdapter()
    search = dspy.Signature("question -> search_query", found.prompts["query"])
    answer = dspy.Signature("context: list[str], question -> answer", found.prompts["answer"])

    def run(signature: type[dspy.Signature], **inputs: Any) -> dict[str, Any]:
        messages = adapter.format(signature, [], inputs)
        text = model.complete({"messages": messages})["choices"][0]["message"]["content"]
        return adapter.parse(signature, text)  # type: ignore[no-any-return]

    rows = []
    for example in found.examples(500):
        query = run(search, question=example.question)["search_query"]
        passages = found.retrieve(query)
        text = run(answer, context=list(passages), question=example.question)["answer"]
        rows.append([ask_judge(found, m, model, example, text, "\n".join(passages)) for m in found.metrics])
    assert_exact(found, rows, found.expected(found.prompts))


def ask_judge(
    found: World, metric: str, model: RehearsalModel, example: Example, text: str, context: str = ""
) -> float:
    if metric not in found.judges:
        value = found.code_score(metric, example, text).value
        assert value is not None
        return value
    spec = found.judges[metric]
    pieces = {"input": example.text, "output": text, "context": context}
    prompt = fill(str(spec.messages[0]["content"]), pieces, pieces)
    label = model.complete({"messages": [{"role": "user", "content": prompt}]})["choices"][0]["message"]["content"]
    value = spec.choices[label]
    assert value is not None
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_the_landscape_is_the_truth_of_the_prompts_it_stands_for(kind: Kind) -> None:
    found = world(kind, 2)
    choices, scores = found.landscape()
    assert len(choices) == len(scores)
    for number in random.Random(0).sample(range(len(choices)), 40):
        expected = found.expected(found.prompt(choices(number)))
        assert scores[number] == pytest.approx(list(expected.values()), abs=1e-12)


def test_a_better_worker_and_a_kinder_judge_change_the_truth() -> None:
    found = world("support", 0)
    best = found.prompt(found.front()[0].choice)
    assert (
        found.expected(best, temper=Temper(worker_reliability=0.5))["helpfulness"]
        < found.expected(best)["helpfulness"] - 0.1
    )
    kind = found.expected(found.prompts, temper=Temper(judge_length_bias=0.3))
    assert kind["helpfulness"] > found.expected(found.prompts)["helpfulness"] + 0.02


# --- the front --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", every_world(), ids=lambda w: f"{w.kind}-{w.seed}")
def test_the_metrics_conflict(found: World) -> None:
    front = points(found)
    assert len(np.unique(front.round(2), axis=0)) >= 8
    assert len(pareto.front(front)) == len(front)
    ideal = front.max(axis=0)
    assert (ideal - front).max(axis=1).min() > 0.1  # no point comes near the best of everything at once
    volume = pareto.hypervolume(front, [0.0, 0.0, 0.0])
    assert front.prod(axis=1).max() < 0.75 * volume


@pytest.mark.parametrize("found", every_world(), ids=lambda w: f"{w.kind}-{w.seed}")
def test_the_seed_prompt_is_mediocre_and_can_be_beaten_by_far(found: World) -> None:
    seed, front = found.expected(found.prompts), points(found)
    quality, compliance, brevity = (seed[metric] for metric in found.metrics)
    assert 0.2 < quality < 0.65
    assert 0.35 < compliance < 0.65
    assert 0.2 < brevity < 0.65
    assert (front.max(axis=0) > 0.8).all()
    assert (front >= np.array([quality, compliance, brevity]) + 0.1).all(axis=1).any()
    assert 3 * quality * compliance * brevity < pareto.hypervolume(front, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_values_never_pays(kind: Kind) -> None:
    found = world(kind, 1)
    front = points(found)
    idle = ("survey", "upsell", "company_story", "social") if kind == "support" else ("quotes",)
    assert not set(idle) & set(found.options)
    for point in found.front()[:: max(1, len(front) // 15)]:
        for name in idle:
            scores = np.array(list(found.expected(found.prompt({**point.choice, name: True})).values()))
            assert (front >= scores - 0.002).all(axis=1).any()


def test_each_predictor_can_be_improved_alone() -> None:
    for seed in SEEDS:
        found = world("retrieval", seed)
        best = found.prompt(max(found.front(), key=lambda point: sum(point.scores)).choice)
        start = sum(found.expected(found.prompts).values())
        assert sum(found.expected({**found.prompts, "query": best["query"]}).values()) > start + 0.02
        assert sum(found.expected({**found.prompts, "answer": best["answer"]}).values()) > start + 0.02


# --- code metrics -----------------------------------------------------------------------------------------------------


def test_brevity_is_linear_between_its_limits() -> None:
    found = world("support", 0)
    low, high = found.word_limits
    values = [
        found.code_score("brevity", found.example(0), "word " * n).value for n in (low, (low + high) // 2, high, 900)
    ]
    assert values[0] == 1.0
    assert values[1] == pytest.approx(0.5, abs=0.01)
    assert values[2:] == [0.0, 0.0]
    assert "shorter" in found.code_score("brevity", found.example(0), "word " * 100).feedback


def test_correctness_wants_the_figure_itself() -> None:
    found = world("retrieval", 0)
    example = found.example(0)
    value = lambda text: found.code_score("correctness", example, text).value  # noqa: E731
    assert value(f"It is {example.reference}.") == 1.0
    assert value(f"It is {example.reference}7.") == 0.0
    assert value("It is unclear.") == 0.0
    with pytest.raises(UsageError):
        found.code_score("compliance", example, "")


def test_a_query_decides_what_is_found() -> None:
    found = world("retrieval", 1)
    every = [rule.name for rule in QUERY if rule.name != "quotes"]
    share = lambda done: np.mean(  # noqa: E731
        [evidence(q, "\n".join(found.retrieve(compose_query(q, done)))).found for q, _, _ in found.questions]
    )
    assert share(every) > 0.9
    assert share([]) < 0.5
