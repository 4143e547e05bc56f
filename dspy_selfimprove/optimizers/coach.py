"""Everything the coach is ever asked, as DSPy signatures: read here what it is told, put your own in its place there.

    Reflect    what went wrong, then small edits, then the text      the gradient step
    Merge      several updates of one prompt become one
    Compress   the same meaning in fewer words
    Rewrite    from prompts already tried, with their scores
    Rethink    anew, from what the metrics want and the prompt's own facts

An operator takes another signature as long as it has the same fields: `Reflect(signature=MyReflection)`. What others
wrote (conversations, answers, feedback) comes in fences (guard.py) and in `samples` alone; all other fields are ours,
the user's or a coach's own.
"""

from __future__ import annotations

from typing import Literal

import dspy
from pydantic import BaseModel, Field

from dspy_selfimprove.guard import HOW_TO_READ

_SLOTS = "Placeholders such as {{name}} are filled in when the prompt is used: keep each one, and invent none."
_GENERAL = (
    "Write rules that hold for cases not shown here. Put no name, number, address or wording of a single case into it."
)


class Change(BaseModel):
    """One small change of the current prompt."""

    kind: Literal["add", "replace", "remove"]
    quote: str = Field(
        default="",
        description="The words of the current prompt that this is about, copied exactly. For an addition: the line it "
        "comes after, or empty for the end.",
    )
    text: str = Field(default="", description="The new words, as they should stand in the prompt. Empty for a removal.")


class Reflection(dspy.Signature):  # type: ignore[misc]
    __doc__ = f"""Improve the current prompt of an application with what the samples show.

First say in the analysis what the answers got wrong, by which metric, and which words of the prompt, or which lack of
words, explain it. Say also what the samples that went well owe to the prompt, and leave that alone. Then list your
edits, then give the new prompt.

Take a step of the size given: whatever you do not name in an edit stays as it is, word for word. Do not repeat what
was tried before and did not help. Raise the target, and let nothing else get worse.

{_GENERAL} {_SLOTS}

{HOW_TO_READ}"""

    current_prompt: str = dspy.InputField()
    metrics: str = dspy.InputField(desc="what is measured, and what each means")
    target: str = dspy.InputField(desc="what to raise, and what must not get worse")
    samples: str = dspy.InputField(desc="what the application was given and answered, with scores and feedback")
    tried: str = dspy.InputField(desc="earlier edits of this prompt, and what came of them")
    step_size: str = dspy.InputField()
    analysis: str = dspy.OutputField(desc="what is wrong and why, before any change")
    edits: list[Change] = dspy.OutputField(desc="the changes, most important first")
    new_prompt: str = dspy.OutputField(desc="the current prompt with these edits and no others")


class Merging(dspy.Signature):  # type: ignore[misc]
    __doc__ = f"""Merge several updates of one prompt into one that has what is good in each.

Each update is what somebody changed in the current prompt, on samples of their own. First say in the analysis what
they have in common and where they differ. What several of them change alike is likely right: take it once, in its best
wording. Where they contradict each other, take what serves the target without harm to the rest. Leave out what can
only concern a single case. Many small edits together may make this a large step.

Then list the edits that lead from the current prompt to the merged one, then give the new prompt. Whatever you do not
name in an edit stays as it is, word for word.

{_GENERAL} {_SLOTS}"""

    current_prompt: str = dspy.InputField()
    updates: str = dspy.InputField(desc="what each update adds, leaves out, or says instead")
    metrics: str = dspy.InputField(desc="what is measured, and what each means")
    target: str = dspy.InputField(desc="what to raise, and what must not get worse")
    analysis: str = dspy.OutputField(desc="what the updates have in common and where they differ")
    edits: list[Change] = dspy.OutputField(desc="the changes to the current prompt, most important first")
    new_prompt: str = dspy.OutputField(desc="the current prompt with these edits and no others")


class Compression(dspy.Signature):  # type: ignore[misc]
    __doc__ = f"""Shorten the current prompt: the same meaning in fewer words.

Every rule, fact and exception in it must still hold. Say once what is said twice, and drop what demands nothing. Add
nothing. {_SLOTS}"""

    current_prompt: str = dspy.InputField()
    shortened_prompt: str = dspy.OutputField(desc="the whole prompt, shorter")


class Rewriting(dspy.Signature):  # type: ignore[misc]
    __doc__ = f"""Write a new prompt for an application from the prompts tried so far and their scores.

The attempts come worst first. Say in the analysis what the better ones have and the worse ones lack. Then write a
prompt that should score higher than all of them: keep what pays, leave out what costs, and keep every fact about the
application. {_SLOTS}"""

    attempts: str = dspy.InputField(desc="prompts tried, with the mean score of each, from 0 to 1")
    metrics: str = dspy.InputField(desc="what is measured, and what each means")
    target: str = dspy.InputField(desc="what to raise, and what must not get worse")
    analysis: str = dspy.OutputField(desc="what pays and what costs")
    new_prompt: str = dspy.OutputField(desc="the whole new prompt")


class Rethinking(dspy.Signature):  # type: ignore[misc]
    __doc__ = f"""Think the prompt of an application through again, from what is measured.

Say in the analysis what a perfect answer would do for each metric. Then write the prompt that would bring it about.
Take a bold step: of the original prompt keep every fact about the application and what its users need, not its rules
and not its wording. {_SLOTS}"""

    original_prompt: str = dspy.InputField(desc="for its facts and placeholders")
    metrics: str = dspy.InputField(desc="what is measured, and what each means")
    target: str = dspy.InputField(desc="what to raise, and what must not get worse")
    analysis: str = dspy.OutputField(desc="what a perfect answer would do")
    new_prompt: str = dspy.OutputField(desc="the whole new prompt")
