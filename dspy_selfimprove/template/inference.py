"""infer: many rendered texts in; templates, the values of each text, and what was refused out."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict, freeze
from dspy_selfimprove.prompt import parts
from dspy_selfimprove.template.building import build
from dspy_selfimprove.template.hint import Hint, proven
from dspy_selfimprove.template.reading import Template, read
from dspy_selfimprove.template.tokens import tokenize
from dspy_selfimprove.template.versions import RENDERINGS, REPEATS, Rendered, told_apart

NOTHING_IN_COMMON = "no constant text in common"
TOO_FEW = "too few renderings of this version"

Readings: TypeAlias = dict[str, tuple[Template, dict[str, str]] | str]

# The first sample, and what each further round adds to it of the texts that nothing explained.
_SAMPLE, _MORE, _ROUNDS = 150, 60, 6
# Letters among which the first words are looked for.
_OPENING = 80
# Different renderings from which on a slot that was not seen is unlikely; and calls, for a prompt without slots.
_PROVEN, _PROVEN_CALLS = 10, 100


@dataclass(frozen=True, slots=True)
class Found:
    """A template with what stands behind it: how many texts, how many different ones, and who said so.

    `version` is the application's own name for it, where it recorded one. A template is `proven` if the application
    gave it and it holds, or if enough different renderings agree; otherwise a slot may be hiding in the constant text.
    """

    template: Template
    texts: int
    renderings: int
    version: str | None = None
    hinted: bool = False

    @property
    def proven(self) -> bool:
        enough = self.renderings >= _PROVEN or (not self.template.slots and self.texts >= _PROVEN_CALLS)
        return self.hinted or enough


@dataclass(frozen=True, slots=True)
class Rendering:
    """One text explained: the number of its template and the values; or `refusal`, why not."""

    template: int | None = None
    variables: Mapping[str, str] = field(default_factory=FrozenDict)
    refusal: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", freeze(self.variables))


@dataclass(frozen=True, slots=True)
class Inference:
    """What many texts say: templates, the most frequent first, and a rendering for each text in the order given."""

    found: tuple[Found, ...]
    renderings: tuple[Rendering, ...]

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(found.template for found in self.found)

    @property
    def refused(self) -> dict[str, int]:
        """How many texts were set aside, by reason."""
        return dict(Counter(rendering.refusal for rendering in self.renderings if rendering.refusal).most_common())


def infer(texts: Sequence[str], *, hints: Sequence[Hint | None] | None = None) -> Inference:
    """The templates behind rendered texts. `hints[i]` is what the application said of `texts[i]`, if anything.

    >>> names, plans = ("Ana", "Bo", "Cleo"), ("Plus", "Basic")
    >>> result = infer([f"You help {name}, who has the {plan} plan." for name in names for plan in plans])
    >>> result.templates[0].text
    'You help {{slot_1}}, who has the {{slot_2}} plan.'
    >>> dict(result.renderings[0].variables)
    {'slot_1': 'Ana', 'slot_2': 'Plus'}
    >>> result.found[0].proven
    False
    """
    if isinstance(texts, str):
        raise UsageError("Templates are inferred from many texts.", remedy="Pass a list of texts.")
    if hints is not None and len(hints) != len(texts):
        raise UsageError(
            "There must be a hint for each text, or none at all.", remedy="Pass None where nothing is known."
        )
    counts = Counter(texts)
    said = {
        text: hint for text, hint in zip(reversed(texts), reversed(hints or [None] * len(texts)), strict=True) if hint
    }
    # By content, so that neither the order of the texts nor their source decides what is sampled.
    order = sorted(counts, key=lambda text: (zlib.crc32(text.encode("utf-8", "surrogatepass")), text))
    readings = _hinted(order, said)
    hinted = {reading[0] for reading in readings.values() if isinstance(reading, tuple)}
    if hinted:
        _read_all([text for text in order if text not in readings], sorted(hinted, key=_specific), readings)
    left = [text for text in order if not isinstance(readings.get(text), tuple)]
    for version, pool in _pools(left, said):
        if version is None:
            known = {reading[0] for reading in readings.values() if isinstance(reading, tuple)}
            _read_all(pool, sorted(known, key=_specific), readings)
            pool = [text for text in pool if not isinstance(readings.get(text), tuple)]
        _mine(pool, counts, said, readings)
        for left in _by_opening([text for text in pool if not isinstance(readings.get(text), tuple)]):
            _mine(left, counts, said, readings)
    return _gathered(texts, counts, said, readings, hinted)


def _hinted(order: Sequence[str], said: Mapping[str, Hint]) -> Readings:
    """What the application's own templates explain, if they are templates and not renderings called one."""
    claims = {text: claim for text in order if text in said and (claim := proven(said[text], text))}
    uses = Counter(template for template, _ in claims.values())
    shared = len(claims) >= RENDERINGS * len(uses)
    return {
        text: (template, values)
        for text, (template, values) in claims.items()
        if (shared or len(uses) == 1 or uses[template] >= RENDERINGS) and _says_something(template, text)
    }


def _says_something(template: Template, text: str) -> bool:
    """Whether enough of the text is constant to call it a template of anything."""
    constant = sum(
        any(map(str.isalnum, token)) for piece in parts(template.text, template.slots)[::2] for token in tokenize(piece)
    )
    return constant >= 3 or 3 * constant >= sum(any(map(str.isalnum, token)) for token in tokenize(text))


def _pools(left: Sequence[str], said: Mapping[str, Hint]) -> list[tuple[str | None, list[str]]]:
    """The texts by recorded version, where enough carry it; then the others. A version separates, it never joins."""
    sizes = Counter(said[text].version for text in left if text in said)
    pools: dict[str | None, list[str]] = {
        version: [] for version in sorted(v for v, size in sizes.items() if v is not None and size >= RENDERINGS)
    }
    pools[None] = []
    for text in left:
        version = said[text].version if text in said else None
        pools[version if version in pools else None].append(text)
    return list(pools.items())


def _by_opening(texts: Sequence[str]) -> list[list[str]]:
    """What nothing explained, by its first words: a few odd texts must not keep the others from being understood."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for text in texts:
        groups.setdefault(tuple(tokenize(text[:_OPENING])[:3]), []).append(text)
    return [group for group in groups.values() if RENDERINGS <= len(group) < len(texts)]


def _mine(pool: Sequence[str], counts: Mapping[str, int], said: Mapping[str, Hint], readings: Readings) -> None:
    """Finds the templates of these texts, and notes in `readings` how each reads or why not."""
    tokens: dict[str, list[str]] = {}
    stands_for: dict[str, float] = {}
    added, left, reason = list(pool[:_SAMPLE]), list(pool), TOO_FEW
    tried: set[Template] | None = None
    for _ in range(_ROUNDS):
        if not added:
            break
        for text in added:
            tokens[text] = tokenize(text)
            stands_for[text] = len(left) / len(added)
        drawn = list(tokens)
        sample = [Rendered(tokens[text], counts[text], stands_for[text]) for text in drawn]
        templates: set[Template] = set()
        for members in told_apart(sample):
            if len(members) == 1 < len(pool) and sample[members[0]].count < REPEATS:
                continue
            variables = [said[drawn[i]].variables if drawn[i] in said else {} for i in members]
            if made := build([tokens[drawn[i]] for i in members], variables):
                templates.add(made)
        if templates == tried:
            break
        tried = templates
        reason = TOO_FEW if templates else NOTHING_IN_COMMON
        _read_all(pool, sorted(templates, key=_specific), readings)
        left = [text for text in pool if not isinstance(readings.get(text), tuple)]
        added = [text for text in left if text not in tokens][:_MORE]
    for text in left:
        readings.setdefault(text, reason)


def _read_all(texts: Sequence[str], templates: Sequence[Template], readings: Readings) -> None:
    for text in texts:
        readings.pop(text, None)
        for template in templates:
            values = read(template, text)
            if values is None:
                continue
            if isinstance(values, str):
                readings[text] = values
                break
            if template.render(values) == text:
                readings[text] = (template, values)
                break


def _specific(template: Template) -> tuple[int, str]:
    """The most constant text first: a template that fits by a wide slot must not take what another fits closely."""
    return (-sum(map(len, parts(template.text, template.slots)[::2])), template.text)


def _gathered(
    texts: Sequence[str], counts: Mapping[str, int], said: Mapping[str, Hint], readings: Readings, hinted: set[Template]
) -> Inference:
    calls: Counter[Template] = Counter()
    renderings: Counter[Template] = Counter()
    versions: dict[Template, Counter[str | None]] = {}
    for text, reading in readings.items():
        if isinstance(reading, tuple):
            calls[reading[0]] += counts[text]
            renderings[reading[0]] += 1
            versions.setdefault(reading[0], Counter())[said[text].version if text in said else None] += 1
    order = sorted(calls, key=lambda template: (-calls[template], template.text))
    number = {template: nth for nth, template in enumerate(order)}
    found = []
    for template in order:
        version, agreed = versions[template].most_common(1)[0]
        same = version if agreed == renderings[template] else None
        found.append(Found(template, calls[template], renderings[template], same, template in hinted))
    results = {
        text: Rendering(refusal=reading) if isinstance(reading, str) else Rendering(number[reading[0]], reading[1])
        for text, reading in readings.items()
    }
    return Inference(tuple(found), tuple(results[text] for text in texts))
