"""What people write for a stretch of time."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.window import Window

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "ago"),
    [
        ("7d", timedelta(days=7)),
        ("12h", timedelta(hours=12)),
        ("30m", timedelta(minutes=30)),
        ("45 min", timedelta(minutes=45)),
        ("2W", timedelta(weeks=2)),
        (timedelta(days=3), timedelta(days=3)),
    ],
)
def test_how_long_ago(written, ago):
    assert Window.parse(written, now=NOW).since == NOW - ago


def test_a_date_is_midnight_here():
    window = Window.parse("2026-11-01", date(2026, 11, 2), now=NOW)
    assert window.since == datetime(2026, 11, 1).astimezone(UTC)
    assert window.until is not None
    assert window.until.astimezone().hour == 0


def test_a_moment_with_its_zone():
    assert Window.parse("2026-11-01T09:30+01:00", now=NOW).since == datetime(2026, 11, 1, 8, 30, tzinfo=UTC)
    assert Window.parse("2026-11-01T09:30Z", now=NOW).since == datetime(2026, 11, 1, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until", "sentence"),
    [
        ("2026-11-01T09:30", None, "time zone"),
        (datetime(2026, 11, 1), None, "time zone"),
        ("yesterday", None, "no moment"),
        ("2026-13-01", None, "no moment"),
        ("999999w", None, "no moment"),
        ("", None, "no moment"),
        (7, None, "no moment"),
        ("2026-11-22", None, "in the future"),
        ("1d", "2d", "ends before it begins"),
        ("1d", "1d", "ends before it begins"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_remedy(since, until, sentence):
    with pytest.raises(UsageError, match=sentence) as refused:
        Window.parse(since, until, now=NOW)
    assert refused.value.remedy


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_one_sentence(written):
    window = None
    with suppress(UsageError):
        window = Window.parse(written, now=NOW)
    assert window is None or window.since <= NOW
