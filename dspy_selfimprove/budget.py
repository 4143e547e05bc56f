"""Budget and Ledger: one cap over everything a run spends, and the book it is kept in.

Workers, judges and the coach draw on the same cap. A call is *reserved* before it starts, with what it may cost, and
*settled* with what it did cost; a reservation that would cross a cap is refused. So spending can pass a cap only by
what calls already in flight cost beyond their reservation, never by a new call. Time is checked at each reservation
and does not interrupt a call; a resumed run gets its time anew.

Not covered: what a service charges for calls that failed without saying so; and two processes sharing one cap.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from dspy_selfimprove.errors import BudgetExhausted, UsageError

Role: TypeAlias = Literal["worker", "judge", "coach"]
ROLES: tuple[Role, ...] = ("worker", "judge", "coach")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The caps; None means none. All of them hold at once."""

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            cap = getattr(self, entry.name)
            if cap is not None and not (isinstance(cap, int | float) and math.isfinite(cap) and cap > 0):
                raise UsageError(
                    f"A budget of {cap!r} {entry.name} is not a positive number.",
                    remedy="Leave it out for no cap.",
                )


@dataclass(frozen=True, slots=True)
class Spend:
    """What was used. Adds up."""

    calls: int = 0
    tokens: int = 0
    dollars: float = 0.0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.calls + other.calls, self.tokens + other.tokens, self.dollars + other.dollars)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.calls - other.calls, self.tokens - other.tokens, self.dollars - other.dollars)

    def to_json(self) -> dict[str, Any]:
        return {"calls": self.calls, "tokens": self.tokens, "dollars": self.dollars}


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room held for one call that has not ended."""

    number: int
    role: Role
    held: Spend


@dataclass(slots=True)
class Ledger:
    """The book of one run: thread-safe, append-only in effect. `clock` exists for virtual time.

    >>> ledger = Ledger(Budget(calls=1, dollars=5))
    >>> held = ledger.reserve("worker", tokens=800, dollars=0.01)
    >>> ledger.settle(held, tokens=650, dollars=0.008)
    >>> ledger.total
    Spend(calls=1, tokens=650, dollars=0.008)
    >>> try:
    ...     ledger.reserve("judge")
    ... except BudgetExhausted as full:
    ...     print(full.problem)
    The budget of 1 calls has no room for the next call (1 spent, 0 in flight).
    """

    budget: Budget = field(default_factory=Budget)
    clock: Callable[[], float] = time.monotonic
    _spent: dict[Role, Spend] = field(default_factory=dict)
    _open: dict[int, Reservation] = field(default_factory=dict)
    _held: Spend = field(default_factory=Spend)
    _count: int = 0
    _start: float = math.nan
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._spent = {role: Spend() for role in ROLES}

    def reserve(self, role: Role, *, tokens: int = 0, dollars: float = 0.0) -> Reservation:
        """Room for one call that may use so much; BudgetExhausted if a cap has none left."""
        asked = Spend(1, tokens, dollars)
        with self._lock:
            self._refuse_over(asked)
            self._count += 1
            reservation = Reservation(self._count, role, asked)
            self._open[reservation.number] = reservation
            self._held += asked
            return reservation

    def settle(self, reservation: Reservation, *, tokens: int = 0, dollars: float = 0.0) -> None:
        """The call ended and used so much."""
        with self._lock:
            self._close(reservation)
            self._spent[reservation.role] += Spend(1, tokens, dollars)

    def release(self, reservation: Reservation) -> None:
        """The call failed and was not charged."""
        with self._lock:
            self._close(reservation)

    def restore(self, spent: Mapping[Role, Spend]) -> None:
        """Add what an earlier part of the same run used; a resumed run starts from there."""
        with self._lock:
            for role, spend in spent.items():
                self._spent[role] += spend

    @property
    def spent(self) -> Mapping[Role, Spend]:
        with self._lock:
            return MappingProxyType(dict(self._spent))

    @property
    def total(self) -> Spend:
        with self._lock:
            return self._total()

    @property
    def in_flight(self) -> int:
        with self._lock:
            return len(self._open)

    @property
    def seconds(self) -> float:
        return self.clock() - self._start

    def _total(self) -> Spend:
        return sum(self._spent.values(), Spend())

    def _close(self, reservation: Reservation) -> None:
        if self._open.pop(reservation.number, None) is None:
            raise UsageError("This reservation was closed before.", remedy="Settle or release each one once.")
        self._held -= reservation.held

    def _refuse_over(self, asked: Spend) -> None:
        spent = self._total()
        for name in ("calls", "tokens", "dollars"):
            cap = getattr(self.budget, name)
            if cap is None:
                continue
            used, held, more = (getattr(spend, name) for spend in (spent, self._held, asked))
            room = cap * (1 + 1e-9)  # the slack is for sums of floats, not for spending
            if used + held + more > room:
                raise BudgetExhausted(
                    f"The budget of {cap:g} {name} has no room for the next call ({used:g} spent, {held:g} in flight).",
                    remedy="Raise it to go on.",
                    final=used + more > room or not self._open,
                )
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            raise BudgetExhausted(
                f"The budget of {self.budget.seconds:g} seconds is used up.", remedy="Raise it to go on."
            )
