"""Every error this package raises, named for the boundary that was crossed.

    SelfImproveError
    ├── UsageError            the caller's mistake; refused before anything is spent (also a ValueError)
    │   └── MissingVariable   a prompt was rendered without one of its variables
    ├── SetupError            this machine's: Python, disk, ports, packages
    ├── ModelError            a model behind an API
    │   ├── Outage            no verdict: the service was away, slow or busy. Retry; never a score
    │   │   ├── RateLimited
    │   │   ├── TimedOut
    │   │   └── Unavailable
    │   ├── Refused           the service said no (key, model name, request); retrying cannot help
    │   └── BadAnswer         it answered, and the answer is unusable: the only one a candidate can be blamed for
    ├── TelemetryError        Phoenix
    │   ├── PhoenixUnreachable
    │   ├── PhoenixUnauthorized
    │   └── PhoenixTooOld
    ├── JournalError          the run store
    ├── DataError             a file of data (an export, a checkpoint, a dataset): broken, or not whole
    └── BudgetExhausted       the cap would be crossed: stop, keep what there is

A message is one sentence that says what happened, and a remedy says what to do. `str(error)` gives both; a command
line prints exactly that and no traceback. Text from a trace or a model never becomes part of a message.
"""

from __future__ import annotations


class SelfImproveError(Exception):
    """The root. `problem` and `remedy` are kept apart so that a front end can set them in two lines."""

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem if not remedy else f"{problem} {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles by args, which would lose the keyword and join the texts twice.
        return (_rebuild, (type(self), self.problem, self.remedy, self.__dict__))


def _rebuild(kind: type[SelfImproveError], problem: str, remedy: str, state: dict[str, object]) -> SelfImproveError:
    error = kind.__new__(kind)
    SelfImproveError.__init__(error, problem, remedy=remedy)
    error.__dict__.update(state)
    return error


class UsageError(SelfImproveError, ValueError):
    """An argument cannot be right, whatever the world answers."""


class MissingVariable(UsageError):
    """A template has a variable that was not given."""


class SetupError(SelfImproveError):
    """The machine lacks something: a Python, a writable folder, a free port, a package."""


class ModelError(SelfImproveError):
    """Something went wrong between us and a model."""


class Outage(ModelError):
    """No verdict exists. `retry_after` is what the service asked for, in seconds, if it said."""

    def __init__(self, problem: str, *, remedy: str = "", retry_after: float | None = None) -> None:
        super().__init__(problem, remedy=remedy)
        self.retry_after = retry_after


class RateLimited(Outage):
    """The service is up and says: later."""


class TimedOut(Outage):
    """No answer within the time allowed; whether it was computed, and charged, is unknown."""


class Unavailable(Outage):
    """The connection failed or broke, or the service answered 5xx."""


class Refused(ModelError):
    """The service understood and said no; the same request will be refused again."""


class BadAnswer(ModelError):
    """An answer came and cannot be used: empty, cut off, not the form asked for."""


class TelemetryError(SelfImproveError):
    """Phoenix did not do what it was asked."""


class PhoenixUnreachable(TelemetryError):
    """Nothing answers at the address, or it is not Phoenix that answers."""


class PhoenixUnauthorized(TelemetryError):
    """Phoenix wants a key, or another key."""


class PhoenixTooOld(TelemetryError):
    """The server lacks something we rely on."""


class JournalError(SelfImproveError):
    """The run store cannot be read or written."""


class DataError(SelfImproveError):
    """A file of data cannot be read as what it should be."""


class BudgetExhausted(SelfImproveError):
    """The next call would cross a cap. Not a failure: what was found so far stands.

    Not `final` while calls in flight hold room that they may give back.
    """

    def __init__(self, problem: str, *, remedy: str = "", final: bool = True) -> None:
        super().__init__(problem, remedy=remedy)
        self.final = final
