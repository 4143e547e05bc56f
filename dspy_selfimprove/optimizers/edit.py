"""Edit: one small change to a prompt, and how changes are applied so that what they do not name stays byte for byte.

A coach that writes a whole text again loses half a sentence here and a placeholder there, and nobody notices. So it
names its changes, each with the words it changes, and the text is changed here:

    add       `text` on a line of its own, after the line that ends the `quote`; at the end without one
    replace   the `quote` becomes `text`
    remove    the `quote` goes, and its line with it if nothing else is on it

A quote counts as found if it stands in the text once; line breaks, spaces and the kind of quotation marks may differ.
One that is not found is not guessed at. If the coach wrote the whole text as well, and that keeps, word for word and in
order, every sentence that no quote is about, then the whole text is taken; otherwise the edit is dropped, with the
reason. An edit that would lose a `{{placeholder}}`, or bring in one that the prompt does not know, is dropped too.

Not covered: whether a change is wise (that is measured), and what it says (that is guard.py's).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from dspy_selfimprove.prompt import slots_of

Kind: TypeAlias = Literal["add", "replace", "remove"]
Span: TypeAlias = tuple[int, int]

NOT_FOUND: Final = "its quote is not in the text"
TWICE: Final = "its quote is in the text more than once"
OVERLAPS: Final = "another edit changes the same words"
NOTHING: Final = "it changes nothing"
LOSES_SLOT: Final = "it would lose a placeholder"
STRANGE_SLOT: Final = "it brings in a placeholder that the prompt does not know"


@dataclass(frozen=True, slots=True)
class Edit:
    """One change; `quote` is the current text's own words.

    >>> Edit("replace", "Be brief.", "Answer in two sentences.").text
    'Answer in two sentences.'
    """

    kind: Kind
    quote: str = ""
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "quote": self.quote, "text": self.text}


@dataclass(frozen=True, slots=True)
class Edited:
    """A text after edits: which were applied, and which were not and why. `whole` says that the coach's text was taken.

    >>> edited("Be kind.\\nBe brief.", [Edit("remove", "Be brief."), Edit("add", text="Sign off.")]).text
    'Be kind.\\nSign off.'
    """

    text: str
    applied: tuple[Edit, ...] = ()
    dropped: tuple[tuple[Edit, str], ...] = ()
    whole: bool = False


def edited(text: str, edits: Iterable[Edit], *, whole: str | None = None, slots: Iterable[str] = ()) -> Edited:
    """`text` with `edits` applied; `whole` is the text as the coach wrote it, `slots` what the prompt knows besides."""
    placed: list[_Placed] = []
    dropped: list[tuple[Edit, str]] = []
    known = {*slots, *slots_of(text)}
    for edit in edits:
        spot = _place(text, edit, known, placed)
        if isinstance(spot, str):
            dropped.append((edit, spot))
        else:
            placed.append(spot)
    lost = [edit for edit, reason in dropped if reason in (NOT_FOUND, TWICE)]
    if lost and whole is not None and _keeps_slots(text, whole, known):
        asked = [*(each.edit for each in placed), *lost]
        if whole.strip() != text.strip() and keeps(text, whole, [*(each.core for each in placed)], lost):
            others = tuple(each for each in dropped if each[0] not in lost)
            return Edited(whole, tuple(asked), others, whole=True)
    placed, unfit = _with_slots_kept(text, placed, known)
    return Edited(_applied(text, placed), tuple(each.edit for each in placed), (*dropped, *unfit))


def keeps(text: str, whole: str, spans: Iterable[Span] = (), unfound: Iterable[Edit] = ()) -> bool:
    """Whether `whole` has, unchanged and in order, every sentence of `text` that no span and no unfound quote is about.

    >>> keeps("Be kind. Be brief.", "Be kind. Be very brief.", unfound=[Edit("replace", "Be brief!")])
    True
    >>> keeps("Be kind. Be brief.", "Be brief.")
    False
    """
    taken = list(spans)
    quotes = [words for edit in unfound if (words := _words(edit.quote))]
    at = 0
    for start, end in _sentences(text):
        said = text[start:end].strip()
        if any(start < stop and begin < end for begin, stop in taken):
            continue
        if not said or any(_is_about(words, _words(said)) for words in quotes):
            continue
        found = whole.find(said, at)
        if found < 0:
            return False
        at = found + len(said)
    return True


def difference(old: str, new: str) -> tuple[Edit, ...]:
    """The edits, in whole sentences, that lead from one text to another.

    >>> difference("Be kind.\\nBe brief.", "Be kind.\\nBe brief.\\nSign off.")
    (Edit(kind='add', quote='', text='Sign off.'),)
    """
    before, after = ([text[start:end] for start, end in _sentences(text)] for text in (old, new))
    found: list[Edit] = []
    matcher = difflib.SequenceMatcher(None, [each.strip() for each in before], [each.strip() for each in after], False)
    for tag, start, end, begin, stop in matcher.get_opcodes():
        gone, come = "".join(before[start:end]).strip(), "".join(after[begin:stop]).strip()
        if tag == "equal" or gone == come:
            continue
        if gone:
            found.append(Edit("replace", gone, come) if come else Edit("remove", gone))
        elif start == 0 and before:  # nothing stands before it that it could follow
            found.append(Edit("replace", before[0].strip(), "".join([*after[begin:stop], before[0]]).strip()))
        elif start and not before[start - 1].endswith("\n") and start < len(before):  # in the middle of a line
            last = before[start - 1]
            found.append(Edit("replace", last.strip(), f"{last.rstrip()} {come}"))
        else:
            anchor = before[start - 1].strip() if 0 < start < len(before) else ""
            lines = "".join(after[begin:stop]).strip("\n").split("\n")
            found += [Edit("add", anchor, line.rstrip()) for line in lines if line.strip()]
    return tuple(found)


def told(edits: Iterable[Edit]) -> str:
    """Edits in words, a line each, as a coach reads them.

    >>> print(told([Edit("replace", "Be brief.", "Use two sentences."), Edit("remove", "Be kind.")]))
    Instead of: Be brief.
    Say: Use two sentences.
    Leave out: Be kind.
    """
    lines: list[str] = []
    for edit in edits:
        before = "Leave out" if edit.kind == "remove" else "Instead of"
        after = "Add" if edit.kind == "add" else "Say"
        lines += [f"{before}: {line}" for line in _lines(edit.quote) if edit.kind != "add"]
        lines += [f"{after}: {line}" for line in _lines(edit.text) if edit.kind != "remove"]
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    return [said for start, end in _sentences(text) if (said := text[start:end].strip())]


def meet(changes: Sequence[Sequence[Edit]]) -> bool:
    """Whether two of several updates are about the same thing in different words: then somebody has to choose.

    >>> meet([[Edit("add", "", "Sign off.")], [Edit("add", "", "Greet by name.")]])
    False
    >>> meet([[Edit("add", "", "Greet by first name.")], [Edit("add", "", "Always greet by name.")]])
    True
    """
    return any(
        _is_same_matter(edit, contrary)
        for place, edits in enumerate(changes)
        for others in changes[:place]
        for edit in edits
        for contrary in others
    )


def _is_same_matter(one: Edit, other: Edit) -> bool:
    if one == other:
        return False
    quotes = [_words(edit.quote) for edit in (one, other) if edit.kind != "add"]
    same_quote = len(quotes) == 2 and (_is_about(*quotes) or quotes[0] == quotes[1])
    return same_quote or _is_about(_words(one.text), _words(other.text))


def unwrapped(text: str, current: str) -> str:
    """A text out of the code fence that a model likes to put around it."""
    text = text.strip()
    if match := None if current.lstrip().startswith("```") else _FENCED.fullmatch(text):
        return match.group(1).strip("\n")
    return text


_FENCED: Final = re.compile(r"```[\w-]*\n((?:(?!```).)*)```", re.DOTALL)


# -- where an edit goes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placed:
    """An edit, the words it quotes (`core`; none for an addition) and what it takes out in all (`span`)."""

    edit: Edit
    core: Span
    span: Span
    text: str


def _place(text: str, edit: Edit, known: set[str], placed: Sequence[_Placed]) -> _Placed | str:
    """Where the edit goes, or why it goes nowhere."""
    new = edit.text.strip("\n") if edit.kind != "remove" else ""
    if set(slots_of(new)) - known:
        return STRANGE_SLOT
    if edit.kind == "add":
        return _place_addition(text, edit, new, placed)
    core = _found(text, edit.quote)
    if isinstance(core, str):
        return core
    start, end = core
    if any(start < each.core[1] and each.core[0] < end for each in placed):
        return OVERLAPS
    if any(each.edit.kind == "add" and start < each.core[0] < end for each in placed):
        return OVERLAPS
    if text[start:end] == new:
        return NOTHING
    span = core if new.strip() else _widened(text, core)
    return _Placed(edit, core, span, new if new.strip() else "")


def _place_addition(text: str, edit: Edit, new: str, placed: Sequence[_Placed]) -> _Placed | str:
    if not new.strip():
        return NOTHING
    at = len(text)
    if edit.quote.strip():
        core = _found(text, edit.quote)
        if isinstance(core, str):
            return core
        at = text.find("\n", core[1])
        at = len(text) if at < 0 else at
    if any(each.span[0] < at < each.span[1] or each.span[0] == at - 1 < each.core[0] for each in placed):
        at = len(text)
    return _Placed(edit, (at, at), (at, at), new)


def _found(text: str, quote: str) -> Span | str:
    quote = quote.strip()
    if not quote:
        return NOT_FOUND
    for words, write in ((quote, re.escape), (quote, _loosely), (quote.strip(_MARKS), _loosely)):
        # Ahead, so that two places that overlap are two; and never a part of a word: "art" is not in "start".
        pattern = rf"(?={_EDGE if _is_word(words[:1]) else ''}({write(words)}){_EDGE if _is_word(words[-1:]) else ''})"
        matches = list(re.finditer(pattern, text)) if words else []
        if len(matches) > 1:
            return TWICE
        if matches:
            return matches[0].span(1)
    return NOT_FOUND


_EDGE: Final = r"\b"


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_MARKS: Final = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb "
_ALIKE: Final = ('"\u201c\u201d', "'\u2018\u2019", "-\u2010\u2011\u2013\u2014")


def _loosely(quote: str) -> str:
    """A pattern for the same words with other spaces, quotation marks or dashes."""
    return r"\s+".join("".join(_alike(char) for char in word) for word in quote.split())


def _alike(char: str) -> str:
    kind = next((each for each in _ALIKE if char in each), None)
    return re.escape(char) if kind is None else f"[{re.escape(kind)}]"


_LEFT_OVER: Final = re.compile(r"[ \t]*(?:[-*\u2022]|\(?\d{1,3}[.)])?[ \t]*")


def _widened(text: str, core: Span) -> Span:
    """What goes with words that are taken out: their line if it would be empty, else one of the two spaces."""
    start, end = core
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", end)
    stop = len(text) if stop < 0 else stop
    before, after = text[begin:start], text[end:stop]
    if _LEFT_OVER.fullmatch(before) and not after.strip():
        return (begin, stop + 1) if stop < len(text) else (max(0, begin - 1), stop)
    if after.startswith(" ") and (not before or before.endswith(" ")):
        return start, end + 1
    return (start - 1, end) if not after and before.endswith(" ") else core


def _applied(text: str, placed: Iterable[_Placed]) -> str:
    result, at = "", 0
    for each in sorted(placed, key=lambda each: (each.core, each.span)):
        start, end = max(at, each.span[0]), max(at, each.span[1])
        result += text[at:start]
        if each.edit.kind == "add" and result and not result.endswith("\n"):
            result += "\n"
        result += each.text
        at = end
    return result + text[at:]


# -- what must not get lost -----------------------------------------------------------------------------------------


def _keeps_slots(text: str, new: str, known: Iterable[str]) -> bool:
    return set(slots_of(text)) <= set(slots_of(new)) <= set(known)


def _with_slots_kept(text: str, placed: list[_Placed], known: set[str]) -> tuple[list[_Placed], list[tuple[Edit, str]]]:
    """The edits without those that take the last of a placeholder away, or break one."""
    unfit: list[tuple[Edit, str]] = []
    while not _keeps_slots(text, _applied(text, placed), known):
        guilty = [each for each in placed if not _keeps_slots(text, _applied(text, [each]), known)]
        guilty = guilty or placed[-1:]  # two of them together: the earlier one has its way
        unfit += [(each.edit, LOSES_SLOT) for each in guilty]
        placed = [each for each in placed if each not in guilty]
    return placed, unfit


_END: Final = re.compile(r"(?<=[.!?;:])[ \t]+(?=\S)|\n+(?=\s*\S)")


def _sentences(text: str) -> list[Span]:
    """Spans that tile the text: a sentence or a line each, with the white space after it."""
    ends = [match.end() for match in _END.finditer(text)]
    return [(start, end) for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]


def _words(text: str) -> frozenset[str]:
    return frozenset(word[:5] for word in re.findall(r"\w+", text.lower()))  # "discount" and "discounts" are one


def _is_about(quote: frozenset[str], sentence: frozenset[str]) -> bool:
    """Whether a quote that was not copied exactly means this sentence: most words of the shorter one are in both."""
    return len(quote & sentence) >= 0.7 * max(1, min(len(quote), len(sentence))) and len(quote & sentence) >= 2
