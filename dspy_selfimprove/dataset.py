"""Dataset: samples on three sides, so that a win can be proven: train, validation, and a test that stays sealed.

    <folder>/dataset.yaml       the card: origin, licence, seed, shares, and of each file its rows, length and hash
    <folder>/train.jsonl        one sample per line; likewise validation.jsonl and test.jsonl
    <folder>/aside.jsonl        the ids of samples that were left out, and why
    <folder>/openings.jsonl     each opening of the test (seal.py, which alone gives test rows out)

Which sample falls on which side is for sides.py to say. Here: what is in memory, and what is on the disk.

Files only grow, and the card, moved into place last, says how much of each counts: a reader or a crash meets the
dataset before or after a change, never between. Loading reads train and validation and never touches the test file.
Production data is kept out of commits (`commit=True` allows it) and readable by its owner only. Rows are in ASCII, so
that half of an emoji comes back as it was.

`push` makes a Phoenix dataset of what a search may see, and never of the test.

Not covered: an adversary (test rows are plain text on disk; the seal is against accident and leakage); a second split
of the same samples under another name, whose train side holds what the first one's test held; file systems whose locks
or renames do not hold.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import yaml
from filelock import FileLock, Timeout

from dspy_selfimprove import files
from dspy_selfimprove.checkpoint import frame_of
from dspy_selfimprove.errors import DataError, SetupError, UsageError
from dspy_selfimprove.message import FrozenDict, freeze, thaw
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.sides import GROUPS, SHARES, SIDES, Placement, Side, checked_groups, checked_shares, place

if TYPE_CHECKING:
    import dspy
    import pandas as pd

    from dspy_selfimprove.telemetry.datasets import Pushed

Card: TypeAlias = Mapping[str, Any]

FORMAT: Final = 1
CARD: Final = "dataset.yaml"
ENOUGH: Final = 30  # groups; below it no interval is narrow enough to show an improvement
_ASIDE: Final = "aside.jsonl"


@dataclass(frozen=True, slots=True)
class SearchSet:
    """What a search may see: train and validation. It holds no path, no handle and no way to the test."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]

    def to_examples(self, side: Literal["train", "validation"] = "train") -> list[dspy.Example]:
        """One side as DSPy's examples, with inputs set."""
        if side not in ("train", "validation"):
            raise UsageError(f"A search has no side {side!r}.", remedy="It is given train and validation.")
        return examples(self.train if side == "train" else self.validation)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Train and validation in memory, and a card that says what there is besides. `split` makes it, `load` reads it.

    `search` is what to hand to whatever looks for a better prompt; the dataset itself knows its folder. Each sample
    keeps the `weight` it came with: weighted, a side stands for production; unweighted, for the sample that was drawn.

    >>> import tempfile
    >>> def ticket(n):
    ...     turn = {"role": "user", "content": f"Question {chr(97 + n)}"}
    ...     return Sample(f"T{n}", (turn,), {"role": "assistant", "content": "Yes."}, user_id=f"U{n // 2}")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset = split(map(ticket, range(20)), f"{folder}/tickets")
    >>> dict(dataset.sizes)
    {'train': 10, 'validation': 4, 'test': 6}
    >>> users = [{sample.user_id for sample in side} for side in (dataset.train, dataset.validation)]
    >>> users[0] & users[1]
    set()
    """

    folder: Path
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    card: Card = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "card", freeze(self.card))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def search(self) -> SearchSet:
        return SearchSet(self.train, self.validation)

    @property
    def sizes(self) -> Mapping[Side, int]:
        """Samples on each side."""
        return MappingProxyType({side: self.card["splits"][side]["samples"] for side in SIDES})

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Samples that were left out, by reason."""
        return MappingProxyType(dict(self.card["set_aside"]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know, in sentences."""
        return tuple(self.card["notes"])

    def to_examples(self, side: Side = "train") -> list[dspy.Example]:
        """One side as DSPy's examples, with inputs set. Not the test: opening it is `open_test`'s."""
        if side == "test":
            raise UsageError(
                "The test is sealed.", remedy="Open it with open_test(...), once, when the search is over."
            )
        return self.search.to_examples(side)

    def to_frame(self) -> pd.DataFrame:
        """A table to look at: a row per sample of train and validation, a column per score."""
        import pandas as pd

        sides = {"train": self.train, "validation": self.validation}
        frames = [frame_of(samples).assign(side=side) for side, samples in sides.items() if samples]
        return pd.concat(frames) if frames else pd.DataFrame()

    def push(self, name: str | None = None, *, endpoint: str | None = None, api_key: str | None = None) -> Pushed:
        """Make train and validation the content of a Phoenix dataset; the sealed test stays here.

        Pushed again after it was extended, it is a new version of the same dataset, its examples keeping their ids.
        """
        from dspy_selfimprove.telemetry import datasets

        rows = [
            {
                "id": sample.id,
                "input": {"conversation": sample.chat_history, "variables": sample.variables},
                "output": {"message": sample.output},
                "metadata": {"weight": sample.weight, "cluster": sample.cluster, "prompt": sample.prompt},
                "splits": side,
            }
            for side, samples in (("train", self.train), ("validation", self.validation))
            for sample in samples
        ]
        about = f"{self.name}: train and validation; the test is sealed, and not here"
        return datasets.push(name or self.name, rows, description=about, endpoint=endpoint, api_key=api_key)

    def summary(self) -> str:
        """What there is, in a few lines."""
        splits = self.card["splits"]
        lines = [f"{self.name}: {sum(self.sizes.values()):,} samples"]
        for side in SIDES:
            about = splits[side]
            topics = f", {about['clusters']:,} clusters" if about["clusters"] else ""
            lines.append(f"  {side:10} {about['samples']:>7,} samples in {about['groups']:,} groups{topics}")
        opened = self.card["openings"]
        lines.append(f"  the test is {'sealed' if not opened else f'no longer fresh: opened {opened} times'}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size} {side}" for side, size in self.sizes.items())
        return f"Dataset({self.name}: {sizes}{'' if self.card['openings'] else ' (sealed)'})"


def examples(samples: Iterable[Sample]) -> list[dspy.Example]:
    """Samples as DSPy's examples, for a ChatProgram."""
    from dspy_selfimprove.program import example_of

    return [example_of(sample) for sample in samples]


def split(
    samples: Iterable[Sample],
    name: str | Path,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    groups: Iterable[str] = GROUPS,
    origin: Mapping[str, Any] | None = None,
    beside: Iterable[Dataset | str | Path] = (),
    commit: bool = False,
) -> Dataset:
    """Put each sample on a side and write the dataset `name` (or a path): by default in `.selfimprove/datasets/`.

    `shares` are those of train, validation and test. `groups` names what must not straddle: fields of a sample, and
    `text` for near-duplicates; leave one out where it says nothing (a user id that everybody shares). `origin` is kept
    in the card. A dataset that exists is never split again, since what was test would become train: `extend` it.
    `beside` names datasets of the same production, such as that of an earlier prompt: their sides hold here too.
    """
    shares, groups = checked_shares(shares), checked_groups(groups)
    folder = folder_of(name)
    _refuse_existing(folder)
    _keep_out_of_commits(folder, commit)
    about = {
        "format": FORMAT,
        "name": folder.name,
        "origin": _plain(origin or {}),
        "made": _now(),
        "licence": "not for publication: production data",
        "seed": seed,
        "shares": dict(zip(SIDES, shares, strict=True)),
        "group_by": list(groups),
        "openings": 0,
        "extended": [],
    }
    rows, twice = _once_each(samples, known=())
    placement = place(rows, held=_held(beside), shares=shares, seed=seed, groups=groups)
    if (independent := sum(placement.groups.values())) < 3:
        raise UsageError(
            f"{len(rows)} samples in {independent} independent groups cannot be split in three.",
            remedy="Widen the window; or, if an id is shared by everybody, leave it out of `groups`.",
        )
    with writing(folder):
        _refuse_existing(folder)
        _write(folder, about, {}, rows, placement, twice)
    return load(folder)


def _held(datasets: Iterable[Dataset | str | Path]) -> dict[Side, list[Sample]]:
    """What other datasets have put on each side, each sample once."""
    held: dict[Side, list[Sample]] = {side: [] for side in SIDES}
    seen: set[str] = set()
    for each in datasets:
        folder = each.folder if isinstance(each, Dataset) else find(each)
        card = read_card(folder)
        for side in SIDES:
            fresh = [sample for sample in rows_of(folder, card, side) if sample.id not in seen]
            seen |= {sample.id for sample in fresh}
            held[side] += fresh
    return held


def extend(
    dataset: Dataset | str | Path, samples: Iterable[Sample], *, origin: Mapping[str, Any] | None = None
) -> Dataset:
    """Add samples to a dataset. What is in it stays on its side; a sample whose id is in it already is left as it is.

    The test file is read, to find what the new samples belong to, and added to; nothing of it is given out, so this is
    no opening. `origin` of what is added is kept in the card.
    """
    folder = dataset.folder if isinstance(dataset, Dataset) else find(dataset)
    given = list(samples)
    with writing(folder):
        card = read_card(folder)
        held = {side: rows_of(folder, card, side) for side in SIDES}
        rows, twice = _once_each(given, known=(sample.id for side in SIDES for sample in held[side]))
        shares = [card["shares"][side] for side in SIDES]
        placement = place(rows, held=held, shares=shares, seed=card["seed"], groups=card["group_by"])
        added = sum(side is not None for side in placement.sides)
        known = _aside_of(folder)
        if added or not known.keys() >= {*twice, *(sample.id for sample in rows)}:
            event = {"time": _now(), "given": len(given), "added": added, "set_aside": len(rows) - added}
            event |= _plain(origin or {})
            about = {**card, "extended": [*card["extended"], event]}
            _write(folder, about, held, rows, placement, twice)
    return load(folder)


def load(name: str | Path) -> Dataset:
    """The dataset called `name`, or in that folder. Reads train and validation, never the test."""
    folder = find(name)
    card = read_card(folder)
    return Dataset(folder, tuple(rows_of(folder, card, "train")), tuple(rows_of(folder, card, "validation")), card)


# Where datasets are.


def find(name: str | Path) -> Path:
    """The folder of a dataset: by path, or by name in `.selfimprove/datasets/`, then among those shipped."""
    if _is_path(name):
        folder = Path(name).absolute()
        if not (folder / CARD).is_file():
            raise UsageError(f"There is no dataset in {folder}.", remedy=f"A dataset is a folder with a {CARD}.")
        return folder
    homes = (files.nearest_home() / "datasets", files.definitions("datasets"))
    for home in homes:
        if (home / name / CARD).is_file():
            return home / name
    known = sorted({path.parent.name for home in homes for path in home.glob(f"*/{CARD}")})
    near = difflib.get_close_matches(str(name), known, n=1)
    raise UsageError(
        f"There is no dataset {str(name)!r}.",
        remedy=f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(known) or 'none yet: make one'}.",
    )


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or os.sep in name or (os.altsep is not None and os.altsep in name)


def folder_of(name: str | Path) -> Path:
    """Where the dataset of that name, or path, is or would be."""
    if _is_path(name):
        return Path(name).absolute()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(name)):
        raise UsageError(
            f"{str(name)!r} cannot be the name of a dataset.", remedy="Use letters, digits, dots, dashes; or a path."
        )
    return files.home() / "datasets" / name


def _refuse_existing(folder: Path) -> None:
    if (folder / CARD).exists():
        raise UsageError(
            f"The dataset {folder.name} is there already, and splitting again would move its test.",
            remedy="Use extend(...) to add samples, or choose another name.",
        )


def _keep_out_of_commits(folder: Path, commit: bool) -> None:
    """Refuse a folder that the next `git add` would take, unless that is wanted."""
    if commit or not _would_be_committed(folder.resolve()):
        return
    raise UsageError(
        f"{folder} is in a git work tree that does not ignore it, and production data would be committed with it.",
        remedy="Give a name instead of a path, add the folder to .gitignore, or pass commit=True.",
    )


def _would_be_committed(folder: Path) -> bool:
    stands = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        asked = subprocess.run(
            ["git", "-C", str(stands), "check-ignore", "--quiet", str(folder / "test.jsonl")],  # noqa: S607
            capture_output=True,
            env=own,
            check=False,
        )
        if asked.returncode in (0, 1):
            return asked.returncode == 1
    except OSError:
        pass
    # No git, or one that does not trust the folder's owner: a .gitignore that leaves everything out speaks for itself.
    above = (folder, *folder.parents)
    tree = next((at for at, parent in enumerate(above) if (parent / ".git").exists()), None)
    if tree is None:
        return False
    ignores = (parent / ".gitignore" for parent in above[: tree + 1])
    return not any(path.is_file() and "*" in path.read_text(errors="replace").split() for path in ignores)


# What is on the disk.


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a dataset of samples."""
    path = folder / CARD
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}).", remedy=_RESTORE) from None
    if not isinstance(card, dict) or "format" not in card:
        raise UsageError(
            f"{folder.name} holds rows of a form of its own, not samples.", remedy="Read its .jsonl files directly."
        )
    if card["format"] != FORMAT:
        raise DataError(f"The dataset {folder.name} was written by a newer version.", remedy="Upgrade to read it.")
    if not card.keys() >= _NEEDED or not card["splits"].keys() >= set(SIDES):
        raise DataError(f"{path} is not whole.", remedy=_RESTORE)
    return card


_NEEDED: Final = {"splits", "shares", "seed", "group_by", "openings", "extended", "set_aside", "notes"}


def rows_of(folder: Path, card: Card, side: Side) -> list[Sample]:
    """The samples on a side, checked against the card. What stands in the file beyond the card's count is no part."""
    try:
        return [Sample.from_json(json.loads(line)) for line in _counted(folder, card, side).splitlines()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _changed(folder / f"{side}.jsonl") from None


def _counted(folder: Path, card: Card, side: Side) -> bytes:
    about = card["splits"][side]
    path = folder / about["file"]
    if not about["bytes"]:  # earlier versions wrote no file for a side without samples
        return b""
    try:
        with path.open("rb") as file:
            content: bytes = file.read(about["bytes"])
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).", remedy=_RESTORE) from None
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise _changed(path)
    return content


_RESTORE: Final = "Restore it from a copy, or split again under another name."


def _changed(path: Path) -> DataError:
    return DataError(f"{path} is not what its card says: it was changed or cut.", remedy=_RESTORE)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The right to change a dataset, for one process at a time; others wait a minute."""
    if not folder.exists():
        files.writable(folder).chmod(0o700)  # customers' words
    files.writable(folder)
    lock = FileLock(folder / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=60)
    except Timeout:
        raise SetupError(
            f"Another process is writing to the dataset {folder.name}.", remedy="Wait for it, then try again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_card(folder: Path, card: Card) -> None:
    files.write_text(folder / CARD, yaml.safe_dump(thaw(card), sort_keys=False, allow_unicode=True, width=120))


def _write(
    folder: Path,
    about: Card,
    held: Mapping[Side, Sequence[Sample]],
    rows: Sequence[Sample],
    placement: Placement,
    twice: Iterable[str],
) -> None:
    """Add rows to the files, then say so in the card. Until then they do not count."""
    aside = {**(_aside_of(folder) if held else {}), **dict.fromkeys(twice, _TWICE)}
    added: dict[Side, list[Sample]] = {side: [] for side in SIDES}
    for sample, side in zip(rows, placement.sides, strict=True):
        if side is None:
            aside[sample.id] = _BRIDGE
        else:
            added[side].append(sample)
            if aside.get(sample.id) == _BRIDGE:
                del aside[sample.id]
    splits: dict[str, Any] = {}
    for side in SIDES:
        here = [*held.get(side, ()), *added[side]]
        content = (_counted(folder, about, side) if held else b"") + b"".join(map(_line, added[side]))
        if added[side] or not held:  # a side can be empty from the start: other datasets decide who is on it
            _put(folder / f"{side}.jsonl", content)
        splits[side] = {
            "file": f"{side}.jsonl",
            "samples": len(here),
            "groups": placement.groups[side],
            "clusters": len({sample.cluster for sample in here} - {None}),
            "weight": round(math.fsum(sample.weight for sample in here), 6),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    _put(folder / _ASIDE, b"".join(json.dumps({"id": each, "reason": aside[each]}).encode() + b"\n" for each in aside))
    reasons = dict(sorted(Counter(aside.values()).items()))
    card = {
        **about,
        "changed": _now(),
        "fields": _FIELDS,
        "weights": _WEIGHTS,
        "splits": splits,
        "set_aside": reasons,
        "notes": [*placement.notes, *_notes(splits, about["shares"], reasons)],
    }
    write_card(folder, card)


_TWICE: Final = "its id came twice, and the first one counts"
_BRIDGE: Final = "it would join two sides"


def _put(path: Path, content: bytes) -> None:
    with files.replacing(path) as part:
        part.touch(mode=0o600)
        part.write_bytes(content)


def _aside_of(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / _ASIDE).read_text().splitlines()
        return {row["id"]: row["reason"] for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # it is a convenience; without it a sample may be counted twice


def _line(sample: Sample) -> bytes:
    try:
        return json.dumps(sample.to_json(), separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"A sample holds something that is not JSON ({type(error).__name__}).", remedy="Turn it into plain values."
        ) from None


def _plain(origin: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = thaw(origin)
    try:
        yaml.safe_dump(plain)
    except yaml.YAMLError:
        raise UsageError("`origin` holds something that is not plain data.", remedy="Use text and numbers.") from None
    return plain


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_FIELDS: Final = {
    "id": "the span the sample came from; unique over all sides",
    "chat_history": "the conversation without its system prompt, as the API's messages",
    "output": "what was answered, as the API's message",
    "scores, human": "verdicts by metric, and what people said",
    "prompt, variables, parameters": "the version of the prompt, what was filled in, what else the call sent",
    "trace_id, session_id, user_id": "what belongs together",
    "cluster": "the topic it was put under when it was drawn",
    "weight": "see weights",
    "time, seconds, tokens, dollars, metadata, tags": "as the trace has them",
}
_WEIGHTS: Final = (
    "How many samples of production one stands for, up to a common factor; a mean with these weights is an estimate "
    "for production. Absent means 1."
)


def _notes(splits: Card, shares: Mapping[str, float], aside: Mapping[str, int]) -> Iterator[str]:
    groups = {side: splits[side]["groups"] for side in SIDES}
    total = sum(splits[side]["samples"] for side in SIDES)
    if sum(groups.values()) < ENOUGH or groups["test"] < ENOUGH // 4:
        yield (
            f"There are {sum(groups.values())} independent groups, {groups['test']} of them in the test: too few to "
            f"prove an improvement. Widen the window until there are {ENOUGH} and more."
        )
    for side in SIDES:
        if not splits[side]["samples"]:
            yield (
                f"{side} holds no sample: on whose side each one is, earlier datasets of this production decided. "
                "Draw more."
            )
        found = splits[side]["samples"] / total
        if total >= ENOUGH and abs(found - shares[side]) > 0.05:
            yield f"{side} holds {found:.0%} of the samples, not {shares[side]:.0%}, because groups stay whole."
    for why, count in aside.items():
        yield f"{count} {'sample was' if count == 1 else 'samples were'} set aside: {why}."


def _once_each(samples: Iterable[Sample], known: Iterable[str]) -> tuple[list[Sample], list[str]]:
    """Samples with ids that are not known, each once; and the ids that came twice."""
    seen, twice = set(known), []
    rows: dict[str, Sample] = {}
    for sample in samples:
        if sample.id in rows:
            twice.append(sample.id)
        elif sample.id not in seen:
            rows[sample.id] = sample
    return list(rows.values()), twice
