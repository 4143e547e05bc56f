"""Definition: a metric file as data. Its field names are Phoenix's own, so that Phoenix's files fit as they are.

    name, description           what is measured
    kind                        LLM (a judge) or CODE; told by the rest if it is left out
    optimization_direction      maximize, minimize or neutral
    messages                    the judge's prompt, with {{variables}}
    choices                     label: number, or label: [number, what it means]
    substitutions               Phoenix's: how a variable is shown. Answers are always shown with their tool calls here
    function                    of a CODE metric: package.module:name
    given                       ours: inputs that are the same for every example

All else (inputs, labels, scope, recommended, category, details) is for readers and for Phoenix, and is left alone. A
file is found by path, or by name in `.selfimprove/metrics/` and then among those shipped. Reading one imports nothing;
a CODE metric's function is imported when the metric is made, and is as trustworthy as any other code of yours.

Not covered: judges that answer with a free number instead of a choice, and pairwise ones.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

import yaml

from dspy_selfimprove import files
from dspy_selfimprove.errors import DataError, UsageError
from dspy_selfimprove.message import FrozenDict
from dspy_selfimprove.sample import Direction, EvalSpec

DIRECTIONS: Final = ("maximize", "minimize", "neutral")
_SETTINGS: Final = ("weight", "priority", "at_least", "scale", "input_mapping")
_KNOWN: Final = (
    *("name", "description", "kind", "optimization_direction", "messages", "choices", "substitutions", "function"),
    *("given", "inputs", "labels", "scope", "recommended", "category", "details", "include_explanation"),
    *("provider", "model"),
)
_SHOWN: Final = frozenset({"output_messages_to_conversation", "output_with_tool_calls"})


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric file says. `spec` is its judge; without one, `function` says where its code is."""

    name: str
    path: Path
    direction: Direction = "maximize"
    description: str = ""
    spec: EvalSpec | None = None
    function: str = ""
    given: Mapping[str, Any] = field(default_factory=FrozenDict)
    shown: Mapping[str, str] = field(default_factory=FrozenDict)  # variables that stand for the answer

    def imported(self) -> Callable[..., Any]:
        module, colon, name = self.function.partition(":")
        if not (module and colon and name):
            raise _broken(self.path, "`function` is not written as package.module:name")
        try:
            found = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            raise _broken(self.path, f"`{self.function}` cannot be imported") from None
        if not callable(found):
            raise _broken(self.path, f"`{self.function}` is not a function")
        return cast("Callable[..., Any]", found)


def read(what: str | Path) -> Definition:
    """The definition in a metric file, by name or path.

    >>> read("helpfulness").direction
    'maximize'
    """
    path = find(what)
    try:
        about = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError):
        raise _broken(path, "it is not YAML") from None
    if not isinstance(about, dict) or not isinstance(about.get("name"), str) or not about["name"]:
        raise _broken(path, "it has no `name`")
    _refuse_strange(path, about)
    for each in ("given", "substitutions"):
        if not isinstance(about.get(each) or {}, dict):
            raise _broken(path, f"`{each}` is not a mapping")
    direction: Direction = about.get("optimization_direction") or "maximize"
    if direction not in DIRECTIONS:
        raise _broken(path, "`optimization_direction` is none of maximize, minimize and neutral")
    kind = str(about.get("kind") or ("CODE" if "function" in about else "LLM")).upper()
    if kind not in ("LLM", "CODE"):
        raise _broken(path, "`kind` is neither LLM nor CODE")
    shown = {str(name): "output" for name, how in (about.get("substitutions") or {}).items() if how in _SHOWN}
    return Definition(
        name=about["name"],
        path=path,
        direction=direction,
        description=str(about.get("description") or "").strip(),
        spec=_spec(path, about, direction) if kind == "LLM" else None,
        function=str(about.get("function") or ""),
        given=FrozenDict(about.get("given") or {}),
        shown=FrozenDict({name: source for name, source in shown.items() if name != source}),
    )


class _Loader(yaml.SafeLoader):
    """YAML whose keys are what is written: to YAML itself the label `no` is a falsehood, and `1` a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        keys = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
        if None in keys or len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key is no text, or is there twice", node.start_mark)
        return {key: self.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


def _refuse_strange(path: Path, about: Mapping[str, Any]) -> None:
    """A field that was meant for us and is none: to leave it alone would turn a metric round, or let a floor go."""
    for name in about:
        if name == "direction":
            raise _broken(path, "the field `direction` is called `optimization_direction` in a file")
        if name in _SETTINGS:
            raise _broken(path, f"`{name}` is not the metric's, but yours: metric_of(..., {name}=...)")
        if name not in _KNOWN and (near := difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.8)):
            raise _broken(path, f"it has a field `{name}`, and may mean `{near[0]}`")


def find(what: str | Path) -> Path:
    """The file of a metric."""
    if isinstance(what, Path) or os.sep in what or what.endswith((".yaml", ".yml")):
        path = Path(what)
        if not path.is_file():
            raise UsageError(f"There is no metric file {path}.", remedy="Check the path.")
        return path
    homes = (files.nearest_home() / "metrics", files.definitions("metrics"))
    for home in homes:
        if (path := home / f"{what}.yaml").is_file():
            return path
    known = sorted({path.stem for home in homes for path in home.glob("*.yaml")})
    near = difflib.get_close_matches(what, known, n=1)
    raise UsageError(
        f"There is no metric {what!r}.",
        remedy=f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(known)}; or give a path.",
    )


def check_choices(name: str, choices: Mapping[str, float | None]) -> None:
    """Refuse choices that are not numbers, or tell nothing apart."""
    for label, value in choices.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(
                f"The choice {label!r} of {name!r} has no number.",
                remedy="Write each choice as `label: number`, the larger the better unless the direction is minimize.",
            )
    if len(set(choices.values())) < 2:
        raise UsageError(
            f"The choices of {name!r} do not tell better from worse.",
            remedy="Give two choices or more, with different numbers.",
        )


def _spec(path: Path, about: Mapping[str, Any], direction: Direction) -> EvalSpec:
    messages, choices = about.get("messages"), about.get("choices")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in messages)
    ):
        raise _broken(path, "it has no `messages`, each with a role and a content")
    if isinstance(choices, list):
        choices = dict.fromkeys(choices)  # labels alone: check_choices says what they lack
    if not isinstance(choices, dict) or not choices:
        raise _broken(path, "it has no `choices`")
    values = {str(label): value[0] if isinstance(value, list) and value else value for label, value in choices.items()}
    words = {str(label): value[1] for label, value in choices.items() if isinstance(value, list) and len(value) == 2}
    spec = EvalSpec(
        name=about["name"],
        kind="LLM",
        optimization_direction=direction,
        messages=tuple(messages),
        choices=values,
        descriptions=words,
        include_explanation=bool(about.get("include_explanation", True)),
        provider=about.get("provider"),
        model=about.get("model"),
    )
    check_choices(spec.name, spec.choices)
    return spec


def _broken(path: Path, why: str) -> DataError:
    return DataError(f"The metric file {path} cannot be used: {why}.", remedy="Correct it; metrics/ has examples.")
