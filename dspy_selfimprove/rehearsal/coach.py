"""The coach: reads a prompt with whatever is known of its results, and proposes a better one.

It has one skill for every optimizer that asks. Whether the evidence comes as feedback sentences (GEPA, a gradient
step), as a better and a worse trajectory (SIMBA), as attempts with scores (COPRO), as examples that went well (MIPROv2,
InferRules) or as the definitions of the metrics, it becomes votes for and against behaviours, read through the same
language the worker obeys and the judge checks (`rule.py`). Then the current prompt is edited: what is wanted and not
said is added, what is blamed is taken out or forbidden, the rest stays word for word, its placeholders above all.
Without evidence it proposes a handful of ordinarily sensible behaviours: weaker, seldom useless.

It errs at `Temper.coach_slip`: one mistake per slip. It never sees what matters in a world; it can only believe what
it reads, so a judge's error becomes the coach's.

Not covered: few-shot examples as part of a proposal, changes of form (headings, order), code.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from statistics import fmean, pstdev
from typing import Any, Literal, TypeAlias

from dspy_selfimprove.rehearsal.catalogue import BY_TASK, RULE, blamed, shown, stated
from dspy_selfimprove.rehearsal.reading import OutputField, Reading
from dspy_selfimprove.rehearsal.rule import LOOSE, Rule, Statement, Task, sentences
from dspy_selfimprove.rehearsal.temper import Temper
from dspy_selfimprove.rehearsal.worker import query_shows

Step: TypeAlias = Literal["small", "moderate", "bold"]

_HOW_MANY: dict[Step, tuple[int, ...]] = {"small": (1, 1, 2), "moderate": (1, 2, 2, 3), "bold": (3, 4, 5, 6)}
_SENSE = (3, 4, 5)  # how many changes it makes when it has only general sense to go by
_SIMPLE = "Keep the instruction clear and concise."  # one of MIPROv2's tips

# What one observation is worth as a vote. Said outright counts most; a contrast between outputs may be chance.
_FEEDBACK, _POLICY, _CONTRAST, _ATTEMPT, _GOOD_EXAMPLE = 1.0, 0.6, 0.6, 0.8, 0.3
_HEARD = 0.25  # below this a vote is no evidence

_Record: TypeAlias = list[tuple[str, str]]  # one example: where in it something stands, and what


def coach(reading: Reading, temper: Temper, dice: random.Random) -> dict[str, str]:
    """A value for every output field asked for."""
    brief = _brief(reading)
    votes = _votes(brief)
    names = [entry.name for entry in reading.outputs]
    if any(_COMPRESSED.match(name) for name in names):
        return dict.fromkeys(names, _compress(brief.current, brief.task, brief.limit))
    if any(re.fullmatch(r"\w*description|observations|summary", name) for name in names):
        return dict.fromkeys(names, _describe(brief, votes))
    edits = _plan(brief, votes, temper, dice)
    values: dict[str, str] = {}
    if any(_changes_of(entry) for entry in reading.outputs):  # named one by one, they and the text are the same changes
        proposal = _proposal(brief, edits, dice)
        for entry in reading.outputs:
            if changes := _changes_of(entry):
                values[entry.name] = changes.listing(brief.current, proposal)
            elif re.search(r"prompt|instruction|text", entry.name):
                values[entry.name] = proposal
            else:
                values[entry.name] = _analysis(votes, edits)
        return values
    for entry in reading.outputs:
        if "prefix" in entry.name:
            values[entry.name] = _PREFIX[brief.task or "support"]
        elif "advice" in entry.name:
            values[entry.name] = _advice(entry, brief, votes, temper, dice)
        elif re.search(r"rules|guidelines|edits|changes", entry.name):
            values[entry.name] = _listing(entry, edits)
        elif re.search(r"prompt|instruction|text", entry.name) or len(names) == 1:
            values[entry.name] = _proposal(brief, edits, dice)
        else:
            values[entry.name] = _analysis(votes, edits)
    return values


# -- what it was given ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sample:
    """One observed answer: the behaviours it shows, what was said of it, and its score if that is known."""

    shown: frozenset[str] = frozenset()
    feedback: str = ""
    score: float | None = None


@dataclass(slots=True)
class _Brief:
    """Everything the request says that bears on the next prompt."""

    task: Task | None = None
    current: str = ""
    others: list[str] = field(default_factory=list)  # prompts to merge with
    attempts: list[tuple[str, float]] = field(default_factory=list)
    samples: list[_Sample] = field(default_factory=list)
    good: list[frozenset[str]] = field(default_factory=list)  # what outputs held up as examples show
    policy: str = ""  # definitions of metrics
    hearsay: str = ""  # descriptions of data and programs, by a model like this one
    modules: dict[str, str] = field(default_factory=dict)  # name -> definition
    step: Step = "moderate"
    tip: str = ""
    limit: int | None = None
    tidy: bool = False

    @property
    def told(self) -> bool:
        """Does anything say, in words, what was wrong or what is wanted?"""
        return bool(self.policy or self.others or any(sample.feedback for sample in self.samples))


_CURRENT = re.compile(
    r"(current|basic|initial|original|existing|base|seed|baseline|old)_(\w+_)?(instruction|prompt|text)s?\w*"
    r"|(system_)?(instruction|prompt)|baseline|draft",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"(first|second|other|left|right)_(\w+_)?(instruction|prompt)|(instruction|prompt)_[ab12]|updates", re.IGNORECASE
)
_ATTEMPTS = re.compile(r"\w*(attempt|previous_instruction|histor|tried|earlier)\w*", re.IGNORECASE)
_POLICY_FIELD = re.compile(
    r"metrics?|(\w+_)?(definitions?|criteria|rubric|policy|objectives?|target)|reference_skills|additional_instructions",
    re.IGNORECASE,
)
_HEARSAY_FIELD = re.compile(r"dataset_\w+|(program|module)_description|(prior_)?observations", re.IGNORECASE)
_EVIDENCE_FIELD = re.compile(r"\w*(feedback|samples?|examples?|failures|results|evidence|traces)\w*", re.IGNORECASE)
_NO_EVIDENCE = re.compile(
    r"program_(code|inputs|example)|oracle_metadata|module(_names)?|\w*(trajectory|_program_outputs)|\w+_reward_\w+"
)
_STEP_FIELD = re.compile(r"\w*(step|boldness|size|change)\w*", re.IGNORECASE)
_COMPRESSED = re.compile(r"(shortened|compressed|shorter)_", re.IGNORECASE)
_OUTPUT_KEY = re.compile(r"output|repl|answer|response|query|queries|generated|prediction|completion", re.IGNORECASE)
_FEEDBACK_KEY = re.compile(
    r"feedback|explanation|critique|reason|comment|judge|rationale|verdict|reward_info", re.IGNORECASE
)
_SCORE_KEY = re.compile(r"score|reward_value|rating|grade", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"\b(prompt|instructions?)\b[^.\n]{0,40}\b(too (long|wordy|verbose)|shorten|shorter|compress|redundan)"
    r"|\b(shorten|compress|tighten)\b[^.\n]{0,30}\b(prompt|instructions?)\b",
    re.IGNORECASE,
)


def _brief(reading: Reading) -> _Brief:
    inputs = dict(reading.inputs)
    message = inputs.pop("message", None)
    if message is not None and not any(_CURRENT.fullmatch(name) for name in inputs):
        inputs = _from_plain(message)
    brief = _Brief(step=_step(inputs, reading.instructions))
    brief.tidy = any(_TOO_LONG.search(text) for text in (reading.instructions, *inputs.values()))
    prompts: list[str] = []
    for name, text in inputs.items():
        if re.fullmatch("length_limit|max_length|limit", name):
            brief.limit = round(_number(text) or 0) or None
        elif name == "tip":
            brief.tip = text
        elif name == "modules_defn":
            brief.modules = _modules(text)
        elif _ATTEMPTS.fullmatch(name):
            brief.attempts += _attempts(text)
        elif _CURRENT.fullmatch(name) or _OTHER.fullmatch(name):
            prompts.append(text)
        elif _POLICY_FIELD.fullmatch(name):
            brief.policy += f"\n{text}"
        elif _HEARSAY_FIELD.fullmatch(name):
            brief.hearsay += f"\n{text}"
        elif name in ("task_demos", "examples_text") or (name == "examples" and text.startswith("[Example(")):
            brief.good += [_shown(record) for record in _listed_examples(text)]
        elif not _NO_EVIDENCE.fullmatch(name):
            brief.samples += [_sample(record) for record in _records(text)]
    brief.samples += _trajectories(inputs)
    prompts = prompts or [prompt for prompt, _ in sorted(brief.attempts, key=lambda tried: -tried[1])[:1]]
    brief.current, *brief.others = prompts or [""]
    brief.task = _task(brief, inputs)
    return brief


def _step(inputs: Mapping[str, str], instructions: str) -> Step:
    said = " ".join(text for name, text in inputs.items() if _STEP_FIELD.fullmatch(name) and len(text) < 400)
    said = said or " ".join(
        line for line in re.split(r"[.\n]", instructions) if re.search(r"\b(step|change|edit)s?\b", line)
    )
    if re.search(r"\b(bold|radical|large|big|rethink|sweeping|major)\b", said, re.IGNORECASE):
        return "bold"
    if re.search(r"\b(small|minimal|tiny|slight|one thing|incremental)\b", said, re.IGNORECASE):
        return "small"
    return "moderate"


_GEPA_SEAM = "\n```\n\nThe following are examples"


def _from_plain(text: str) -> dict[str, str]:
    """A prompt without fields: the current text in the first fence, evidence in the next, or after headings."""
    fences = list(re.finditer(r"^```[^\n]*$", text, re.MULTILINE))
    if len(fences) >= 2:
        seam = text.find(_GEPA_SEAM)
        start = fences[0].end() + 1
        close = seam if seam > 0 else fences[1].start() - 1
        rest = text[close:].removeprefix("\n```")
        bodies = list(re.finditer(r"^```[^\n]*\n(.*)^```", rest, re.MULTILINE | re.DOTALL))
        evidence = bodies[0].group(1) if bodies else rest
        return {"current_prompt": text[start:close].strip("\n"), "examples_with_feedback": evidence}
    known = (_CURRENT, _OTHER, _ATTEMPTS, _POLICY_FIELD, _STEP_FIELD, _EVIDENCE_FIELD)
    headings = [
        (name, match)
        for match in re.finditer(r"^(?:#+ *([\w ]+)|\*\*([\w ]+)\*\*:?|([\w ]+):)[ \t]*\n", text, re.MULTILINE)
        if any(kind.fullmatch(name := _field_name(match)) for kind in known)
    ]
    if not headings:
        return {"current_prompt": text}
    ends = [match.start() for _, match in headings[1:]] + [len(text)]
    return {name: text[match.end() : end].strip() for (name, match), end in zip(headings, ends, strict=True)}


def _field_name(heading: re.Match[str]) -> str:
    return str(next(filter(None, heading.groups()))).strip().lower().replace(" ", "_")


def _modules(text: str) -> dict[str, str]:
    """SIMBA's listing: a name, its fields, its instructions, between rules of dashes."""
    parts = re.split(r"^-{20,}$", text, flags=re.MULTILINE)
    found = (re.match(r"\s*Module (\S+)\n(.*)", part, re.DOTALL) for part in parts)
    return {match.group(1): match.group(2) for match in found if match}


def _attempts(text: str) -> list[tuple[str, float]]:
    """Prompts already tried, with scores, in the notations of COPRO and of MIPROv2."""
    numbered = re.findall(
        r"Instruction #(\d+): (.*?)»*\s*(?:\[\d+\] «*\s*)?Prefix #\1:.*?Resulting Score #\1: (-?[\d.]+)",
        text,
        re.DOTALL,
    )
    if numbered:
        return [(_unindent(prompt), float(score)) for _, prompt, score in numbered]
    piped = re.findall(r"(.+?) \| Score: (-?[\d.]+)\s*(?:\n|$)", text, re.DOTALL)
    if piped:
        return [(prompt.strip(), float(score)) for prompt, score in piped]
    found = []
    for record in _records(text):
        score = _score_of(record)
        prompt = next((leaf for path, leaf in record if re.search("prompt|instruction|text", path)), "")
        if prompt and score is not None:
            found.append((prompt, score))
    return found


def _unindent(text: str) -> str:
    return re.sub(r"\n {4}", "\n", text).strip()


def _trajectories(inputs: Mapping[str, str]) -> list[_Sample]:
    """SIMBA's pair: what each module did in the worse and the better run, the reward, and what was said of it."""
    found = []
    for side in ("worse", "better"):
        score = _number(inputs.get(f"{side}_reward_value", ""))
        if score is not None:
            said = "\n".join(leaf for record in _records(inputs.get(f"{side}_reward_info", "")) for _, leaf in record)
            steps = _records(inputs.get(f"{side}_program_trajectory", ""))
            found.append(_Sample(frozenset().union(*map(_shown, steps)), said, score))
    return found


def _sample(record: _Record) -> _Sample:
    feedback = "\n".join(leaf for path, leaf in record if _is(path, _FEEDBACK_KEY))
    if len(record) == 1 and not _is(record[0][0], _OUTPUT_KEY):
        feedback = record[0][1]
    return _Sample(_shown(record), feedback, _score_of(record))


def _shown(record: _Record) -> frozenset[str]:
    """The behaviours of the outputs in a record. A query's can be seen only beside its question."""
    outputs = [(path, leaf) for path, leaf in record if _is(path, _OUTPUT_KEY) and not _is(path, _FEEDBACK_KEY)]
    asked = "\n".join(leaf for path, leaf in record if not any(_is(path, key) for key in _NOT_ASKED))
    return frozenset().union(
        *(query_shows(asked, leaf) if re.search(r"quer(y|ies)$", path) else shown(leaf) for path, leaf in outputs)
    )


def _is(path: str, pattern: re.Pattern[str]) -> bool:
    return not path.startswith("input") and pattern.search(path) is not None


_NOT_ASKED = (_OUTPUT_KEY, _FEEDBACK_KEY, _SCORE_KEY)


def _records(text: str) -> list[_Record]:
    """Examples as lists of (path of keys, text), from JSON, from Python literals, from Markdown, or one whole text."""
    text = text.strip()
    loaded: Any = None
    if text[:1] in "[{":
        try:
            loaded = json.loads(text)
        except ValueError:
            try:
                loaded = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                loaded = None
    if loaded is not None:
        entries = loaded if isinstance(loaded, list) else [loaded]
        return [list(_leaves(entry)) for entry in entries]
    parts = re.split(r"^#+ *(?:Example|Sample|Case)\b[^\n]*$", text, flags=re.MULTILINE | re.IGNORECASE)
    if len(parts) > 1:
        return [_headings(part) for part in parts[1:]]
    return _labelled(text)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{str(key).lower()}".strip("/"))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif value is not None:
        yield path, str(value)


def _headings(text: str) -> _Record:
    found: _Record = []
    path: list[str] = []
    for match in re.finditer(r"^(#{1,6}) +(.+)\n((?:(?!#{1,6} ).*\n?)*)", text, re.MULTILINE):
        depth = len(match.group(1))
        path = [*path[: max(0, depth - 2)], match.group(2).strip().lower()]
        if match.group(3).strip():
            found.append(("/".join(path), _unbarred(match.group(3).strip())))
    return found


def _unbarred(text: str) -> str:
    """A text out of tags of its own whose lines all begin with a bar, as one shows what others wrote."""
    fenced = re.fullmatch(r"<(\w+)[^>\n]*>\n((?:\| ?[^\n]*\n)+)</\1[^>\n]*>", text)
    return re.sub(r"^\| ?", "", fenced.group(2), flags=re.MULTILINE).strip() if fenced else text


_LABEL = re.compile(
    r"^\W{0,4}([A-Za-z][\w ]{1,30}?)\W{0,3}:[ \t]*(.*(?:\n(?!\W{0,4}[A-Z][\w ]{1,30}:).*)*)", re.MULTILINE
)


def _labelled(text: str) -> list[_Record]:
    """Lines such as `Reply: ...`; a label that comes again begins the next example."""
    records: list[_Record] = [[]]
    for match in _LABEL.finditer(text):
        label = match.group(1).lower()
        if any(label == known for known, _ in records[-1]):
            records.append([])
        records[-1].append((label, match.group(2).strip()))
    telling = any(kind.search(label) for record in records for label, _ in record for kind in _NOT_ASKED)
    return records if telling else [[("", text)]]


def _listed_examples(text: str) -> list[_Record]:
    """Examples in a listing: `Example({...})` as Python prints it, or lines such as `Reply: ...`."""
    printed = re.findall(r"Example\((\{.*?\})\) \(input_keys=", text, re.DOTALL)
    return [record for example in printed for record in _records(example)] or _records(text)


def _number(text: str) -> float | None:
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    return float(found.group()) if found else None


def _score_of(record: _Record) -> float | None:
    numbers = [_number(leaf) for path, leaf in record if _is(path, _SCORE_KEY) and len(leaf) < 24]
    known = [number for number in numbers if number is not None]
    if not known:
        said = " ".join(leaf for path, leaf in record if _is(path, _FEEDBACK_KEY))
        known = [float(number) for number in re.findall(r"\bscored?\b[^\d\n.]{0,12}([01]?\.\d+|[01]\b)", said)]
    return fmean(known) if known else None


def _task(brief: _Brief, inputs: Mapping[str, str]) -> Task | None:
    """Which kind of prompt this is: told from what it produces if that is shown, else from its words."""
    produced = inputs.get("module", "").rpartition("->")[2]
    if not produced:
        keys = re.findall(
            r"\"Generated Outputs\": \{\"(\w+)\"|## Generated Outputs\n### (\w+)", "\n".join(inputs.values())
        )
        produced = " ".join("".join(pair) for pair in keys)
    if produced:
        if "query" in produced or "search" in produced:
            return "query"
        if "answer" in produced:
            return "answer"
        if re.search("reply|response|output", produced):
            return "support"
    return _task_of(brief.current) if brief.current else None


def _task_of(text: str) -> Task | None:
    lowered = text.lower()
    if re.search(r"\b(search|quer(y|ies))\b", lowered):
        return "query"
    if re.search(r"\b(customers?|tickets?|support|desk|reply|replies)\b", lowered):
        return "support"
    if re.search(r"\b(questions?|passages?|context|answer)\b", lowered):
        return "answer"
    return None


# -- what it concludes ----------------------------------------------------------------------------------------------

_Votes: TypeAlias = dict[str, float]

_METRIC_NAME = re.compile(r"^\W*\w[\w ]{0,30}:[ \t]", re.MULTILINE)  # "brevity: ..." says nothing of the reply


def _votes(brief: _Brief) -> _Votes:
    """For each behaviour, how much speaks for it (above 0) or against it."""
    votes: defaultdict[str, float] = defaultdict(float)
    for sample in brief.samples:
        for name, should in blamed(_METRIC_NAME.sub("", sample.feedback), brief.task).items():
            votes[name] += _FEEDBACK if should else -_FEEDBACK
    for name, said in stated(brief.policy, brief.task).items():
        votes[name] += -_POLICY if said.negated else _POLICY
    for other in brief.others:
        for name, said in stated(other, brief.task).items():
            votes[name] += -_ATTEMPT if said.negated else _ATTEMPT
    for names in (*brief.good, frozenset(stated(brief.hearsay, brief.task))):
        for name in names:
            votes[name] += 0.0 if _vice(RULE[name]) else _GOOD_EXAMPLE
    _add_contrasts(
        votes, [(sample.shown, sample.score) for sample in brief.samples if sample.score is not None], _CONTRAST
    )
    tried = [(_asked_for(prompt, brief.task), score) for prompt, score in brief.attempts]
    _add_contrasts(votes, tried, _ATTEMPT)
    return {name: vote for name, vote in votes.items() if brief.task in (None, RULE[name].task)}


def _asked_for(prompt: str, task: Task | None) -> frozenset[str]:
    return frozenset(name for name, said in stated(prompt, task).items() if not said.negated)


def _add_contrasts(votes: _Votes, seen: list[tuple[frozenset[str], float]], worth: float) -> None:
    """What goes with high scores gets votes, what goes with low ones loses them; a few cases count little."""
    spread = pstdev(score for _, score in seen) if len(seen) > 1 else 0.0
    if spread <= 1e-9:
        return
    worth *= min(1.0, len(seen) / 6)
    for name in {name for names, _ in seen for name in names}:
        having = [score for names, score in seen if name in names]
        lacking = [score for names, score in seen if name not in names]
        if lacking:
            gap = (fmean(having) - fmean(lacking)) / spread
            votes[name] = votes.get(name, 0.0) + worth * max(-1.5, min(1.5, gap))


@dataclass(frozen=True, slots=True)
class _Edit:
    """One change: say that a behaviour is wanted (or is not), or stop saying anything of it."""

    rule: str
    kind: Literal["ask", "forbid", "drop"]
    wording: str = ""

    def __str__(self) -> str:
        return f'Add: "{self.wording}"' if self.wording else f"Say nothing any more on {self.rule.replace('_', ' ')}."


def _plan(brief: _Brief, votes: _Votes, temper: Temper, dice: random.Random) -> list[_Edit]:
    """What to change, what has most evidence likeliest first; and now and then a mistake."""
    standing = stated(brief.current, brief.task)
    pool = {name: vote for name, vote in votes.items() if _unmet(name, vote, standing.get(name))}
    count = dice.choice(_HOW_MANY[brief.step])
    if not brief.told:
        # Nobody said what is wrong: what is new comes from general sense, and more of it, since less of it hits.
        pool, count = _ordinary(brief, standing, votes) | pool, dice.choice(_SENSE) - (brief.tip == _SIMPLE)
    elif not pool:  # whatever was said, it was nothing that this prompt could do and does not
        pool = _ordinary(brief, standing, votes)
    chosen = _draw(pool, count, dice)
    edits = [_edit(name, pool[name], standing.get(name), dice) for name in chosen]
    return _slip(edits, brief, standing, dice) if dice.random() < temper.coach_slip else edits


def _unmet(name: str, vote: float, said: Statement | None) -> bool:
    if abs(vote) < _HEARD:
        return False
    if vote > 0:
        return said is None or said.negated or said.disputed or said.strength < LOOSE
    return said is None or not said.negated or said.disputed


def _ordinary(brief: _Brief, standing: Mapping[str, Statement], votes: _Votes) -> _Votes:
    """What a sensible person might write for such a task: the commoner a behaviour, the likelier it comes to mind."""
    return {
        rule.name: (-1 if _vice(rule) else 1) * (0.05 + rule.natural)
        for rule in BY_TASK[brief.task or "support"]
        if rule.name not in standing and abs(votes.get(rule.name, 0.0)) < _HEARD and not rule.opposes & set(standing)
    }


def _vice(rule: Rule) -> bool:
    """That a behaviour is commonly unwanted shows in the language: there is more than one way to forbid it."""
    return len(rule.forbids) > 1


def _draw(weights: Mapping[str, float], count: int, dice: random.Random) -> list[str]:
    """`count` names without repeats, likelier the greater their weight; none that opposes one drawn before."""
    pool = dict(weights)
    chosen: list[str] = []
    while pool and len(chosen) < count:
        names = sorted(pool)
        name = dice.choices(names, [abs(pool[name]) for name in names])[0]
        del pool[name]
        clash = any(other in RULE[name].opposes for other in chosen if weights[other] > 0 and weights[name] > 0)
        if not clash:
            chosen.append(name)
    return chosen


def _edit(name: str, vote: float, said: Statement | None, dice: random.Random) -> _Edit:
    rule = RULE[name]
    if vote > 0:
        return _Edit(name, "ask", _wording(rule, dice))
    if said is not None and not said.negated and dice.random() < 0.5:
        return _Edit(name, "drop")
    return _Edit(name, "forbid", dice.choice(rule.forbids))


def _wording(rule: Rule, dice: random.Random) -> str:
    return dice.choices(rule.asks, [ask.strength**3 for ask in rule.asks])[0].text


def _slip(edits: list[_Edit], brief: _Brief, standing: Mapping[str, Statement], dice: random.Random) -> list[_Edit]:
    """One mistake: a rule nobody asked for, a rule lost, a wording too loose to bind, a negation misread."""
    kind = dice.choice(("extra", "lost", "vague", "turned"))
    asked = [edit for edit in edits if edit.kind == "ask"]
    kept = sorted(name for name, said in standing.items() if not said.negated)
    if kind == "lost" and kept:
        return [*edits, _Edit(dice.choice(kept), "drop")]
    if kind == "vague" and asked:
        weakest = min(RULE[asked[0].rule].asks, key=lambda ask: ask.strength)
        return [_Edit(edit.rule, "ask", weakest.text) if edit is asked[0] else edit for edit in edits]
    if kind == "turned" and edits:
        first, *rest = edits
        rule = RULE[first.rule]
        turned = _Edit(first.rule, "ask", rule.asks[0].text) if first.kind != "ask" else None
        return [turned or _Edit(first.rule, "forbid", dice.choice(rule.forbids)), *rest]
    known = {*standing, *(edit.rule for edit in edits)}
    names = [rule.name for rule in BY_TASK[brief.task or "support"] if rule.name not in known]
    return [*edits, _edit(dice.choice(names), 1.0, None, dice)] if names else edits


# -- what it writes -------------------------------------------------------------------------------------------------


_PREFIX: dict[Task, str] = {"support": "Reply:", "query": "Query:", "answer": "Answer:"}


def _listing(entry: OutputField, edits: Iterable[_Edit]) -> str:
    """Edits as they are described, rules as they are worded."""
    described = re.search("edit|change", entry.name) is not None
    lines = [str(edit) if described else edit.wording for edit in edits]
    lines = [line for line in lines if line] or ["Follow the instructions as they are."]
    return json.dumps(lines) if entry.kind == "list" else "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


@dataclass(frozen=True, slots=True)
class _Changes:
    """How a list of changes is asked for: the names under which each says its kind, its quote and its new words."""

    kind: str
    quote: str
    text: str
    kinds: Mapping[str, str]  # insert, replace, delete -> what they are called

    def listing(self, old: str, new: str) -> str:
        before, after = old.split("\n"), new.split("\n")
        found = []
        for tag, start, end, begin, stop in SequenceMatcher(None, before, after, False).get_opcodes():
            if tag != "equal":
                anchor = before[start - 1 : start] if tag == "insert" and start < len(before) else before[start:end]
                said = {self.kind: self.kinds[tag], self.quote: "\n".join(anchor)}
                lines = after[begin:stop] if tag == "insert" else ["\n".join(after[begin:stop])]
                found += [{**said, self.text: line} for line in lines]
        return json.dumps(found, ensure_ascii=False)


def _changes_of(entry: OutputField) -> _Changes | None:
    """The form of the list, if it is one of changes: a kind to choose, a quote, and a text."""
    items = entry.schema.get("items") if entry.kind == "list" else None
    if isinstance(items, Mapping) and "$ref" in items:
        items = (entry.schema.get("$defs") or {}).get(str(items["$ref"]).rpartition("/")[2])
    properties: Mapping[str, Any] = (items or {}).get("properties") or {}
    kind = next((name for name, each in properties.items() if "enum" in each), None)
    quote = next((name for name in properties if re.search("quote|old|find|current|original", name)), None)
    text = next((name for name in properties if re.search("new|text|replacement", name) and name != quote), None)
    if kind is None or quote is None or text is None:
        return None
    named = {tag: [each for each in properties[kind]["enum"] if re.match(_KINDS[tag], str(each))] for tag in _KINDS}
    if not all(named.values()):
        return None
    return _Changes(kind, quote, text, {tag: str(names[0]) for tag, names in named.items()})


_KINDS = {"insert": "add|insert|append", "replace": "replace|change|modify", "delete": "remove|delete|drop"}


def _proposal(brief: _Brief, edits: list[_Edit], dice: random.Random) -> str:
    text = brief.current or _OPENING[brief.task or "support"]
    for edit in edits:
        text = _apply(text, edit)
    if brief.tidy or dice.random() < 0.1:
        text = _compress(text, brief.task)
    if "persona" in brief.tip and not re.match(r"you are\b", text, re.IGNORECASE):
        text = f"{_PERSONA[brief.task or 'support']} {text}"
    if brief.limit is not None and len(text) > brief.limit:
        text = _compress(text, brief.task, brief.limit)
    return text


_OPENING: dict[Task, str] = {
    "support": "Reply to the customer's message.",
    "query": "Write a search query for the question.",
    "answer": "Answer the question from the passages.",
}
_PERSONA: dict[Task, str] = {
    "support": "You are an experienced support agent.",
    "query": "You are an expert searcher.",
    "answer": "You are a careful analyst.",
}


def _advice(entry: OutputField, brief: _Brief, votes: _Votes, temper: Temper, dice: random.Random) -> str:
    """Advice for each module: its own part of the work only, planned as an edit of its own instructions."""
    advice = {}
    for name, definition in (brief.modules or {"main": brief.current}).items():
        fields, _, instructions = definition.partition("Original Instructions:")
        task = _produces(fields.partition("Output Fields:")[2]) or _task_of(definition) or "support"
        own = {rule: vote for rule, vote in votes.items() if RULE[rule].task == task}
        edits = _plan(replace(brief, task=task, current=instructions or definition), own, temper, dice)
        advice[name] = " ".join(edit.wording for edit in edits if edit.wording) or "Keep to your instructions."
    return json.dumps(advice) if entry.kind == "dict" else "\n".join(f"{name}: {text}" for name, text in advice.items())


def _produces(listing: str) -> Task | None:
    names = re.findall(r"`(\w+)`", listing)
    if any("query" in name for name in names):
        return "query"
    if any("answer" in name for name in names):
        return "answer"
    return "support" if any(re.search("reply|response", name) for name in names) else None


def _analysis(votes: _Votes, edits: Iterable[_Edit]) -> str:
    ranked = sorted(votes.items(), key=lambda item: (-abs(item[1]), item[0]))[:3]
    seen = [f"{'more' if vote > 0 else 'less'} of: {name.replace('_', ' ')}" for name, vote in ranked]
    found = f"What the evidence asks for is {'; '.join(seen)}." if seen else "The evidence names no particular fault."
    changes = " ".join(str(edit) for edit in edits)
    return f"{found} {changes}".strip()


def _describe(brief: _Brief, votes: _Votes) -> str:
    """A description of data or of a program, with the behaviours it could make out in good examples."""
    task = brief.task or _task_of(brief.hearsay) or "support"
    lines = [_SUBJECT[task]]
    for name, vote in sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:4]:
        if vote > 0:
            lines.append(RULE[name].asks[0].text)
    return " ".join(lines)


_SUBJECT: dict[Task, str] = {
    "support": "This is about messages from customers and the replies a support desk gives.",
    "query": "This is about questions and the search queries that find their passages.",
    "answer": "This is about questions answered from retrieved passages.",
}

_SLOT = re.compile(r"\{+[A-Za-z_]\w*\}+")


def _apply(text: str, edit: _Edit) -> str:
    said = stated(text, RULE[edit.rule].task).get(edit.rule)
    contrary = said is not None and (edit.kind == "drop" or said.disputed or said.negated == (edit.kind == "ask"))
    if said is not None and (contrary or (edit.kind == "ask" and said.strength < LOOSE)):
        text = _drop(text, edit.rule)
    return _append(text, edit.wording) if edit.wording else text


def _drop(text: str, rule: str) -> str:
    """Take out every sentence on a rule. What else such a sentence says is said again; one with a slot in it stays."""
    task = RULE[rule].task
    spoken = [sentence for sentence in sentences(text) if rule in stated(sentence, task)]
    for sentence in spoken:
        if _SLOT.search(sentence):
            continue
        text = re.sub(
            rf"(?:(?<=\n)|^)[ \t]*(?:[-*•]|\d+[.)])?[ \t]*{re.escape(sentence)}[ \t]*\n?|[ \t]?{re.escape(sentence)}",
            "",
            text,
            count=1,
        )
        for other, said in stated(sentence, task).items():
            if other != rule:
                rest = RULE[other]
                text = _append(text, rest.forbids[0] if said.negated else rest.asks[0].text)
    return text.strip() or text


def _append(text: str, sentence: str) -> str:
    """Add a sentence in the manner of the text: an item to its list if it ends in one, else a line."""
    if sentence in text:
        return text
    lines = text.rstrip().split("\n")
    bullet = re.match(r"[ \t]*([-*•]|(\d+)([.)]))[ \t]+", lines[-1])
    if bullet is None:
        return f"{text.rstrip()}\n{sentence}" if text.strip() else sentence
    mark = f"{int(bullet.group(2)) + 1}{bullet.group(3)} " if bullet.group(2) else bullet.group()
    return f"{text.rstrip()}\n{mark}{sentence}"


def _compress(text: str, task: Task | None, limit: int | None = None) -> str:
    """The same demands in fewer words: the opening, whatever holds a slot, and one short sentence for each rule."""
    parts = sentences(text)
    kept = [part for index, part in enumerate(parts) if index == 0 or _SLOT.search(part)]
    covered = set(stated("\n".join(kept), task))
    for name, said in stated(text, task).items():
        if name not in covered:
            rule = RULE[name]
            short = rule.forbids[0] if said.negated else rule.asks[0].text
            kept.append(said.sentence if len(said.sentence) < len(short) and said.strength >= LOOSE else short)
    while limit is not None and len("\n".join(kept)) > limit and len(kept) > 1:
        droppable = [index for index, part in enumerate(kept) if index and not _SLOT.search(part)]
        if not droppable:
            break
        del kept[droppable[-1]]
    shorter = "\n".join(kept)
    return shorter[:limit] if limit is not None else shorter if len(shorter) < len(text) else text
