"""Calibration: is the judge any good? How noisy it is, what sways it, whether it agrees with people, what that allows.

    found = check(metric, rows, models=models)            # asks the judge; what a journal has is not paid for again
    found.believable(100), found.repeats_for(0.05, 100)   # which differences mean something; verdicts that it takes
    found.save(); Calibration.load(metric, models)        # None if the metric or the judge's model is another since
    compare(before, after, least={"helpfulness": found.believable(100, spread=0)})

Four questions, each answered with an interval:

    noise      the same answer judged `repeats` times: the standard deviation of one verdict about the judge's own mean
               (`noise`), and how often a second verdict differs from the first (`flips`)
    agreement  with labels or with what people said, where the rows have them (agreement.py)
    length     the same answer with neutral filler after it, of two lengths: what 100 more words do to the score
    order      the judge's choices offered in reverse: what that does to the score

Every verdict asked for is one call: rows x repeats x 4 with all four (length is two of them, order one).

What is identifiable. A judge that gives numbers shows its noise as it is. One that chooses a label shows it only after
rounding: near the middle of a label's range noise vanishes, at a border it is a whole step. So `noise` is that of the
score as it comes out, averaged over these rows, which is what a comparison of prompts suffers from; it is not the
noise inside the judge, and other rows may show more or less of it. Likewise the effect of length is that on the score:
an answer that has the best label already cannot gain.

The intervals draw from rows, not from verdicts, since noise differs from row to row: a Bayesian bootstrap with half a
row that is worse than the worst one seen. They are about rows like these. On the rehearsal judge with planted noise of
.01 to .25, on scales of 3, 5 and 21 steps, the 95 % interval of noise covered .93 or more at 13 and at 30 rows; that
of length .95 or more. Missing verdicts are left out and counted; a row counts for noise if two or more of its verdicts
came.

Not covered: filler is English; answers that are JSON, tables, code or tool calls are not lengthened; the order in which
the *text* of a judge's prompt lists its options is the author's, and stays; pairwise judges. A journal, or a cache in
front of the model, that remembers verdicts cannot show that a provider has changed the model since. Whether noise is
independent between repeats is taken for granted: at temperature 0 a judge repeats itself, and its errors too.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dspy_selfimprove import files
from dspy_selfimprove.agreement import Agreement, confusion, estimate_correlation, estimate_kappa, estimate_same
from dspy_selfimprove.case import Case
from dspy_selfimprove.errors import DataError, UsageError
from dspy_selfimprove.judge import Judge
from dspy_selfimprove.judges.helpers import submit
from dspy_selfimprove.measure import Human, Judged
from dspy_selfimprove.message import FrozenDict, digest
from dspy_selfimprove.metric import Metric
from dspy_selfimprove.progress import step
from dspy_selfimprove.score import Score
from dspy_selfimprove.statistics import Estimate, estimate_mean

if TYPE_CHECKING:
    from dspy_selfimprove.budget import Role
    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.model import Models

Floats: TypeAlias = NDArray[np.float64]

FORMAT: Final = 1
FOLDER: Final = "calibration"
REPEATS: Final = 5
LENGTHS: Final = (100, 200)  # words of filler
MUCH_MISSING: Final = 0.05
LEVEL: Final = 0.95
POWER: Final = 0.8
_SLOTS: Final = 16
_UNKNOWN_STEP: Final = 0.05  # of a judge that only ever gave one number


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found out about one metric as one model judges it.

    `spread` is how far the answers' true scores lie apart (a standard deviation, noise taken off). `length` is per 100
    words, `order` the score with the choices reversed minus that without; None where it was not measured. `shared`
    names the roles that the judge's model plays besides.

    >>> import random
    >>> from dspy_selfimprove.metric import metric_of
    >>> dice = random.Random(1)
    >>> noisy = metric_of(lambda output: min(1, len(output) / 40 + dice.gauss(0, 0.05)), name="noisy")
    >>> found = check(noisy, [{"output": "word " * n} for n in range(1, 6)], repeats=20, show=False)
    >>> found.noise.low < 0.05 < found.noise.high, found.length.low > 0, found.agreement
    (True, True, None)
    >>> Calibration.from_json(found.to_json()) == found
    True
    """

    metric: str
    version: str
    model: str
    rows: int
    repeats: int
    verdicts: int
    noise: Estimate
    flips: Estimate
    spread: float
    length: Estimate | None = None
    order: Estimate | None = None
    agreement: Agreement | None = None
    missing: Mapping[str, int] = field(default_factory=FrozenDict)
    shared: tuple[Role, ...] = ()
    notes: tuple[str, ...] = ()
    made: str = ""

    @property
    def missing_share(self) -> float:
        return sum(self.missing.values()) / self.verdicts if self.verdicts else 0.0

    # What it allows.

    def believable(self, examples: int, repeats: int = 1, *, spread: float | None = None) -> float:
        """The smallest difference between two prompts that is more than chance, at 95 %.

        With n examples that both prompts answer, and r verdicts on each answer,

            believable = t(n - 1, .975) * sqrt((spread^2 + 2 noise^2 / r) / n)

        `spread` is how the true differences vary from example to example, which only a comparison can tell. Until one
        has been made, two answers to one example are taken to correlate by a half, and then it is the spread of the
        scores. More repeats shrink the second term alone. With spread=0 it is what the judge's noise alone can make of
        two prompts that are the same: what `compare` takes as `least`.
        """
        if examples < 2 or repeats < 1:
            raise UsageError("A comparison needs two examples and one verdict each.", remedy="Give more.")
        noise, between = self._noise(), self.spread if spread is None else spread
        error = math.sqrt((between**2 + 2.0 * noise**2 / repeats) / examples)
        return float(special.stdtrit(examples - 1, 0.5 + LEVEL / 2)) * error

    def repeats_for(self, effect: float, examples: int, *, spread: float | None = None) -> int | None:
        """How many verdicts on each answer show a true difference of `effect` four times in five; None if none do.

            r >= 2 noise^2 / (n * (effect / (t(n - 1, .975) + z(.8)))^2 - spread^2)

        Where the right side's divisor is not positive no number of repeats is enough: it takes more examples.
        """
        if examples < 2 or not effect > 0:
            raise UsageError("A comparison needs two examples and an effect above zero.", remedy="Give more.")
        noise, between = self._noise(), self.spread if spread is None else spread
        quantiles = float(special.stdtrit(examples - 1, 0.5 + LEVEL / 2) + special.ndtri(POWER))
        room = examples * (effect / quantiles) ** 2 - between**2
        if room <= 0.0:
            return None
        return max(1, math.ceil(2.0 * noise**2 / room - 1e-9))

    def _noise(self) -> float:
        if math.isnan(self.noise.value):
            raise UsageError(
                f"The noise of {self.metric!r} is not known: no answer got two verdicts.",
                remedy="See what is missing (`missing`), mend it, and check the metric again.",
            )
        return self.noise.value

    # Reading it.

    @property
    def verdict(self) -> tuple[tuple[str, str], ...]:
        """What was found, in sentences: what each is about, and what is said of it."""
        return tuple(_sentences(self))

    def __str__(self) -> str:
        title = f"{self.metric}: {self.model}, {_many(self.rows, 'row')}, {self.repeats} verdicts each"
        return "\n".join([title, *(f"  {about:<9}  {said}" for about, said in self.verdict)])

    def _repr_html_(self) -> str:
        from html import escape

        cell = "<td style='text-align:left'>"
        rows = "".join(f"<tr>{cell}{escape(about)}</td>{cell}{escape(said)}</td></tr>" for about, said in self.verdict)
        return f"<table><caption>{escape(self.metric)}, {escape(self.model)}</caption>{rows}</table>"

    # Keeping it.

    def to_json(self) -> dict[str, Any]:
        data = {"format": FORMAT, **asdict(replace(self, agreement=None, missing={}))}
        whole: dict[str, Any] = _plain({**data, "missing": dict(self.missing)})
        whole["agreement"] = None if self.agreement is None else _plain(self.agreement.to_json())
        return whole

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        read = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("noise", "flips", "length", "order"):
            read[name] = None if data.get(name) is None else Estimate(**_numbers(data[name]))
        if data.get("agreement") is not None:
            read["agreement"] = Agreement.from_json(_numbers(data["agreement"]))
        for name in ("shared", "notes"):
            read[name] = tuple(data.get(name) or ())
        return cls(**{**read, "missing": FrozenDict(data.get("missing") or {})})

    def save(self, folder: Path | None = None) -> Path:
        """Keep it, under the metric's version and the model; an earlier one of the same gives way."""
        path = _path(self.version, self.model, folder or files.home() / FOLDER)
        files.write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, metric: Metric, models: Models | None = None, *, folder: Path | None = None) -> Calibration | None:
        """The one that was kept for this metric as it is now; None if it, or the judge's model, is another since."""
        model = _model_of(metric)
        if models is not None and _asks(metric) and models.by_role["judge"].name != model:
            return None
        path = _path(metric.version, model, folder or files.nearest_home() / FOLDER)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise DataError(f"The calibration {path} was written by a newer version.", remedy="Upgrade to read it.")
            found = cls.from_json(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"The calibration {path} cannot be read.", remedy="Remove it and run `dspy-selfimprove metrics check`."
            ) from None
        return found if (found.version, found.model) == (metric.version, model) else None


def check(
    metric: Metric,
    examples: Iterable[Any],
    *,
    models: Models | None = None,
    repeats: int = REPEATS,
    journal: Journal | None = None,
    human: str | None = None,
    show: bool = True,
) -> Calibration:
    """Judge the recorded answers of `examples` again and again, and say what that shows.

    An example is a Sample, a dspy.Example or a mapping with its `output`; or a labelled row, a mapping with `inputs`
    (the judge's variables) and `label` (or `score`, between 0 and 1) as in datasets/judge_*/. Agreement is with that
    label, or with what people said of it under `human` (the metric's name, unless told otherwise).

    `models` are those the metric was made with: their slots are kept full, and `order` needs them. `journal` keeps the
    verdicts with reversed choices; all others are kept by the metric's own.
    """
    if isinstance(metric.measure, Human):
        raise UsageError("People cannot be asked again.", remedy="Check the judge, on rows that people have judged.")
    if repeats < 2:
        raise UsageError("Noise shows only from two verdicts on.", remedy="Give repeats=2 or more.")
    items = [_item(example, metric, human or metric.name) for example in examples]
    if not items:
        raise UsageError("There is nothing to judge.", remedy="Give examples with their recorded answers.")
    for item in items:
        metric.check(item.example, item.answer)
    units = _units(metric)
    gold = [_gold(item.gold, units, number) for number, item in enumerate(items, 1)]
    lengthened = [_lengthened(item) for item in items]
    turned = _turned(metric, models, journal)
    asked = [
        _Asked(arm, at, item.example, answer, repeat, judge)
        for repeat in range(repeats)
        for at, item in enumerate(items)
        for arm, judge, answer in _arms(item, metric, turned, lengthened[at])
    ]
    width = (models.slots.size if models is not None else _SLOTS) if _asks(metric) else 1
    scores = _judge(asked, width, f"Judging by {metric.name}", show)
    found = _Verdicts(len(items), repeats, asked, scores)
    unit = _step_of(metric, scores)
    plain = found.values("plain")
    return Calibration(
        metric=metric.name,
        version=metric.version,
        model=_model_of(metric),
        rows=len(items),
        repeats=repeats,
        verdicts=len(asked),
        noise=_noise(plain, unit),
        flips=_flips(plain),
        spread=_spread(plain),
        length=_length(found, lengthened, unit),
        order=None if turned is None else _order(plain, found.values("turned"), unit),
        agreement=_agreement(gold, units, found.scores("plain")),
        missing=FrozenDict(dict(Counter(score.failure for score in scores if score.failure).most_common())),
        shared=_shared(metric, models),
        notes=tuple(_notes(metric, items, lengthened, plain, human)),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# What is asked.


@dataclass(frozen=True, slots=True)
class _Item:
    example: Any
    answer: Any  # None: the one recorded in the example
    gold: Any = None  # a label, a number in [0, 1], a Score, or nothing
    others: tuple[str, ...] = ()  # under which names people judged it


@dataclass(frozen=True, slots=True)
class _Asked:
    arm: str
    item: int
    example: Any
    answer: Any
    repeat: int
    metric: Metric

    def __call__(self) -> Score:
        return self.metric.score(self.example, self.answer, repeat=self.repeat)


def _item(example: Any, metric: Metric, human: str) -> _Item:
    if isinstance(example, Mapping) and isinstance(inputs := example.get("inputs"), Mapping):
        given = {name: value for name, value in inputs.items() if name != "output"}
        return _Item(given, inputs.get("output"), example.get("label", example.get("score")))
    given = Case(example).given
    said = given.get("human")
    said = said if isinstance(said, Mapping) else {}
    return _Item(example, None, said.get(human), tuple(said))


def _arms(
    item: _Item, metric: Metric, turned: Metric | None, lengthened: Sequence[tuple[int, Any]]
) -> Iterable[tuple[str, Metric, Any]]:
    yield "plain", metric, item.answer
    for number, (_, answer) in enumerate(lengthened):
        yield f"longer {number}", metric, answer
    if turned is not None:
        yield "turned", turned, item.answer


def _turned(metric: Metric, models: Models | None, journal: Journal | None) -> Metric | None:
    """The same judge with its choices offered the other way round; None for what has no choices to turn."""
    measure = metric.measure
    if models is None or not isinstance(measure, Judged) or not _choices(metric):
        return None
    spec = measure.judge.spec
    if spec.source is not None:  # it has code of its own, which makes of the choices what it likes
        return None
    turned = replace(spec, choices=dict(reversed(spec.choices.items())))
    return replace(metric, measure=replace(measure, judge=Judge(turned, models, journal=journal)))


def _judge(asked: Sequence[_Asked], width: int, doing: str, show: bool) -> list[Score]:
    """A verdict for each; `width` at a time, and none started after one that raised."""
    found: dict[int, Score] = {}
    with step(doing, shown=show) as done:
        if width == 1:
            for at, each in enumerate(asked):
                found[at] = each()
                done(len(found), len(asked))
            return list(found.values())
        flights: dict[Future[Score], int] = {}
        left = iter(enumerate(asked))
        try:
            while True:
                while len(flights) < width and (pair := next(left, None)) is not None:
                    flights[submit(pair[1])] = pair[0]
                if not flights:
                    break
                for future in wait(flights, return_when=FIRST_COMPLETED).done:
                    found[flights.pop(future)] = future.result()
                done(len(found), len(asked))
        finally:
            for future in flights:
                future.cancel()
    return [found[at] for at in range(len(asked))]


class _Verdicts:
    """The verdicts by what was changed (`plain` if nothing was), row and repeat."""

    def __init__(self, rows: int, repeats: int, asked: Sequence[_Asked], scores: Sequence[Score]) -> None:
        self._shape = rows, repeats
        self._found: dict[str, dict[tuple[int, int], Score]] = {}
        for each, score in zip(asked, scores, strict=True):
            self._found.setdefault(each.arm, {})[each.item, each.repeat] = score

    def values(self, arm: str) -> Floats:
        """A row for each example and a column for each repeat; NaN where there is no verdict."""
        table = np.full(self._shape, np.nan)
        for place, score in self._found.get(arm, {}).items():
            if score.value is not None:
                table[place] = score.value
        return table

    def scores(self, arm: str) -> list[list[Score]]:
        rows, repeats = self._shape
        return [[self._found[arm][row, repeat] for repeat in range(repeats)] for row in range(rows)]


# Noise.


def _noise(values: Floats, unit: float) -> Estimate:
    """The standard deviation within a row, all rows pooled by their degrees of freedom."""
    counts = (~np.isnan(values)).sum(axis=1)
    enough = counts > 1
    missing = int((~enough).sum())
    if not enough.any():
        return Estimate(float("nan"), 0.0, 0.5, LEVEL, 0, missing)
    variances = np.nanvar(values[enough], axis=1, ddof=1)
    # The half row that nobody has seen is twice as noisy as the noisiest that was (and at least a coin tossed between
    # two neighbouring labels): a few rows often miss those in which most of the noise is.
    n = float(counts[enough].min())
    most = n / (n - 1.0) / 4.0
    worst = max(float(variances.max()), min(most, max(2.0 * float(variances.max()), most * unit**2)))
    found = estimate_mean(variances, weights=counts[enough] - 1.0, bounds=(0.0, worst), level=LEVEL)
    value, low, high = (math.sqrt(max(each, 0.0)) for each in (found.value, found.low, found.high))
    return Estimate(value, low, high, LEVEL, found.n, missing)


def _flips(values: Floats) -> Estimate:
    """How often two verdicts on one answer differ."""
    shares = []
    for row in values:
        seen = row[~np.isnan(row)]
        if (n := len(seen)) < 2:
            shares.append(math.nan)
            continue
        alike = np.unique(np.round(seen, 9), return_counts=True)[1]
        shares.append(1.0 - float((alike * (alike - 1)).sum()) / (n * (n - 1)))
    return estimate_mean(np.clip(shares, 0.0, 1.0), level=LEVEL)


def _spread(values: Floats) -> float:
    """How far the rows' own means lie apart, without what noise adds to it."""
    counts = (~np.isnan(values)).sum(axis=1)
    several, any_at_all = counts > 1, counts > 0
    if any_at_all.sum() < 2 or not several.any():
        return 0.0
    means = np.nanmean(values[any_at_all], axis=1)
    squares = np.nanvar(values[several], axis=1) * counts[several]
    noise = float(squares.sum() / (counts[several] - 1).sum())
    return math.sqrt(max(0.0, float(means.var(ddof=1)) - noise * float((1.0 / counts[any_at_all]).mean())))


def _step_of(metric: Metric, scores: Iterable[Score]) -> float:
    """The smallest difference that this judge can make, or is seen to make."""
    levels = sorted(set(_units(metric).values()) or {round(s.value, 6) for s in scores if s.value is not None})
    return min((after - before for before, after in itertools.pairwise(levels)), default=_UNKNOWN_STEP)


# What sways it.


def _length(found: _Verdicts, lengthened: Sequence[Sequence[tuple[int, Any]]], unit: float) -> Estimate | None:
    """What 100 words of filler do: a straight line through each row's verdicts, and the mean of the lines."""
    if not any(lengthened):
        return None
    tables = [found.values("plain"), *(found.values(f"longer {number}") for number in range(len(LENGTHS)))]
    slopes, weights, influence = [], [], 0.0
    for row, versions in enumerate(lengthened):
        if not versions:
            continue
        words = [0, *(added for added, _ in versions)]
        y = np.concatenate([table[row] for table in tables])
        x = np.repeat(np.array(words) / 100.0, tables[0].shape[1])
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        around = x - x.mean() if len(x) else x
        width = float(around @ around)
        slopes.append(float(around @ y) / width if width > 0.0 else math.nan)
        weights.append(width or 1.0)
        influence = max(influence, float(np.abs(around).max()) / width if width > 0.0 else 0.0)
    return _paired(np.array(slopes), np.array(weights), unit * influence)


def _order(plain: Floats, turned: Floats, unit: float) -> Estimate:
    """The mean with reversed choices minus that with them as they are, row by row."""
    seen = (~np.isnan(plain)).any(axis=1) & (~np.isnan(turned)).any(axis=1)
    differences = np.full(len(plain), np.nan)
    differences[seen] = np.nanmean(turned[seen], axis=1) - np.nanmean(plain[seen], axis=1)
    return _paired(differences, np.ones(len(plain)), unit / plain.shape[1])


def _paired(effects: Floats, weights: Floats, least: float) -> Estimate:
    """The mean effect. The half row that nobody has seen may lie as far out as any that was, on either side, and then
    by `least` further, what one verdict a step off would do: so a few rows that happen to move one way show nothing."""
    seen = effects[~np.isnan(effects)]
    if not len(seen):
        return Estimate(float("nan"), -1.0, 1.0, LEVEL, 0, len(effects))
    furthest = float(np.abs(seen).max()) + max(least, 1e-6)
    return estimate_mean(effects, weights=weights, bounds=(-furthest, furthest), level=LEVEL)


# Filler: it says nothing about the matter, thanks nobody, promises and refuses nothing, and has no numbers.
_FILLER: Final = (
    "The paragraphs of this text are arranged one below the other, as is usual in writing.",
    "Each sentence above stands by itself and can be read without the ones that surround it.",
    "The words were put in the order in which they appear, from the top to the bottom.",
    "A text of this kind has a beginning, a middle and an end, and so has this one.",
    "What stands above is the part that matters, and what stands below it is merely text.",
    "These lines are plain prose, written in sentences, with a full stop after every one of them.",
    "Nothing in this paragraph changes the meaning of the paragraphs that were placed before it.",
    "The text goes on for a while at this point, without turning to any other subject.",
    "One sentence follows another here, and together they form a paragraph like many other paragraphs.",
    "The lines above and the lines below belong to the same text and to nothing else.",
    "Some texts are longer than others, and the length of a text is the number of its words.",
    "This sentence is one among several, and the ones beside it are of about the same length.",
    "A reader who has reached this line has read all of the lines that stand above it.",
    "The spaces between the words of this text are as wide as the spaces in other texts.",
    "Every paragraph ends where the next one begins, and the last one ends with the text itself.",
    "The letters that make up these words are the ordinary ones, and so are the marks between them.",
    "This part of the text is neither more nor less important than the length of it suggests.",
)
_NOT_PROSE: Final = re.compile(r"```|^\s*\|.*\|\s*$|^\s*<\w", re.MULTILINE)


def pad(text: str, words: int) -> tuple[str, int]:
    """`text` with whole sentences of filler after it, of about so many words, and how many words they have.

    The same text gets the same filler; another text another part of it first.

    >>> longer, added = pad("On its way.", 100)
    >>> longer.startswith("On its way."), 100 <= added < 120
    (True, True)
    """
    at = int(digest(text, 8), 16)
    chosen: list[str] = []
    added = 0
    while added < words:
        sentence = _FILLER[(at + len(chosen)) % len(_FILLER)]
        chosen.append(sentence)
        added += len(sentence.split())
    return f"{text.rstrip()}\n\n{' '.join(chosen)}", added


def _lengthened(item: _Item) -> tuple[tuple[int, Any], ...]:
    """The answer with filler, for each length: words added and answer; nothing for what is not prose."""
    case = Case(item.example, item.answer)
    text, message = case.get("output", None), case.said.get("message")
    if not isinstance(text, str) or not text.strip() or _NOT_PROSE.search(text) or _is_json(text):
        return ()
    padded = [pad(text, words) for words in LENGTHS]
    if isinstance(message, Mapping):
        if message.get("tool_calls") or not isinstance(message.get("content"), str):
            return ()
        return tuple((n, {"output": longer, "message": {**message, "content": longer}}) for longer, n in padded)
    return tuple((n, longer) for longer, n in padded)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


# People.


def _agreement(
    gold: Sequence[tuple[str | None, float | None]], units: Mapping[str, float], scores: Sequence[Sequence[Score]]
) -> Agreement | None:
    if all(value is None for _, value in gold):
        return None
    values = [math.nan if value is None else value for _, value in gold]
    means = [_mean([score.value for score in verdicts if score.value is not None]) for verdicts in scores]
    pearson = estimate_correlation(values, means)
    spearman = estimate_correlation(values, means, ranks=True)
    rows = sum(not math.isnan(value) for value in values)
    missing = sum(not math.isnan(value) and math.isnan(mean) for value, mean in zip(values, means, strict=True))
    labelled = [label for label, _ in gold]
    if not units or any(label is None and value is not None for label, value in gold):
        return Agreement(rows, missing, pearson, spearman)
    labels = tuple(sorted(units, key=lambda label: units[label]))
    kept = [at for at, label in enumerate(labelled) if label is not None]
    truth = [labelled[at] for at in kept]
    said = [[score.label if score.value is not None else None for score in scores[at]] for at in kept]
    return Agreement(
        rows,
        missing,
        pearson,
        spearman,
        same=estimate_same(truth, said, labels),
        kappa=estimate_kappa(truth, said, labels),
        weighted_kappa=estimate_kappa(truth, said, labels, "quadratic") if len(labels) > 2 else None,
        labels=labels,
        confusion=tuple(tuple(round(cell, 6) for cell in row) for row in confusion(truth, said, labels).tolist()),
    )


def _gold(said: Any, units: Mapping[str, float], row: int) -> tuple[str | None, float | None]:
    """What is right of a row: a label of the judge's, if it can be put as one, and its value."""
    if isinstance(said, Score):
        if said.value is None:
            return None, None
        if said.label is not None and said.label in units:
            return said.label, units[said.label]
        said = said.value
    if said is None:
        return None, None
    if isinstance(said, str):
        if not units:
            return None, None  # labels of another metric
        known = {label.strip().casefold(): label for label in units}
        label = known.get(said.strip().casefold())
        if label is None:
            raise UsageError(
                f"The label of row {row} is none of the judge's choices.", remedy="Use its choices, or a `score`."
            )
        return label, units[label]
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0.0 <= said <= 1.0:
        raise UsageError(f"What is right of row {row} is no label and no number from 0 to 1.", remedy="Correct it.")
    near = [label for label, value in units.items() if abs(value - said) < 1e-6]
    return (near[0] if len(near) == 1 else None), float(said)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# The metric.


def _asks(metric: Metric) -> bool:
    return isinstance(metric.measure, Judged) and metric.measure.judge.spec.kind == "LLM"


def _choices(metric: Metric) -> Mapping[str, float]:
    measure = metric.measure
    if not isinstance(measure, Judged):
        return {}
    return {label: value for label, value in measure.judge.spec.choices.items() if value is not None}


def _units(metric: Metric) -> dict[str, float]:
    """The choices with their scores, larger being better, as a verdict has them."""
    choices = _choices(metric)
    if len(set(choices.values())) < 2:
        return {}
    low, high = min(choices.values()), max(choices.values())
    units = {label: (value - low) / (high - low) for label, value in choices.items()}
    return {label: 1.0 - unit for label, unit in units.items()} if metric.direction == "minimize" else units


def _model_of(metric: Metric) -> str:
    if not _asks(metric):
        return "code"
    spec = metric.measure.judge.spec  # type: ignore[attr-defined]
    return f"{spec.provider or 'openai'}/{spec.model}"


def _shared(metric: Metric, models: Models | None) -> tuple[Role, ...]:
    if models is None or not _asks(metric):
        return ()
    judge = models.by_role["judge"]
    roles: tuple[Role, ...] = ("worker", "coach")
    return tuple(
        role
        for role in roles
        if (models.by_role[role].name, models.by_role[role].base_url) == (judge.name, judge.base_url)
    )


def _notes(
    metric: Metric,
    items: Sequence[_Item],
    lengthened: Sequence[Sequence[Any]],
    plain: Floats,
    human: str | None,
) -> Iterable[str]:
    if left := sum(not versions for versions in lengthened):
        yield f"{_many(left, 'answer')} of {len(items)} {'is' if left == 1 else 'are'} not prose: not lengthened."
    seen = plain[~np.isnan(plain)]
    if len(seen) and (best := float((seen > 1.0 - 1e-9).mean())) > 0.5:
        yield f"{best:.0%} of the verdicts are the best there is: above it the judge tells nothing apart."
    others = sorted({name for item in items for name in item.others} - {human or metric.name})
    if others and all(item.gold is None for item in items):
        yield f"People judged these rows under other names ({', '.join(others)}); say which with human=."
    if len(items) < 30:
        yield f"{_many(len(items), 'row')} show what is plainly so; take 30 or more for anything finer."


# Sentences.


def _sentences(found: Calibration) -> Iterator[tuple[str, str]]:
    yield "noise", _said_of_noise(found)
    if not math.isnan(found.noise.value):
        yield "", _said_of_repeats(found)
    if found.agreement is not None:
        for number, said in enumerate(_said_of_agreement(found.agreement)):
            yield "" if number else "agreement", said
    if found.length is not None:
        yield "length", _said_of_length(found.length)
    if found.order is not None:
        yield "order", _said_of_order(found.order)
    if found.missing:
        total = sum(found.missing.values())
        why = "; ".join(f"{reason} ({count})" for reason, count in found.missing.items())
        much = " Too many to rely on the rest." if found.missing_share > MUCH_MISSING else ""
        yield "missing", f"{total} of {found.verdicts} verdicts: {why}.{much}"
    if found.shared:
        roles = " and ".join(found.shared)
        said = f"The judge is the same model as the {roles}: it may reward its own manner, and scores can rise while"
        yield "warning", f"{said} answers do not get better. Use another model as judge."
    for note in found.notes:
        yield "note", note


def _said_of_noise(found: Calibration) -> str:
    noise, flips = found.noise, found.flips
    if math.isnan(noise.value):
        return "not known: no row got two verdicts"
    if noise.value == 0.0:
        return f"none seen (at most ±{_short(noise.high)}): every second verdict was the first one's"
    return (
        f"±{_short(noise.value)} [{_short(noise.low)}, {_short(noise.high)}]: "
        f"a second verdict differs in {flips.value:.0%} of the cases"
    )


def _said_of_repeats(found: Calibration) -> str:
    examples = 100
    once = found.believable(examples)
    said = f"on {examples} examples with one verdict each, believe a difference from {_short(once)} on"
    for repeats in (2, 3, 5):
        if (more := found.believable(examples, repeats)) < 0.85 * once:
            return f"{said}; with {repeats}, from {_short(more)}"
    return f"{said}; more repeats hardly help"


def _said_of_agreement(found: Agreement) -> Iterator[str]:
    rows = _many(found.rows - found.missing, "labelled row")
    absent = f"; no verdict on {found.missing} more" if found.missing else ""
    on = f" on {rows}{absent}"
    if found.kappa is not None and not math.isnan(found.kappa.value):
        same = f"; {found.same.value:.0%} the same label" if found.same is not None else ""
        yield f"κ {_interval(found.kappa)}{on}{same}"
        on = ""
    if found.weighted_kappa is not None and not math.isnan(found.weighted_kappa.value):
        yield f"weighted κ {_interval(found.weighted_kappa)}{on}: a near miss counts for less"
        on = ""
    if not math.isnan(found.spearman.value):
        yield f"rank correlation {_interval(found.spearman)}{on}"
        on = ""
    if on:
        yield f"not known{on}: one side says the same of all"


def _said_of_length(found: Estimate) -> str:
    if math.isnan(found.value):
        return "not known: too few verdicts came"
    ends = f"[{_signed(found.low)}, {_signed(found.high)}]"
    if found.low <= 0.0 <= found.high:
        return f"no effect of length shown: {_signed(found.value)} {ends} per 100 words of filler"
    way = "higher" if found.value > 0 else "lower"
    return f"longer answers score {_short(abs(found.value))} {way} per 100 words {ends}, by filler alone"


def _said_of_order(found: Estimate) -> str:
    if math.isnan(found.value):
        return "not known: too few verdicts came"
    ends = f"[{_signed(found.low)}, {_signed(found.high)}]"
    if found.low <= 0.0 <= found.high:
        return f"no effect of the order of the choices shown: {_signed(found.value)} {ends}"
    way = "higher" if found.value > 0 else "lower"
    return f"with its choices in reverse order the judge scores {_short(abs(found.value))} {way} {ends}"


def _interval(found: Estimate) -> str:
    return f"{_short(found.value)} [{_short(found.low)}, {_short(found.high)}]"


def _short(value: float) -> str:
    """Two decimals, three below .1 where they matter, without the zero in front."""
    if abs(value) < 0.0005:
        return "0"
    text = f"{value:.3f}" if abs(value) < 0.0995 else f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 1.0 and not text.lstrip("-").startswith("1") else text


def _signed(value: float) -> str:
    return f"{'+' if value >= 0.0005 else ''}{_short(value)}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# On the disk.


def _path(version: str, model: str, folder: Path) -> Path:
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-.")[:80] or "model"
    return folder / f"{version}-{slug}.json"


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates as they were before `_plain`: a value of None was none."""
    found = dict(data)
    if "low" in found and found.get("value") is None:
        found["value"] = math.nan
    return {name: _numbers(item) if isinstance(item, Mapping) else item for name, item in found.items()}
