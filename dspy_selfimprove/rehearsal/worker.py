"""The worker: answers tickets and questions, doing what its prompt states; not perfectly, and never more than it reads.

`follow` is the whole psychology: from the text of a prompt (and its examples) to the probability of each behaviour.
Answers are drawn from it, and a world's expected scores are computed from the very same function, so the two cannot
drift apart. A stated rule is followed less reliably the more loosely it is worded, the longer the prompt is, the more
rules it holds, and much less where the prompt contradicts itself. What is not stated happens at its natural rate;
examples pull that rate towards the share of them that show the behaviour.

An earlier assistant turn that shows no behaviour at all ("could you tell me more?") is conversation, not an example.

Besides the two tasks of the worlds (support desk; query and answer over retrieved passages) it says something plausible
to any other request. Not covered there: knowledge. It can only give back words of what it was sent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dspy_selfimprove.rehearsal import catalogue
from dspy_selfimprove.rehearsal.catalogue import ATTRIBUTES, FOUND, GENERAL, MISSING, RULE, Attribute, Topic, topic_of
from dspy_selfimprove.rehearsal.rule import Statement, Task, opposed, plain
from dspy_selfimprove.rehearsal.temper import Temper

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspy_selfimprove.rehearsal.reading import OutputField, Reading

Pair: TypeAlias = tuple[str, str]  # what was asked, what was answered

_WORDS_READ_WELL, _WORDS_SPAN = 120, 600
_RULES_KEPT_WELL, _RULES_SPAN = 6, 24
_TORN = 0.5  # what is left of a statement where the prompt also demands the contrary
_EXAMPLES_HALF = 2  # with this many examples, they and the natural rate weigh the same
_EXAMPLES_CAP = 0.9
MISREAD = 0.25  # how often the plain answer takes the other figure of the right passage


# --- What a prompt makes it do ----------------------------------------------------------------------------------------


def words_in(text: str) -> int:
    return len(text.split())


def attention(words: float | NDArray[np.float64], rules: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of reliability in a prompt of so many words that states so many rules."""
    longer = np.maximum(0.0, np.asarray(words, float) - _WORDS_READ_WELL) / _WORDS_SPAN
    more = np.maximum(0.0, np.asarray(rules, float) - _RULES_KEPT_WELL) / _RULES_SPAN
    return np.asarray(np.exp(-longer - more))


def rate(natural: float, statement: Statement | None, torn: bool, grip: float) -> float:
    """How often a behaviour happens, before examples. `grip` is reliability times attention."""
    if statement is None:
        return natural
    obeyed = grip * statement.strength * (_TORN if torn or statement.disputed else 1.0)
    return natural * (1.0 - obeyed) if statement.negated else max(natural, obeyed)


def follow(
    instructions: str,
    *,
    topic: str,
    task: Task = "support",
    demos: Sequence[Pair] = (),
    named: bool | None = None,
    reliability: float = Temper().worker_reliability,
) -> dict[str, float]:
    """The probability of each behaviour that applies to `topic`, from text alone.

    `named` says whether the customer's first name can be read; by default it is looked for in the instructions.
    """
    statements = catalogue.stated(instructions, task)
    grip = reliability * float(attention(words_in(instructions), len(statements)))
    chances: dict[str, float] = {}
    for rule in catalogue.BY_TASK[task]:
        if not rule.applies(topic):
            continue
        statement = statements.get(rule.name)
        chances[rule.name] = rate(rule.natural, statement, opposed(rule.name, statements, RULE), grip)
    for name, (shown, count) in _shares(tuple(demos), task).items():
        if name not in chances:
            continue
        weight = count / (count + _EXAMPLES_HALF)
        pulled = min(_EXAMPLES_CAP, (1.0 - weight) * chances[name] + weight * shown / count)
        chances[name] = max(chances[name], pulled) if name in statements else pulled
    if "greet_name" in chances and not (name_in(instructions) if named is None else named):
        chances["greet_name"] = 0.0
    return chances


@lru_cache(maxsize=1024)
def _shares(demos: tuple[Pair, ...], task: Task) -> dict[str, tuple[int, int]]:
    """Per behaviour: how many examples show it, of how many that could."""
    telling = [(asked, shown) for asked, shown in ((d[0], shows(d, task)) for d in demos) if shown]
    shares: dict[str, tuple[int, int]] = {}
    for rule in catalogue.BY_TASK[task]:
        fitting = [shown for asked, shown in telling if rule.topics is None or _topic_name(asked, task) in rule.topics]
        if fitting:
            shares[rule.name] = (sum(rule.name in shown for shown in fitting), len(fitting))
    return shares


def _topic_name(asked: str, task: Task) -> str:
    return topic_of(asked).name if task == "support" else FOUND


def shows(pair: Pair, task: Task) -> frozenset[str]:
    """The behaviours an answer shows; a query's are read beside its question."""
    return query_shows(*pair) if task == "query" else catalogue.shown(pair[1], task)


# --- What it can read -------------------------------------------------------------------------------------------------


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NAME = r"([A-Z][a-zà-öø-ÿ'-]+)(?![\w-])"
_NAMED = re.compile(
    r"(?:[Cc]ustomer|[Cc]lient|[Uu]ser|[Cc]aller|[Nn]ame)(?:'s)?(?: (?:first |given |full )?name)?"
    rf"(?: is called| is named| is|:| called| named|,)? {_NAME}"
    rf"|(?:[Hh]elping|[Aa]ssisting|[Tt]alking to|[Ss]peaking (?:to|with)|[Ww]riting to|[Aa]nswering|[Nn]amed|[Cc]alled"
    rf"|[Hh]ello|[Hh]i|[Dd]ear|[Aa]ddress|[Gg]reet) {_NAME}"
    rf"|\b(?:message|ticket|mail|question|request) (?:is )?(?:from|by) {_NAME}"
)
_SIGNED = re.compile(
    rf"\b(?:[Mm]y name is|[Tt]his is|I am|I'm) {_NAME}"
    rf"|(?:[Tt]hanks|[Rr]egards|[Cc]heers|[Bb]est|[Ss]incerely|"
    rf"[Tt]hank you)[,.]?\s*-?\s*{_NAME}\s*(?:\n|$|[A-Z])"
)
_NOT_NAMES = _set(
    """
    the a an and every each always never do use give keep be if when write state say tell ask offer open
    close start end sign greet address acknowledge northwind home team support please answer reply no
    yes today customers customer messages explain name quote restate avoid make add all any our your we
    you their they he she it this that for as in on at to by plan solo plus family basic premium company
    agent monday tuesday wednesday thursday friday
    """
)
_PLAN = re.compile(r"\b(?:on|has|with|in|holds)(?: the| a| an)? ([A-Za-z]\w+) plan\b|\b[Pp]lan(?: is|:) ([A-Za-z]\w+)")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}\.\d{1,2}\.\d{4}\b|\b\d{1,2}/\d{1,2}/\d{4}\b")


@lru_cache(maxsize=8192)
def name_in(instructions: str) -> str | None:
    """The customer's first name, if a prompt gives it."""
    return _first_name(_NAMED, instructions)


def _signature(ticket: str) -> str | None:
    return _first_name(_SIGNED, ticket)


def _first_name(pattern: re.Pattern[str], text: str) -> str | None:
    for hit in pattern.finditer(text):
        name = next(filter(None, hit.groups()), "")
        if name and name.lower() not in _NOT_NAMES:
            return name
    return None


@dataclass(frozen=True, slots=True)
class Request:
    """One request in the worker's own terms."""

    task: Task | None
    instructions: str
    asked: str
    context: str = ""
    demos: tuple[Pair, ...] = ()
    topic: Topic = GENERAL


_CONTEXT_FIELD = re.compile(r"context|passages?|documents?|docs|sources?|evidence|chunks", re.IGNORECASE)
_QUERY_FIELD = re.compile(r"(search_?)?(query|queries)", re.IGNORECASE)
_ASIDE = re.compile(r"reasoning|rationale|thoughts?|explanation|analysis|justification", re.IGNORECASE)
_REPLY_FIELD = re.compile(r"reply|answer|response|message|text|(search_?)?quer(?:y|ies)", re.IGNORECASE)
_DESK = re.compile(r"\b(?:customers?|support|tickets?|help ?desk|service desk|inquir\w+)\b", re.IGNORECASE)
_PLAIN_CONTEXT = re.compile(
    r"(?:context|passages|documents|sources)\W{0,3}:\s*(.+?)\s*\n\W*question\W{0,3}:\s*(.+)", re.IGNORECASE | re.DOTALL
)


def request_of(reading: Reading) -> Request:
    """What is to be done, from the fields and the words of a reading."""
    main = _main_field(reading.outputs)
    context = "\n".join(text for name, text in reading.inputs.items() if _CONTEXT_FIELD.fullmatch(name))
    asked = "\n".join(text for name, text in reading.inputs.items() if not _CONTEXT_FIELD.fullmatch(name))
    if not context and (both := _PLAIN_CONTEXT.search(asked)):
        context, asked = both.group(1), both.group(2)
    demos = tuple(
        (_joined(d.inputs), d.outputs.get(main.name if main else "", "") or next(iter(d.outputs.values()), ""))
        for d in reading.demos
    )
    plain_chat = set(reading.inputs) <= {"message"}
    topic = topic_of(asked)
    if topic is GENERAL:  # "any news?" is about what was said before
        earlier = [turn.text for turn in reversed(reading.history) if turn.role == "user"]
        topic = next((found for found in map(topic_of, earlier) if found is not GENERAL), GENERAL)
    task: Task | None = None
    if main is not None and main.kind == "str":
        if _QUERY_FIELD.fullmatch(main.name):
            task = "query"
        elif context:
            task = "answer"
        elif (
            _DESK.search(reading.instructions)
            or (plain_chat and topic is not GENERAL)
            or (topic is not GENERAL and main.name.lower() in ("reply", "response", "message"))
        ):
            task = "support"
    return Request(task, reading.instructions, asked, context, demos, topic)


def _main_field(outputs: Sequence[OutputField]) -> OutputField | None:
    plainly = [entry for entry in outputs if not _ASIDE.fullmatch(entry.name)]
    texts = [entry for entry in plainly if entry.kind == "str"]
    return next(iter([*texts, *plainly, *outputs]), None)


def _joined(inputs: Mapping[str, str]) -> str:
    return "\n".join(text for name, text in inputs.items() if not _CONTEXT_FIELD.fullmatch(name))


# --- What it writes ---------------------------------------------------------------------------------------------------


def work(reading: Reading, temper: Temper, dice: random.Random) -> dict[str, str]:
    """A value for every output field asked for."""
    request = request_of(reading)
    main = _main_field(reading.outputs)
    values: dict[str, str] = {}
    for entry in reading.outputs:
        if reading.form == "tool" and entry.kind == "str" and not _REPLY_FIELD.fullmatch(entry.name):
            continue  # an argument, not something to say: left to the form
        if main is not None and entry.name == main.name:
            values[entry.name] = reply(request, temper, dice) if request.task else _any_answer(entry, request, dice)
        elif _ASIDE.fullmatch(entry.name):
            values[entry.name] = f"This concerns {_gist(request)}, so I answer that."
        else:
            values[entry.name] = _any_answer(entry, request, dice)
    return values


def reply(request: Request, temper: Temper, dice: random.Random) -> str:
    """The answer to one request of a known task."""
    match request.task:
        case "support":
            return support_reply(request, temper, dice)
        case "query":
            done = _drawn(request, "query", FOUND, temper, dice)
            return compose_query(request.asked, done)
        case "answer":
            return grounded_answer(request, temper, dice)
        case None:
            return _echo(request)


def _drawn(request: Request, task: Task, topic: str, temper: Temper, dice: random.Random) -> tuple[str, ...]:
    named = bool(name_in(request.instructions) or _signature(request.asked)) if task == "support" else False
    chances = follow(
        request.instructions,
        topic=topic,
        task=task,
        demos=request.demos,
        named=named,
        reliability=temper.worker_reliability,
    )
    return tuple(name for name, chance in chances.items() if dice.random() < chance)


def plain_reply(topic: Topic) -> str:
    """What a reply says when no behaviour shows."""
    return f"We have looked into your {topic.label}."


def support_reply(request: Request, temper: Temper, dice: random.Random) -> str:
    done = _drawn(request, "support", request.topic.name, temper, dice)
    date = _DATE.search(request.instructions)
    plan = _PLAN.search(request.instructions)
    slots = {
        "name": name_in(request.instructions) or _signature(request.asked) or "there",
        "plan": next(filter(None, plan.groups())) if plan else "current",
        "topic": request.topic.label,
        "date": date.group() if date else "Friday",
        "ref": f"NH-{1000 + sum(map(ord, request.asked)) % 9000}",
    }
    placed = [(RULE[name].place, dice.choice(RULE[name].does).format(**slots)) for name in done]
    ordered = [sentence for _, sentence in sorted([*placed, (17, plain_reply(request.topic))])]
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for sentence in ordered:
        parts[0 if sentence.endswith(",") else 2 if sentence.endswith("team") else 1].append(sentence)
    return "\n\n".join(" ".join(part) for part in parts if part)


# --- Queries ----------------------------------------------------------------------------------------------------------

_PRODUCT = re.compile(r"\b[A-Z][a-z]+ [A-Z]\d+\b")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_TOKEN = re.compile(r"[A-Za-z0-9][\w'-]*")
_QUESTION_WORDS = _set(
    """
    a an and are be by can could did do does for from have how i in is it its me my of on or please so
    tell that the their then there this to us was we what when where which who why will with would you
    your know like need say anyone about if at has
    """
)


def compose_query(question: str, done: Iterable[str]) -> str:
    """The search query for a question when these behaviours show. The same input gives the same query."""
    followed = frozenset(done)
    rest = _YEAR.sub(" ", _PRODUCT.sub(" ", question))
    extra: list[str] = []
    for attribute in ATTRIBUTES:
        if re.search(rf"\b{attribute.short}\b", rest) and "expand" in followed:
            rest = re.sub(rf"\b{attribute.short}\b", attribute.full, rest)
        if "synonyms" in followed and attribute.lay in rest.lower():
            extra.append(attribute.full)
    words = _TOKEN.findall(rest)
    if "keywords" in followed:
        words = [word for word in words if word.lower() not in _QUESTION_WORDS]
    if "name_product" in followed:
        words = [*_PRODUCT.findall(question), *words]
    words += extra
    if "add_year" in followed:
        words += _YEAR.findall(question)
    query = " ".join(words) or "information"
    return f'"{query}"' if "quotes" in followed else query


def query_shows(question: str, query: str) -> frozenset[str]:
    """The behaviours a query shows, beside the question it was written for."""
    lowered = query.lower()
    found = {
        "name_product": [product in query for product in _PRODUCT.findall(question)],
        "add_year": [year in query for year in _YEAR.findall(question)],
        "expand": [a.full in lowered for a in ATTRIBUTES if re.search(rf"\b{a.short}\b", question)],
        "synonyms": [a.full in lowered for a in ATTRIBUTES if a.lay in question.lower()],
        "keywords": [not any(word.lower() in _QUESTION_WORDS for word in _TOKEN.findall(query))],
        "quotes": ['"' in query],
    }
    return frozenset(name for name, checks in found.items() if checks and all(checks))


# --- Answers from a context -------------------------------------------------------------------------------------------

_PASSAGE_START = re.compile(r"\n+|(?=\[D\d+\])")
_PASSAGE_ID = re.compile(r"\[(D\d+)\]|^\W*(?:\[(\w[\w-]*)\]|(\w[\w-]*)\s*[:|])")
_FIGURE = re.compile(r"(?<![\w.-])\d+(?:[.,]\d+)?(?![\w-]|\.\d)")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a context has to say to a question. `found`: it names the product, the year and the property asked for."""

    found: bool
    passage: str
    source: str
    figure: str
    other: str
    figures: tuple[str, ...]

    @property
    def topic(self) -> str:
        return FOUND if self.found else MISSING


@lru_cache(maxsize=4096)
def evidence(question: str, context: str) -> Evidence:
    """Find the passage that answers, or the one that comes nearest."""
    passages = [part.strip(" \t»«\"'") for part in _PASSAGE_START.split(context)]
    passages = [part for part in passages if len(part) > 5] or [context.strip() or "nothing"]
    asked = _attributes(question)
    wanted = {token.lower() for token in _TOKEN.findall(question)} - _QUESTION_WORDS
    best, best_score, best_found = passages[0], -1.0, False
    for passage in passages:
        tokens = {token.lower() for token in _TOKEN.findall(passage)}
        attributes = [attribute for attribute in asked if _position(attribute, passage) is not None]
        named = all(part in passage for part in (*_PRODUCT.findall(question), *_YEAR.findall(question)))
        overlap = len(wanted & tokens) / max(1, len(wanted))
        found = named and (bool(attributes) if asked else overlap >= 0.5)
        score = overlap + (10.0 if found else 0.0) + 0.5 * bool(attributes)
        if score > best_score:
            best, best_score, best_found = passage, score, found
    hit = _PASSAGE_ID.search(best)
    body = best[hit.end() :].strip(" :|") if hit else best
    numbers = _figures(body)
    at = next((p for p in (_position(attribute, body) for attribute in asked) if p is not None), 0)
    after = _figures(body[at:]) or numbers
    figure = after[0] if after else "unclear"
    other = next((number for number in numbers if number != figure), figure)
    everything = tuple(number for passage in passages for number in _figures(passage))
    source = next(filter(None, hit.groups()), "context") if hit else "context"
    return Evidence(best_found, body, source, figure, other, everything)


def _attributes(question: str) -> list[Attribute]:
    lowered = plain(question)
    return [a for a in ATTRIBUTES if a.full in lowered or a.lay in lowered or re.search(rf"\b{a.short}\b", question)]


def _position(attribute: Attribute, passage: str) -> int | None:
    hit = re.search(rf"\b(?:{attribute.full}|{attribute.short})\b", passage)
    return hit.end() if hit else None


def _figures(text: str) -> list[str]:
    return [number for number in _FIGURE.findall(_PRODUCT.sub(" ", text)) if not _YEAR.fullmatch(number)]


def rounded(figure: str) -> str:
    """One significant digit, and never the figure itself."""
    try:
        value = float(figure.replace(",", "."))
    except ValueError:
        return figure
    if value < 10:
        return "10"
    unit = 10 ** (len(str(int(value))) - 1)
    near = round(value / unit) * unit
    return str(int(near if near != value else near + unit))


def grounded_answer(request: Request, temper: Temper, dice: random.Random) -> str:
    known = evidence(request.asked, request.context)
    done = _drawn(request, "answer", known.topic, temper, dice)
    figure = known.other if known.found and dice.random() < MISREAD else known.figure
    words = " ".join(known.passage.rstrip(".").split()[:12])
    slots = {
        "source": known.source,
        "rounded": rounded(figure),
        "figures": ", ".join((*known.figures, *["none"] * 6)[:6]),
        "passage": words,
    }
    placed = [(RULE[name].place, dice.choice(RULE[name].does).format(**slots)) for name in done]
    if not any(RULE[name].instead for name in done):
        placed.append((20, f"It is {figure}."))
    return " ".join(sentence for _, sentence in sorted(placed))


# --- Anything else ----------------------------------------------------------------------------------------------------


def _gist(request: Request) -> str:
    if request.task == "support":
        return f"a {request.topic.label}"
    words = [word for word in _TOKEN.findall(request.asked) if word.lower() not in _QUESTION_WORDS]
    return " ".join(words[:6]).lower() or "the request"


def _echo(request: Request) -> str:
    return f"In answer to your request: {_gist(request)}."


def _any_answer(entry: OutputField, request: Request, dice: random.Random) -> str:
    text = f"{request.asked}\n{request.context}"
    if entry.choices:
        lowered = text.lower()
        scored = [(_affinity(choice, lowered), dice.random(), choice) for choice in entry.choices]
        return max(scored)[2]
    if entry.kind in ("int", "float"):
        numbers = _FIGURE.findall(text)
        return numbers[-1] if numbers else "0"
    if entry.kind == "bool":
        return str(dice.random() < 0.5)
    return _echo(request)


def _affinity(choice: str, text: str) -> float:
    """How much a text speaks for a label: its words in the text, by their stems, or a topic of that name."""
    stems = [word.lower()[:5] for word in re.findall(r"[A-Za-z]{3,}", choice)]
    hits = sum(len(re.findall(rf"\b{re.escape(stem)}", text)) for stem in stems)
    near = topic_of(text)
    return hits + (2.0 if near is not GENERAL and set(stems) & {w[:5] for w in near.label.split()} else 0.0)
