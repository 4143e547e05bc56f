"""Reading: what a chat-completion request asks for and in which form, from its text alone; and the answer in that form.

A model sees one body of messages; what a person wrote, what an adapter wrapped around it and what is data come mixed.
`read` takes them apart again, so that the three roles (worker, judge, coach) need to know nothing of adapters, and so
that a prompt is judged by the words its author wrote: the scaffolding of an adapter never counts as prompt text.
`render` puts values into the form that was asked for; it always parses, whatever the values are.

Forms: DSPy's ChatAdapter, JSONAdapter, XMLAdapter and TwoStepAdapter; a JSON schema or JSON mode; a tool call, forced
or free; a fenced block; plain text. The recognisers follow the sentences those libraries really write, and the tests
run the libraries to produce them.

Not covered: images and audio (left out), BAMLAdapter's schema notation, several tool calls in one answer. Without an
adapter, earlier turns of a conversation and few-shot examples look the same, so both `demos` and `history` hold them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast

from dspy_selfimprove.message import FrozenDict, text_of

Role: TypeAlias = Literal["worker", "judge", "coach"]
Form: TypeAlias = Literal["chat", "json", "xml", "two_step", "schema", "tool", "fence", "text"]
Kind: TypeAlias = Literal["str", "int", "float", "bool", "choice", "list", "dict"]
Schema: TypeAlias = Mapping[str, Any]

_STRING: Schema = FrozenDict({"type": "string"})


@dataclass(frozen=True, slots=True)
class OutputField:
    """One value the answer must hold. `schema` is JSON Schema; `kind` and `choices` are what is mostly asked of it."""

    name: str
    kind: Kind = "str"
    choices: tuple[str, ...] = ()
    description: str = ""
    schema: Schema = field(default=_STRING, repr=False)

    @classmethod
    def of(cls, name: str, schema: Schema, description: str = "", definitions: Schema | None = None) -> OutputField:
        known = {**(definitions or {}), **schema.get("$defs", {})}
        plain = _resolve(schema, known)
        choices = _choices(plain)
        kind: Kind = "choice" if choices else _KINDS.get(str(plain.get("type")), "str")
        whole = {**schema, "$defs": known} if known else schema
        return cls(name, kind, choices, description or str(schema.get("description", "")), whole)


@dataclass(frozen=True, slots=True)
class Demo:
    """One example shown in the prompt. Fields that were not supplied are absent."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation, text only."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A request, taken apart. `instructions` is only what a person wrote; `inputs` is the data of this one request."""

    role: Role
    form: Form
    instructions: str
    inputs: Mapping[str, str]
    outputs: tuple[OutputField, ...]
    demos: tuple[Demo, ...] = ()
    history: tuple[Turn, ...] = ()
    tool: str | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes into the assistant's message: text, or one tool call."""

    text: str | None
    tool_call: ToolCall | None = None


def read(body: Mapping[str, Any]) -> Reading:
    """Take the body of a chat-completion request apart."""
    messages: Sequence[Mapping[str, Any]] = body["messages"]
    system = "\n\n".join(text_of(m) for m in messages if m.get("role") in ("system", "developer"))
    turns = tuple(
        Turn(str(m.get("role")), text_of(m)) for m in messages if m.get("role") not in ("system", "developer")
    )
    temperature = body.get("temperature")
    warmth = 1.0 if temperature is None else float(temperature)
    frame = _frame(system)
    if frame is not None:
        return _read_framed(frame, turns, body, warmth)
    return _read_plain(system, turns, body, warmth)


def render(reading: Reading, values: Mapping[str, str]) -> Answer:
    """The answer in the form asked for. A value that is missing or of another type is made to fit."""
    data = {entry.name: _fit_field(reading, entry, values.get(entry.name)) for entry in reading.outputs}
    match reading.form:
        case "tool":
            return Answer(None, ToolCall(reading.tool or "", json.dumps(data, ensure_ascii=False)))
        case "json" | "schema":
            return Answer(json.dumps(data, ensure_ascii=False))
        case "chat":
            sections = [f"[[ ## {name} ## ]]\n{_no_marker(_plain(value))}" for name, value in data.items()]
            return Answer("\n\n".join([*sections, "[[ ## completed ## ]]"]))
        case "xml":
            return Answer("\n\n".join(f"<{name}>\n{_escape(_plain(value))}\n</{name}>" for name, value in data.items()))
        case "two_step":
            return Answer("\n\n".join(f"{name}: {_plain(value)}" for name, value in data.items()))
        case "fence":
            return Answer("\n\n".join(f"```\n{_plain(value)}\n```" for value in data.values()))
        case "text":
            return Answer("\n\n".join(_plain(value) for value in data.values()))


def extracted(reading: Reading) -> Mapping[str, str] | None:
    """The values, if all that is asked is to find them in a text: the second step of DSPy's TwoStepAdapter."""
    if not reading.instructions.startswith(_TWO_STEP_SECOND):
        return None
    return _labelled(reading.inputs.get("text", ""), [entry.name for entry in reading.outputs])


# -- DSPy's adapters ------------------------------------------------------------------------------------------------

_INTERACTIONS = "All interactions will be structured in the following way, with the appropriate values filled in."
_OBJECTIVE = "In adhering to this structure, your objective is:"
_JSON_OUTPUTS = "Outputs will be a JSON object with the following fields."
_TWO_STEP = (
    "You are a helpful assistant that can solve tasks based on user input.\nAs input, you will be provided with:\n"
)
_TWO_STEP_OUTPUTS = "Your outputs must contain:\n"
_TWO_STEP_END = "You should lay out your outputs in detail so that your answer can be understood by another agent"
_TWO_STEP_TASK = "Specific instructions: "
_TWO_STEP_SECOND = "The input is a text that should contain all the necessary information to produce the fields "
_REMINDER: dict[Form, str] = {
    "chat": "Respond with the corresponding output fields, starting with the field ",
    "json": "Respond with a JSON object in the following order of fields: ",
    "xml": "Respond with the corresponding output fields wrapped in XML tags ",
}
_NOT_SUPPLIED = ("Not supplied for this particular example.", "Not supplied for this conversation history message.")

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):(?= |$)[ ]?(.*)$", re.MULTILINE)
_NOTE = re.compile(r"\{(\w+)\} {8}# note: the value you produce (.+)$", re.MULTILINE)
_MARKER = re.compile(r"^\[\[ ## (\w+) ## \]\][ \t]*\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What an adapter's system message says, apart from the author's instructions."""

    form: Form
    inputs: tuple[str, ...]
    history: bool
    outputs: tuple[OutputField, ...]
    instructions: str


@lru_cache(maxsize=512)
def _frame(system: str) -> _Frame | None:
    if system.startswith("Your input fields are:\n") and _INTERACTIONS in system and _OBJECTIVE in system:
        head, _, rest = system.partition(_INTERACTIONS)
        structure, _, objective = rest.partition(_OBJECTIVE)
        fields_in, _, fields_out = head.partition("\nYour output fields are:\n")
        form: Form = "json" if _JSON_OUTPUTS in structure else "chat" if "[[ ## completed ## ]]" in structure else "xml"
        lines = objective.strip(" ").removeprefix("\n").split("\n")
        instructions = "\n".join(line.removeprefix(" " * 8) for line in lines).strip("\n")
        if form == "json":  # there the notes stand inside JSON strings
            shape = _loads(structure.partition(_JSON_OUTPUTS)[2])
            structure = "\n".join(map(str, shape.values())) if isinstance(shape, dict) else ""
        notes = {name: _note_schema(note) for name, note in _NOTE.findall(structure)}
        return _framed(form, fields_in, fields_out, instructions, notes)
    if system.startswith(_TWO_STEP):
        fields_in, _, rest = system.removeprefix(_TWO_STEP).partition(_TWO_STEP_OUTPUTS)
        fields_out, _, task = rest.partition(_TWO_STEP_END)
        return _framed("two_step", fields_in, fields_out, task.strip("\n").removeprefix(_TWO_STEP_TASK), {})
    return None


def _framed(
    form: Form, fields_in: str, fields_out: str, instructions: str, notes: Mapping[str, Schema | None]
) -> _Frame:
    inputs = [(name, annotation) for name, annotation, _ in _FIELD.findall(fields_in)]
    outputs = tuple(
        OutputField.of(name, notes.get(name) or _annotation_schema(annotation), description)
        for name, annotation, description in _FIELD.findall(fields_out)
    )
    history = any(annotation == "History" for _, annotation in inputs)
    return _Frame(form, tuple(name for name, _ in inputs), history, outputs, instructions)


def _note_schema(note: str) -> Schema | None:
    """The schema a type note carries. Only JSON is taken from it; the simple types are in the annotation already."""
    _, found, text = note.partition("must adhere to the JSON schema: ")
    if found:
        loaded = _loads(text)
        return loaded if isinstance(loaded, dict) else None
    _, found, text = note.partition("must be one of: ")
    return {"enum": [choice.strip() for choice in text.split(";")]} if found else None


def _read_framed(frame: _Frame, turns: tuple[Turn, ...], body: Mapping[str, Any], temperature: float) -> Reading:
    *earlier, last = turns or (Turn("user", ""),)
    if last.role != "user":
        earlier, last = [*earlier, last], Turn("user", "")
    demos = tuple(
        Demo(_sections(frame, asked.text, frame.inputs), _reply(frame, given.text))
        for asked, given in _exchanges(earlier)
    )
    reminder = _REMINDER.get(frame.form)
    question = last.text.rpartition(reminder)[0] if reminder and reminder in last.text else last.text
    inputs = _sections(frame, question, frame.inputs)
    outputs = _sharpened(frame.outputs, body)
    return Reading(
        role=_role_of_fields(frame.instructions, inputs, outputs),
        form=frame.form,
        instructions=frame.instructions,
        inputs=inputs,
        outputs=outputs,
        demos=() if frame.history else demos,
        history=tuple(earlier) if frame.history else (),
        temperature=temperature,
    )


def _sharpened(outputs: tuple[OutputField, ...], body: Mapping[str, Any]) -> tuple[OutputField, ...]:
    """With a response schema as well, the schema's word counts: it says more about types than an annotation."""
    asked = _response_schema(body)
    if asked is None:
        return outputs
    given = {entry.name: entry for entry in _schema_fields(asked)}
    return tuple(given.get(entry.name, entry) for entry in outputs)


def _sections(frame: _Frame, text: str, names: Sequence[str]) -> dict[str, str]:
    if frame.form == "xml":
        return _tagged(text, names)
    if frame.form == "two_step":
        return _labelled(text, names)
    return _marked(text, names)


def _reply(frame: _Frame, text: str) -> dict[str, str]:
    names = [entry.name for entry in frame.outputs]
    if frame.form == "json":
        loaded = _loads(text)
        found = {name: _plain(loaded[name]) for name in names if name in loaded} if isinstance(loaded, dict) else {}
    elif frame.form == "xml":
        found = {name: _unescape(value) for name, value in _tagged(text, names).items()}
    else:
        found = _sections(frame, text.rpartition("[[ ## completed ## ]]")[0] or text, names)
    return {name: value for name, value in found.items() if value.strip() not in (*_NOT_SUPPLIED, "None", "null")}


def _marked(text: str, names: Sequence[str]) -> dict[str, str]:
    """Sections under `[[ ## name ## ]]`, in the order announced, so that no value can open a section before its turn.

    A value that quotes a marker of a later field is still whole: of equal markers the last one counts.
    """
    at: dict[str, list[re.Match[str]]] = {}
    for match in _MARKER.finditer(text):
        at.setdefault(match.group(1), []).append(match)
    end = len(text)
    first = next((name for name in names if name in at), None)
    found: dict[str, str] = {}
    for name in reversed(names):
        inside = [match for match in at.get(name, ()) if match.start() < end]
        if inside:
            start = inside[0 if name == first else -1]
            found[name] = text[start.end() : end].strip()
            end = start.start()
    return {name: found[name] for name in names if name in found}


def _tagged(text: str, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        match = re.search(rf"<{re.escape(name)}>\n?(.*?)\n?</{re.escape(name)}>", text, re.DOTALL)
        if match:
            found[name] = match.group(1).strip()
    return found


def _labelled(text: str, names: Sequence[str]) -> dict[str, str]:
    """Values after `name: ` at a line's start, each up to the next such label."""
    pattern = re.compile(rf"^({'|'.join(map(re.escape, names))}): ", re.MULTILINE) if names else re.compile("(?!)")
    matches = list({match.group(1): match for match in reversed(list(pattern.finditer(text)))}.values())[::-1]
    matches.sort(key=lambda match: match.start())
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return {match.group(1): text[match.end() : end].strip() for match, end in zip(matches, ends, strict=True)}


# -- everything else ------------------------------------------------------------------------------------------------

_LABELLED = re.compile(
    r"^\W{0,4}(input|question|query|output|response|answer|reply|ticket|message|context|document|reference|expected"
    r"|conversation)\W{0,4}:[ \t]*(.*(?:\n(?!\W{0,4}\w+\W{0,4}:|\s*$).*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_LEAF = re.compile(r"<([A-Za-z_]\w*)>\n*((?:(?!<[A-Za-z_]\w*>).)*?)\n*</\1>", re.DOTALL)
_NOT_DATA = frozenset(
    {"rubric", "criteria", "instructions", "instruction", "rules", "examples", "guidelines", "labels"}
)


def _read_plain(system: str, turns: tuple[Turn, ...], body: Mapping[str, Any], temperature: float) -> Reading:
    last = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    tool = _tool(body, turns, last)
    schema = _parameters(tool) if tool is not None else _response_schema(body)
    structured = schema is not None
    # What decides the role: the system prompt if there is one, since whoever writes there is not a customer.
    said = system or last
    json_mode = not structured and body.get("response_format", {}) and _format_type(body) == "json_object"
    outputs = _schema_fields(schema) if schema is not None else _asked_keys(system, last) if json_mode else ()
    role: Role
    if outputs:
        role = _role_of_fields(said, _data(last), outputs)
        if role == "worker" and tool is None:
            role = _role_of_text(said, last)
    else:
        role = _role_of_text(said, last)
    form: Form = "tool" if tool is not None else "schema" if structured or json_mode else "text"
    if not outputs:
        outputs = (_free_output(role, said if system else "", last),)
        if form == "text" and role == "coach" and _FENCE.search(last):
            form = "fence"
    earlier = _before_last_user(turns)
    data = _data(last) if role != "worker" else {}
    instructions = system
    if role != "worker":
        instructions = "\n\n".join(part for part in (system, _without(last, data)) if part)
    return Reading(
        role=role,
        form=form,
        instructions=instructions,
        inputs={"message": last, **data},
        outputs=outputs,
        demos=tuple(Demo({"message": a.text}, {"reply": b.text}) for a, b in _exchanges(earlier)),
        history=tuple(turns[:-1] if turns and turns[-1].role == "user" else turns),
        tool=_tool_name(tool) if tool is not None else None,
        temperature=temperature,
    )


def _data(text: str) -> dict[str, str]:
    """The pieces of a prompt that are data: in tags, or after a label such as `Output:`."""
    found = {m.group(1): m.group(2).strip() for m in _LEAF.finditer(text) if m.group(1).lower() not in _NOT_DATA}
    if not found:
        found = {m.group(1).lower(): m.group(2).strip() for m in _LABELLED.finditer(text)}
    return {name: value for name, value in found.items() if value}


def _without(text: str, data: Mapping[str, str]) -> str:
    for value in sorted(data.values(), key=len, reverse=True):
        text = text.replace(value, "…", 1)
    return text


def _before_last_user(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].role == "user":
            return turns[:index]
    return turns


def _exchanges(turns: Sequence[Turn]) -> list[tuple[Turn, Turn]]:
    return [
        (asked, given)
        for asked, given in pairwise(turns)
        if asked.role == "user" and given.role == "assistant" and given.text
    ]


def _format_type(body: Mapping[str, Any]) -> str:
    asked = body.get("response_format")
    return str(asked.get("type", "text")) if isinstance(asked, Mapping) else "text"


def _response_schema(body: Mapping[str, Any]) -> Schema | None:
    if _format_type(body) != "json_schema":
        return None
    schema = body["response_format"].get("json_schema", {}).get("schema")
    return cast("Schema", schema) if isinstance(schema, Mapping) else None


def _schema_fields(schema: Schema) -> tuple[OutputField, ...]:
    definitions = {**schema.get("$defs", {}), **schema.get("definitions", {})}
    properties: Mapping[str, Schema] = _resolve(schema, definitions).get("properties", {})
    return tuple(OutputField.of(name, entry, definitions=definitions) for name, entry in properties.items())


_JSON_KEY = re.compile(
    r"[\"'`](\w+)[\"'`]\s*:|\bkeys?\b[^.\n]*?[\"'`](\w+)[\"'`]|[\"'`](\w+)[\"'`](?=[^.\n]*\bkeys?\b)"
)


def _asked_keys(*texts: str) -> tuple[OutputField, ...]:
    """JSON mode names no fields; the prompt's own words do, if anything does."""
    names = [next(filter(None, groups)) for text in texts for groups in _JSON_KEY.findall(text)]
    number = re.compile(r"score|rating|grade", re.IGNORECASE)
    return tuple(
        OutputField.of(name, {"type": "number"} if number.fullmatch(name) else _STRING)
        for name in dict.fromkeys(names or ["reply"])
    )


def _tool(body: Mapping[str, Any], turns: tuple[Turn, ...], last: str) -> Mapping[str, Any] | None:
    """The tool to call: the one forced, the first if one is required, or in free choice the one the user speaks of."""
    tools: list[Mapping[str, Any]] = [tool for tool in body.get("tools") or () if "function" in tool]
    choice = body.get("tool_choice") or "auto"
    if not tools or choice == "none":
        return None
    if isinstance(choice, Mapping):
        name = choice.get("function", {}).get("name")
        return next((tool for tool in tools if _tool_name(tool) == name), None)
    if choice == "required":
        return tools[0]
    if not turns or turns[-1].role != "user":
        return None
    words = _words(last)
    ranked = sorted(tools, key=lambda tool: -len(words & _words(_tool_name(tool).replace("_", " "))))
    return ranked[0] if words & _words(_tool_name(ranked[0]).replace("_", " ")) else None


def _tool_name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _parameters(tool: Mapping[str, Any]) -> Schema:
    parameters = tool["function"].get("parameters")
    return cast("Schema", parameters) if isinstance(parameters, Mapping) else {"type": "object", "properties": {}}


def _words(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower())}


# -- roles ----------------------------------------------------------------------------------------------------------

_REPLY = re.compile(r"reply|answer|response|message|query|output|queries|search_query", re.IGNORECASE)
_VERDICT = re.compile(
    r"label|score|verdict|rating|grade|judge?ment|correct\w*|pass(ed)?|is_\w+|faithful\w*|relevan\w*|helpful\w*"
    r"|complian\w*|brevity|concise\w*|quality|\w+_(score|label|rating|verdict)",
    re.IGNORECASE,
)
_PROPOSAL = re.compile(
    r"((new|proposed|improved|revised|rewritten|updated|better|optimi[sz]ed|shortened|compressed|merged|candidate)_"
    r"(\w+_)?(instructions?|prompt|text|description)s?)|(\w+_)?advice|natural_language_rules|program_description"
    r"|module_description",
    re.IGNORECASE,
)
_PROMPT_FIELD = re.compile(
    r"(system_)?(prompt|instructions?)|rules|guidelines|edits|observations|summary", re.IGNORECASE
)
_ABOUT_PROMPTS = re.compile(
    r"\b(instructions?|(system )?prompts?|rules)\b|observations|trends that hold for most", re.IGNORECASE
)
_COACH_TEXT = re.compile(
    r"\b(write|propose|generate|produce|suggest|create|provide|give|return|output)\b[^.\n]{0,40}"
    r"\b(new|better|improved|revised|rewritten|updated|optimi[sz]ed|merged|shorter)\b[^.\n]{0,20}"
    r"\b(instructions?|prompts?)\b"
    r"|\b(improve|rewrite|revise|optimi[sz]e|shorten|compress|merge)\b[^.\n]{0,30}\b(instructions?|prompts?)\b"
    r"|\bprompt (engineer|optimi[sz]er)\b|\binstruction optimi[sz]er\b",
    re.IGNORECASE,
)
_COACH_SYSTEM = re.compile(
    r"\b(prompt|instruction) (engineer|optimi[sz]er|writer|coach)\b"
    r"|\byour (task|job|goal) is to \w+ [^.\n]{0,60}\b(instructions?|prompts?)\b"
    r"|\b(current|given|existing) (system )?(prompt|instructions?)\b",
    re.IGNORECASE,
)
_JUDGE_TEXT = re.compile(
    r"\byou are (an?|the) [^.\n]{0,30}\b(evaluator|judge|grader|rater|assessor|annotator)\b"
    r"|\byour (task|job|goal) is to (\w+ ){0,3}(evaluate|judge|grade|rate|score|classify|assess|label|determine whether"
    r"|decide whether)\b"
    r"|^\s*(please )?(evaluate|judge|grade|rate|score|classify|assess|label)\b[^.\n]{0,60}"
    r"\b(response|output|answer|reply|text)\b",
    re.IGNORECASE | re.MULTILINE,
)
_EVIDENCE = re.compile(r"\b(feedback|examples?|scores?|current (instructions?|prompt)|attempts?)\b|```", re.IGNORECASE)
_FENCE = re.compile(
    r"(within|inside|in|between) (an? |the |triple |three )*(```|fenced|code block|backticks)", re.IGNORECASE
)


def _role_of_fields(instructions: str, inputs: Mapping[str, str], outputs: Sequence[OutputField]) -> Role:
    """The values asked for tell the role more surely than any word of the instructions."""
    if any(_PROPOSAL.fullmatch(entry.name) for entry in outputs):
        return "coach"
    if any(_PROMPT_FIELD.fullmatch(entry.name) for entry in outputs) and _ABOUT_PROMPTS.search(instructions):
        evidence = {
            "observations",
            "examples",
            "prior_observations",
            "attempts",
            "feedback",
            "samples",
            "examples_text",
        }
        if evidence & set(inputs) or _COACH_TEXT.search(instructions):
            return "coach"
    if any(entry.kind == "str" and _REPLY.fullmatch(entry.name) for entry in outputs):
        return "worker"
    verdicts = [entry for entry in outputs if entry.kind in ("choice", "int", "float", "bool")]
    if any(_VERDICT.fullmatch(entry.name) for entry in verdicts):
        return "judge"
    if verdicts and any(_REPLY.fullmatch(name) for name in inputs):
        return "judge"
    return "worker"


def _role_of_text(said: str, last: str) -> Role:
    """From words alone. A desk's prompt may speak of better prompts; a coach's says they are its job."""
    if (
        _COACH_TEXT.search(said)
        and _EVIDENCE.search(f"{said}\n{last}")
        and (said is last or _COACH_SYSTEM.search(said))
    ):
        return "coach"
    if _JUDGE_TEXT.search(said) and (_choices_in(said) or _choices_in(last) or _number_asked(said + last)):
        return "judge"
    return "worker"


_EITHER = re.compile(r"\bis the [\w ]{1,40}? [\"'`]?(\w[\w-]*)[\"'`]? or [\"'`]?(\w[\w-]*)[\"'`]?\s*\?", re.IGNORECASE)
_ONE_OF = re.compile(
    r"\b(?:one of|either|exactly one|only|with|labels?)\b[^\n.:]{0,60}:?\s*"
    r"((?:[\"'`][\w -]+[\"'`](?:,? or |, | / |/)?){2,})",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"\b(?:from|between)\s+(-?\d+(?:\.\d+)?)\s*(?:to|and|-|\u2013)\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE
)


def _choices_in(text: str) -> tuple[str, ...]:
    if match := _ONE_OF.search(text):
        return tuple(dict.fromkeys(re.findall(r"[\"'`]([\w -]+)[\"'`]", match.group(1))))
    if match := _EITHER.search(text):
        return match.groups()
    return ()


def _number_asked(text: str) -> re.Match[str] | None:
    return _BETWEEN.search(text)


def _free_output(role: Role, system: str, last: str) -> OutputField:
    """With no form asked for, an answer is one text; a judge's is a label or a number if the prompt names them."""
    if role == "judge":
        if choices := _choices_in(system) or _choices_in(last):
            return OutputField.of("label", {"enum": list(choices)})
        if match := _number_asked(f"{system}\n{last}"):
            low, high = float(match.group(1)), float(match.group(2))
            return OutputField.of("score", {"type": "number", "minimum": low, "maximum": high})
    return OutputField("new_prompt" if role == "coach" else "reply")


# -- types ----------------------------------------------------------------------------------------------------------

_KINDS: dict[str, Kind] = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
}
_SIMPLE: dict[str, Schema] = {
    "str": _STRING,
    "int": FrozenDict({"type": "integer"}),
    "float": FrozenDict({"type": "number"}),
    "bool": FrozenDict({"type": "boolean"}),
    "list": FrozenDict({"type": "array", "items": {}}),
    "dict": FrozenDict({"type": "object"}),
}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _annotation_schema(annotation: str) -> Schema:
    """JSON Schema for a Python annotation as adapters print it. What is unknown counts as text."""
    annotation = annotation.strip()
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    head, _, inner = annotation.removesuffix("]").partition("[")
    match head:
        case "Literal":
            try:
                return {"enum": list(ast.literal_eval(f"({inner},)"))}
            except (ValueError, SyntaxError):
                return {"enum": [choice.strip(" '\"") for choice in inner.split(",")]}
        case "list" | "List" | "set" | "tuple":
            return {"type": "array", "items": _annotation_schema(inner)}
        case "dict" | "Dict":
            return {"type": "object", "additionalProperties": _annotation_schema(inner.partition(",")[2])}
        case "Optional" | "Union":
            return _annotation_schema(next(iter(_top_level(inner)), "str"))
        case _:
            return _STRING


def _top_level(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip() not in ("", "None", "NoneType")]


def _resolve(schema: Schema, definitions: Schema) -> Schema:
    """The schema that says something: references followed, of alternatives the first that is not null."""
    for _ in range(8):
        if "$ref" in schema:
            schema = definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
        elif options := schema.get("anyOf") or (None if _choices(schema) else schema.get("oneOf")):
            schema = next((option for option in options if option.get("type") != "null"), options[0])
        elif isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            schema = schema["allOf"][0]
        else:
            break
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if kind != "null"]
        schema = {**schema, "type": kinds[0] if kinds else "null"}
    return schema


def _choices(schema: Schema) -> tuple[str, ...]:
    return tuple(str(choice) for choice in _options(schema))


def _options(schema: Schema) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    options = schema.get("oneOf") or ()
    return [option["const"] for option in options] if options and all("const" in o for o in options) else []


def _fit_field(reading: Reading, entry: OutputField, value: str | None) -> Any:
    if entry.kind == "str" and reading.form == "tool" and reading.role == "worker" and not _REPLY.fullmatch(entry.name):
        value = _argument(entry, reading)
    elif value is None:
        value = _FILLER.get(entry.name, "Not applicable.") if entry.kind == "str" else ""
    return fit(value, entry.schema, entry.schema.get("$defs", {}))


_FILLER = {"reasoning": "I go through the request and follow the instructions given."}


def _argument(entry: OutputField, reading: Reading) -> str:
    """What to pass to a tool: a number or code from the user's message if the name asks for one, else the message."""
    message = next(reversed([v for k, v in reading.inputs.items() if k == "message"]), "")
    if re.search(r"id|number|code", entry.name, re.IGNORECASE):
        return next(iter(re.findall(r"[A-Z0-9]*-?\d[\w-]*", message)), message)
    return message


def fit(value: Any, schema: Schema, definitions: Schema | None = None) -> Any:
    """The valid JSON value of `schema` nearest to `value`. Text that should be a list or an object is read as JSON."""
    if value is None:
        if _nullable(schema):
            return None
        value = ""
    plain = _resolve(schema, definitions or {})
    if options := _options(plain):
        return _nearest(value, options)
    match plain.get("type"):
        case "string":
            return value if isinstance(value, str) else _plain(value)
        case "integer" | "number" as kind:
            found = _NUMBER.search(_plain(value))
            number = float(found.group()) if found else 0.0
            number = max(number, float(plain.get("minimum", number)))
            number = min(number, float(plain.get("maximum", number)))
            return round(number) if kind == "integer" else number
        case "boolean":
            return (
                value if isinstance(value, bool) else bool(re.match(r"\s*(true|yes|1|pass)", str(value), re.IGNORECASE))
            )
        case "array":
            items = _items(value, plain)
            return [fit(item, plain.get("items") or {}, definitions) for item in items]
        case "object":
            loaded = _loads(value) if isinstance(value, str) else value
            given: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {}
            properties: Mapping[str, Schema] = plain.get("properties") or {}
            known = {name: fit(given.get(name), entry, definitions) for name, entry in properties.items()}
            extra = plain.get("additionalProperties", not properties)
            if extra is False:
                return known
            rest = {name: item for name, item in given.items() if name not in known}
            return known | {n: fit(i, extra, definitions) if isinstance(extra, Mapping) else i for n, i in rest.items()}
        case "null":
            return None
        case _:
            return value


def _nullable(schema: Schema) -> bool:
    kinds = schema.get("type")
    options = schema.get("anyOf") or ()
    return kinds == "null" or (isinstance(kinds, list) and "null" in kinds) or {"type": "null"} in options


def _items(value: Any, schema: Schema) -> list[Any]:
    loaded = _loads(value) if isinstance(value, str) else value
    if isinstance(loaded, list):
        items = loaded
    else:
        lines = str(value).splitlines() if isinstance(value, str) else [value]
        items = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", line) for line in lines if line.strip()]
    shortage = int(schema.get("minItems", 0)) - len(items)
    return [*items, *[""] * max(0, shortage)][: schema.get("maxItems")]


def _nearest(value: Any, options: list[Any]) -> Any:
    said = str(value).strip().lower()
    for option in options:
        if str(option).lower() == said:
            return option
    whole = [option for option in options if re.search(rf"\b{re.escape(str(option).lower())}\b", said)]
    return max(whole, key=lambda option: len(str(option))) if whole else options[0]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _no_marker(text: str) -> str:
    """A value that quotes a field marker at the start of a line would open a field; in backticks it does not."""
    return re.sub(r"^(\s*)(\[\[ ## \w+ ## \]\])", r"\1`\2`", text, flags=re.MULTILINE) if "[[ ## " in text else text


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
