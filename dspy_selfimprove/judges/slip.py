"""Slip: why there is no verdict this time, in words that can be counted.

Told apart here, once: a judge's slip (its answer cannot be used: ask again), an outage (waited out already), a fault
that is the example's, and a mistake of whoever set the judge up, which raises: no second call can cure it. Text that a
model or a trace wrote never becomes part of a reason.
"""

from __future__ import annotations

from typing import Final

from dspy_selfimprove.errors import (
    BadAnswer,
    Outage,
    RateLimited,
    Refused,
    SelfImproveError,
    TimedOut,
    Unavailable,
    UsageError,
)
from dspy_selfimprove.outage import failure_of

EMPTY: Final = "the judge's answer was empty"
CUT_OFF: Final = "the judge's answer was cut off"
NOT_JSON: Final = "the judge's answer is not the JSON it was asked for"
NO_LABEL: Final = "the judge gave no label"
WRONG_LABEL: Final = "the judge gave a label it was not offered"
DECLINED: Final = "the judge declined to answer"
WITHHELD: Final = "the judge's service withheld the answer"
BUSY: Final = "the judge's service said: too many requests"
LATE: Final = "the judge did not answer in time"
AWAY: Final = "the judge's service was away"
TOO_LONG: Final = "the prompt is longer than the judge can read"
REFUSED: Final = "the judge's service refused the request"
UNFIT: Final = "the inputs do not fit the evaluator"
NO_SCORE: Final = "the evaluator gave no score"
RAISED: Final = "the evaluator raised"  # and the name of the error's class

_UNUSABLE: Final = frozenset({EMPTY, CUT_OFF, NOT_JSON, NO_LABEL, WRONG_LABEL, DECLINED, WITHHELD})


class Slip(Exception):
    """No verdict, and the reason. `again`: another answer may be usable."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again or reason in _UNUSABLE


def slip_of(error: Exception, *, asks_model: bool) -> Slip:
    """What an error means for one verdict; raises what no other example would escape."""
    if (slip := _within(error)) is not None:
        return slip
    failure = failure_of(error)
    if failure is None:
        return Slip(f"{RAISED} {type(error).__name__}", again=asks_model)
    if isinstance(failure, Outage):
        return Slip(BUSY if isinstance(failure, RateLimited) else LATE if isinstance(failure, TimedOut) else AWAY)
    if isinstance(failure, BadAnswer):
        return Slip(TOO_LONG)
    # A service may refuse one text (its content filter did) and take all the others.
    if isinstance(failure, Refused) and bad_request(error) is not None:
        return Slip(REFUSED)
    if failure is error:
        raise failure
    raise failure from error


def bad_request(error: BaseException) -> Exception | None:
    """The service's "this request is wrong" (400, 422) in the chain of an error, if that is what it said."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        names = {kind.__name__ for kind in type(link).__mro__ if kind.__module__.partition(".")[0] == "openai"}
        if isinstance(link, Exception) and names & {"BadRequestError", "UnprocessableEntityError"}:
            return link
        link = link.__cause__ or link.__context__
    return None


def silence(name: str, times: int, slip: Slip) -> SelfImproveError:
    """The error that says a judge gives no verdicts at all, and what to do about it."""
    kind, remedy = _REMEDIES.get(slip.reason, (UsageError, "Try its evaluate() on one example by hand."))
    return kind(f"The judge {name!r} gave no verdict {times} times in a row; last, {slip.reason}.", remedy=remedy)


_UNUSABLE_REMEDY: Final = "Use a model that keeps to a JSON schema, or allow it longer answers (max_tokens)."
_REMEDIES: Final[dict[str, tuple[type[SelfImproveError], str]]] = {
    **dict.fromkeys(_UNUSABLE, (BadAnswer, _UNUSABLE_REMEDY)),
    BUSY: (RateLimited, "Use fewer slots, or a service that allows more calls."),
    LATE: (TimedOut, "Allow the judge's model a longer timeout, or use a faster one."),
    AWAY: (Unavailable, "Check that the service of the judge's model is up, and its base URL."),
    TOO_LONG: (BadAnswer, "Use a judge model that reads more, or shorten the judge's prompt."),
    REFUSED: (Refused, "Check the judge's parameters, and that its model takes a JSON schema or tools."),
}


def _within(error: BaseException) -> Slip | None:
    """A slip of ours below whatever an evaluator's own code made of it."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        if isinstance(link, Slip):
            return link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None
