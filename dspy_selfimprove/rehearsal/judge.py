"""The judge: scores an answer by the criteria its own prompt contains, and says what is missing or wrong.

It reads criteria as the worker reads rules: whatever its prompt states that the catalogue understands, each counting
once, or twice where the sentence says that it is most important. What applies is decided by the ticket's topic, what is
met by the reply's text; the share met is the verdict, put on whichever scale was offered. Without criteria it judges
plainly by what it was asked about: agreement with a reference, grounding in a context, refusal, tone, format, or
general helpfulness, each by simple features of the text.

Two errors are planted, with known rates (`Temper`): each criterion is perceived wrongly with probability
`judge_noise`, and with probability `judge_length_bias` per hundred words of the answer the verdict comes out one notch
too good. The explanation names faults in words of its own, and now and then only one of several.

Not covered: pairwise comparison, images, criteria that the catalogue has no words for (they are not seen).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dspy_selfimprove.rehearsal import catalogue
from dspy_selfimprove.rehearsal.catalogue import RULE, topic_of
from dspy_selfimprove.rehearsal.rule import Task, plain, sentences
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.worker import evidence, words_in

if TYPE_CHECKING:
    from dspy_selfimprove.rehearsal.reading import OutputField, Reading

_TERSE = 0.4  # how often only one of several faults is named


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing a verdict depends on. `weight` is 2 for what is most important, otherwise 1."""

    rule: str
    wanted: bool
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """The share of what was asked for, the notch it landed on (0 is worst) and why."""

    share: float
    notch: int
    explanation: str


# --- The planted behaviour, as pure functions -------------------------------------------------------------------------


def notch_of(share: float, notches: int) -> int:
    """The nearest of `notches` evenly spaced grades; halfway counts upwards."""
    return min(notches - 1, int(share * (notches - 1) + 0.5 + 1e-9))


def lift_chance(words: float, temper: Temper) -> float:
    """How likely an answer of so many words gets a notch more than it earned."""
    return min(1.0, temper.judge_length_bias * words / 100.0)


# --- Criteria ---------------------------------------------------------------------------------------------------------

_WEIGHTY = re.compile(
    r"\b(?:most important|counts? (?:double|twice)|above all|twice as much|weighs double)\b", re.IGNORECASE
)
_ABOUT_VERDICTS = re.compile(
    r"\b(?:label|verdict|rating|score|grade|choices?|explanation|your (?:reasoning|answer|judge?ment|response)"
    r"|reference answer|step by step)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=2048)
def criteria_in(text: str, task: Task = "support") -> tuple[Criterion, ...]:
    """What a judge's prompt demands of a reply. Sentences about the verdict itself are not criteria."""
    kept = [
        # An item of a list stays one: in lower case it would be read as the rest of the line before.
        f"- {sentence}" if re.search(rf"^\s*[-*•]\s+{re.escape(sentence[:12])}", text, re.MULTILINE) else sentence
        for sentence in sentences(text)
        if not _ABOUT_VERDICTS.search(sentence)
    ]
    return tuple(
        Criterion(name, not statement.negated, 2 if _WEIGHTY.search(statement.sentence) else 1)
        for name, statement in catalogue.stated("\n".join(kept), task).items()
        if RULE[name].does
    )


def verdict(
    criteria: Sequence[Criterion],
    *,
    topic: str,
    reply: str,
    notches: int,
    temper: Temper,
    dice: random.Random,
    task: Task = "support",
) -> Verdict:
    """Judge a reply by criteria. With none that apply there is nothing to fault."""
    shown = catalogue.shown(reply, task)
    met = total = 0
    faults: list[Criterion] = []
    for criterion in criteria:
        if not RULE[criterion.rule].applies(topic):
            continue
        fulfilled = (criterion.rule in shown) == criterion.wanted
        if dice.random() < temper.judge_noise:
            fulfilled = not fulfilled
        total += criterion.weight
        if fulfilled:
            met += criterion.weight
        else:
            faults.append(criterion)
    share = met / total if total else 1.0
    notch = notch_of(share, notches)
    if dice.random() < lift_chance(words_in(reply), temper):
        notch = min(notches - 1, notch + 1)
    return Verdict(share, notch, _explain(faults, share, dice))


def _explain(faults: Sequence[Criterion], share: float, dice: random.Random) -> str:
    if not faults:
        return "Nothing is left to wish for."
    order = sorted(faults, key=lambda fault: (-fault.weight, dice.random()))
    named = order[:1] if dice.random() < _TERSE else order
    words = [dice.choice(RULE[f.rule].missed if f.wanted else RULE[f.rule].overdone) for f in named]
    opening = (
        "Nearly all is well." if share > 0.75 else "Some of it is well." if share > 0.4 else "Little of it is well."
    )
    return " ".join([opening, *words])


# --- The scale --------------------------------------------------------------------------------------------------------

# Labels by what they say, from worst to best; several words stand for one value.
_WORDS_FOR = (
    (0.0, "worst terrible awful unacceptable fail failed fails false no incorrect wrong bad hallucinated unhelpful"),
    (0.0, "violates violation broken useless irrelevant unrelated toxic ungrounded unsupported invalid never none"),
    (0.0, "noncompliant unfaithful negative rude refused refusal failing verbose"),
    (0.2, "poor weak low insufficient little"),
    (0.4, "below limited meagre"),
    (0.5, "half partial partly partially fair mixed average medium mediocre okay ok neutral acceptable somewhat"),
    (0.5, "moderate borderline"),
    (0.75, "most good decent mostly solid adequate high"),
    (0.85, "strong very very_good"),
    (1.0, "best excellent perfect great outstanding pass passed passes true yes correct right helpful complies full"),
    (1.0, "compliant relevant factual grounded supported faithful valid concise positive polite always answered clean"),
    (1.0, "exemplary fully complete"),
)
_GOODNESS = {word: value for value, words in _WORDS_FOR for word in words.split()}
_CONTRARY = re.compile(r"\b(?:not|non|no|never|in|un)[ _-](?=\w)")


def _goodness(choice: str) -> float | None:
    """How good a label sounds, or None if it says nothing to us."""
    said = plain(choice).strip()
    joined = said.replace(" ", "_").replace("-", "_")
    if joined in _GOODNESS:
        return _GOODNESS[joined]
    bare = _CONTRARY.sub("", said.replace("_", " "))
    values = [_GOODNESS[word] for word in re.findall(r"[a-z]+", bare) if word in _GOODNESS]
    if not values:
        return None
    value = sum(values) / len(values)
    return 1.0 - value if bare != said.replace("_", " ") else value


@lru_cache(maxsize=512)
def ranked(choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices from worst to best: by number, else by what the words mean, else as given with the best first."""
    try:
        return tuple(sorted(choices, key=float))
    except ValueError:
        pass
    values = [_goodness(choice) for choice in choices]
    if sum(value is not None for value in values) * 2 > len(choices):
        return tuple(
            choice for _, choice in sorted(zip((0.5 if v is None else v for v in values), choices, strict=True))
        )
    return tuple(reversed(choices))


# --- The role ---------------------------------------------------------------------------------------------------------

_REPLY = re.compile(r".*(?:output|reply|response|answer|completion|prediction|generated|candidate).*", re.IGNORECASE)
_REFERENCE = re.compile(r".*(?:reference|expected|ground_?truth|gold|correct_answer|ideal|target).*", re.IGNORECASE)
_CONTEXT = re.compile(r".*(?:context|passage|document|source|evidence).*", re.IGNORECASE)
_POLICY = re.compile(r".*(?:polic|criteri|rules|guideline|rubric|instructions|requirements).*", re.IGNORECASE)
_EXPLANATION = re.compile(
    r"explanation|reason\w*|rationale|feedback|critique|justification|comment|analysis", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be judged, taken from a request."""

    prompt: str
    asked: str
    reply: str
    context: str = ""
    reference: str = ""


def case_of(reading: Reading) -> Case:
    """Which piece of the request is the reply, the question, the context, the reference and the policy."""
    pieces = {name: text for name, text in reading.inputs.items() if name != "message" or len(reading.inputs) == 1}
    prompt, asked, reply, context, reference = [reading.instructions], [], [], [], []
    for name, text in pieces.items():
        if _POLICY.fullmatch(name):
            prompt.append(text)
        elif _REFERENCE.fullmatch(name):
            reference.append(text)
        elif _CONTEXT.fullmatch(name):
            context.append(text)
        elif _REPLY.fullmatch(name):
            reply.append(text)
        else:
            asked.append(conversation(text))
    if not reply:
        reply, asked = asked[-1:], asked[:-1]
    return Case("\n".join(prompt), *("\n".join(part) for part in (asked, reply, context, reference)))


def conversation(text: str) -> str:
    """What the customer said: of a request recorded as JSON, the user's messages; otherwise the text itself."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        loaded = json.loads(text)
    except ValueError:
        return text
    messages = loaded.get("messages", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(messages, list):
        return text
    said = [str(m.get("content", "")) for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return "\n".join(said) or text


def judge(reading: Reading, temper: Temper, dice: random.Random) -> dict[str, str]:
    """A value for every output field asked for: the verdict on its scale, and the explanation."""
    case = case_of(reading)
    scales = [entry for entry in reading.outputs if not _EXPLANATION.fullmatch(entry.name) or entry.kind == "choice"]
    main = next((e for e in scales if e.choices), next((e for e in scales if e.kind in ("int", "float", "bool")), None))
    notches = _notches(main)
    found = _judged(case, notches, temper, dice)
    values: dict[str, str] = {}
    for entry in reading.outputs:
        if entry.kind in ("choice", "int", "float", "bool"):
            values[entry.name] = _on_scale(entry, found, notches)
        else:
            values[entry.name] = found.explanation
    return values


def _notches(entry: OutputField | None) -> int:
    """How finely a scale lets one judge."""
    if entry is None or entry.kind == "float":
        return 21
    if entry.choices:
        return max(2, len(entry.choices))
    if entry.kind == "int":
        low, high = _range(entry)
        return max(2, min(21, int(high - low) + 1))
    return 2


def _range(entry: OutputField) -> tuple[float, float]:
    return float(entry.schema.get("minimum", 0)), float(entry.schema.get("maximum", 10 if entry.kind == "int" else 1))


def _on_scale(entry: OutputField, found: Verdict, notches: int) -> str:
    height = found.notch / (notches - 1)
    if entry.choices:
        order = ranked(entry.choices)
        return order[notch_of(height, len(order)) if len(order) > 1 else 0]
    if entry.kind == "bool":
        return str(height >= 0.5)
    low, high = _range(entry)
    value = low + height * (high - low)
    return str(round(value)) if entry.kind == "int" else f"{value:.2f}"


def _judged(case: Case, notches: int, temper: Temper, dice: random.Random) -> Verdict:
    task: Task = "answer" if case.context else "support"
    criteria = criteria_in(case.prompt, task)
    plainly = _plain_share(case)
    if criteria and (len(criteria) > 1 or plainly is None):
        topic = evidence(case.asked, case.context).topic if task == "answer" else topic_of(case.asked).name
        return verdict(criteria, topic=topic, reply=case.reply, notches=notches, temper=temper, dice=dice, task=task)
    share, words = plainly if plainly is not None else _helpful(case)
    if dice.random() < temper.judge_noise:
        share = 1.0 - share
    notch = notch_of(share, notches)
    if dice.random() < lift_chance(words_in(case.reply), temper):
        notch = min(notches - 1, notch + 1)
    return Verdict(share, notch, words)


# --- Judging without criteria -----------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_CONTENT = re.compile(r"[a-z0-9][a-z0-9'-]{2,}")
_REFUSING = re.compile(
    r"\b(?:i (?:cannot|can't|am unable|won't|am not able)|i'm (?:unable|not able|sorry, but)|as an ai|"
    r"unable to (?:help|assist)"
    r"|not able to (?:help|assist)|cannot (?:help|assist|answer|comply))\b",
    re.IGNORECASE,
)
_WARM = re.compile(r"\b(?:please|thank|thanks|sorry|happy to|glad|welcome|kind|regards|hello|hi|dear)\b", re.IGNORECASE)
_RUDE = re.compile(
    r"\b(?:stupid|idiot|shut up|whatever|obviously|your fault|ridiculous|nonsense|dumb|hate)\b", re.IGNORECASE
)


def _plain_share(case: Case) -> tuple[float, str] | None:
    """The share by the plain feature this prompt asks about, or None if it asks about none in particular."""
    about = plain(case.prompt)
    if case.reference:
        return _agreement(case.reply, case.reference)
    if re.search(r"ground|faithful|hallucinat|supported by|factual", about) and (case.context or case.asked):
        return _grounding(case)
    if re.search(r"refus|decline", about):
        refused = _REFUSING.search(case.reply) is not None
        share = 1.0 - refused if re.search(r"answered|not refused|did not refuse|helped", about) else float(refused)
        return (share, "It refuses." if refused else "It does not refuse.")
    if re.search(r"\btone\b|polite|friendl|toxic|\brude", about):
        return _tone(case.reply)
    if re.search(r"valid json|\bjson\b|well-formed|\bformat\b", about):
        return _form(case.reply)
    return None


def _agreement(reply: str, reference: str) -> tuple[float, str]:
    wanted, given = set(_CONTENT.findall(plain(reference))), set(_CONTENT.findall(plain(reply)))
    numbers = set(_NUMBER.findall(reference))
    if not wanted and not numbers:
        same = plain(reply).strip() == plain(reference).strip()
        return (float(same), "It is the reference." if same else "It differs from the reference.")
    recall = len(wanted & given) / len(wanted) if wanted else 1.0
    if numbers:
        recall = 0.5 * recall + 0.5 * len(numbers & set(_NUMBER.findall(reply))) / len(numbers)
    share = min(1.0, recall * 1.25)
    return (share, "It agrees with the reference." if share > 0.6 else "It departs from the reference.")


def _grounding(case: Case) -> tuple[float, str]:
    source = f"{case.context}\n{case.asked}"
    known, given = set(_CONTENT.findall(plain(source))), set(_CONTENT.findall(plain(case.reply)))
    numbers = set(_NUMBER.findall(case.reply))
    overlap = len(known & given) / len(given) if given else 1.0
    if numbers:
        overlap = 0.4 * overlap + 0.6 * len(numbers & set(_NUMBER.findall(source))) / len(numbers)
    share = min(1.0, overlap * 1.4)
    return (share, "What it says is in the text." if share > 0.6 else "Not all it says is in the text.")


def _tone(reply: str) -> tuple[float, str]:
    if _RUDE.search(reply):
        return (0.0, "The tone is rude.")
    share = min(1.0, 0.5 + 0.25 * len(_WARM.findall(reply)))
    return (share, "The tone is kind." if share > 0.6 else "The tone is cool.")


def _form(reply: str) -> tuple[float, str]:
    body = re.sub(r"^```\w*\n|\n```$", "", reply.strip())
    try:
        json.loads(body)
    except ValueError:
        return (0.0, "It cannot be parsed.")
    return (1.0 if body == reply.strip() else 0.75, "It parses.")


def _helpful(case: Case) -> tuple[float, str]:
    """General goodness: it speaks to what was asked, says something to do, and is neither empty nor a refusal."""
    if not case.reply.strip() or _REFUSING.search(case.reply):
        return (0.0, "It does not help.")
    asked, given = set(_CONTENT.findall(plain(case.asked))), set(_CONTENT.findall(plain(case.reply)))
    related = min(1.0, 3.0 * len(asked & given) / max(4, len(asked)))
    substance = min(1.0, words_in(case.reply) / 40.0)
    useful = len(
        catalogue.shown(case.reply) & {"next_step", "time_frame", "acknowledge", "escalation", "explain_cause"}
    )
    share = 0.35 * related + 0.35 * substance + 0.3 * min(1.0, useful / 3.0)
    return (share, "It helps." if share > 0.5 else "It helps little.")
