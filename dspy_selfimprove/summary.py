"""Summary: how far a pull of production got, and what it found; lines in a terminal, a table in a notebook.

Numbers, names of metrics, and the opening words of prompts: no text of a conversation is among them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dspy_selfimprove.checkpoint import Checkpoint, Samples
from dspy_selfimprove.message import encodable
from dspy_selfimprove.prompt import ChatPrompt

if TYPE_CHECKING:
    from dspy_selfimprove.dataset import Dataset
    from dspy_selfimprove.diversity import Draw
    from dspy_selfimprove.telemetry.pages import Source


@dataclass(frozen=True, slots=True)
class Summary:
    """What was found, line by line: what it is about, and what is said of it."""

    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.lines), default=0)
        return "\n".join(f"{name:<{width}}  {said}".rstrip() for name, said in self.lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>"
        rows = "".join(f"<tr>{cell}{escape(name)}</td>{cell}{escape(said)}</td></tr>" for name, said in self.lines)
        return f"<table>{rows}</table>"


def summarise(
    source: Source | None,
    checkpoint: Checkpoint | None,
    draw: Draw | None,
    dataset: Dataset | None,
    notes: Iterable[str] = (),
) -> Summary:
    """Of each step what there is; nothing yet says so."""
    found: list[tuple[str, str]] = []
    if source is not None:
        found += _of_spans(source)
    if checkpoint is not None:
        found += _of_checkpoint(checkpoint)
    if draw is not None:
        sizes = Counter(draw.clusters.tolist()).values()
        found.append(("clusters", f"{len(sizes):,}, of {min(sizes):,} to {max(sizes):,} samples"))
        found += [("", note) for note in draw.notes]
    if dataset is not None:
        sides = ", ".join(f"{size:,} {side}" for side, size in dataset.sizes.items())
        found += [("dataset", f"{dataset.name}: {sides} (sealed)"), ("", str(dataset.folder))]
        found += [("", note) for note in (*dataset.notes, *notes)]
    return Summary(tuple(found) or (("nothing", "was read yet"),))


def _of_spans(source: Source) -> Iterator[tuple[str, str]]:
    frame = source.frame()
    kinds = Counter(kind or "other" for kind in frame["kind"])
    yield "spans", f"{len(frame):,} read: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    yield from (("", f"{count:,} left out: {reason}") for reason, count in source.left_out().items())


def _of_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    yield "samples", f"{len(checkpoint.samples):,}"
    yield from (("", f"{count:,} set aside: {reason}") for reason, count in checkpoint.set_aside.items())
    alike = Counter(seen.prompt.system for seen in checkpoint.prompts)
    for number, seen in enumerate(checkpoint.prompts):
        prompt = seen.prompt
        chosen = len(checkpoint.prompts) > 1 and seen.version == checkpoint.newest.version
        mark = "; used unless you name another" if chosen else ""
        slots = ", ".join(prompt.variables or ()) or "none"
        since = f", since {seen.first:%Y-%m-%d %H:%M}" if seen.first else ""
        declared = f" {seen.declared!r}" if seen.declared else ""
        told = f"{seen.version}{declared}: {seen.count:,} samples{since}; slots: {slots}{mark}"
        yield "" if number else "prompts", told
        if len(checkpoint.prompts) > 1:
            opening = encodable(" ".join((prompt.system or "no system prompt").split()))
            yield "", f"  {opening[:60]}{'...' if len(opening) > 60 else ''}"
            if alike[prompt.system] > 1:
                yield "", f"  with {_settings(prompt)}"
    for number, (name, values) in enumerate(sorted(_scores(checkpoint.samples).items())):
        known = [value for value in values if not math.isnan(value)]
        mean = f"mean {math.fsum(known) / len(known):.2f} of {len(known):,}" if known else "no verdict"
        missing = f", {len(values) - len(known):,} missing" if len(values) > len(known) else ""
        yield "" if number else "scores", f"{name}: {mean}{missing}"
    yield from (("", note) for note in checkpoint.notes)


def _settings(prompt: ChatPrompt) -> str:
    """What a call asked for besides its texts, in short."""
    long = {"tools": "tools", "response_format": "a response format", "tool_choice": "a tool choice"}
    told = [long.get(name, f"{name}={value}") for name, value in prompt.parameters.items()]
    return ", ".join(each[:40] for each in told) or "no parameters"


def _scores(samples: Samples) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        for prefix, scores in (("", sample.scores), ("people's ", sample.human)):
            for name, score in scores.items():
                found.setdefault(f"{prefix}{name}", []).append(math.nan if score.value is None else score.value)
    return found
