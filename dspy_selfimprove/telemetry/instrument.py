"""One call sends what an application says to its models to Phoenix: OpenAI and DSPy calls, nested as they ran.

    with instrument(project="support"):
        ...                                   # or call it once at start-up and forget it

The application comes first. Nothing here imports openai or dspy (each is instrumented when the application imports it),
sets an environment variable, or touches OpenTelemetry's global provider. Our spans come from a provider of our own: an
application with its own OpenTelemetry keeps it, prompts do not reach its other back ends, and all can be taken out
again. The two share the context, so our spans carry the trace id and the parent that the application's spans gave them,
and its decision not to sample a trace stays its own (our part of that trace we still keep). An instrumentor that the
application has already switched on is left as it is.

Only a mistake in the arguments or in the environment raises. A collector that is away, slow or of another kind costs
the application nothing but the memory of the outbox, and one line in the log.

What is recorded follows OpenInference's own switches (`OPENINFERENCE_HIDE_INPUTS` and the like). Sessions, users and
metadata are set with OpenInference's `using_attributes`, re-exported here; `suppress_tracing` keeps calls out, such as
those of a judge that runs beside the application.

Not covered: one process with several projects; a span that the application's own instrumentation makes below one of
ours names a parent that its back end has not seen; keys and passwords inside prompts (they are content).
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Final, Protocol

import wrapt
from openinference.instrumentation import OITracer, TracerProvider, suppress_tracing, using_attributes
from openinference.semconv.resource import ResourceAttributes
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from dspy_selfimprove import files
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.telemetry.client import Address, named, project_name
from dspy_selfimprove.telemetry.outbox import Outbox
from dspy_selfimprove.telemetry.server import locate

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

__all__ = ["Instrumentation", "instrument", "suppress_tracing", "using_attributes"]

logger = logging.getLogger("dspy_selfimprove.telemetry")

AT_EXIT: Final = 1.5
LIBRARIES: Final = {
    "openai": "openinference.instrumentation.openai:OpenAIInstrumentor",
    "dspy": "openinference.instrumentation.dspy:DSPyInstrumentor",
}
THREADING: Final = "opentelemetry.instrumentation.threading:ThreadingInstrumentor"

# Never held while something is imported or switched on: that may wait for an import in another thread, which may be in
# `_fit` and waiting for this lock.
_lock = threading.RLock()
_active: Instrumentation | None = None


def instrument(project: str, *, endpoint: str | None = None, api_key: str | None = None) -> Instrumentation:
    """Send this process's OpenAI and DSPy calls to `project` until `stop()`.

    The collector is `endpoint`, else `PHOENIX_COLLECTOR_ENDPOINT`, else the Phoenix that runs for the project folder in
    which this was called, also if it is started later. The same call again gives the same handle; another one is
    refused while this one lasts.
    """
    global _active
    asked = (project_name(project), endpoint, api_key)
    with _lock:
        if (standing := _standing(asked)) is not None:
            return standing
    made = Instrumentation(*asked)
    with _lock:
        if (standing := _standing(asked)) is not None:  # another thread was faster
            return standing
        _active = made
    made._begin()
    return made


def _standing(asked: tuple[str, str | None, str | None]) -> Instrumentation | None:
    if _active is None or _active._asked == asked:
        return _active
    raise UsageError(
        f"This process already sends its calls to the project {_active.project!r}.",
        remedy="Call stop() on that instrumentation first.",
    )


class Instrumentation:
    """What `instrument` set up; made by it only. As a context manager it stops at the end of the block."""

    def __init__(self, project: str, endpoint: str | None, api_key: str | None) -> None:
        self.project = project
        self._asked = (project, endpoint, api_key)
        self._collector = _finder(endpoint, api_key)
        self._outbox = Outbox(self._collector)
        self._sampler = _All()
        self._provider = TracerProvider(
            resource=Resource.create({ResourceAttributes.PROJECT_NAME: project}),
            sampler=self._sampler,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._outbox)
        self._fitted: list[_Fitted] = []

    def _begin(self) -> None:
        atexit.register(self._outbox.flush, AT_EXIT)
        self._fit(THREADING, None)
        for library, instrumentor in LIBRARIES.items():
            wrapt.register_post_import_hook(partial(self._fit, instrumentor), library)

    @property
    def endpoint(self) -> str | None:
        """Where spans go now, as it may be shown; None while no Phoenix is known."""
        address = self._collector()
        return address.shown if address else None

    @property
    def tracer(self) -> OITracer:
        """For spans of the application's own, such as one that holds all calls of a request."""
        return self._provider.get_tracer("dspy_selfimprove")

    @property
    def lost(self) -> int:
        """How many spans Phoenix will never have: held back too long, or refused."""
        return self._outbox.lost

    def flush(self, timeout: float = 5.0) -> bool:
        """Send what is held now. True if Phoenix took everything since the last flush; it shows about 0.1 s later.

        False when the collector is away (at once), too slow (after `timeout` seconds), or has refused or missed spans.
        """
        return self._outbox.flush(timeout)

    def stop(self, timeout: float = 5.0) -> bool:
        """Flush, and leave the process as it was. True as for `flush`; calling it again changes nothing."""
        global _active
        with _lock:
            if _active is not self:
                return True
            for fitted in reversed(self._fitted):
                fitted.remove()
            self._sampler.stopped = True
            _active = None
        taken = self._outbox.flush(timeout)
        atexit.unregister(self._outbox.flush)
        self._provider.shutdown()
        return taken

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Instrumentation project={self.project!r} endpoint={self.endpoint!r}>"

    def _fit(self, instrumentor: str, library: ModuleType | None) -> None:
        """Switch one instrumentor on. It may run inside the application's `import`, so it never raises."""
        if self._sampler.stopped:
            return
        name = library.__name__ if library else "threading"
        try:
            module, _, attribute = instrumentor.partition(":")
            switch: _Switch = getattr(import_module(module), attribute)()
            if switch.is_instrumented_by_opentelemetry:
                if library:
                    logger.warning("The application already traces %s its own way; those calls stay there.", name)
                return
            fitted = _Fitted.on(switch, self._provider, library)
        except Exception as error:
            logger.warning("Calls of %s cannot be traced (%s: %s).", name, type(error).__name__, error)
            return
        with _lock:
            if _active is self:
                self._fitted.append(fitted)
                return
        fitted.remove()  # stopped meanwhile


def _finder(endpoint: str | None, api_key: str | None) -> Callable[[], Address | None]:
    """How to learn where spans go. An address that was named stays; a server of ours may come, go and move."""
    elsewhere = named(endpoint, api_key)
    if elsewhere is not None:
        return lambda: elsewhere
    home = files.nearest_home()  # now: the application may change its directory
    return lambda: locate(api_key=api_key, home=home)


class _All(Sampler):
    """Record every span of ours, and pass on the application's decision about the trace that it is part of."""

    stopped = False

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if self.stopped:
            return SamplingResult(Decision.DROP, None, parent.trace_state)
        unsampled = parent.is_valid and not parent.trace_flags.sampled
        decision = Decision.RECORD_ONLY if unsampled else Decision.RECORD_AND_SAMPLE
        return SamplingResult(decision, attributes, parent.trace_state)

    def get_description(self) -> str:
        return "All"


# Switching instrumentors on, and off without a trace.

_ABSENT: Final = object()


class _Switch(Protocol):
    """What every instrumentor is: one per process, on or off."""

    _is_instrumented_by_opentelemetry: bool

    @property
    def is_instrumented_by_opentelemetry(self) -> bool: ...

    def instrument(self, *, tracer_provider: TracerProvider, raise_exception_on_conflict: bool) -> None: ...

    def uninstrument(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """An attribute of a class that an instrumentor replaced."""

    owner: type
    name: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class _Fitted:
    """An instrumentor that we switched on, and what it changed.

    What it changed is noted here because the instrumentors do not put everything back: OpenInference's for DSPy takes
    off one layer too many, which is DSPy's own callbacks, and the one for threads leaves a timer's `start` wrapped.
    """

    switch: _Switch
    library: ModuleType | None
    places: tuple[_Place, ...]

    @classmethod
    def on(cls, switch: _Switch, provider: TracerProvider, library: ModuleType | None) -> _Fitted:
        with _predictors_in_sight(library):
            before = {owner: dict(vars(owner)) for owner in _classes(library)}
            try:
                switch.instrument(tracer_provider=provider, raise_exception_on_conflict=True)
            except Exception:
                for place in _changed(before):
                    _put(place.owner, place.name, place.before)
                raise
        return cls(switch, library, _changed(before))

    def remove(self) -> None:
        # Whatever somebody else has put on top of ours since then stays where it is.
        present = [(place, vars(place.owner).get(place.name, _ABSENT)) for place in self.places]
        try:
            with _predictors_in_sight(self.library):
                self.switch.uninstrument()
        except Exception as error:
            logger.debug("%s left its cleaning up to us (%s).", type(self.switch).__name__, error)
            self.switch._is_instrumented_by_opentelemetry = False
        for place, now in present:
            _put(place.owner, place.name, place.before if now is place.after else now)


def _changed(before: Mapping[type, Mapping[str, object]]) -> tuple[_Place, ...]:
    return tuple(
        _Place(owner, name, was.get(name, _ABSENT), now)
        for owner, was in before.items()
        for name, now in vars(owner).items()
        if now is not was.get(name, _ABSENT) and issubclass(type(now), wrapt.BaseObjectProxy)
    )


def _put(owner: type, name: str, value: object) -> None:
    if value is not _ABSENT:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)


def _classes(library: ModuleType | None) -> set[type]:
    """The classes an instrumentor may change. `type()`, unlike `isinstance`, does not wake openai's lazy proxies."""
    if library is None:
        return {threading.Thread, threading.Timer, ThreadPoolExecutor}
    modules = [library, *filter(None, [sys.modules.get(f"{library.__name__}.utils")])]
    return {value for module in modules for value in vars(module).values() if issubclass(type(value), type)}


@contextmanager
def _predictors_in_sight(library: ModuleType | None) -> Iterator[None]:
    """DSPy's instrumentor looks for every subclass of Predict in `dspy`; an application's own are not there."""
    found = library.Predict.__subclasses__() if library is not None and hasattr(library, "Predict") else []
    added = {each.__name__: each for each in found if not hasattr(library, each.__name__)}
    for name, each in added.items():
        setattr(library, name, each)
    try:
        yield
    finally:
        for name in added:
            delattr(library, name)
