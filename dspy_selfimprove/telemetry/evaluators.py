"""Which evaluators judge this application: every Phoenix evaluator that runs is recorded as an EvalSpec, once.

    track_evaluators()                        # once, anywhere; then evaluate as ever
    spec = get("helpfulness")                 # the definition that ran last; versions("helpfulness") has the others

`Evaluator.evaluate` and `Evaluator.async_evaluate` of phoenix.evals are wrapped, the two methods that every path comes
through exactly once: single, bound, in threads, both dataframe functions, experiments, each retry. Wrapping them on the
base class also reaches evaluators that exist already. Phoenix is not imported here: it is wrapped when the application
imports it, and what is recorded is read off the evaluator at hand.

The evaluation comes first. Recording never raises; the first trouble is one line in the log. After its first run an
evaluator costs a comparison of its settings, which also notices one that was bound or changed in between.

The store is a folder with one file per definition, named by its content hash and moved into place: processes that
record the same thing write the same file, nothing is ever changed, and a damaged file is left out and reported. Its
file's time says when a version began to run, also when it does so again after another one has.

Keys, headers and addresses in the invocation parameters are left out and listed as `unrecorded`, as is what cannot be
data. Not covered: a direct call of a decorated function (`check(output=...)` never passes through the evaluator); a
subclass that overrides `evaluate` without calling it; a secret written into a template; which of two evaluators with
one name ran last when both stay and take turns.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import math
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, cast

import wrapt

from dspy_selfimprove import files
from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.message import Message
from dspy_selfimprove.sample import Direction, EvalKind, EvalSpec

logger = logging.getLogger("dspy_selfimprove.telemetry")

FORMAT: Final = 1
MODULE: Final = "phoenix.evals.evaluators"
METHODS: Final = ("evaluate", "async_evaluate")

_lock = threading.RLock()
_trackers: tuple[Tracking, ...] = ()


def track_evaluators(store: str | Path | None = None) -> Tracking:
    """Record every Phoenix evaluator that runs in this process from now on, until `stop()`.

    `store` is a folder, by default the project's; the first record makes it. Each call is a recording of its own and
    ends by itself.
    """
    global _trackers
    tracking = Tracking(_folder(store))
    with _lock:
        _trackers = (*_trackers, tracking)
    wrapt.register_post_import_hook(_wrap, MODULE)
    return tracking


def get(name: str, version: str | None = None, *, store: str | Path | None = None) -> EvalSpec:
    """The definition recorded under `name`: the one that ran last, or the one whose version begins with `version`."""
    found = versions(name, store=store)
    if version is None:
        return found[0]
    chosen = [spec for spec in found if spec.version.startswith(version)]
    if len(chosen) == 1:
        return chosen[0]
    raise UsageError(
        f"The evaluator {name!r} has {'no' if not chosen else 'more than one'} version {version!r}.",
        remedy=f"Its versions are {', '.join(spec.version for spec in found)}.",
    )


def versions(name: str, *, store: str | Path | None = None) -> tuple[EvalSpec, ...]:
    """Every definition recorded under `name`, the one that ran last first."""
    recorded = _read_all(_folder(store))
    found = tuple(spec for spec in recorded if spec.name == name)
    if found:
        return found
    names = sorted({spec.name for spec in recorded})
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise UsageError(
        f"No evaluator named {name!r} has been recorded.",
        remedy=f"The nearest name is {near[0]!r}." if near else "Call track_evaluators() in the process they run in.",
    )


def latest(*, store: str | Path | None = None) -> tuple[EvalSpec, ...]:
    """Each recorded evaluator as it ran last, in the order of their names."""
    found: dict[str, EvalSpec] = {}
    for spec in _read_all(_folder(store)):
        found.setdefault(spec.name, spec)
    return tuple(found[name] for name in sorted(found))


class Tracking:
    """A recording that is on; made by `track_evaluators`. As a context manager it stops at the end of the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings: weakref.WeakKeyDictionary[object, tuple[object, ...]] = weakref.WeakKeyDictionary()
        self._latest: dict[str, str] = {}  # by name, the version that was noted last
        self._warned = False

    def stop(self) -> None:
        """Record no more. With the last recording in the process, Phoenix's own methods are back in place."""
        global _trackers
        with _lock:
            _trackers = tuple(each for each in _trackers if each is not self)
            if not _trackers:
                _unwrap()

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _see(self, evaluator: Any, mapping: Mapping[str, object] | None) -> None:
        try:
            settings = _settings(evaluator, mapping)
            if self._is_known(evaluator, settings):
                return
            spec = specify(evaluator, mapping)
            if self._latest.get(spec.name) != spec.version:
                _write(self.folder, spec)
                self._latest[spec.name] = spec.version
            with suppress(TypeError):  # cannot be hashed: looked at each time
                self._settings[evaluator] = settings
        except Exception as error:
            if not self._warned:
                self._warned = True
                why = error.problem.rstrip(".") if isinstance(error, SetupError) else type(error).__name__
                logger.warning("An evaluator could not be recorded (%s); it runs all the same.", why)

    def _is_known(self, evaluator: object, settings: tuple[object, ...]) -> bool:
        try:
            return self._settings.get(evaluator) == settings
        except (TypeError, ValueError):  # cannot be hashed, or compared
            return False


# Wrapping.


def _watch(call: Callable[..., Any], evaluator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _trackers:
        mapping = kwargs.get("input_mapping") or (args[1] if len(args) > 1 else None)
        for tracking in _trackers:
            tracking._see(evaluator, mapping or getattr(evaluator, "_input_mapping", None))
    return call(*args, **kwargs)  # a coroutine, if that is what it is


def _wrap(module: ModuleType) -> None:
    """Runs inside the application's `import phoenix.evals`, so it never raises."""
    with _lock:
        try:
            for name in METHODS if _trackers else ():
                method = vars(module.Evaluator)[name]
                if not any(_is_ours(layer) for layer in _layers(method)):
                    setattr(module.Evaluator, name, wrapt.FunctionWrapper(method, _watch))
        except Exception as error:
            logger.warning("Evaluators cannot be recorded with this phoenix.evals (%s).", type(error).__name__)


def _unwrap() -> None:
    if (module := sys.modules.get(MODULE)) is None:
        return
    for name in METHODS:
        method = vars(module.Evaluator).get(name)
        # Below another's wrapper ours stays, passing calls on.
        if _is_ours(method):
            setattr(module.Evaluator, name, method.__wrapped__)


def _is_ours(method: Any) -> bool:
    return type(method) is wrapt.FunctionWrapper and method._self_wrapper is _watch


def _layers(method: object) -> Iterator[object]:
    layer: object = method
    while layer is not None:
        yield layer
        layer = getattr(layer, "__wrapped__", None)


# From an evaluator to data.


def specify(evaluator: Any, mapping: Mapping[str, object] | None = None) -> EvalSpec:
    """`evaluator` as data, with the input mapping it is used with."""
    paths = {field: path for field, path in (mapping or {}).items() if isinstance(path, str)}
    computed = [f"input_mapping.{field}" for field in mapping or {} if field not in paths]
    kinds: dict[str, EvalKind] = {"llm": "LLM", "human": "HUMAN"}
    direction: Direction = evaluator.direction
    spec = EvalSpec(
        name=str(evaluator.name),
        kind=kinds.get(evaluator.kind, "CODE"),
        optimization_direction=direction,
        input_mapping=paths,
        unrecorded=tuple(computed),
    )
    if hasattr(evaluator, "prompt_template"):
        spec = _with_prompt(spec, evaluator)
    if not _is_all_data(evaluator):
        spec = _with_source(spec, evaluator)
    return spec


def _settings(evaluator: Any, mapping: Mapping[str, object] | None) -> tuple[object, ...]:
    """Whatever of an evaluator may change between two runs; equal settings, same definition."""
    llm = getattr(evaluator, "llm", None)
    return (
        evaluator.name,
        evaluator.direction,
        dict(mapping or {}),
        dict(getattr(evaluator, "invocation_parameters", None) or {}),
        getattr(evaluator, "include_explanation", None),
        getattr(evaluator, "prompt_template", None),
        repr(getattr(evaluator, "labels", None)),
        repr(getattr(evaluator, "label_score_map", None)),
        getattr(llm, "provider", None),
        getattr(llm, "model", None),
    )


def _is_all_data(evaluator: Any) -> bool:
    """Whether it is a classifier by Phoenix's own code, so that its settings are all there is to it."""
    own = (getattr(type(evaluator), name).__module__ for name in (*METHODS, "_evaluate", "_async_evaluate"))
    return hasattr(evaluator, "labels") and not any(module != MODULE for module in own)


def _with_prompt(spec: EvalSpec, evaluator: Any) -> EvalSpec:
    template = evaluator.prompt_template
    raw = template.template
    messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else raw
    labels: list[str] | dict[str, str] = getattr(evaluator, "labels", [])
    numbers = getattr(evaluator, "label_score_map", None) or {}
    parameters, left_out = _recordable(evaluator.invocation_parameters, "invocation_parameters")
    if not _is_plain_schema(evaluator.input_schema, template.variables):
        left_out.append("input_schema")
    if not _is_usual_client(evaluator.llm):
        left_out.append("client")
    return replace(
        spec,
        messages=cast(
            "tuple[Message, ...]", tuple({"role": _role(each["role"]), "content": each["content"]} for each in messages)
        ),
        template_format=_template_format(template),
        choices={label: _number(numbers.get(label)) for label in labels},
        descriptions=dict(labels) if isinstance(labels, dict) else {},
        include_explanation=getattr(evaluator, "include_explanation", True),
        provider=getattr(evaluator.llm, "provider", None),
        model=getattr(evaluator.llm, "model", None),
        invocation_parameters=parameters,
        unrecorded=(*spec.unrecorded, *left_out),
    )


def _role(role: Any) -> str:
    return str(getattr(role, "value", role))


def _number(value: Any) -> float | None:
    return value if value is None or type(value) in (int, float) else float(value)


def _template_format(template: Any) -> Literal["mustache", "f-string"] | None:
    """The format of the texts for which it matters; None if they differ, which only detection text by text gives."""
    parts = [part for message in template._messages for part in message._content_templates]
    formats = {part.format.value for part in parts if "{" in part.text or "}" in part.text}
    if len(formats) > 1:
        return None
    return "f-string" if "f-string" in formats else "mustache"


def _is_plain_schema(schema: Any, variables: Iterable[str]) -> bool:
    """Whether it asks for the template's variables as text and does nothing else: then it need not be kept."""
    if schema is None or schema.__module__ == MODULE:
        return True
    inputs = schema.model_fields
    decorators = schema.__pydantic_decorators__
    return (
        set(inputs) == set(variables)
        and decorators == type(decorators)()
        and not any(
            entry.annotation is not str or entry.metadata or not entry.is_required() for entry in inputs.values()
        )
    )


def _is_usual_client(llm: Any) -> bool:
    """Whether the provider is asked through the SDK that Phoenix takes for it when none is named."""
    try:
        registry = sys.modules["phoenix.evals.llm.registries"].PROVIDER_REGISTRY
        usual = registry.get_provider_registrations(llm.provider)[0]
        return isinstance(llm._sync_adapter, usual.adapter_class)
    except (AttributeError, IndexError, KeyError):  # an LLM of the application's own making
        return False


def _with_source(spec: EvalSpec, evaluator: Any) -> EvalSpec:
    """`spec` with where its code is: the decorated function, or the class."""
    function = getattr(evaluator, "_fn", None)
    code = type(evaluator) if function is None else function
    module, name = str(getattr(code, "__module__", None)), getattr(code, "__qualname__", type(code).__qualname__)
    if module == "__main__" and (started_as := getattr(sys.modules["__main__"], "__spec__", None)):
        module = started_as.name
    left_out = []
    if not _is_importable(module, name, code):
        left_out.append("source")
    if function is None and inspect.signature(type(evaluator)).parameters:
        left_out.append("arguments")
    return replace(spec, source=f"{module}:{name}", unrecorded=(*spec.unrecorded, *left_out))


def _is_importable(module: str, name: str, code: object) -> bool:
    """Whether another process that imports `module` finds `code` there, or the evaluator that was made of it."""
    found: object = sys.modules.get(module)
    if module == "__main__":
        return False
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None and code in (found, getattr(found, "_fn", None))


# Names of parameters that hold a secret or lead to one, and values that look like one.
_SECRET_NAME: Final = re.compile(
    r"(api|access|auth|secret|private|account|session)[_-]?(key|token)|secret|passw|credential|authorization|bearer"
    r"|cookie|headers?$|^(key|token|auth)$|_url$|^url$|api_base|endpoint|^extra_query$",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"://[^/\s@]*:[^/\s@]*@|\bBearer\s+\S{8}|\b(sk|pk|rk|gh[po]|hf|xox[bp])[-_][\w-]{16}|\bA(KIA|Iza)\w{12}"
)


def _recordable(value: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """What of `value` is harmless data, and the paths of what is not."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, item in value.items():
        here = f"{path}.{name}"
        if _SECRET_NAME.search(str(name)):
            left_out.append(here)
        elif isinstance(item, Mapping):
            kept[str(name)], inner = _recordable(item, here)
            left_out += inner
        elif _is_data(item):
            kept[str(name)] = item
        else:
            left_out.append(here)
    return kept, left_out


def _is_data(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return not any(not _is_data(item) for item in value)
    if isinstance(value, Mapping):
        return not _recordable(value, "")[1]
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return _SECRET_VALUE.search(value) is None
    return value is None or isinstance(value, bool | int)


# The store.


def _folder(store: str | Path | None) -> Path:
    """Where the records are, as seen from here and now. Makes nothing."""
    return files.nearest_home() / "evaluators" if store is None else Path(store).absolute()


def _write(folder: Path, spec: EvalSpec) -> None:
    if folder.parent.name == files.HOME_NAME:
        files.home(folder.parent.parent)  # with what keeps it private and out of commits
    label = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:40]
    path = folder / f"{label or 'evaluator'}.{spec.version}.json"
    if _read(path) != spec:
        files.write_text(path, json.dumps({"format": FORMAT, "spec": spec.to_json()}, indent=1, allow_nan=False) + "\n")
    now = time.time_ns()  # a file system's own clock gives files of the same few milliseconds the same time
    try:
        os.utime(path, ns=(now, now))
    except PermissionError:  # another user's file: only its own clock may be asked
        os.utime(path)


def _read(path: Path) -> EvalSpec | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return EvalSpec.from_json(record["spec"]) if record["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_all(folder: Path) -> list[EvalSpec]:
    """Every definition, the one that ran last first."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    read = {path: _read(path) for path in paths}
    damaged = [path.name for path, spec in read.items() if spec is None]
    if damaged:
        logger.warning("In %s, %d recorded evaluator(s) cannot be read: %s.", folder, len(damaged), ", ".join(damaged))
    return [spec for spec in read.values() if spec is not None]
