"""What a failed call means, asked of the real errors that the real client and DSPy raise (see test_model.py)."""

import json

import httpx
import openai
import pytest
from dspy import lm15
from dspy.clients.errors import error_boundary, wrap_error
from dspy.utils.exceptions import LMUnexpectedError

from dspy_selfimprove.errors import BadAnswer, BudgetExhausted, RateLimited, Refused, TimedOut, Unavailable
from dspy_selfimprove.outage import failure_of

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")


def status(number, headers=None, code=None):
    told = {"error": {"message": "secret text", "code": code}}
    response = httpx.Response(number, headers=headers, request=REQUEST, json=told)
    return openai.OpenAI(api_key="k")._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (status(429, {"retry-after": "3"}), RateLimited),
        (status(500), Unavailable),
        (status(503), Unavailable),
        (status(400), Refused),
        (status(401), Refused),
        (status(403), Refused),
        (status(404), Refused),
        (status(422), Refused),
        (status(418), Refused),
        (openai.APITimeoutError(REQUEST), TimedOut),
        (openai.APIConnectionError(request=REQUEST), Unavailable),
        (status(408), Unavailable),
        (status(409), Unavailable),
        (status(400, code="context_length_exceeded"), BadAnswer),
        (status(429, code="insufficient_quota"), Refused),
        (httpx.RemoteProtocolError("torn"), Unavailable),
        (httpx.ReadTimeout("slow"), TimedOut),
        (lm15.ProviderError("not JSON", status=200), Unavailable),
        (lm15.RateLimitError("x", retry_after=3), RateLimited),
        (lm15.TimeoutError("x"), TimedOut),
        (lm15.ServerError("x"), Unavailable),
        (lm15.TransportError("x"), Unavailable),
        (lm15.AuthError("x"), Refused),
        (lm15.ContextLengthError("x"), BadAnswer),
        (lm15.InvalidRequestError("x"), Refused),
    ],
    ids=lambda value: getattr(value, "__name__", None) or f"{type(value).__name__}{getattr(value, 'status_code', '')}",
)
def test_each_error_is_told_bare_and_through_dspys_wrapping(error, kind):
    assert type(failure_of(error)) is kind
    if isinstance(error, lm15.LM15Error):
        assert type(failure_of(wrap_error(error, model="m"))) is kind
    outer = RuntimeError("somebody's wrapper")
    outer.__cause__ = error
    assert type(failure_of(outer)) is kind


def test_what_the_service_wrote_stays_out_of_the_message():
    for code in (400, 401, 404, 418, 429, 500):
        assert "secret text" not in str(failure_of(status(code)))


def test_retry_after_is_read_from_the_header_or_the_error():
    assert failure_of(status(429, {"retry-after": "3"})).retry_after == 3
    assert failure_of(status(429, {"retry-after": "1", "retry-after-ms": "250"})).retry_after == 0.25
    assert failure_of(status(429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})).retry_after is None
    assert failure_of(lm15.RateLimitError("x", retry_after=7)).retry_after == 7


def test_our_own_errors_come_through_whatever_wraps_them():
    ours = BudgetExhausted("The budget is used up.")
    outer = lm15.ServerError("x")
    outer.__cause__ = ours
    assert failure_of(outer) is ours
    with pytest.raises(LMUnexpectedError) as caught, error_boundary("m", unexpected=True):
        raise ours
    assert failure_of(caught.value) is ours


def test_a_bug_is_no_failure_of_anybodys():
    assert failure_of(KeyError("typo")) is None
    assert failure_of(json.JSONDecodeError("a metric read a bad answer", "doc", 0)) is None
    assert failure_of(ModuleNotFoundError("a fallback of somebody's", name="x")) is None
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert failure_of(first) is None
