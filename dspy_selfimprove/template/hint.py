"""What an application said of its own prompt, believed only as far as it gives back the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dspy_selfimprove.message import FrozenDict, freeze
from dspy_selfimprove.prompt import slots_of
from dspy_selfimprove.template.naming import identifier
from dspy_selfimprove.template.reading import Template, read

_DOUBLE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_SINGLE = re.compile(r"\{([^{}]+?)\}")
_ESCAPED = re.compile(r"\{\{|\}\}|\{([^{}]+?)\}")


@dataclass(frozen=True, slots=True)
class Hint:
    """What came with one text: the template it was made from, the variables, the version. Any may be missing.

    >>> Hint("Hello {name}.", {"name": "Ana"}).variables["name"]
    'Ana'
    """

    template: str | None = None
    variables: Mapping[str, str] = field(default_factory=FrozenDict)
    version: str | None = None

    def __post_init__(self) -> None:
        given = {str(name): str(value) for name, value in self.variables.items()}
        object.__setattr__(self, "variables", freeze(given))


def proven(hint: Hint, text: str) -> tuple[Template, dict[str, str]] | None:
    """The hint's template in our form and the values, if together they give back the text; braces in any style."""
    if not hint.template:
        return None
    for style in ("double", "escaped", "single"):
        for pieces in _pieces(hint.template, style, hint.variables):
            made = _template(pieces)
            if made is None:
                continue
            template, names = made
            if hint.variables and set(names) <= set(hint.variables):
                values = {ours: hint.variables[theirs] for theirs, ours in names.items()}
                if template.render(values) == text:
                    return template, values
            elif not hint.variables and isinstance(found := read(template, text), dict):
                return template, found
    return None


def _pieces(template: str, style: str, variables: Mapping[str, str]) -> list[list[str]]:
    """Constants and names by turns, as this style reads the text."""
    pattern = {"double": _DOUBLE, "escaped": _ESCAPED, "single": _SINGLE}[style]
    pieces, start = [""], 0
    for match in pattern.finditer(template):
        name = match.group(1)
        if name is not None and variables and name.strip() not in variables:
            continue
        pieces[-1] += template[start : match.start()]
        if name is None:
            pieces[-1] += match.group()[0]
        else:
            pieces += [name.strip(), ""]
        start = match.end()
    pieces[-1] += template[start:]
    return [pieces] if len(pieces) > 1 else []


def _template(pieces: list[str]) -> tuple[Template, dict[str, str]] | None:
    """The template, and our name for each of theirs. None where two slots meet: nobody could read it back."""
    constants, theirs = pieces[::2], pieces[1::2]
    taken = {name for constant in constants for name in slots_of(constant)}
    names: dict[str, str] = {}
    for name in theirs:
        if name in names:
            continue
        ours = name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else identifier(name) or "slot"
        chosen, again = ours, 2
        while chosen in taken:
            chosen, again = f"{ours}_{again}", again + 1
        taken.add(chosen)
        names[name] = chosen
    text = "".join(piece if nth % 2 == 0 else "{{" + names[piece] + "}}" for nth, piece in enumerate(pieces))
    return Template(text, tuple(names.values())), names
