"""Window: the stretch of time that is looked at, from what people write.

`2026-11-01` is midnight there in this machine's own time zone, `2026-11-01T09:30+01:00` a moment, `7d` or `12h` that
long ago. A moment without its zone is refused: the traces carry one, and the two would differ by hours. The start
belongs to the window, its end does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from dspy_selfimprove.errors import UsageError

_AGO: Final = re.compile(r"(\d{1,6})\s*(m|min|h|d|w)", re.IGNORECASE)
_UNITS: Final = {"m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_HOW: Final = "Write a date (2026-11-01), a date-time with its zone (2026-11-01T09:30+01:00), or 7d, 12h."


@dataclass(frozen=True, slots=True)
class Window:
    """From `since` up to `until`, both in UTC; None means up to now, whenever that is asked.

    >>> window = Window.parse("2026-11-01T09:00+01:00", "2026-11-02T09:00+01:00")
    >>> window.since.isoformat(), str(window)
    ('2026-11-01T08:00:00+00:00', '2026-11-01 08:00 UTC to 2026-11-02 08:00 UTC')
    """

    since: datetime
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is None:
                continue
            if moment.tzinfo is None:
                raise UsageError(f"`{name}` does not say its time zone.", remedy=_HOW)
            try:
                object.__setattr__(self, name, moment.astimezone(UTC))
            except OverflowError:
                raise UsageError(f"`{name}` lies outside the calendar.", remedy=_HOW) from None
        if self.until is not None and self.until <= self.since:
            raise UsageError("The window ends before it begins.", remedy="Put `since` before `until`.")

    @classmethod
    def parse(
        cls, since: str | date | timedelta, until: str | date | timedelta | None = None, *, now: datetime | None = None
    ) -> Window:
        """The window that was written down. One that begins in the future is refused: nothing can be in it."""
        now = (now or datetime.now(UTC)).astimezone(UTC)
        window = cls(_moment(since, "since", now), None if until is None else _moment(until, "until", now))
        if window.since > now:
            raise UsageError(
                f"The window begins in the future ({_shown(window.since)}; now it is {_shown(now)}).",
                remedy="Choose an earlier `since`.",
            )
        return window

    def __str__(self) -> str:
        return f"{_shown(self.since)} to {'now' if self.until is None else _shown(self.until)}"


def _moment(written: str | date | timedelta, name: str, now: datetime) -> datetime:
    if isinstance(written, datetime):
        return written
    try:
        if isinstance(written, date):
            return datetime.combine(written, time()).astimezone()
        if isinstance(written, timedelta):
            return now - written
        if ago := _AGO.fullmatch(written.strip()):
            return now - timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", written.strip()):
            return datetime.combine(date.fromisoformat(written.strip()), time()).astimezone()
        return datetime.fromisoformat(written.strip())
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise UsageError(f"`{name}` is {str(written)[:40]!r}, which is no moment.", remedy=_HOW) from None


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
