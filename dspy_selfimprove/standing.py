"""Standing: which dataset is meant, and what the ones before it have settled.

A project may have several datasets, one for each version of its prompt: a new slot or another temperature is another
version. What one of them put into its test must not turn up in the train side of the next, so the sides of all that a
project has hold for every new one. A name that is taken by another project or another prompt is refused; versions of a
prompt are never mixed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

from dspy_selfimprove import dataset, files
from dspy_selfimprove.dataset import CARD, Dataset
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import digest
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.sides import GROUPS

SHARED: Final = 0.9  # of the samples with one value: then it says nothing of who belongs together


def slug(name: str) -> str:
    """`name` as a folder can be called; two names never give one."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    return plain if plain == name else f"{plain or 'project'}-{digest(name)[:6]}"


def standing(name: str, *, project: str, prompt: str) -> Dataset | None:
    """The dataset of that name (or path), if there is one and it is this project's and this prompt's."""
    folder = dataset.folder_of(name)
    if not (folder / CARD).is_file():
        return None
    found = dataset.load(folder)
    origin = found.card["origin"]
    for what, given in (("project", project), ("prompt", prompt)):
        if origin.get(what) != given:
            raise UsageError(
                f"The dataset {found.name!r} was made of another {what}.",
                remedy="Choose another name; versions and projects are not mixed.",
            )
    return found


def relatives(project: str) -> Iterator[str]:
    """The datasets that this project has, by path."""
    for path in sorted((files.nearest_home() / "datasets").glob(f"*/{CARD}")):
        try:
            card: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(card, Mapping) and (card.get("origin") or {}).get("project") == project and "format" in card:
            yield str(path.parent)


def seen_until(card: Mapping[str, Any]) -> str | None:
    """The time of the latest exchange that any of a dataset's samples were drawn beside."""
    events = (card["origin"], *card["extended"])
    return max((event["until"] for event in events if event.get("until")), default=None)


def telling_groups(samples: Sequence[Sample]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What says who belongs together in these samples; and the fields that do not, since nearly all share one value."""
    mute = tuple(name for name in GROUPS if name != "text" and _shared(getattr(sample, name) for sample in samples))
    return tuple(name for name in GROUPS if name not in mute), mute


def _shared(values: Iterable[str | None]) -> bool:
    counts = Counter(values)
    total = counts.total()
    counts.pop(None, None)
    return total > 1 and bool(counts) and max(counts.values()) > SHARED * total
