"""What to call a slot: by the application's own word for it, else by the label before it, else by what it holds."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dspy_selfimprove.prompt import slots_of
from dspy_selfimprove.template.tokens import kind_of

_KINDS = frozenset({"date", "time", "email", "url", "amount", "phone"})
# `- **Customer name**: `, `"customer_name": "`, `plan = `
_LABEL = re.compile(
    r"(?:^|[\n.;,({\[|>])[ \t]*(?:[-*+#>|]+ *)*[*_\"'`]*([^\W\d][\w -]{0,30}?)[*_\"'`]*"
    r"[ \t]*[:=][*_]*[ \t\n]*[\"'`“*_\[(]*$"
)
_HEADING = re.compile(r"(?:^|\n)#+ *([^\W\d][\w -]{0,30}?)[ \t]*:?\n+$")
# `whose plan is `, `The order number is `
_SENTENCE = re.compile(
    r"\b(?:the|their|whose|your|['\u2019]s) +([^\W\d][\w-]*(?: [\w-]+)?) is +[\"'`“*_]*$", re.IGNORECASE
)
_TAG = re.compile(r"<([A-Za-z_][\w-]{0,30})(?: [^<>\n]*)?>\s*$")


def identifier(words: str) -> str:
    """`Customer's name` as a name a template may use: `customer_s_name`; empty if no ASCII letter or digit is left."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return re.sub(r"^(?=\d)", "_", "_".join(re.findall(r"[a-z0-9]+", plain.lower())))


def name_slots(
    constants: Sequence[str], values: Sequence[Sequence[str]], said: Sequence[Mapping[str, str]] = ()
) -> list[str]:
    """A name for each slot between the constants, all different, and none that stands in the text as `{{name}}`.

    `values` holds some of each slot's values, `said` what the application called its values, text by text.
    """
    taken = set(slots_of("".join(constants)) + tuple(name for constant in constants for name in slots_of(constant)))
    names: list[str] = []
    for nth, (before, column) in enumerate(zip(constants, values, strict=False), start=1):
        name = _said(column, said) or _label(before) or _kind(column) or f"slot_{nth}"
        chosen, again = name, 2
        while chosen in taken:
            chosen, again = f"{name}_{again}", again + 1
        taken.add(chosen)
        names.append(chosen)
    return names


def _said(column: Sequence[str], said: Sequence[Mapping[str, str]]) -> str:
    """The variable that held this slot's value wherever the application named its variables."""
    told = [(value, variables) for value, variables in zip(column, said, strict=False) if variables]
    votes = Counter(name for value, variables in told for name, given in variables.items() if given == value)
    if not votes:
        return ""
    name, count = max(votes.items(), key=lambda vote: (vote[1], vote[0]))
    return identifier(name) if 2 * count > len(told) else ""


def _label(before: str) -> str:
    for pattern in (_TAG, _LABEL, _HEADING, _SENTENCE):
        if match := pattern.search(before[-80:]):
            words = identifier(match.group(1)).split("_")
            return "_".join(words) if len(words) <= 3 else ""
    return ""


def _kind(column: Iterable[str]) -> str:
    kinds = Counter(kind_of(value) for value in column if value)
    if not kinds:
        return ""
    kind, count = max(kinds.items(), key=lambda pair: (pair[1], pair[0]))
    return kind if kind in _KINDS and count == kinds.total() else ""
