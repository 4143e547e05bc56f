"""Which Phoenix, and how to speak to it: its own client, with every failure on the way told apart once.

`locate` answers which (see `server.endpoint`) and adds the key. `connect` gives Phoenix's client on top of an httpx
client that
  - raises this package's errors for what can go wrong between here and there, so that no caller catches httpx;
  - refuses a web page where data was asked for: Phoenix answers an unknown path with its own HTML and status 200, and
    so does a proxy's sign-in page;
  - asks again, with growing pauses, when the server was away or stumbled. What this package sends is safe to repeat
    (reads, and writes that replace themselves); say `attempts=1` for a request that is not.

A 4xx other than "who are you" stays `httpx.HTTPStatusError`: what a 404 means depends on the question. What the server
says in such an answer may quote a trace, so it becomes part of no message. Not covered: the asynchronous client.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from dspy_selfimprove.errors import PhoenixUnauthorized, PhoenixUnreachable, TelemetryError, UsageError
from dspy_selfimprove.telemetry import server
from dspy_selfimprove.telemetry.server import ENDPOINT_VARIABLE, KEY_VARIABLE

if TYPE_CHECKING:
    from phoenix.client import Client

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
START_IT = f"Start it with `dspy-selfimprove phoenix start`, or name the one to use in {ENDPOINT_VARIABLE}."
GIVE_A_KEY = f"Set {KEY_VARIABLE} to a key made under its Settings, API Keys."

_AWAY = frozenset({502, 503, 504})
_PAUSE, _LONGEST_PAUSE = 0.25, 4.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Phoenix answers. The key is kept out of every representation."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address as a message may show it: without the user and password it may carry."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK


def locate(endpoint: str | None = None, api_key: str | None = None) -> Address | None:
    """The Phoenix to use, or None if none is named and none runs for this project. Nobody is asked over the network."""
    url = server.endpoint(endpoint)
    return Address(url, api_key or os.environ.get(KEY_VARIABLE) or None) if url else None


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
    if address is None:
        raise PhoenixUnreachable("No Phoenix is running for this project.", remedy=START_IT)
    from phoenix.client import Client

    with _Line(address, timeout=timeout, attempts=attempts) as line:
        yield Client(http_client=line)


class _Line(httpx.Client):
    """An httpx client that asks again after an outage and raises this package's errors."""

    def __init__(self, address: Address, *, timeout: float, attempts: int) -> None:
        key = {"authorization": f"Bearer {address.api_key}"} if address.api_key else {}
        # A proxy can only be in the way of a server on this machine.
        super().__init__(base_url=address.url, headers=key, timeout=timeout, trust_env=not address.is_loopback)
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
            return PhoenixUnreachable(f"Nothing answers at {where}.", remedy=START_IT)
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
            raise PhoenixUnauthorized(f"Phoenix at {where} does not accept our key.", remedy=GIVE_A_KEY)
        if response.headers.get("content-type", "").startswith("text/html"):
            raise PhoenixUnreachable(
                f"What answers at {where} is a web page, not the Phoenix we know.", remedy="Check the address."
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
