"""What every test gets: an environment without the caller's Phoenix and keys, and, if asked, one real Phoenix."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from dspy_selfimprove.telemetry.server import Phoenix

# The same examples in every run, and no verdict by the clock: these machines are shared.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")

# A shell's background job inherits an ignored ctrl-C, and hands it on to every process the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

FOREIGN = ("PHOENIX_", "OPENAI_")


@pytest.fixture(scope="session", autouse=True)
def own_environment() -> Iterator[None]:
    """No test speaks to the server, or spends with the key, of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    """A real Phoenix with a database of its own, started for the first test that asks and shared by all.

    Use project names of your own: other tests write here too. The first run on a machine builds the environment it
    runs in, unless `DSPY_SELFIMPROVE_PHOENIX_PYTHON` names one.
    """
    from dspy_selfimprove.telemetry.server import running

    with running(tmp_path_factory.mktemp("phoenix") / ".selfimprove") as server:
        yield server
