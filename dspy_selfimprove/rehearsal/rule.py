"""Rule: one behaviour, and the four ways it meets language: asked for, forbidden, done, and recognised.

Everything the rehearsal model understands goes through here, so the same sentence means the same to the worker that
obeys it, the judge that checks it and the coach that writes it. A rule says nothing about whether the behaviour is
good: that is in the text of a policy, which only the judge is shown.

Recognition is by keyword groups inside one clause, never by comparing with our own phrases, so an ordinary paraphrase
is understood: a cue such as `explicit("greet*|address*", "first name|by name")` wants one word of each group, close
together, in any order. Negation is read from the words before ("never", "do not", "avoid", "without"), double
negation is undone ("never forget to"), and some cues mean the contrary by themselves ("be brief" forbids padding).

Not covered: irony, pronouns across sentences ("greet by name. Always do that."), conditions other than the topics a
rule is tied to, and any language but English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

Task: TypeAlias = Literal["support", "query", "answer"]

EXPLICIT, LOOSE, VAGUE = 1.0, 0.75, 0.45
SLOT_WORDS = {"topic": 2, "figures": 6, "passage": 12}
_SLOT = re.compile(r"\{(\w+)\}")

_HEDGED = 0.7  # "try to", "if possible": what is left of a statement's strength
_REACH = 72  # characters within which the keyword groups of a cue must lie


class Ask(NamedTuple):
    """One wording of a request, and how strongly a reader takes it."""

    text: str
    strength: float


@dataclass(frozen=True, slots=True)
class Cue:
    """Keyword groups that together mean the rule. `contrary` cues mean that it is not wanted."""

    strength: float
    groups: tuple[str, ...]
    contrary: bool = False


def explicit(*groups: str, contrary: bool = False) -> Cue:
    return Cue(EXPLICIT, groups, contrary)


def loose(*groups: str, contrary: bool = False) -> Cue:
    return Cue(LOOSE, groups, contrary)


def vague(*groups: str, contrary: bool = False) -> Cue:
    return Cue(VAGUE, groups, contrary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A behaviour. Values only; the functions below give it meaning.

    `asks` are ordered best first (explicit and short). `does` are sentences by which a reply does it, all of the same
    number of words; what fills a slot has a known number of words too (SLOT_WORDS, otherwise one). `missed` and
    `overdone` are a judge's words for a reply that lacks it or has it, and differ from `asks`, so that whoever reads
    them has to translate. `topics` is where it applies (None: everywhere), `natural` how often a model does it unasked.
    Patterns (`seen`) are matched against lower case.
    """

    name: str
    asks: tuple[Ask, ...]
    forbids: tuple[str, ...]
    missed: tuple[str, ...]
    overdone: tuple[str, ...]
    cue: tuple[Cue, ...]
    does: tuple[str, ...] = ()
    seen: str = r"(?!)"
    topics: frozenset[str] | None = None
    natural: float = 0.05
    opposes: frozenset[str] = frozenset()
    task: Task = "support"
    place: int = 50  # where in a reply its sentence goes; smaller is earlier
    instead: bool = False  # its sentence stands in place of the plain answer

    @property
    def words(self) -> int:
        """How many words its sentence has, once its slots are filled."""
        if not self.does:
            return 0
        slots = _SLOT.findall(self.does[0])
        return len(self.does[0].split()) + sum(SLOT_WORDS.get(slot, 1) - 1 for slot in slots)

    def applies(self, topic: str) -> bool:
        return self.topics is None or topic in self.topics


@dataclass(frozen=True, slots=True)
class Statement:
    """What a text says about one rule. `disputed`: it asks for the rule and for its contrary, both."""

    strength: float
    negated: bool
    count: int
    sentence: str
    disputed: bool = False


@dataclass(frozen=True, slots=True)
class Mention:
    """One clause about one rule."""

    rule: str
    strength: float
    negated: bool
    clause: str
    sentence: str


# --- Text into clauses ------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[.!?;])(?<!\n\d\.)(?<!\n\d\d\.)\s+|\s*\n+(?=\s*\S)|;\s*")
_WRAPPED = re.compile(r"(?<=[\w,])[ \t]*\n[ \t]*(?=[a-z])")
_BULLET = re.compile(r"^(?:[-*•>#]+|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
_NEGATOR_AHEAD = r"(?:never|do not|don't|does not|avoid|without|always|refrain|must not|not)\b"
_IMPERATIVE = (
    r"(?:greet|address|acknowledge|apologi[sz]e|give|offer|end|finish|sign|name|ask|tell|explain|use|keep|state|say|"
    r"mention|thank|include|close|open|start|begin|summari[sz]e|recap|cite|quote|provide|suggest|restate|repeat|set|"
    r"add|write|be|point|link|confirm|request|expand|spell|answer|promise|close|invite|refer|admit|describe|list|make)\b"
)
_SPLIT = re.compile(
    rf"\s*,?\s*\b(?:and|but|then|yet)\s+(?:also\s+|then\s+)?(?={_NEGATOR_AHEAD}|{_IMPERATIVE})"
    rf"|\s*,\s*(?={_NEGATOR_AHEAD}|{_IMPERATIVE})|\s+but\s+"
)
_SPLIT_NEGATED = re.compile(rf"\s*,?\s*\b(?:and|but|then|yet)\s+(?=(?:always|instead)\b|{_IMPERATIVE})|\s+but\s+")
_DOUBLE = re.compile(
    r"\b(?:never|do not|don't|must not|cannot|can't|not)\s+(?:ever\s+)?"
    r"(?:forget(?:ting)?|fail(?:ing)?|omit|skip|neglect|miss|leave out|hesitate)\b(?:\s+to\b)?"
)
_HARMLESS = re.compile(
    r"\bno matter\b|\bnot only\b|\bno (?:later|more|less|fewer) than\b|\bwithout fail\b|\bif not\b|\bwhether or not\b"
    r"|\bwithout (?:being asked|exception|delay)\b|\bnot just\b|\bno doubt\b"
)
_NEGATOR = re.compile(
    r"\b(?:never|not|no|none|nor|neither|avoid\w*|without|refrain\w*|stop|forbid\w*|forbidden|prohibit\w*|banned|"
    r"instead of|rather than|leave out|skip|omit|exclude|free of|cannot|nothing|nobody)\b|n't\b"
)
_NEGATOR_AFTER = re.compile(
    r"\b(?:forbidden|prohibited|banned|(?:is|are|was|were) (?:not|never)|not (?:allowed|permitted|given|there)|"
    r"out of bounds|unacceptable|off limits|against the rules|(?:isn|aren|wasn|weren)'t)\b"
    r"|\bonly (?:when|if|where)\b[^.]*\b(?:matter|relevan|need|necessar)"
)
_HEDGE = re.compile(
    r"\b(?:try to|tries to|if possible|where possible|when possible|if you can|when you can|ideally|maybe|perhaps|"
    r"consider|might|optionally|feel free|may want|if appropriate)\b"
)
_LACK = re.compile(
    r"\b(?:missing|miss|misses|missed|lacks?|lacked|lacking|absent|forgot|forgets|fails?|failed|left out|leaves out|"
    r"skipped|skips|omits|omitted|nowhere|too little|too few)\b"
)
_DEMAND = re.compile(
    r"\b(?:should|must|needs? to|ought|has to|have to|please|avoid|make sure|remember|would be better)\b"
    r"|^\W*(?:never|do not|don't|always)\b|^\W*no\b(?!.*\b(?:is|are|was|were|has|had)\b)|\bshouldn't\b|\bmustn't\b"
)


def plain(text: str) -> str:
    """Lower case, straight quotes, "credit card" as one word: what the patterns are written against."""
    lowered = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u00a0", " ").lower()
    return lowered.replace("credit card", "credit-card")


def sentences(text: str) -> list[str]:
    """The sentences and list items of a text, bullets removed; a line that begins in lower case goes on a sentence."""
    joined = "\n" + _WRAPPED.sub(" ", text)
    parts = (_BULLET.sub("", part.strip()) for part in _SENTENCE_END.split(joined))
    return [part for part in parts if part]


_CONDITION = re.compile(r"^(?:if|when|whenever|where|for|in|unless|should|with|on|once|after|as)\b[^,]*(,)")


def clauses(sentence: str) -> list[str]:
    """A sentence cut where a new demand begins, so that "never" governs its own clause only."""
    lowered = plain(sentence)
    if condition := _CONDITION.match(lowered):  # "if it arrived damaged, ask for a photo" is one demand
        comma = condition.start(1)
        lowered = f"{lowered[:comma]} {lowered[comma + 1 :]}"
    starts_negated = re.match(rf"\W*{_NEGATOR_AHEAD}", lowered) and " or " in lowered
    cut = _SPLIT_NEGATED if starts_negated else _SPLIT
    return [part for part in cut.split(lowered) if part and part.strip()]


# --- Cues -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _group(alternatives: str) -> re.Pattern[str]:
    words = (
        re.escape(word.strip()).replace(r"\*", r"[\w-]*").replace(r"\ ", r"\s+") for word in alternatives.split("|")
    )
    return re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])")


def _spans(cue: Cue, clause: str) -> list[tuple[int, int]] | None:
    """Where the groups of a cue lie in a clause, if all of them do and close together."""
    found: list[list[tuple[int, int]]] = []
    for group in cue.groups:
        hits = [hit.span() for hit in _group(group).finditer(clause)]
        if not hits:
            return None
        found.append(hits)
    for anchor in found[0]:
        chosen = [anchor]
        for hits in found[1:]:
            near = [hit for hit in hits if abs(hit[0] - anchor[0]) <= _REACH]
            if not near:
                break
            chosen.append(min(near, key=lambda hit: abs(hit[0] - anchor[0])))
        else:
            return chosen
    return None


def _negated(clause: str, spans: list[tuple[int, int]]) -> bool:
    last = max(start for start, _ in spans)
    end = max(stop for _, stop in spans)
    for hit in _NEGATOR.finditer(clause):
        inside = any(start <= hit.start() < stop for start, stop in spans)
        if hit.start() < last and not inside:
            return True
    return _NEGATOR_AFTER.search(clause, end) is not None


def _mask(clause: str) -> str:
    """The clause with double and harmless negations blanked out, at the same length."""
    blank = lambda hit: " " * len(hit.group())  # noqa: E731
    return _HARMLESS.sub(blank, _DOUBLE.sub(blank, clause))


def mention(rule: Rule, clause: str, sentence: str) -> Mention | None:
    """What a clause says about a rule: its strongest cue, or nothing."""
    masked = _mask(clause)
    for cue in rule.cue:
        spans = _spans(cue, masked)
        if spans is not None:
            strength = cue.strength * (_HEDGED if _HEDGE.search(masked) else 1.0)
            return Mention(rule.name, strength, _negated(masked, spans) != cue.contrary, clause, sentence)
    return None


# --- Whole texts ------------------------------------------------------------------------------------------------------


class Lexicon:
    """A set of rules that reads text. Sentences are remembered, since a prompt is read again with every ticket."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: dict[str, Rule] = {rule.name: rule for rule in rules}
        self._seen = [(rule.name, re.compile(rule.seen)) for rule in self.rules.values() if rule.does]
        self._sentence = lru_cache(maxsize=50_000)(self._read)

    def _read(self, sentence: str) -> tuple[Mention, ...]:
        found = (mention(rule, clause, sentence) for clause in clauses(sentence) for rule in self.rules.values())
        return tuple(item for item in found if item is not None)

    def mentions(self, text: str) -> list[Mention]:
        """Every clause that speaks about a rule, in order."""
        return [item for sentence in sentences(text) for item in self._sentence(sentence)]

    def stated(self, text: str) -> dict[str, Statement]:
        """What a prompt or a policy demands: per rule the strongest statement, and whether the text contradicts it."""
        grouped: dict[str, list[Mention]] = {}
        for item in self.mentions(text):
            grouped.setdefault(item.rule, []).append(item)
        return {name: _merge(items) for name, items in grouped.items()}

    def blamed(self, feedback: str) -> dict[str, bool]:
        """What feedback on a reply finds wrong: True where the reply should do it, False where it should not.

        Feedback describes ("never used the first name", "promised a refund") or demands ("should not promise");
        the two have opposite polarity.
        """
        found: dict[str, bool] = {}
        for item in self.mentions(feedback):
            demands = _DEMAND.search(item.clause) is not None
            lacks = item.negated or _LACK.search(item.clause) is not None
            found.setdefault(item.rule, not item.negated if demands else lacks)
        return found

    def shown(self, reply: str) -> frozenset[str]:
        """The behaviours a reply shows."""
        lowered = plain(reply)
        return frozenset(name for name, pattern in self._seen if pattern.search(lowered))


def _merge(items: list[Mention]) -> Statement:
    best = max(items, key=lambda item: item.strength)
    disputed = len({item.negated for item in items}) > 1
    return Statement(best.strength, best.negated, len(items), best.sentence, disputed)


def opposed(name: str, statements: Mapping[str, Statement], rules: Mapping[str, Rule]) -> bool:
    """Does the text also demand something that contradicts this rule?"""
    return any(other in statements and not statements[other].negated for other in rules[name].opposes)
