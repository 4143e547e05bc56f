"""The rehearsal model: a stand-in LLM for trying and testing everything with no key and no network.

It shows that the machinery works; it says nothing about the quality of any model, and no figure measured on it should
be read as one. It is honest in one respect that matters: it sees only the text it is sent.

    rule.py       the language: how a behaviour is asked for, forbidden, performed and recognised
    catalogue.py  the behaviours and topics it knows; not which of them matter
    reading.py    what a request says: role, form, inputs, demonstrations
    temper.py     how reliable it is
    worker.py     answers; follows what the prompt states, not perfectly
    judge.py      scores an answer by the criteria its own prompt contains, and explains
    coach.py      reads a prompt with its feedback and proposes a better one
    model.py      the three roles behind one call
    fault.py, engine.py, server.py   the call as a service: latency, faults, counters; in process and over HTTP
    world.py      which behaviours matter: hidden tasks drawn by seed
    ticket.py     what the customers of a world write
    truth.py      the exact expected scores of any prompt in a world

Names are loaded when first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspy_selfimprove.rehearsal.engine import lm
    from dspy_selfimprove.rehearsal.fault import Faults, Latency
    from dspy_selfimprove.rehearsal.model import RehearsalModel
    from dspy_selfimprove.rehearsal.server import serve
    from dspy_selfimprove.rehearsal.temper import Temper
    from dspy_selfimprove.rehearsal.world import World

__all__ = ["Faults", "Latency", "RehearsalModel", "Temper", "World", "lm", "serve"]

_HOME = {
    "World": "world",
    "RehearsalModel": "model",
    "Temper": "temper",
    "lm": "engine",
    "serve": "server",
    "Latency": "fault",
    "Faults": "fault",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
