"""A judge with code of its own: a function, one of Phoenix's measures, a user's subclass.

Its code runs as it is, below Phoenix's tracing and tracking. If it asks a model through the LLM that Phoenix gave it,
that LLM is ours. If it brings a client of its own, its outages are waited out here, in slots of its own: it asks
another service than the shared slots stand for, and code that asked one of our models while it held a shared slot could
wait for itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any, Final

from dspy_selfimprove.errors import Outage, UsageError
from dspy_selfimprove.exchange import Reading
from dspy_selfimprove.judges.blueprint import is_phoenixs
from dspy_selfimprove.judges.helpers import run_on_loop
from dspy_selfimprove.judges.slip import NO_SCORE, RAISED, Slip
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.sample import EvalKind
from dspy_selfimprove.slots import Slots

_ATTEMPTS: Final = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


class Coded:
    """An evaluator that is more than its settings. `slots`: for one that asks a service of its own."""

    def __init__(self, evaluator: Any, kind: EvalKind, pick: str | None, slots: Slots | None) -> None:
        self._evaluator, self._kind, self._pick, self._slots = evaluator, kind, pick, slots
        self._door = _door(evaluator)

    @property
    def takes_raw_inputs(self) -> bool:
        """Whether its own `evaluate` does what Phoenix's does before an evaluation: mapping and checking inputs."""
        return self._door in ("evaluate", "async_evaluate")

    def read(self, fields: Mapping[str, Any]) -> Reading:
        scores = self._run(fields) if self._slots is None else self._patiently(fields, self._slots)
        score = self._chosen(list(scores))
        return Reading(
            "",
            self._evaluator.name,
            self._kind,
            score=_number(score.score),
            label=None if score.label is None else str(score.label),
            explanation=score.explanation if isinstance(score.explanation, str) else None,
        )

    def _run(self, fields: Mapping[str, Any]) -> Any:
        try:
            return self._through(self._door, fields)
        except NotImplementedError:
            # An async function has both doors and says only when called which one is shut.
            other = self._door.replace("evaluate", "async_evaluate")
            if "async" in self._door:
                raise
            scores = self._through(other, fields)
            self._door = other
            return scores
        except UsageError:
            if self._kind != "CODE":
                raise
            raise Slip(f"{RAISED} UsageError") from None  # its code met one example that it cannot take

    def _through(self, door: str, fields: Mapping[str, Any]) -> Any:
        call = getattr(self._evaluator, door)
        return run_on_loop(lambda: call(dict(fields))) if "async" in door else call(dict(fields))

    def _patiently(self, fields: Mapping[str, Any], slots: Slots) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            turn = slots.ask()
            try:
                turn.result()
            except BaseException:
                slots.leave(turn)
                raise
            try:
                return self._run(fields)
            except Exception as error:
                failure = failure_of(error)
                asked = getattr(failure, "retry_after", None) or 0.0
                if not isinstance(failure, Outage) or attempt == _ATTEMPTS or asked > _LONGEST_WAIT:
                    raise
                wait = max(asked, random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)))
            finally:
                slots.give()
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _chosen(self, scores: list[Any]) -> Any:
        if self._pick is None and len(scores) == 1:
            return scores[0]
        wanted = self._pick or self._evaluator.name
        found = [score for score in scores if score.name == wanted]
        if found:
            return found[0]
        if not scores:
            raise Slip(NO_SCORE)
        names = ", ".join(repr(score.name) for score in scores)
        raise UsageError(
            f"The evaluator {self._evaluator.name!r} gives the scores {names}.", remedy="Say which with pick=."
        )


def _door(evaluator: Any) -> str:
    """The method to call: the one nearest to the evaluator's own class, the plain one if both are equally near."""
    if not is_phoenixs(evaluator, "evaluate"):
        return "evaluate"
    if not is_phoenixs(evaluator, "async_evaluate"):
        return "async_evaluate"
    order = type(evaluator).__mro__
    depth = {
        name: next(at for at, kind in enumerate(order) if name in vars(kind))
        for name in ("_evaluate", "_async_evaluate")
    }
    return "_async_evaluate" if depth["_async_evaluate"] < depth["_evaluate"] else "_evaluate"


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None
