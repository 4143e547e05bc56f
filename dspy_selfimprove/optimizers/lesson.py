"""Lesson: what a coach learns from, and how it is put before it.

    Lesson, Attempt, Trial   one example's evidence; an earlier change and what came of it; a measured candidate
    Brief, Wanted            what is measured and what is to be raised
    Step                     how much may change, in words that scale
    minibatches, in_turn     which lessons are shown, and which predictor's text is changed

What others wrote (inputs, answers, feedback) stands in a fence of its own under headings of ours; an application's
names of fields, scores and definitions of metrics are trusted. Attempts are told as JSON.

Not covered: images and audio (left out), and blame inside one example: whether the query or the answer was at fault is
told by the parts of a lesson to whoever reads them, and guessed by nobody.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.guard import fence
from dspy_selfimprove.message import FrozenDict, freeze, text_of, thaw
from dspy_selfimprove.optimizers.edit import Edit
from dspy_selfimprove.sample import Direction, Sample
from dspy_selfimprove.score import Score

if TYPE_CHECKING:
    from dspy_selfimprove.evaluation import Outcome
    from dspy_selfimprove.metric import Metric

Values: TypeAlias = Mapping[str, Any]

BATCH: Final = 6  # lessons that a coach is shown at once
_LONGEST: Final = 6_000  # characters of one text of a lesson: the beginning and the end of it
_REMEMBERED: Final = 10  # attempts that a coach is told of


# -- what there is to learn from ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One example's evidence: what the program was given, what it gave, the verdicts.

    `parts` has what each predictor was given and gave, where a program has several. All of it is others' text.

    >>> lesson = Lesson(id="T1", inputs={"question": "Late?"}, outputs={"answer": "Yes."}, scores={"tone": Score(0.2)})
    >>> lesson.scores["tone"].value
    0.2
    """

    id: str
    inputs: Values
    outputs: Values
    scores: Mapping[str, Score]
    cluster: int | str | None = None
    parts: Mapping[str, tuple[Values, Values]] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "parts"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        object.__setattr__(self, "scores", FrozenDict(self.scores))

    @classmethod
    def of(cls, source: Sample | Outcome, parts: Mapping[str, tuple[Values, Values]] | None = None) -> Lesson:
        """Production's own sample, or one example of an evaluation (its first answer)."""
        if isinstance(source, Sample):
            given: Values = {"conversation": source.chat_history, "variables": source.variables}
            outputs: Values = {"output": text_of(source.output)}
            scores: Mapping[str, Score] = source.scores
        else:
            given, scores = source.inputs, source.scores
            outputs = {name: value for name, value in source.rollouts[0].output.items() if name not in _NOT_SAID}
        inputs = {name: value for name, value in given.items() if value not in (None, "", {}, (), [])}
        return cls(
            id=source.id, inputs=inputs, outputs=outputs, scores=scores, cluster=source.cluster, parts=parts or {}
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything in it that others wrote: what a guard must have seen before a coach was shown it."""
        values = [*self.inputs.values(), *self.outputs.values()]
        for inputs, outputs in self.parts.values():
            values += [*inputs.values(), *outputs.values()]
        said = [*map(_told, values), *(score.feedback for score in self.scores.values())]
        return tuple(dict.fromkeys(text for text in said if text.strip()))


_NOT_SAID: Final = frozenset({"message", "finish_reason", "seconds", "tokens", "dollars"})


def parts_of(program: Any, trace: Iterable[tuple[Any, Values, Any]]) -> dict[str, tuple[Values, Values]]:
    """What each predictor was given and gave, from a DSPy trace; of several calls of one, the last."""
    names = {id(predictor): name for name, predictor in program.named_predictors()}
    return {
        names[id(predictor)]: (dict(inputs), dict(outputs.items()))
        for predictor, inputs, outputs in trace
        if id(predictor) in names
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was tried before, and what came of it: the mean paired difference of each metric, from parent to child."""

    predictor: str
    edits: tuple[Edit, ...]
    differences: Mapping[str, float]
    examples: int
    kept: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "differences", FrozenDict(self.differences))


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was measured: the mean of each metric."""

    candidate: Candidate
    means: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", FrozenDict(self.means))


@dataclass(frozen=True, slots=True)
class Wanted:
    """One metric as the coach is told of it."""

    name: str
    definition: str = ""
    at_least: float | None = None
    weight: float = 1.0
    direction: Direction = "maximize"

    def __str__(self) -> str:
        said = " ".join(self.definition.split())
        parts = [said if not said or said.endswith((".", "!", "?")) else f"{said}."]
        if self.direction == "minimize":
            parts.append("What it counts should be little: the less, the higher the score.")
        if self.at_least is not None:
            parts.append(f"Its score must be {self.at_least:g} or more.")
        return f"- {self.name}: {' '.join(filter(None, parts))}".rstrip(": ")


@dataclass(frozen=True, slots=True)
class Brief:
    """What is measured, and what is to be raised: the `target`, or all that has a weight.

    >>> brief = Brief((Wanted("helpfulness", "Does it solve the matter?"), Wanted("brevity")), target="helpfulness")
    >>> print(brief.aim)
    Raise helpfulness. Nothing else may get worse: brevity.
    """

    wanted: tuple[Wanted, ...]
    target: str | None = None

    def __post_init__(self) -> None:
        names = [each.name for each in self.wanted]
        if self.target is not None and self.target not in names:
            raise UsageError(f"There is no metric {self.target!r}.", remedy=f"There is {', '.join(names)}.")

    @classmethod
    def of(cls, metrics: Iterable[Metric], target: str | None = None) -> Brief:
        """What the metrics say of themselves; those that count for nothing are left out."""
        told = (
            Wanted(each.name, each.description, each.at_least, each.weight, each.direction)
            for each in metrics
            if each.weight or each.at_least is not None or each.name == target
        )
        return cls(tuple(told), target)

    @property
    def definitions(self) -> str:
        return "\n".join(["Each score is from 0 to 1, and more is better.", *map(str, self.wanted)])

    @property
    def aim(self) -> str:
        raised = [each.name for each in self.wanted if each.name == self.target or (not self.target and each.weight)]
        others = [each for each in self.wanted if each.name not in raised]
        floors = [f"{each.name} must stay at {each.at_least:g} or more" for each in self.wanted if each.at_least]
        said = [f"Raise {_listed(raised)}."]
        if others:
            said.append(f"Nothing else may get worse: {_listed(each.name for each in others)}.")
        if floors:
            said.append(f"{'; '.join(floors)}.")
        return " ".join(said)

    def value(self, scores: Mapping[str, Score] | Mapping[str, float]) -> float | None:
        """The target's score, or the weighted mean of those known; None if there is none."""
        total = weight = 0.0
        for each in self.wanted:
            if self.target is not None and each.name != self.target:
                continue
            found = scores.get(each.name)
            value = found.value if isinstance(found, Score) else found
            if value is not None and not math.isnan(value):
                factor = each.weight or float(each.name == self.target)
                total, weight = total + factor * value, weight + factor
        return total / weight if weight else None


def _listed(names: Iterable[str]) -> str:
    *most, last = list(names) or ["the score"]
    return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """How much one update may change, in (0, 1], and the words that say so.

    >>> print(Step(0.1).words)
    small: change one thing; at most 1 edit
    >>> Step(0.1).times(4).name, BOLD > MODERATE
    ('moderate', True)
    """

    size: float

    def __post_init__(self) -> None:
        if not 0.0 < self.size <= 1.0:
            raise UsageError(f"A step of {self.size!r} is not above 0 and at most 1.", remedy="Try 0.1, or SMALL.")

    @property
    def name(self) -> str:
        return next(name for most, name, _ in _STEPS if self.size <= most)

    @property
    def edits(self) -> int:
        """The most that it may hold."""
        return max(1, round(8 * self.size))

    @property
    def words(self) -> str:
        said = next(said for most, _, said in _STEPS if self.size <= most)
        return f"{said}; at most {self.edits} edit{'s' if self.edits > 1 else ''}"

    def times(self, factor: float) -> Step:
        """A larger or smaller one; never nothing, never more than all."""
        return Step(min(1.0, max(_LEAST, self.size * factor)))


_LEAST: Final = 0.05
_STEPS: Final = (
    (0.2, "small", "small: change one thing"),
    (0.45, "moderate", "moderate: change two or three things that belong together"),
    (0.8, "bold", "bold: change whatever the samples speak against, also whole paragraphs"),
    (1.0, "rethink", "rethink: question every line, and leave only what the samples bear out"),
)

SMALL: Final = Step(0.1)
MODERATE: Final = Step(0.35)
BOLD: Final = Step(0.7)
RETHINK: Final = Step(1.0)


# -- what is shown --------------------------------------------------------------------------------------------------


def minibatches(
    lessons: Iterable[Lesson], brief: Brief, *, size: int = BATCH, count: int = 1, seed: int = 0
) -> tuple[tuple[Lesson, ...], ...]:
    """Batches of lessons: the worst by the target, from as many clusters as there are, and one in four that went well.

    The worst lessons are dealt out like cards, so that several batches share as few as the lessons allow. `seed`
    decides among equals. A lesson without a verdict on the target is used only if there is nothing else.

    >>> known = [Lesson(id=f"T{n}", inputs={}, outputs={}, scores={"tone": Score(n / 9)}) for n in range(10)]
    >>> [lesson.id for lesson in minibatches(known, Brief((Wanted("tone"),)), size=4)[0]]
    ['T0', 'T1', 'T2', 'T9']
    """
    if size < 1 or count < 1:
        raise UsageError("A batch needs at least one lesson, and there must be one batch.", remedy="Give 1 or more.")
    pool = sorted(lessons, key=lambda lesson: lesson.id)
    random.Random(f"minibatches/{seed}").shuffle(pool)
    values = {lesson.id: brief.value(lesson.scores) for lesson in pool}
    known = [(value, lesson) for lesson in pool if (value := values[lesson.id]) is not None]
    if not known:
        known = [(0.5, lesson) for lesson in pool]
    usual = math.fsum(value for value, _ in known) / max(1, len(known))
    bad = _dealt(sorted((each for each in known if each[0] <= usual), key=lambda each: each[0]))
    good = _dealt(sorted((each for each in known if each[0] > usual), key=lambda each: -each[0]))
    protected = min(len(good), size // 4 if size >= 4 else int(size == 3))
    return tuple(
        _batch(bad[number::count], bad, good[number::count] + good, size, protected) for number in range(count)
    )


def _dealt(ranked: Sequence[tuple[float, Lesson]]) -> list[Lesson]:
    """In rounds over the clusters: the first of each, then the second of each."""
    piles: dict[Any, list[Lesson]] = {}
    for _, lesson in ranked:
        piles.setdefault(lesson.cluster, []).append(lesson)
    deepest = max((len(pile) for pile in piles.values()), default=0)
    return [pile[place] for place in range(deepest) for pile in piles.values() if place < len(pile)]


def _batch(
    own: Sequence[Lesson], bad: Sequence[Lesson], good: Sequence[Lesson], size: int, protected: int
) -> tuple[Lesson, ...]:
    chosen = list({lesson.id: lesson for lesson in (*own, *bad)}.values())[: size - protected]
    kept = list({lesson.id: lesson for lesson in good}.values())[: size - len(chosen)]
    return (*chosen, *kept)


def in_turn(candidate: Candidate, attempts: Iterable[Attempt], turn: int) -> str:
    """The predictor whose text is changed next: one after the other."""
    names = sorted(candidate.texts)
    return names[turn % len(names)]


def by_gain(candidate: Candidate, attempts: Iterable[Attempt], turn: int) -> str:
    """The predictor whose changes were kept most often; one that was hardly tried counts as promising."""
    kept = dict.fromkeys(sorted(candidate.texts), 1)
    tried = dict.fromkeys(kept, 1)
    for attempt in attempts:
        if attempt.predictor in kept:
            tried[attempt.predictor] += 1
            kept[attempt.predictor] += attempt.kept
    order = sorted(kept, key=lambda name: (-kept[name] / tried[name], tried[name]))
    best = [name for name in order if kept[name] / tried[name] == kept[order[0]] / tried[order[0]]]
    return best[turn % len(best)]


def shown(lessons: Iterable[Lesson], predictor: str, brief: Brief) -> str:
    """Lessons as the coach reads them: our headings, and everything that others wrote in a fence of its own."""
    return "\n\n".join(_shown(lesson, number, predictor, brief) for number, lesson in enumerate(lessons, 1))


def _shown(lesson: Lesson, number: int, predictor: str, brief: Brief) -> str:
    inputs, outputs = lesson.parts.get(predictor, (lesson.inputs, lesson.outputs))
    value = brief.value(lesson.scores)
    well = " (went well: protect what made it so)" if value is not None and value >= _WELL else ""
    lines = [f"# Sample {number}{well}", "## Inputs", *_fenced(inputs)]
    lines += ["## Generated Outputs", *_fenced(outputs)]
    if outputs is not lesson.outputs and predictor in lesson.parts:
        lines += ["## Final result of the application", *_fenced(lesson.outputs)]
    known = [each.name for each in brief.wanted if each.name in lesson.scores]
    lines += ["## Scores", ", ".join(_verdict(name, lesson.scores[name]) for name in known)] if known else []
    said = [f"{name}: {words}" for name in known if (words := lesson.scores[name].feedback.strip())]
    lines += ["## Feedback", fence(_short("\n".join(said)), "feedback")] if said else []
    return "\n".join(lines)


_WELL: Final = 0.75


def _verdict(name: str, score: Score) -> str:
    return f"{name} none" if score.value is None else f"{name} {score.value:.2f}"


def _fenced(values: Values) -> list[str]:
    return [
        line for name, value in values.items() for line in (f"### {_label(name)}", fence(_short(_told(value)), "text"))
    ]


def _label(name: str) -> str:
    """A field's name on a line of ours: an application's own, but only if it looks like one."""
    return name if name.isidentifier() and len(name) <= 40 else "field"


def _told(value: Any) -> str:
    """A value as text: a conversation turn by turn, variables one a line, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(each, Mapping) and "role" in each for each in value):
        return "\n".join(f"{each['role']}: {text_of(each)}" for each in value)
    if isinstance(value, Mapping) and all(isinstance(each, str) for each in value.values()):
        return "\n".join(f"{name}: {each}" for name, each in value.items())
    return json.dumps(thaw(value), ensure_ascii=False, default=str)


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    head, tail = text[: 2 * _LONGEST // 3], text[-_LONGEST // 3 :]
    return f"{head}\n[{len(text) - len(head) - len(tail)} characters left out]\n{tail}"


def history(attempts: Iterable[Attempt], predictor: str, brief: Brief) -> str:
    """As JSON: a coach's words, which can then end no line and begin no heading."""
    own = [attempt for attempt in attempts if attempt.predictor == predictor][-_REMEMBERED:]
    told = [
        {
            "edits": [edit.to_json() for edit in attempt.edits],
            "score_change": _rounded(brief.value(attempt.differences)),
            "by_metric": {name: _rounded(value) for name, value in attempt.differences.items()},
            "examples": attempt.examples,
            "kept": attempt.kept,
        }
        for attempt in own
    ]
    return json.dumps(told, ensure_ascii=False, indent=1) if told else "Nothing yet."


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
