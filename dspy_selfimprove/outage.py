"""What a failed call means: an outage (no verdict; try again), a refusal (trying again cannot help), or a bad answer.

The one place where that is decided. DSPy, its lm15 layer, LiteLLM and the official clients (OpenAI's, and Anthropic's
and Google's, which an evaluator may bring along) each have errors of their own and wrap each other's; `failure_of`
looks through the wrapping. It tells classes by name, so that asking costs no import of a client that was never used.
"""

from __future__ import annotations

from dspy_selfimprove.errors import (
    BadAnswer,
    ModelError,
    RateLimited,
    Refused,
    SelfImproveError,
    SetupError,
    TimedOut,
    Unavailable,
)

LIBRARIES = ("openai", "dspy", "litellm", "httpx", "anthropic", "google")


def failure_of(error: BaseException) -> SelfImproveError | None:
    """What an exception means to us, found through whatever wraps it; None if it is nobody's failure but the code's.

    An error of our own anywhere in the chain is the answer. The message names the kind of failure and never repeats
    what a service or a model wrote.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if ours := next((link for link in chain if isinstance(link, SelfImproveError)), None):
        return ours
    found = next((found for link in chain if (found := _classified(link))), None)
    # LiteLLM dresses a package it lacks as a connection that failed.
    lacking = next((link for link in chain if isinstance(link, ModuleNotFoundError)), None)
    if found and lacking:
        return SetupError(
            f"The model's client needs the package {lacking.name} for this request.",
            remedy=f"pip install {lacking.name}",
        )
    return found


def _classified(error: BaseException) -> ModelError | None:
    # DSPy's errors, lm15's and the official client's (which LiteLLM's extend) are all told apart by their bases.
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    wait = _retry_after(error)

    def one_of(*known: str) -> bool:
        return any(f"{library}.{name}" in names for library in LIBRARIES for name in known)

    if one_of("APITimeoutError", "LMTimeoutError", "TimeoutError", "TimeoutException", "Timeout"):
        return TimedOut("The model did not answer in time.", remedy="Try again later, or allow a longer timeout.")
    code, status = getattr(error, "code", None), _status(error)
    if code == "insufficient_quota":
        return Refused("The account of the model's service has nothing left.", remedy="Pay, or use another key.")
    by_status = status if one_of("ClientError") else None  # Google's, of which the number tells the kind
    if one_of("RateLimitError", "LMRateLimitError") or by_status == 429:
        return RateLimited("The model's service says: too many requests.", remedy="Use fewer slots.", retry_after=wait)
    if code == "context_length_exceeded" or one_of("ContextWindowExceededError", "ContextLengthError"):
        return BadAnswer("The prompt is longer than the model can read.", remedy="Shorten it.")
    if one_of("AuthenticationError", "PermissionDeniedError", "LMAuthError", "AuthError") or by_status in (401, 403):
        return Refused("The model's service refused the key, or got none.", remedy="Set the provider's API key.")
    if one_of("NotConfiguredError", "LMNotConfiguredError"):
        return Refused("The model's service has no key.", remedy="Set the provider's API key.")
    if one_of("NotFoundError", "LMUnsupportedModelError", "UnsupportedModelError") or by_status == 404:
        return Refused("The model's service does not know this model.", remedy="Check its name and the base URL.")
    if one_of("InternalServerError", "LMServerError", "ServerError", "ServiceUnavailableError"):
        return Unavailable("The model's service failed.", remedy="Try again later.", retry_after=wait)
    if one_of("APIConnectionError", "LMTransportError", "TransportError"):
        return Unavailable("The model's service cannot be reached.", remedy="Check the base URL and the network.")
    if status in (408, 409, 425):
        return Unavailable("The model's service asks to try again.", remedy="Try again later.", retry_after=wait)
    if one_of("APIResponseValidationError"):
        return Unavailable("The model's service sent an answer that is not JSON.", remedy="Try again later.")
    if one_of("BadRequestError") and "LLM Provider NOT provided" in str(error):
        return Refused(
            "LiteLLM knows no such provider.",
            remedy="Write provider/model, such as openai/gpt-4o-mini, or openai/NAME with a base_url of your own.",
        )
    if by_status or one_of(
        "BadRequestError", "UnprocessableEntityError", "LMInvalidRequestError", "InvalidRequestError"
    ):
        return Refused("The model's service refused the request.", remedy="Check the parameters and the messages.")
    if one_of("LMProviderError", "ProviderError") and status == 200:
        return Unavailable("The model's service sent an answer that cannot be read.", remedy="Try again later.")
    if one_of("APIStatusError", "LMProviderError", "ProviderError"):
        return Refused(f"The model's service said no (HTTP {status}).")
    if type(error).__name__ == "OpenAIError" and "openai.OpenAIError" in names:
        return Refused("No key is set for the model's service.", remedy="Set OPENAI_API_KEY, or pass api_key.")
    return None


def _status(error: BaseException) -> int | None:
    said = (getattr(error, name, None) for name in ("status_code", "status", "code"))
    return next((each for each in said if isinstance(each, int)), None)


def _retry_after(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    exact = headers.get("retry-after-ms")
    for value, unit in ((getattr(error, "retry_after", None), 1), (exact, 1000), (headers.get("retry-after"), 1)):
        try:
            if value is not None and (seconds := float(value) / unit) >= 0:
                return seconds
        except (TypeError, ValueError):  # an HTTP date: rare among model services; the ordinary wait will do
            continue
    return None
