"""Candidate: a prompt under trial, of a program with any number of predictors.

Three things can vary, and each is named by predictor: the text of its instructions, the demonstrations it is shown,
and the call parameters. Two candidates with the same content are the same candidate (`id` is a content hash); where
a candidate came from (`parents`, `origin`) is kept beside the content and is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import FrozenDict, digest, freeze, thaw


@dataclass(frozen=True, slots=True)
class Candidate:
    """Texts, demonstrations and parameters by predictor; `origin` names the operator that made it.

    >>> baseline = Candidate({"answer": "Answer the customer."})
    >>> child = baseline.child("edit", texts={"answer": "Answer the customer in two sentences."})
    >>> child.parents == (baseline.id,), child.origin
    (True, 'edit')
    """

    texts: Mapping[str, str]
    demos: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=FrozenDict)
    parameters: Mapping[str, Any] = field(default_factory=FrozenDict)
    parents: tuple[str, ...] = ()
    origin: str = "baseline"

    def __post_init__(self) -> None:
        if not self.texts:
            raise UsageError("A candidate needs the text of at least one predictor.", remedy="Pass texts={name: text}.")
        if strangers := sorted(set(self.demos) - set(self.texts)):
            raise UsageError(
                f"There are demonstrations for {strangers[0]!r}, which is not a predictor of this candidate.",
                remedy=f"Its predictors are {', '.join(sorted(self.texts))}.",
            )
        object.__setattr__(self, "demos", {name: shown for name, shown in self.demos.items() if shown})
        for name in ("texts", "demos", "parameters", "parents"):
            object.__setattr__(self, name, freeze(getattr(self, name)))

    @property
    def id(self) -> str:
        """A content hash; lineage is left out, so a text found twice is one candidate."""
        return digest({name: thaw(getattr(self, name)) for name in ("texts", "demos", "parameters")})

    def child(
        self,
        origin: str,
        *,
        texts: Mapping[str, str] | None = None,
        demos: Mapping[str, tuple[Mapping[str, Any], ...]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        also: tuple[Candidate, ...] = (),
    ) -> Candidate:
        """A changed copy whose parents are this candidate and those in `also`. What is not named stays."""
        if texts and (strangers := sorted(set(texts) - set(self.texts))):
            raise UsageError(
                f"{strangers[0]!r} is not a predictor of this candidate.",
                remedy=f"Its predictors are {', '.join(sorted(self.texts))}.",
            )
        return replace(
            self,
            texts={**self.texts, **(texts or {})},
            demos={**self.demos, **(demos or {})},
            parameters={**self.parameters, **(parameters or {})},
            parents=tuple(dict.fromkeys((self.id, *(other.id for other in also)))),
            origin=origin,
        )

    def to_json(self) -> dict[str, Any]:
        return {entry.name: thaw(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(**data)
