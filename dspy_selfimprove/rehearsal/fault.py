"""What goes wrong between an application and a model, and how long an answer takes: values, drawn and not rolled.

A draw depends on a seed and a key alone. The key names one attempt at one request (its content and how often it was
sent before), not its place in the queue. So a run repeats exactly, whatever order its threads happen to send in, and a
request that was turned away may succeed when it is sent again.

Not covered: outages that come in bursts, a service that slows down as it fills up, and limits on tokens per minute.
Every request meets its fate alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Literal, TypeAlias

from dspy_selfimprove.errors import UsageError

Shape: TypeAlias = Literal["fixed", "lognormal", "heavy"]

# The slowest answer drawn, in medians: a tail without end would sooner or later hang a test for an hour.
_SLOWEST = 100.0
_SIGMA, _TAIL = 0.5, 1.5


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a request to its answer: always the same, lognormal, or with a heavy (Pareto) tail.

    `spread` is the lognormal's sigma, or the exponent of the tail: the smaller, the heavier; below 2 the variance is
    infinite, which is what queues do. No draw is longer than 100 medians.
    """

    shape: Shape = "fixed"
    median: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median) and self.median >= 0):
            raise UsageError(f"A latency of {self.median!r} seconds cannot be.", remedy="Give zero or more seconds.")
        if self.shape not in ("fixed", "lognormal", "heavy"):
            raise UsageError(f"{self.shape!r} is no kind of latency.", remedy="Say fixed, lognormal or heavy.")
        if self.shape != "fixed" and not (math.isfinite(self.spread) and self.spread > 0):
            raise UsageError(
                f"A {self.shape} latency cannot have the spread {self.spread!r}.", remedy="Make it positive."
            )

    @classmethod
    def fixed(cls, seconds: float) -> Latency:
        return cls("fixed", seconds)

    @classmethod
    def lognormal(cls, median: float, sigma: float = _SIGMA) -> Latency:
        return cls("lognormal", median, sigma)

    @classmethod
    def heavy(cls, median: float, tail: float = _TAIL) -> Latency:
        return cls("heavy", median, tail)

    @classmethod
    def parse(cls, text: str) -> Latency:
        """`50ms`, `lognormal:50ms`, `lognormal:50ms:0.5`, `heavy:50ms`, `heavy:50ms:1.5`; what `str` gives."""
        shape, *rest = (part.strip() for part in text.split(":"))
        try:
            match shape, rest:
                case "lognormal", [median]:
                    return cls.lognormal(duration(median))
                case "lognormal", [median, sigma]:
                    return cls.lognormal(duration(median), _number(sigma))
                case "heavy", [median]:
                    return cls.heavy(duration(median))
                case "heavy", [median, tail]:
                    return cls.heavy(duration(median), _number(tail))
                case "fixed", [seconds]:
                    return cls.fixed(duration(seconds))
                case _, []:
                    return cls.fixed(duration(shape))
        except ValueError as error:
            why = error.problem if isinstance(error, UsageError) else f"{error}."
        else:
            why = "It has too many parts or too few."
        raise UsageError(
            f"{text!r} is not a latency. {why}", remedy="Write 50ms, lognormal:50ms:0.5 or heavy:50ms."
        ) from None

    def __str__(self) -> str:
        seconds = f"{self.median!r}s"
        return seconds if self.shape == "fixed" else f"{self.shape}:{seconds}:{self.spread!r}"

    def draw(self, seed: int, key: str) -> float:
        """The seconds that the attempt named by `key` takes."""
        if self.shape == "fixed":
            return self.median
        chance = uniform(seed, "latency", key)
        if self.shape == "lognormal":
            log = self.spread * NormalDist().inv_cdf(chance)
        else:
            log = -math.log(2.0 * chance) / self.spread
        return self.median * math.exp(min(log, math.log(_SLOWEST)))


class Fault(StrEnum):
    """What can happen to a request, in the words of the counters."""

    RATE_LIMIT = "rate_limit"
    """Turned away at the door: 429, with the time to wait."""
    SERVER_ERROR = "server_error"
    """500 or 503."""
    TIMEOUT = "timeout"
    """No answer; the connection hangs, and closes when the service gives up."""
    DROPPED = "dropped"
    """The connection closes before a single byte of an answer."""
    TORN = "torn"
    """The connection closes in the middle of the answer."""
    MALFORMED = "malformed"
    """200, and a body that is not JSON."""
    EMPTY = "empty"
    """200, and the model said nothing."""
    CUT_OFF = "cut_off"
    """200, and half an answer: finish_reason is `length`."""


_ALIASES = {"429": Fault.RATE_LIMIT, "500": Fault.SERVER_ERROR, "503": Fault.SERVER_ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often each fault happens, in [0, 1]; at most one happens to a request.

    `retry_after` is what a 429 asks the client to wait, `hang` how long a request that times out is held before the
    connection closes; both in seconds.
    """

    rate_limit: float = 0.0
    server_error: float = 0.0
    timeout: float = 0.0
    dropped: float = 0.0
    torn: float = 0.0
    malformed: float = 0.0
    empty: float = 0.0
    cut_off: float = 0.0
    retry_after: float = 1.0
    hang: float = 30.0

    def __post_init__(self) -> None:
        for fault in Fault:
            if not 0.0 <= self.rate(fault) <= 1.0:
                raise UsageError(f"`{fault}` is a rate and must lie between 0 and 1.")
        # Eight shares of one rate may add up to a hair more than the rate.
        if sum(map(self.rate, Fault)) > 1.0 + 1e-9:
            raise UsageError("The rates of the faults add up to more than 1.", remedy="Lower some of them.")
        if not (0.0 <= self.retry_after < math.inf and 0.0 <= self.hang < math.inf):
            raise UsageError("`retry_after` and `hang` are seconds.", remedy="Give zero or more.")

    @classmethod
    def mixed(cls, rate: float, *, retry_after: float = 1.0, hang: float = 30.0) -> Faults:
        """All eight, equally often, `rate` together."""
        share = {str(fault): rate / len(Fault) for fault in Fault}
        return cls(**share, retry_after=retry_after, hang=hang)

    @classmethod
    def parse(cls, text: str) -> Faults:
        """`none`, `10%` (all kinds alike), `429=5%,500=2%`, `torn=0.1,hang=5s,retry_after=20ms`; what `str` gives."""
        given: dict[str, float] = {}
        try:
            for part in filter(None, (part.strip() for part in text.split(","))):
                name, equals, value = (piece.strip() for piece in part.partition("="))
                name = str(_ALIASES.get(name, name)) if equals else "mixed"
                if name in given:
                    raise ValueError(f"{name} is said twice")
                if not equals:
                    given["mixed"] = 0.0 if part == "none" else _share(part)
                elif name in ("retry_after", "hang"):
                    given[name] = duration(value)
                elif name in {*Fault}:
                    given[name] = _share(value)
                else:
                    raise ValueError(f"there is no fault {name!r}")
            if "mixed" not in given:
                return cls(**given)
            if given.keys() & {*Fault}:
                raise ValueError("a rate for all kinds leaves no room for one of its own")
            return cls.mixed(given.pop("mixed"), **given)
        except ValueError as error:
            why = error.problem if isinstance(error, UsageError) else f"{error}."
            raise UsageError(
                f"{text!r} does not say what goes wrong how often: {why}",
                remedy=f"Write none, 10%, or kinds with rates: 429=5%,500=2%. The kinds are {', '.join(Fault)}.",
            ) from None

    def __str__(self) -> str:
        rates = [f"{fault}={self.rate(fault)!r}" for fault in Fault if self.rate(fault)]
        return ",".join([*(rates or ["none"]), f"retry_after={self.retry_after!r}s", f"hang={self.hang!r}s"])

    def rate(self, fault: Fault) -> float:
        value: float = getattr(self, fault)
        return value

    def draw(self, seed: int, key: str) -> Fault | None:
        """What happens to the attempt named by `key`; None: nothing."""
        left = uniform(seed, "fault", key)
        for fault in Fault:
            left -= self.rate(fault)
            if left < 0:
                return fault
        return None


def uniform(seed: int, purpose: str, key: str) -> float:
    """A number strictly between 0 and 1: the same for the same arguments, on every machine."""
    bits = hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=8).digest()
    # 52 bits and a half: the largest is still below 1 when rounded to a float.
    return ((int.from_bytes(bits, "big") >> 12) + 0.5) / 2.0**52


_AMOUNT = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(ms|s|%)?", re.ASCII)


def duration(text: str) -> float:
    """Seconds: `50ms`, `1.5s`, `2`."""
    number, unit = _amount(text)
    if unit == "%":
        raise ValueError(f"{text!r} is no length of time")
    return number / 1000.0 if unit == "ms" else number


def _share(text: str) -> float:
    number, unit = _amount(text)
    if unit not in ("%", ""):
        raise ValueError(f"{text!r} is no rate")
    share = number / 100.0 if unit else number
    if share > 1.0:
        raise ValueError(f"{text!r} is more often than always")
    return share


def _number(text: str) -> float:
    number, unit = _amount(text)
    if unit:
        raise ValueError(f"{text!r} is no plain number")
    return number


def _amount(text: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no amount")
    return float(found[1]), found[2] or ""
