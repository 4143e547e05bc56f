"""World: a task whose hidden rules are known to us and to no model, drawn by seed from one generator.

Two kinds. *support*: one chat prompt answers tickets of sixteen topics with a long tail; a judge scores helpfulness,
another compliance, and code scores brevity. *retrieval*: one predictor writes a search query, another answers from the
three passages found; code scores correctness and brevity, a judge compliance. Worlds differ in which behaviours matter,
how much, how the criteria are worded, in their topics, texts and seed prompts. The metrics conflict: every helpful
sentence costs brevity, some helpful ones break the policy, and a prompt that states everything is obeyed less.

The truth is computable: `expected` gives the exact expected scores of any prompt, and `front` the best that can be
had by stating any subset of the rules that matter, each in its best wording. None of it is in any prompt.

Frozen: GENERATOR_VERSION names the generator. A change in what `draw` gives for a seed needs a new number, since
benchmarks compare results on fresh seeds.

Not covered: behaviours that interact (each is shown independently of the others), and prompts outside the space of
`front`, such as those that forbid a habit no metric looks at: they can gain a little brevity, and beat the front's
hypervolume by one or two hundredths of it.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict, digest
from dspy_selfimprove.prompt import fill, slots_of
from dspy_selfimprove.rehearsal import truth
from dspy_selfimprove.rehearsal.catalogue import ANSWER, ATTRIBUTES, FOUND, MISSING, QUERY, RULE, SUPPORT, TOPIC, TOPICS
from dspy_selfimprove.rehearsal.judge import Criterion
from dspy_selfimprove.rehearsal.rule import Rule, Task
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.ticket import FIRST_NAMES, PLANS, Example, write_conversation
from dspy_selfimprove.rehearsal.truth import Floats, Situation
from dspy_selfimprove.rehearsal.worker import (
    MISREAD,
    Pair,
    attention,
    compose_query,
    evidence,
    follow,
    plain_reply,
    words_in,
)
from dspy_selfimprove.sample import EvalSpec
from dspy_selfimprove.score import Score

Kind: TypeAlias = Literal["support", "retrieval"]
Choice: TypeAlias = Mapping[str, bool]  # rule -> asked for (True) or forbidden (False); absent: not mentioned

GENERATOR_VERSION = 1

_PROBE = {"customer_name": "Maria", "plan": "Plus", "date": "2026-03-14"}
_PLAIN_ANSWER_WORDS = 3  # "It is 47."
_PASSAGES = 3


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the true front: what its prompt states, and the expected scores in the order of `metrics`."""

    choice: Choice
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class World:
    """A task. Everything a model or an optimizer may be shown is in `prompts`, `judges`, `examples`, `documents`."""

    kind: Kind
    seed: int
    metrics: tuple[str, ...]
    prompts: Mapping[str, str]  # predictor -> its seed text
    judges: Mapping[str, EvalSpec]
    word_limits: tuple[int, int]  # brevity is 1 up to the first and 0 from the second on
    criteria: Mapping[str, tuple[Criterion, ...]] = field(repr=False)
    topics: Mapping[str, float] = field(repr=False, default_factory=FrozenDict)
    documents: tuple[str, ...] = field(repr=False, default=())
    questions: tuple[tuple[str, str, float], ...] = field(repr=False, default=())  # question, reference, share

    @classmethod
    def draw(cls, kind: Kind = "support", seed: int = 0) -> World:
        """The world of this seed."""
        if kind not in ("support", "retrieval"):
            raise UsageError(f"There is no kind of world called {kind!r}.", remedy='Say "support" or "retrieval".')
        dice = random.Random(f"world/{GENERATOR_VERSION}/{kind}/{seed}")
        return _draw_support(seed, dice) if kind == "support" else _draw_retrieval(seed, dice)

    @property
    def fingerprint(self) -> str:
        """A hash of everything the generator decided, and of some of the examples it gives."""
        first = [(example.text, dict(example.variables), example.reference) for example in self.examples(20)]
        hidden = {name: [(c.rule, c.wanted, c.weight) for c in items] for name, items in self.criteria.items()}
        judges = {name: [spec.messages, list(spec.choices.items())] for name, spec in self.judges.items()}
        told = [dict(self.prompts), judges, self.word_limits, hidden, dict(self.topics), self.documents, self.questions]
        return digest([self.kind, self.seed, told, first])

    # -- what there is to answer ---------------------------------------------------------------------------------------

    def example(self, index: int) -> Example:
        """Example number `index`, the same for ever."""
        dice = random.Random(f"example/{GENERATOR_VERSION}/{self.kind}/{self.seed}/{index}")
        if self.kind == "retrieval":
            at = dice.choices(range(len(self.questions)), [share for _, _, share in self.questions])[0]
            question, reference, _ = self.questions[at]
            name = f"q{index:05d}"
            return Example(id=name, group=f"question-{at}", topic="", question=question, reference=reference)
        topic = dice.choices(list(self.topics), list(self.topics.values()))[0]
        customer = int(dice.paretovariate(1.0) * 10) % 997  # a few customers write often
        person = random.Random(f"customer/{GENERATOR_VERSION}/{self.seed}/{customer}")
        variables = {
            "customer_name": person.choice(FIRST_NAMES),
            "plan": person.choice(PLANS),
            "date": f"2026-{dice.randrange(1, 13):02d}-{dice.randrange(1, 29):02d}",
        }
        return Example(
            id=f"t{index:05d}",
            group=f"customer-{customer}",
            topic=topic,
            variables=FrozenDict(variables),
            conversation=write_conversation(topic, dice),
        )

    def examples(self, count: int, start: int = 0) -> list[Example]:
        return [self.example(index) for index in range(start, start + count)]

    def retrieve(self, query: str) -> tuple[str, ...]:
        """The passages a query finds. Always the same ones, and always as many."""
        found = self._found.get(query)
        if found is None:
            found = self._found[query] = self._index.search(query, _PASSAGES)
        return found

    # -- metrics that are code -----------------------------------------------------------------------------------------

    def code_score(self, metric: str, example: Example, reply: str) -> Score:
        """The score of a metric that is no judge's."""
        if metric == "brevity":
            words, (low, high) = words_in(reply), self.word_limits
            value = min(1.0, max(0.0, (high - words) / (high - low)))
            praise = "The length is right." if value > 0.8 else "It should be shorter."
            return Score(value, feedback=f"The reply has {words} words. {praise}")
        if metric == "correctness" and self.kind == "retrieval":
            right = re.search(rf"(?<![\w.]){re.escape(example.reference)}(?![\w]|\.\d)", reply) is not None
            missing = f"The value wanted, {example.reference}, is not in the reply."
            return Score(float(right), feedback="The value is right." if right else missing)
        raise UsageError(f"{metric!r} is not a code metric of this world.", remedy="Ask the judge for it.")

    # -- the truth -----------------------------------------------------------------------------------------------------

    def expected(
        self,
        prompts: Mapping[str, str],
        demos: Mapping[str, Sequence[Pair]] | None = None,
        temper: Temper | None = None,
    ) -> dict[str, float]:
        """The exact expected score of each metric under these texts, by predictor, examples included if given."""
        shown = demos or {}
        rows = {
            name: self._chances(task, prompts[name], shown.get(name, ()), temper or Temper())
            for name, task in self._tasks.items()
        }
        return dict(zip(self.metrics, self._scores(rows, temper or Temper())[0].tolist(), strict=True))

    @cached_property
    def options(self) -> Mapping[str, tuple[bool | None, ...]]:
        """The rules that matter and what a sensible prompt may do about each."""
        wishes: dict[str, set[bool]] = {}
        for criterion in itertools.chain.from_iterable(self.criteria.values()):
            wishes.setdefault(criterion.rule, set()).add(criterion.wanted)
        if self.kind == "support":
            wishes["padding"] = {False}
        else:
            for name in ("list_figures", "quote_passage"):
                wishes.setdefault(name, set()).add(True)
            for name in ("rounding", "elaborate", "speculate"):
                wishes.setdefault(name, set()).add(False)
            wishes |= {rule.name: {True} for rule in QUERY if rule.name != "quotes"}
        order = [rule.name for rule in (*SUPPORT, *QUERY, *ANSWER) if rule.name in wishes]
        return FrozenDict({name: (None, *sorted(wishes[name], reverse=True)) for name in order})

    def prompt(self, choice: Choice) -> dict[str, str]:
        """The canonical texts that state a choice of rules, each in its best wording."""
        texts = {}
        for name, task in self._tasks.items():
            lines = [_wording(RULE[rule], asked) for rule, asked in choice.items() if RULE[rule].task == task]
            texts[name] = "\n".join([_PREAMBLE[task], *lines])
        return texts

    def front(self) -> tuple[Point, ...]:
        """The true Pareto front over all choices, best in the first metric first, equal points once."""
        return self._front

    @cached_property
    def _front(self) -> tuple[Point, ...]:
        from dspy_selfimprove import pareto

        choices, scores = self.landscape()
        _, kept = np.unique(scores.round(9), axis=0, return_index=True)
        best = kept[pareto.front(scores[kept])]
        ordered = sorted(best, key=lambda row: tuple(-scores[row]))
        return tuple(Point(FrozenDict(choices(int(row))), tuple(scores[row].tolist())) for row in ordered)

    def landscape(self) -> tuple[_Choices, Floats]:
        """Every choice (by number) and its expected scores: what the front is taken from."""
        temper = Temper()
        spaces = {name: _Space.of(self.options, task) for name, task in self._tasks.items()}
        rows = {name: space.chances(temper.worker_reliability) for name, space in spaces.items()}
        return _Choices(tuple(spaces.values())), self._scores(rows, temper)

    @property
    def _tasks(self) -> dict[str, Task]:
        return {"system": "support"} if self.kind == "support" else {"query": "query", "answer": "answer"}

    def _chances(self, task: Task, text: str, demos: Sequence[Pair], temper: Temper) -> Floats:
        shown = fill(text, _PROBE, slots_of(text)) if set(slots_of(text)) <= set(_PROBE) else text
        merged: dict[str, float] = {}
        for topic in self._topic_names(task):
            merged |= follow(shown, topic=topic, task=task, demos=demos, reliability=temper.worker_reliability)
        return np.array([[merged.get(rule.name, 0.0) for rule in _RULES[task]]])

    def _topic_names(self, task: Task) -> tuple[str, ...]:
        return tuple(self.topics) if task == "support" else (FOUND, MISSING)

    def _scores(self, rows: Mapping[str, Floats], temper: Temper) -> Floats:
        """Expected scores, a column per metric; a row per prompt, or per pair of prompts, the last varying fastest."""
        if self.kind == "support":
            situations = [
                Situation(share, name, words_in(plain_reply(TOPIC[name]))) for name, share in self.topics.items()
            ]
            columns = [
                truth.short(rows["system"], SUPPORT, situations, *self.word_limits)
                if metric == "brevity"
                else self._judged(metric, rows["system"], SUPPORT, situations, temper)
                for metric in self.metrics
            ]
            return np.stack(columns, axis=1)
        found = self._hit_rate(rows["query"])
        there, gone = (Situation(1.0, topic, _PLAIN_ANSWER_WORDS) for topic in (FOUND, MISSING))
        answers = rows["answer"]
        parts: dict[str, tuple[Floats, ...]] = {
            "correctness": (self._right(answers), np.zeros(len(answers))),
            "compliance": tuple(self._judged("compliance", answers, ANSWER, [s], temper) for s in (there, gone)),
            "brevity": tuple(truth.short(answers, ANSWER, [s], *self.word_limits) for s in (there, gone)),
        }
        mixed: list[Floats] = []
        for metric in self.metrics:
            if_there, if_gone = parts[metric]
            mixed.append((np.outer(found, if_there) + np.outer(1.0 - found, if_gone)).ravel())
        return np.stack(mixed, axis=1)

    def _judged(
        self, metric: str, chance: Floats, rules: Sequence[Rule], situations: Sequence[Situation], temper: Temper
    ) -> Floats:
        criteria, notches = self.criteria[metric], len(self.judges[metric].choices)
        alike: dict[tuple[bool, ...], list[Situation]] = {}
        for situation in situations:
            alike.setdefault(tuple(rule.applies(situation.topic) for rule in rules), []).append(situation)
        expected = np.zeros(len(chance))
        for same in alike.values():
            share = math.fsum(situation.probability for situation in same)
            expected += share * truth.judged(chance, rules, same[0], criteria, notches, temper)
        return expected

    def _right(self, chance: Floats) -> Floats:
        """How often an answer from the right passage holds the right figure."""
        shown = {rule.name: chance[:, column] for column, rule in enumerate(ANSWER)}
        plainly = (1.0 - shown["rounding"]) * (1.0 - MISREAD)
        return 1.0 - (1.0 - plainly) * (1.0 - shown["list_figures"]) * (1.0 - shown["quote_passage"])

    def _hit_rate(self, chance: Floats) -> Floats:
        """How often the passage that answers is among those found."""
        found = np.zeros(len(chance))
        for shown, hit in self._hits.items():
            likelihood = np.ones(len(chance))
            for column, rule in enumerate(QUERY):
                done = chance[:, column]
                likelihood *= done if rule.name in shown else 1.0 - done
            found += likelihood * hit
        return found

    @cached_property
    def _hits(self) -> Mapping[frozenset[str], float]:
        """For each set of query behaviours: the share of questions whose passage is found."""
        names = [rule.name for rule in QUERY]
        sets = [frozenset(chosen) for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)]
        return {
            shown: math.fsum(share * self._hit(question, shown) for question, _, share in self.questions)
            for shown in sets
        }

    def _hit(self, question: str, shown: frozenset[str]) -> bool:
        return evidence(question, "\n".join(self.retrieve(compose_query(question, shown)))).found

    @cached_property
    def _index(self) -> _Index:
        return _Index(self.documents)

    @cached_property
    def _found(self) -> dict[str, tuple[str, ...]]:
        return {}


_RULES: dict[Task, tuple[Rule, ...]] = {"support": SUPPORT, "query": QUERY, "answer": ANSWER}
_PREAMBLE: dict[Task, str] = {
    "support": (
        "You answer messages for Northwind Home. The customer is {{customer_name}}, on the {{plan}} plan. "
        "Today is {{date}}."
    ),
    "query": "Turn the question into a search.",
    "answer": "Answer the question with the help of the context.",
}


def _wording(rule: Rule, asked: bool) -> str:
    return rule.asks[0].text if asked else rule.forbids[0]


# --- All choices at once ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Space:
    """The choices for one predictor: a row each, a column per rule; 1 asked for, -1 forbidden, 0 not mentioned."""

    task: Task
    names: tuple[str, ...]
    table: Floats

    @classmethod
    def of(cls, options: Mapping[str, tuple[bool | None, ...]], task: Task) -> _Space:
        names = tuple(name for name in options if RULE[name].task == task)
        signs = {None: 0.0, True: 1.0, False: -1.0}
        table = np.array(list(itertools.product(*([signs[option] for option in options[name]] for name in names))))
        return cls(task, names, table)

    def chances(self, reliability: float) -> Floats:
        """What `follow` gives for the canonical prompt of every choice, without writing the prompts."""
        words = np.full(len(self.table), float(words_in(_PREAMBLE[self.task])))
        for column, name in enumerate(self.names):
            for sign, wanted in ((1.0, True), (-1.0, False)):
                words += (self.table[:, column] == sign) * words_in(_wording(RULE[name], wanted))
        grip = reliability * attention(words, np.abs(self.table).sum(axis=1))
        chances = np.empty((len(self.table), len(_RULES[self.task])))
        for column, rule in enumerate(_RULES[self.task]):
            chances[:, column] = rule.natural
            if rule.name in self.names:
                stated = self.table[:, self.names.index(rule.name)]
                asked, forbidden = np.maximum(rule.natural, grip), rule.natural * (1.0 - grip)
                chances[:, column] = np.select([stated > 0, stated < 0], [asked, forbidden], rule.natural)
        return chances


@dataclass(frozen=True)
class _Choices:
    """Choices by number, over the product of the predictors' spaces, the last varying fastest."""

    spaces: tuple[_Space, ...]

    def __len__(self) -> int:
        return math.prod(len(space.table) for space in self.spaces)

    def __call__(self, number: int) -> dict[str, bool]:
        choice: dict[str, bool] = {}
        for space in reversed(self.spaces):
            number, row = divmod(number, len(space.table))
            signs = zip(space.names, space.table[row], strict=True)
            choice = {name: bool(sign > 0) for name, sign in signs if sign} | choice
        return choice


# --- Retrieval --------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[a-z0-9]+")


class _Index:
    """BM25 over a few dozen passages; ties go to the earlier one."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = tuple(documents)
        bags = [Counter(_TOKEN.findall(text.lower())) for text in documents]
        mean = sum(sum(bag.values()) for bag in bags) / max(1, len(bags))
        holders = Counter(token for bag in bags for token in bag)
        self._weights: dict[str, list[tuple[int, float]]] = {}
        for number, bag in enumerate(bags):
            size = 0.25 + 0.75 * sum(bag.values()) / mean
            for token, count in bag.items():
                rarity = math.log(1.0 + (len(bags) - holders[token] + 0.5) / (holders[token] + 0.5))
                self._weights.setdefault(token, []).append((number, rarity * count * 2.2 / (count + 1.2 * size)))

    def search(self, query: str, count: int) -> tuple[str, ...]:
        scores = [0.0] * len(self._documents)
        for token in _TOKEN.findall(query.lower()):
            for number, weight in self._weights.get(token, ()):
                scores[number] += weight
        best = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:count]
        return tuple(self._documents[number] for number in best)


# --- Drawing a support desk -------------------------------------------------------------------------------------------

_HELPFUL = (
    "greet_name", "acknowledge", "restate", "next_step", "time_frame", "explain_cause", "escalation", "summary",
    "check_back", "alternatives",
)  # fmt: skip
_BY_TOPIC = ("photo", "invoice_number", "restart", "deletion_period", "tracking", "reset_link")
_TEMPTING = ("promise_date", "goodwill", "admit_fault")  # helpful, and against the policy
_PROPER = ("disclaimer", "sign_off", "ticket_reference", "formal")
_BAD_HABITS = ("promise_refund", "discount", "ask_secret", "blame", "exclaim", "mention_plan", "casual", "jargon")
_IDLE = ("survey", "upsell", "company_story", "social")

_SCALES = (
    ("unacceptable", "poor", "fair", "good", "excellent"),
    ("bad", "weak", "average", "good", "very good"),
    ("terrible", "poor", "mediocre", "solid", "outstanding"),
)
_CLOSINGS = (
    "Base the label on these points alone.",
    "Only the points above decide the label.",
    "The label rests on these points.",
)


def _draw_support(seed: int, dice: random.Random) -> World:
    order = dice.sample([topic.name for topic in TOPICS], len(TOPICS))
    topics = _long_tail(order, 0.9 + 0.4 * dice.random())
    conditional = _heaviest(_BY_TOPIC, topics, dice)
    tempting = dice.sample(_TEMPTING, 2)
    helpful = dice.sample(_HELPFUL, 5)
    proper, habits = dice.sample(_PROPER, 2), dice.sample(_BAD_HABITS, 2)
    criteria = {
        "helpfulness": _weighed([(name, True) for name in (*helpful, conditional, *tempting)], helpful, dice),
        "compliance": _weighed(
            [*((name, True) for name in proper), *((name, False) for name in (*habits, *tempting))], proper, dice
        ),
    }
    subjects = {
        "helpfulness": ("how well a reply serves the customer", "A reply serves the customer when it does this:"),
        "compliance": ("whether a reply keeps to the house policy", "The house policy:"),
    }
    return World(
        kind="support",
        seed=seed,
        metrics=("helpfulness", "compliance", "brevity"),
        prompts=FrozenDict({"system": _mediocre_support(criteria, dice)}),
        judges=FrozenDict(
            {
                name: _judge(name, criteria[name], *subjects[name], "support", dice)
                for name in ("helpfulness", "compliance")
            }
        ),
        word_limits=(words_in(plain_reply(TOPICS[0])), dice.randrange(155, 181)),
        criteria=FrozenDict(criteria),
        topics=FrozenDict(topics),
    )


def _long_tail(names: Sequence[str], steepness: float) -> dict[str, float]:
    weights = [1.0 / rank**steepness for rank in range(1, len(names) + 1)]
    total = math.fsum(weights)
    # Rounded, because the last bits of a power differ between machines, and of a sum between versions of Python.
    return {name: round(weight / total, 12) for name, weight in zip(names, weights, strict=True)}


def _heaviest(names: Sequence[str], topics: Mapping[str, float], dice: random.Random) -> str:
    """One of the two topic-bound rules that concern the most tickets: one that matters seldom would not be noticed."""
    mass = {name: math.fsum(topics[topic] for topic in RULE[name].topics or ()) for name in names}
    return dice.choice(sorted(names, key=lambda name: -mass[name])[:2])


def _weighed(wishes: Iterable[tuple[str, bool]], heavy: Sequence[str], dice: random.Random) -> tuple[Criterion, ...]:
    """Criteria in random order, one of the `heavy` ones counting twice."""
    most = dice.choice(list(heavy))
    criteria = [Criterion(name, wanted, 2 if name == most else 1) for name, wanted in wishes]
    return tuple(dice.sample(criteria, len(criteria)))


def _judge(
    name: str, criteria: Sequence[Criterion], about: str, heading: str, task: Task, dice: random.Random
) -> EvalSpec:
    """The prompt of a judge: all that any model is ever told of a world's criteria."""
    labels = dice.choice(_SCALES)
    bullet = dice.choice(("- ", "* ", "{n}. ", "• "))
    lines = []
    for number, criterion in enumerate(criteria, 1):
        rule = RULE[criterion.rule]
        phrase = dice.choice([a.text for a in rule.asks if a.strength == 1.0] if criterion.wanted else rule.forbids)
        remark = dice.choice((" (most important)", ", which counts double")) if criterion.weight == 2 else ""
        lines.append(f"{bullet.format(n=number)}{phrase.rstrip('.')}{remark}.")
    context = "<context>\n{{context}}\n</context>\n\n" if task == "answer" else ""
    listed = ", ".join(f'"{label}"' for label in labels)
    body = "\n".join(lines)
    text = (
        f"You are an evaluator. Your task is to rate {about}.\n\n{heading}\n{body}\n\n{dice.choice(_CLOSINGS)}\n\n"
        f"<input>\n{{{{input}}}}\n</input>\n\n{context}<output>\n{{{{output}}}}\n</output>\n\n"
        f"The label is one of: {listed}."
    )
    choices = {label: notch / (len(labels) - 1) for notch, label in enumerate(labels)}
    return EvalSpec(name=name, kind="LLM", messages=({"role": "user", "content": text},), choices=choices)


def _mediocre_support(criteria: Mapping[str, Sequence[Criterion]], dice: random.Random) -> str:
    """A prompt as people first write them: some good, much left unsaid, one thing said that ought not to be."""
    helpful = [c.rule for c in criteria["helpfulness"] if c.rule in _HELPFUL]
    tempting = [c.rule for c in criteria["helpfulness"] if c.rule in _TEMPTING]
    habits = [c.rule for c in criteria["compliance"] if c.rule in _BAD_HABITS]
    clear, half, hint = dice.sample(helpful, 3)
    lines = [
        RULE[clear].asks[1].text,
        RULE[half].asks[-2].text,
        RULE[hint].asks[-1].text,
        RULE[dice.choice(tempting)].asks[-1].text,
        RULE[dice.choice(habits)].asks[-2].text,
        RULE[dice.choice(_IDLE)].asks[-2].text,
    ]
    dice.shuffle(lines)
    opening = dice.choice(
        (
            "You are a support agent at Northwind Home, a shop for household devices.",
            "You work in the service team of Northwind Home and write to people who use our devices.",
            "Your job is to write to people who bought something at Northwind Home.",
        )
    )
    customer = dice.choice(
        (
            "The customer is {{customer_name}}, on the {{plan}} plan. Today is {{date}}.",
            "You are writing to {{customer_name}}, who is on the {{plan}} plan. It is {{date}} today.",
            "Customer: {{customer_name}}\nPlan: {{plan}}\nDate: {{date}}",
        )
    )
    closing = dice.choice(
        (
            "Read the message twice before you begin.",
            "Think about what the matter really is.",
            "Leave a good impression.",
        )
    )
    return "\n".join([opening, customer, "", *lines, "", closing])


# --- Drawing a question desk ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """How many passages tell products, years and properties apart: what a query must name to find the right one."""

    products: int
    years: int
    passages: int  # per product and year, two properties each

    @property
    def size(self) -> int:
        return self.products * self.years * self.passages


_SHAPES = (_Shape(4, 4, 4), _Shape(3, 5, 4), _Shape(5, 3, 4), _Shape(6, 5, 2), _Shape(2, 8, 4), _Shape(8, 2, 4))
_MAKES = ("Aurora", "Boreal", "Cirrus", "Delta", "Ember", "Fjord", "Glacier", "Harbor", "Indigo", "Juniper")
_CHAT = (
    "What would you like to know about your device? Please tell us and we will look it up for you.",
    "How do I reach you, and when can you call me? You can write to us at any time.",
    "Where can I find out how much it costs and what is in the box? Please ask us.",
    "Do you know what the warranty is, and how long it is good for? So do we, please ask.",
    "Could you tell me which one is best for me? We would like to help you with that.",
    "Who do I ask about what is in there, and how do I know that it is for me?",
)
_FRAMES: dict[str, tuple[str, ...]] = {
    "name": (
        "What is the {what} of the {product} in {year}?",
        "Could you please tell me what the {what} of the {product} was in {year}?",
        "I would like to know the {what} for the {product}, {year} edition.",
    ),
    "lay": (
        "Do you know {what} for the {product} of {year}?",
        "I need to know {what}, for the {product} from {year}.",
        "Please tell me {what}. It is about the {product}, {year}.",
    ),
}


def _draw_retrieval(seed: int, dice: random.Random) -> World:
    shape = dice.choice(_SHAPES)
    products = [f"{make} {dice.choice('KTXRS')}{dice.randrange(2, 10)}" for make in dice.sample(_MAKES, shape.products)]
    years = list(range(start := dice.randrange(2015, 2019), start + shape.years))
    short_form = dice.random() < 0.3  # the documents use abbreviations
    values = dice.sample([number for number in range(101, 999) if number % 10], shape.size * 2)
    facts: list[tuple[str, int, int, str]] = []
    documents: list[str] = []
    for product in products:
        attributes = dice.sample(range(len(ATTRIBUTES)), 2 * shape.passages)
        for year, pair in itertools.product(years, zip(attributes[::2], attributes[1::2], strict=True)):
            told = []
            for attribute in pair:
                value = str(values.pop())
                facts.append((product, year, attribute, value))
                label = f"{ATTRIBUTES[attribute].short} value" if short_form else ATTRIBUTES[attribute].full
                told.append(f"{label} {value} {ATTRIBUTES[attribute].unit}")
            documents.append(f"{product} {year}: {told[0]} and {told[1]}.")
    documents += dice.choice(((), _CHAT))
    dice.shuffle(documents)
    documents = [f"[D{number}] {text}" for number, text in enumerate(documents, 11)]
    criteria = _answer_criteria(dice)
    judge = _judge(
        "compliance",
        criteria,
        "whether an answer keeps to the rules of the desk",
        "The rules of the desk:",
        "answer",
        dice,
    )
    return World(
        kind="retrieval",
        seed=seed,
        metrics=("correctness", "compliance", "brevity"),
        prompts=FrozenDict(_mediocre_retrieval(criteria, dice)),
        judges=FrozenDict({"compliance": judge}),
        word_limits=(_PLAIN_ANSWER_WORDS, dice.randrange(44, 54)),
        criteria=FrozenDict({"compliance": criteria}),
        documents=tuple(documents),
        questions=_questions(facts, dice),
    )


def _answer_criteria(dice: random.Random) -> tuple[Criterion, ...]:
    proper = dice.sample(("cite", "scope", "caveat", "flattery"), 2)
    habits = dice.sample([name for name in ("speculate", "elaborate", "flattery") if name not in proper], 2)
    # What helps to be right, and is against the rules; or the other way round.
    conflicts = dice.sample((("list_figures", False), ("quote_passage", False), ("rounding", True)), 2)
    wishes = [*((name, True) for name in (*proper, "abstain")), *((name, False) for name in habits), *conflicts]
    return _weighed(wishes, (*proper, *(name for name, _ in conflicts)), dice)


def _questions(facts: Sequence[tuple[str, int, int, str]], dice: random.Random) -> tuple[tuple[str, str, float], ...]:
    """Eighty questions, few of which are asked often, some with abbreviations and some in lay words."""
    ways = dice.choices(("full", "short", "lay"), dice.choice(((5, 3, 2), (3, 5, 2), (3, 2, 5), (2, 4, 4))), k=80)
    shares = _long_tail([str(number) for number in range(80)], 0.5)
    questions = []
    for (product, year, attribute, value), way, share in zip(
        dice.sample(facts, 80), ways, shares.values(), strict=True
    ):
        named = ATTRIBUTES[attribute]
        what = {"full": named.full, "short": named.short, "lay": named.lay}[way]
        frame = dice.choice(_FRAMES["lay" if way == "lay" else "name"])
        questions.append((frame.format(what=what, product=product, year=year), value, share))
    return tuple(questions)


def _mediocre_retrieval(criteria: Sequence[Criterion], dice: random.Random) -> dict[str, str]:
    first, second = dice.sample(("name_product", "add_year", "keywords"), 2)
    wanted = [c.rule for c in criteria if c.wanted and c.rule not in ("abstain", "rounding")]
    unwanted = [c.rule for c in criteria if not c.wanted and c.rule not in ("list_figures", "quote_passage")]
    query = [
        RULE[first].asks[1].text,
        RULE[second].asks[-2].text,
        RULE[dice.choice(("synonyms", "expand"))].asks[-1].text,
    ]
    answer = [
        RULE[dice.choice(wanted)].asks[-2].text,
        RULE[dice.choice(unwanted)].asks[-1].text,
        RULE[dice.choice(("list_figures", "quote_passage"))].asks[-1].text,
    ]
    dice.shuffle(answer)
    return {
        "query": " ".join(
            [dice.choice(("Turn the question into a search.", "Make a search out of the question.")), *query]
        ),
        "answer": " ".join(["Answer the question with the help of the context.", *answer]),
    }
