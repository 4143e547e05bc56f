"""Which spans count: one pass over ids, parents and kinds, in arrays, before any text is read.

An application that calls OpenAI through DSPy through LiteLLM leaves several model spans for one call, one inside the
other; the innermost is the call, the others say it again. What runs under an evaluator is a judge's work, and a trace
that carries `rows.RUN_ATTRIBUTE` is this package's own: neither is production. Who is inside whom does not follow the
order of time or of pages, so it is settled for all spans at once: about 40 bytes each, a million in a few seconds.

Span ids are compared by a 64-bit hash, so that ids of any form take eight bytes; among ten million spans, two that are
taken for one are to be expected once in some hundred thousand runs. Not covered: a parent that is not among the spans,
which counts as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dspy_selfimprove.telemetry.openinference import module_name
from dspy_selfimprove.telemetry.rows import ID, KIND, NAME, PARENT, RUN, TRACE

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTS: Final = (ID, TRACE, PARENT, KIND, NAME, RUN)
"""The columns that this needs of every span."""


class LeftOut(StrEnum):
    """Why a span is left out that could have given an exchange, though nothing is wrong with it."""

    OUTER = "another span inside it records the same call"
    JUDGED = "it belongs to an evaluation"
    OWN = "it belongs to a run of this package"


_VERDICTS: Final[tuple[LeftOut | None, ...]] = (None, *LeftOut)
_OTHER, _MODEL, _CHAIN, _EVALUATOR = range(4)
_KINDS: Final = {"LLM": _MODEL, "CHAIN": _CHAIN, "EVALUATOR": _EVALUATOR}


def keys(ids: Sequence[str | None]) -> NDArray[np.uint64]:
    """A number for each id; 0 for none."""
    from pandas.util import hash_array

    found: NDArray[np.uint64] = hash_array(np.array([each or "" for each in ids], dtype=object), categorize=False)
    found |= np.uint64(1)
    found[[not each for each in ids]] = 0
    return found


class Nesting:
    """Who is inside whom, among the spans of `tables`, each of which holds the columns of `FACTS` as lists."""

    def __init__(self, tables: Iterable[Mapping[str, Sequence[Any]]]) -> None:
        self._names: dict[str, int] = {}
        parts = [self._part(table) for table in tables] or [self._part(dict.fromkeys(FACTS, ()))]
        spans, traces, parents, kinds, names, marked = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(spans, kind="stable")
        self._spans, self._kinds, self._codes = spans[order], kinds[order], names[order]
        self._parent = self._find(parents[order])
        self._parent[self._parent == np.arange(len(order))] = -1
        self._modules = [module_name(name) for name in self._names]
        self._verdict = self._verdicts(traces[order], marked[order])

    def _part(self, table: Mapping[str, Sequence[Any]]) -> tuple[NDArray[Any], ...]:
        # Names that mean nothing here are one name: an application may give each span one of its own.
        chains = zip(table[KIND], table[NAME], strict=True)
        told = [name if kind == "CHAIN" and module_name(name) else "" for kind, name in chains]
        return (
            keys(table[ID]),
            keys(table[TRACE]),
            keys(table[PARENT]),
            np.array([_KINDS.get(kind, _OTHER) for kind in table[KIND]], dtype=np.uint8),
            np.array([self._names.setdefault(name, len(self._names)) for name in told], dtype=np.int32),
            np.array([bool(run) for run in table[RUN]], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self._spans)

    def verdicts(self, ids: Sequence[str | None]) -> list[LeftOut | None]:
        """For each span, why it is left out; None if it counts."""
        return [_VERDICTS[code] for code in self._verdict[self._find(keys(ids))]]

    def path(self, span_id: str) -> tuple[str, ...]:
        """The DSPy modules from the program down to this span's; empty if it is none, or the twin of its parent."""
        at = int(self._find(keys([span_id]))[0])
        if at < 0 or self._module(at) is None or self._is_twin[at]:
            return ()
        modules: list[str] = []
        seen: set[int] = set()
        while at >= 0 and at not in seen:
            seen.add(at)
            if (module := self._module(at)) is not None and not self._is_twin[at]:
                modules.append(module)
            at = int(self._parent[at])
        return tuple(reversed(modules))

    def predictor(self, span_id: str | None) -> int:
        """A number for the span of the predictor that this span is, or is the twin of; 0 for none."""
        at = int(self._find(keys([span_id]))[0])
        if at < 0 or self._module(at) is None:
            return 0
        return int(self._spans[self._parent[at] if self._is_twin[at] else at])

    def _module(self, at: int) -> str | None:
        found = self._modules[self._codes[at]]
        return found.module if found else None

    @cached_property
    def _is_twin(self) -> NDArray[np.bool_]:
        """A signed span (`Predict(S).forward`) directly below an unsigned one of the same class."""
        classes = {name: code for code, name in enumerate(dict.fromkeys(m.module for m in self._modules if m))}
        of = np.array([classes[m.module] if m else -1 for m in self._modules])
        signed = np.array([bool(m and m.signed) for m in self._modules])
        mine, above = self._codes, self._codes[self._parent]
        twin: NDArray[np.bool_] = (self._parent >= 0) & signed[mine] & ~signed[above] & (of[mine] == of[above])
        return twin

    def _find(self, wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each key stands among the sorted ones; -1 if it does not."""
        if not len(self._spans):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._spans, wanted), len(self._spans) - 1)
        return np.where((self._spans[at] == wanted) & (wanted != 0), at, -1)

    def _verdicts(self, traces: NDArray[np.uint64], marked: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """One code per span, and a last one for those that are not here (found at -1): they count."""
        verdict = np.zeros(len(self._spans) + 1, dtype=np.uint8)
        outer = self._above(self._kinds == _MODEL) & (self._kinds == _MODEL)
        judged = self._below(self._kinds == _EVALUATOR)
        own = marked | (np.isin(traces, np.unique(traces[marked])) & (traces != 0))
        # The later one wins: what a span belongs to says more than that another records the same.
        for code, chosen in enumerate((outer, judged, own), start=1):
            verdict[:-1][chosen] = code
        return verdict

    def _above(self, of: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The spans that have one of these somewhere inside them."""
        found = np.zeros(len(self._spans), dtype=bool)
        edge = np.flatnonzero(of)
        while len(edge):
            edge = np.unique(self._parent[edge])
            edge = edge[edge >= 0]
            edge = edge[~found[edge]]  # so that it ends, even where parents run in a circle
            found[edge] = True
        return found

    def _below(self, of: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """These spans and whatever is somewhere inside them."""
        found = of.copy()
        above = self._parent.copy()
        for _ in range(len(self._spans).bit_length()):  # each round looks twice as far up
            inside = above >= 0
            if not inside.any():
                break
            found[inside] |= found[above[inside]]
            above = np.where(inside, above[above], -1)
        return found
