"""A Phoenix's address, and how to speak to it: its own client, with every failure on the way told apart once.

`Address` is where a Phoenix answers and who asks; `server.locate` says which one to use. `connect` gives Phoenix's
client, `ask` one answer, both on top of an httpx client that
  - raises this package's errors for what can go wrong between here and there, so that no caller catches httpx;
  - refuses a web page where data was asked for: Phoenix answers an unknown path with its own HTML and status 200, and
    so does a proxy's sign-in page;
  - follows no redirect, as the outbox follows none: an address that half of what we send would miss is a wrong one;
  - asks again, with growing pauses, when the server was away or stumbled. What this package sends is safe to repeat
    (reads, and writes that replace themselves); say `attempts=1` for a request that is not.

A 4xx other than "who are you" stays `httpx.HTTPStatusError`: what a 404 means depends on the question. What the server
says in such an answer may quote a trace, so it becomes part of no message; nor does a password in an address (`shown`).
Not covered: the asynchronous client.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from dspy_selfimprove.errors import PhoenixUnauthorized, PhoenixUnreachable, TelemetryError, UsageError

if TYPE_CHECKING:
    from phoenix.client import Client

ENDPOINT_VARIABLE: Final = "PHOENIX_COLLECTOR_ENDPOINT"
KEY_VARIABLE: Final = "PHOENIX_API_KEY"
NONE_RUNS: Final = "No Phoenix is running for this project"
START_IT: Final = f"Start it with `dspy-selfimprove phoenix start`, or name the one to use in {ENDPOINT_VARIABLE}."
CHECK_IT: Final = f"Check the address, also whether it is http or https (see {ENDPOINT_VARIABLE})."
GIVE_A_KEY: Final = f"Set {KEY_VARIABLE} to a key made under its Settings, API Keys."

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_AWAY = frozenset({502, 503, 504})
_PAUSE, _LONGEST_PAUSE = 0.25, 4.0


def shown(url: str) -> str:
    """`url` as a message may show it: without the user and password it may carry."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where a Phoenix answers, and who asks. Keys and passwords are kept out of every representation."""

    url: str
    api_key: str | None = None

    @classmethod
    def parse(cls, written: str, api_key: str | None = None) -> Address:
        """The server's address from what people write: a trailing slash and the traces path are cut off."""
        url = written.strip().rstrip("/").removesuffix("/v1/traces").rstrip("/")
        try:
            parts = urlsplit(url)
            httpx.URL(url)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except (ValueError, httpx.InvalidURL):
            is_address = False
        if not is_address or parts.query or parts.fragment:
            raise UsageError(
                "That is not the address of a Phoenix.",  # not repeated: it may hold a password
                remedy=f"Write it like http://localhost:6006 (see {ENDPOINT_VARIABLE}).",
            )
        return cls(url, api_key)

    @property
    def shown(self) -> str:
        """The address without user and password, for messages; and for requests, which carry those in a header."""
        return shown(self.url)

    @property
    def headers(self) -> dict[str, str]:
        """Who asks. A user in the address is meant for whatever stands in front of Phoenix, so it goes first."""
        user, in_address, _ = urlsplit(self.url).netloc.rpartition("@")
        if in_address:
            name, _, password = user.partition(":")
            return {"authorization": f"Basic {base64.b64encode(unquote_to_bytes(f'{name}:{password}')).decode()}"}
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in _LOOPBACK

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def given_key(api_key: str | None = None) -> str | None:
    """The key to show: `api_key`, else the environment's."""
    return api_key or os.environ.get(KEY_VARIABLE) or None


def named(endpoint: str | None = None, api_key: str | None = None) -> Address | None:
    """The Phoenix that is named: by `endpoint`, else by the environment."""
    written = endpoint or os.environ.get(ENDPOINT_VARIABLE)
    return Address.parse(written, given_key(api_key)) if written else None


def project_name(name: str) -> str:
    """`name`, refused if Phoenix could store spans under it and then not find them again."""
    if not name.strip() or re.search(r"[/?#\x00-\x1f\x7f]", name) or _is_identifier(name):
        raise UsageError(
            f"{name!r} cannot name a Phoenix project.",
            remedy="Use a name without '/', '?', '#' and control characters, such as 'support'.",
        )
    return name


def _is_identifier(name: str) -> bool:
    """Whether Phoenix would take `name` for one of its row identifiers, which are base64 of `Project:7`."""
    try:
        return base64.b64decode(name, validate=True).startswith(b"Project:")
    except (binascii.Error, ValueError):
        return False


@contextmanager
def connect(address: Address | None, *, timeout: float = 30.0, attempts: int = 5) -> Iterator[Client]:
    """Phoenix's client for `address`; closed with the block."""
    from phoenix.client import Client

    with line(address, timeout=timeout, attempts=attempts) as opened:
        yield Client(http_client=opened)


@contextmanager
def line(address: Address | None, *, timeout: float = 30.0, attempts: int = 5) -> Iterator[httpx.Client]:
    """What `connect` puts under Phoenix's client, for a question that client cannot ask well."""
    if address is None:
        raise PhoenixUnreachable(f"{NONE_RUNS}.", remedy=START_IT)
    with _Line(address, timeout=timeout, attempts=attempts) as opened:
        yield opened


def ask(address: Address, path: str, *, timeout: float) -> httpx.Response:
    """What Phoenix answers at `path`, asked once."""
    with line(address, timeout=timeout, attempts=1) as opened:
        return opened.get(path)


class _Line(httpx.Client):
    """An httpx client that asks again after an outage and raises this package's errors."""

    def __init__(self, address: Address, *, timeout: float, attempts: int) -> None:
        super().__init__(
            base_url=address.shown,
            headers=address.headers,
            timeout=timeout,
            trust_env=not address.is_loopback,  # a proxy can only be in the way of a server on this machine
        )
        if address.is_loopback:  # so can compression: it takes Phoenix longer than all else it does for an answer
            self.headers["accept-encoding"] = "identity"
        self._address, self._attempts = address, attempts

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        pause = _PAUSE
        for left in reversed(range(self._attempts)):
            try:
                response = super().send(request, **options)
            except httpx.TransportError as error:
                failure = self._failure(error)
            else:
                if response.status_code < 500 and response.status_code != 429:
                    return self._checked(response)
                failure, pause = self._failure(response), max(pause, _asked_pause(response))
                response.close()
            if not left:
                raise failure
            time.sleep(min(pause, _LONGEST_PAUSE))
            pause *= 2
        raise UsageError("A request needs at least one attempt.", remedy="Give attempts=1 or more.")

    def _failure(self, seen: httpx.TransportError | httpx.Response) -> TelemetryError:
        where = self._address.shown
        if isinstance(seen, httpx.ConnectError | httpx.ConnectTimeout):
            return PhoenixUnreachable(
                f"Phoenix at {where} cannot be reached ({str(seen) or 'no answer'}).", remedy=START_IT
            )
        if isinstance(seen, httpx.TimeoutException):
            return PhoenixUnreachable(
                f"Phoenix at {where} did not answer in time.", remedy="Try again when it is idle."
            )
        if isinstance(seen, httpx.TransportError):
            return PhoenixUnreachable(
                f"Phoenix at {where} broke off the connection.", remedy="See whether it still runs."
            )
        if seen.status_code in _AWAY:
            return PhoenixUnreachable(
                f"Phoenix at {where} is away (status {seen.status_code}).", remedy="Try again later."
            )
        return TelemetryError(
            f"Phoenix at {where} failed on our request (status {seen.status_code}).", remedy="Its log says why."
        )

    def _checked(self, response: httpx.Response) -> httpx.Response:
        where = self._address.shown
        if response.status_code in (401, 403):
            problem = "does not accept our key" if self._address.headers else "wants a key"
            raise PhoenixUnauthorized(f"Phoenix at {where} {problem}.", remedy=GIVE_A_KEY)
        if response.is_redirect:
            raise PhoenixUnreachable(
                f"What answers at {where} sends us elsewhere (status {response.status_code}).",
                remedy=CHECK_IT,
            )
        if response.headers.get("content-type", "").startswith("text/html"):
            raise PhoenixUnreachable(
                f"What answers at {where} is a web page, not the Phoenix we know.", remedy=CHECK_IT
            )
        return response


def _asked_pause(response: httpx.Response) -> float:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return 0.0


def refused(error: httpx.HTTPStatusError) -> TelemetryError:
    """What remains of a 4xx that the caller has no better meaning for."""
    return TelemetryError(
        f"Phoenix refused our request (status {error.response.status_code}).",
        remedy="It may be another version than the one this package knows: 20.26 or later.",
    )


def clean_text(text: str) -> str:
    """`text` as every database and wire takes it: no NUL (PostgreSQL), no half of a surrogate pair (UTF-8)."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", "\ufffd")
