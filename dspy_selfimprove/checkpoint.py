"""Checkpoint: what one pull of production knows, on disk. Everything after it works offline.

    <folder>/checkpoint.json        prompts (each version apart), evaluators, where it came from, what was set aside
    <folder>/samples-<hash>.parquet one row per sample; nested values are JSON text, so any Parquet reader can look

The JSON names the Parquet file and its hash and is moved into place last: a reader, or a crash, sees the old checkpoint
or the new one. Loading needs neither Phoenix nor the traces; samples are made from their rows when they are looked at,
so loading costs the reading of a file. A second writer is refused; the folder keeps itself out of commits.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

from filelock import FileLock, Timeout

from dspy_selfimprove import files
from dspy_selfimprove.errors import DataError, UsageError
from dspy_selfimprove.message import FrozenDict, digest, encodable, freeze, text_of, thaw
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.sample import EvalSpec, Sample

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMAT: Final = 1
NAME: Final = "checkpoint.json"
BATCH: Final = 2_000
SHORTEST: Final = 4  # letters of a version that name it

_PLAIN: Final = {
    "id": "string", "prompt": "string", "trace_id": "string", "session_id": "string", "user_id": "string",
    "weight": "float64", "cluster": "int32", "seconds": "float64", "dollars": "float64",
}  # fmt: skip
_NESTED: Final = (
    "chat_history", "output", "scores", "human", "variables", "parameters", "tokens", "metadata", "tags",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SeenPrompt:
    """One version of the prompt as production ran it: how often, from when to when, in how many different renderings.

    `declared` is the version the application itself gave it, if it did.
    """

    prompt: ChatPrompt
    count: int
    distinct: int
    first: datetime | None = None
    last: datetime | None = None
    declared: str | None = None

    @property
    def version(self) -> str:
        return self.prompt.version

    def to_json(self) -> dict[str, Any]:
        return {
            **{entry.name: getattr(self, entry.name) for entry in fields(self)},
            "prompt": self.prompt.to_json(),
            "first": _written(self.first),
            "last": _written(self.last),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeenPrompt:
        prompt, first, last = ChatPrompt.from_json(data["prompt"]), _moment(data["first"]), _moment(data["last"])
        return cls(**{**data, "prompt": prompt, "first": first, "last": last})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint came from. `key` says of what it was made: the same key, the same checkpoint.

    `scales` are those that the caller named.
    """

    source: str
    project: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    made: datetime | None = None
    spans: int = 0
    key: str | None = None
    scales: Mapping[str, tuple[float, float]] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", freeze(self.scales))

    def to_json(self) -> dict[str, Any]:
        moments = {name: _written(getattr(self, name)) for name in ("since", "until", "made")}
        return {**{entry.name: thaw(getattr(self, entry.name)) for entry in fields(self)}, **moments}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        return cls(**{**data, **{name: _moment(data[name]) for name in ("since", "until", "made")}})


class Samples(Sequence[Sample]):
    """Samples kept as rows of a table, each made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        if isinstance(at, slice):
            return self.take(range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(f"There are {len(self)} samples.")
        return _sample(self._table.slice(at % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._table.to_batches(max_chunksize=BATCH):
            yield from map(_sample, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and bool(self._table.equals(other._table))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Samples({len(self)})"

    def take(self, places: Iterable[int]) -> Samples:
        """Those at `places`, in that order."""
        import pyarrow as pa

        return Samples(self._table.take(pa.array(list(places), pa.int64())))

    def with_prompt(self, version: str) -> Samples:
        """Those that this version of the prompt made."""
        import pyarrow.compute as pc

        return Samples(self._table.filter(pc.equal(self._table["prompt"], version)))

    def frame(self) -> pd.DataFrame:
        """A table to look at: a row per sample, a column per score, people's scores as `human.<name>`."""
        return frame_of(self)


def frame_of(samples: Iterable[Sample]) -> pd.DataFrame:
    """Samples as a table to look at, by their ids."""
    import pandas as pd

    rows = [
        {
            "id": sample.id,
            "prompt": sample.prompt,
            "time": sample.time,
            "session": sample.session_id,
            "user": sample.user_id,
            "cluster": sample.cluster,
            "weight": sample.weight,
            "turns": len(sample.chat_history),
            "asked": encodable(text_of(sample.chat_history[-1]) if sample.chat_history else sample.asked),
            "answered": encodable(text_of(sample.output)),
            **{name: score.value for name, score in sample.scores.items()},
            **{f"human.{name}": score.value for name, score in sample.human.items()},
        }
        for sample in samples
    ]
    return pd.DataFrame(rows).set_index("id") if rows else pd.DataFrame()


@dataclass(frozen=True)
class Checkpoint:
    """What one pull of production knows. `compose` makes it; `load` reads it back.

    `prompts` are in the order of their samples' number; `set_aside` counts what gave no sample, by reason; `notes` are
    sentences about what was assumed.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with writing(folder) as writer:
    ...     asked, answered = {"role": "user", "content": "Late!"}, {"role": "assistant", "content": "Sorry."}
    ...     writer.add(Sample("s1", (asked,), answered))
    ...     about = {"origin": Origin("export").to_json(), "prompts": [], "evaluators": []}
    ...     writer.finish({**about, "set_aside": {"the call failed": 2}, "notes": []})
    >>> found = Checkpoint.load(folder)
    >>> found.samples[0].asked, dict(found.set_aside)
    ('Late!', {'the call failed': 2})
    """

    folder: Path
    samples: Samples
    prompts: tuple[SeenPrompt, ...]
    evaluators: tuple[EvalSpec, ...]
    origin: Origin
    set_aside: Mapping[str, int] = field(default_factory=FrozenDict)
    notes: tuple[str, ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "set_aside", freeze(self.set_aside))

    @classmethod
    def load(cls, folder: Path | str) -> Checkpoint:
        """The checkpoint in `folder`."""
        folder = Path(folder)
        about = _read(folder)
        with _as_checkpoint(folder):
            import pyarrow.parquet as pq

            path = folder / str(about["samples"])
            if hashlib.sha256(path.read_bytes()).hexdigest() != about["sha256"]:
                raise DataError(f"{path.name} is not the file that belongs to its checkpoint.", remedy=_AGAIN)
            return cls(
                folder=folder,
                samples=Samples(pq.read_table(path, memory_map=True)),
                prompts=tuple(map(SeenPrompt.from_json, about["prompts"])),
                evaluators=tuple(map(EvalSpec.from_json, about["evaluators"])),
                origin=Origin.from_json(about["origin"]),
                set_aside=about["set_aside"],
                notes=tuple(about["notes"]),
                version=about["version"],
            )

    @staticmethod
    def origin_in(folder: Path | str) -> Origin | None:
        """Of what the checkpoint in `folder` was made, without reading its samples; None if there is none."""
        try:
            return Origin.from_json(_read(Path(folder))["origin"])
        except (DataError, KeyError, TypeError, ValueError):
            return None

    @cached_property
    def newest(self) -> SeenPrompt:
        """The version that took over last: the others had ended by the middle of its time. The most used one, if none.

        Versions that run side by side (two prompts of one application, one with tools and one without) are no edits of
        one another, so which was called last says nothing. One with less than a tenth of the most used one's samples is
        somebody trying something.
        """
        most = self.prompts[0]
        fair = [seen for seen in self.prompts if 10 * seen.count >= most.count]
        for seen in sorted((each for each in fair if each.first and each.last), key=_began, reverse=True):
            assert seen.first
            assert seen.last
            middle = seen.first + (seen.last - seen.first) / 2
            if all(other.last is not None and other.last <= middle for other in fair if other is not seen):
                return seen
        return most

    def prompt(self, version: str | None = None) -> SeenPrompt:
        """The version that begins with `version`, or that the application calls so; the newest if none is named."""
        if version is None:
            return self.newest
        found = [seen for seen in self.prompts if seen.declared == version]
        if not found and len(version) >= SHORTEST:
            found = [seen for seen in self.prompts if seen.version.startswith(version)]
        if len(found) != 1:
            known = ", ".join(f"{seen.version} ({seen.count} samples)" for seen in self.prompts[:10])
            raise UsageError(
                f"{'No' if not found else 'More than one'} prompt version {version!r} is in this checkpoint.",
                remedy=f"There are {known}.",
            )
        return found[0]

    def of(self, version: str | None = None) -> Samples:
        """The samples that one version of the prompt made; the newest if none is named. Versions are never mixed."""
        return self.samples.with_prompt(self.prompt(version).version)

    def __repr__(self) -> str:
        return f"Checkpoint({len(self.samples)} samples, {len(self.prompts)} prompt versions, version {self.version})"


class Writer:
    """Samples on their way into a checkpoint, a batch at a time; `finish` puts it in place."""

    def __init__(self, folder: Path, part: Path) -> None:
        import pyarrow.parquet as pq

        self._folder, self._part = folder, part
        self._schema = _schema()
        self._file = pq.ParquetWriter(part, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def add(self, sample: Sample) -> None:
        self._rows.append(_row(sample))
        self.count += 1
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def finish(self, about: Mapping[str, Any]) -> None:
        self._flush()
        self._file.close()
        sha = hashlib.sha256(self._part.read_bytes()).hexdigest()
        name = f"samples-{sha[:12]}.parquet"
        with files.replacing(self._folder / name) as part:
            self._part.replace(part)
        content = {name: value for name, value in about.items() if name != "origin"}
        stamp = {"format": FORMAT, "samples": name, "sha256": sha, "version": digest([sha, content])}
        files.write_text(self._folder / NAME, json.dumps({**stamp, **about}, indent=1) + "\n")
        for old in self._folder.glob("samples-*.parquet"):
            if old.name != name:
                old.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """A writer for the checkpoint in `folder`; what it wrote counts only once it was finished."""
    files.private(folder)
    part = folder / f".samples.{uuid.uuid4().hex[:8]}.part"
    with _alone(folder), files.telling(folder / NAME):
        writer = Writer(folder, part)
        try:
            yield writer
        finally:
            with suppress(OSError):
                writer._file.close()
            part.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"Another process is writing the checkpoint in {folder}.", remedy="Wait for it, then try again."
        ) from None
    try:
        yield
    finally:
        lock.release()


_AGAIN: Final = "Collect again, or take a copy that is whole."


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    with _as_checkpoint(folder):
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] > FORMAT:
            raise DataError(f"{path} was written by a newer version.", remedy="Upgrade dspy-selfimprove.")
        return dict(about)


@contextmanager
def _as_checkpoint(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in the block is about the files in `folder`."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        what = "is not whole" if (folder / NAME).exists() else "does not exist"
        raise DataError(f"The checkpoint {folder} {what}.", remedy="Run `collect` to make one.") from error
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError | UsageError):
            raise
        raise DataError(f"{folder} cannot be read as a checkpoint ({type(error).__name__}).", remedy=_AGAIN) from None


def _schema() -> pa.Schema:
    import pyarrow as pa

    plain = [pa.field(name, getattr(pa, kind)()) for name, kind in _PLAIN.items()]
    nested = [pa.field(name, pa.string()) for name in _NESTED]
    return pa.schema([*plain, pa.field("time", pa.timestamp("us", tz="UTC")), *nested])


def _row(sample: Sample) -> dict[str, Any]:
    data = sample.to_json()
    # Escaped, because text that no encoding holds (half of an emoji, as models do write) must come back as it was.
    nested = {name: json.dumps(data.get(name), separators=(",", ":")) for name in _NESTED}
    plain = {name: data.get(name) for name in _PLAIN}
    plain = {name: encodable(value) if isinstance(value, str) else value for name, value in plain.items()}
    return {**plain, "time": sample.time, **nested}


def _sample(row: Mapping[str, Any]) -> Sample:
    time: datetime | None = row["time"]
    nested = {name: json.loads(row[name]) for name in _NESTED}
    given = {name: value for name, value in {**row, **nested}.items() if value is not None and name != "time"}
    return replace(Sample.from_json(given), time=time)


def _began(seen: SeenPrompt) -> datetime:
    return seen.first or datetime.min.replace(tzinfo=UTC)


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(written: str | None) -> datetime | None:
    return None if written is None else datetime.fromisoformat(written)
