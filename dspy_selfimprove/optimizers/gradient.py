"""The update as a gradient step: what went wrong becomes words, and the words become a small change of the prompt.

    brief = Brief.of(metrics, target="helpfulness")
    situation = Situation(parent=parent, predictor="system", brief=brief, lessons=lessons, step=SMALL)
    proposal = Reflect().propose(Coach(models), situation)     a Proposal, or a NoProposal that says why

A `Lesson` is the gradient's evidence: what was asked, what was answered, how that scored and why. An operator turns a
situation into one new candidate, and is an object with one method, so that yours stands beside these:

    Reflect    small edits from a minibatch of lessons            the gradient step
    Merge      several candidates become one                      the coach reads them all
    Union      the same without a coach                           every edit of each that fits in
    Combine    several gradient steps at once, made into one      a batch of batches
    Compress   shorter, the same meaning
    Rewrite    from the prompts tried and their scores            as COPRO does
    Rethink    anew, from the definitions and the baseline        out of a local optimum

What the coach names is changed and everything else stays byte for byte (edit.py). It may answer badly once: it is told
what was wrong and asked again; after that there is no proposal, and a reason. An outage is none of its fault and
raises, as does a budget that is used up. All its prompts are in coach.py.

What others wrote is fenced, and text from a trace comes into no reason here. Not covered: whether a proposal is fit to
be tried (guard.py), whether it helps (that is measured), demonstrations, and answers of a coach that were cut off by
its own limit of tokens where DSPy keeps no history of calls.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, TypeAlias, TypeVar

from dspy_selfimprove.budget import Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import BadAnswer, Refused, UsageError
from dspy_selfimprove.judges.slip import bad_request
from dspy_selfimprove.optimizers.edit import Edit, Edited, difference, edited, keeps, meet, told, unwrapped
from dspy_selfimprove.optimizers.lesson import (
    BATCH,
    SMALL,
    Attempt,
    Brief,
    Lesson,
    Step,
    Trial,
    history,
    minibatches,
    shown,
)
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.pool import Pool, Task
from dspy_selfimprove.prompt import slots_of
from dspy_selfimprove.wire import Tokens

if TYPE_CHECKING:
    from dspy_selfimprove.model import Models

T = TypeVar("T")

_ASKED: Final = 2  # times, at most


# -- what comes of it -----------------------------------------------------------------------------------------------

Reason: TypeAlias = Literal["unreadable", "unfit", "unchanged", "too_long", "refused", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A new candidate, and how it came about. `dropped` are edits that could not be applied, each with the reason.

    `spent` is what the coach's answers used; calls that failed are on the ledger alone.
    """

    candidate: Candidate
    operator: str
    predictor: str
    analysis: str = ""
    edits: tuple[Edit, ...] = ()
    dropped: tuple[tuple[Edit, str], ...] = ()
    spent: Spend = field(default_factory=Spend)

    @property
    def parents(self) -> tuple[str, ...]:
        return self.candidate.parents

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate.to_json(),
            "operator": self.operator,
            "predictor": self.predictor,
            "analysis": self.analysis,
            "edits": [edit.to_json() for edit in self.edits],
            "dropped": [[edit.to_json(), reason] for edit, reason in self.dropped],
            "spent": self.spent.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proposal:
        made = {
            "candidate": Candidate.from_json(data["candidate"]),
            "edits": tuple(Edit(**edit) for edit in data["edits"]),
            "dropped": tuple((Edit(**edit), reason) for edit, reason in data["dropped"]),
            "spent": Spend(**data["spent"]),
        }
        return cls(**{**data, **made})


@dataclass(frozen=True, slots=True, kw_only=True)
class NoProposal:
    """That there is none, and why: `problem` is a sentence of ours.

    One that was "refused" may have met a filter of content; if all are, the model or its parameters do not fit.
    """

    operator: str
    reason: Reason
    problem: str
    spent: Spend = field(default_factory=Spend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where an operator stands: what is to be changed, and all that is known. An operator takes what it needs of it.

    `others` are candidates to merge with; `trials` what was measured; `slots` what the prompt knows besides what it
    uses; `temperature` the coach's (None: its model's own).
    """

    parent: Candidate
    predictor: str
    brief: Brief
    lessons: tuple[Lesson, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    step: Step = SMALL
    others: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    baseline: Candidate | None = None
    slots: tuple[str, ...] = ()
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.predictor not in self.parent.texts:
            raise UsageError(
                f"{self.predictor!r} is not a predictor of this candidate.",
                remedy=f"Its predictors are {', '.join(sorted(self.parent.texts))}.",
            )

    @property
    def text(self) -> str:
        """What is to be changed."""
        return self.parent.texts[self.predictor]

    @property
    def changes(self) -> tuple[tuple[Edit, ...], ...]:
        """What each of the others changed in this text: since the parent if it is a child of its, else the baseline."""
        found = []
        for other in self.others:
            of_parent = self.baseline is None or self.parent.id in other.parents
            base = self.parent if of_parent or self.baseline is None else self.baseline
            old, new = base.texts.get(self.predictor), other.texts.get(self.predictor)
            found.append(() if old is None or new is None else difference(old, new))
        return tuple(found)

    @property
    def other_texts(self) -> tuple[str, ...]:
        """The others' texts of this predictor that are not its own, each once."""
        found = (other.texts.get(self.predictor, self.text) for other in self.others)
        return tuple(dict.fromkeys(text for text in found if text != self.text))


class Unfit(Exception):
    """An answer that cannot be used: why, and what the coach is told of it."""

    def __init__(self, reason: Reason, problem: str, told: str = "") -> None:
        super().__init__(problem)
        self.reason, self.problem, self.told = reason, problem, told or problem


class Coach:
    """The coach's model as operators ask it: one DSPy predictor a question, over the shared slots and the one budget.

    >>> from dspy_selfimprove.model import Model, Models
    >>> from dspy_selfimprove.optimizers.lesson import Wanted
    >>> from dspy_selfimprove.rehearsal import RehearsalModel, serve
    >>> brief = Brief((Wanted("helpfulness", "Does the reply greet the customer by first name?"),))
    >>> here = Situation(parent=Candidate({"system": "Answer the customer's ticket."}), predictor="system", brief=brief)
    >>> with serve(RehearsalModel(seed=1)) as rehearsal:
    ...     models = Models(Model(name="openai/rehearsal", base_url=rehearsal.url, api_key="none"))
    ...     proposal = Reflect().propose(Coach(models), here)
    >>> proposal.candidate.origin, proposal.candidate.texts["system"].startswith("Answer the customer's ticket.")
    ('reflect', True)
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    def ask(
        self,
        operator: str,
        signature: Any,
        inputs: Mapping[str, str],
        use: Callable[[Any], T],
        temperature: float | None = None,
    ) -> tuple[T, Spend] | NoProposal:
        """What `use` makes of the answer, and what it took. `use` raises Unfit for one it cannot use."""
        import dspy

        given, spent, unfit = dict(inputs), Spend(), None
        for _ in range(_ASKED):
            try:
                prediction, used = self._answer(signature, given, temperature)
                spent += used
                return use(prediction), spent
            except _Unreadable as unread:
                spent += unread.spent
                unfit = Unfit("unreadable", unread.problem, f"{unread.problem} {_FORM}")
            except Unfit as raised:
                unfit = raised
            except _TurnedAway as away:  # the same request would be turned away again
                return NoProposal(operator=operator, reason=away.reason, problem=away.problem, spent=spent)
            if "problem" not in given:
                signature = signature.append("problem", dspy.InputField(desc=_MEND), type_=str)
            given["problem"] = unfit.told
        assert unfit is not None
        return NoProposal(operator=operator, reason=unfit.reason, problem=unfit.problem, spent=spent)

    def _answer(self, signature: Any, inputs: Mapping[str, str], temperature: float | None) -> tuple[Any, Spend]:
        import dspy
        from dspy.utils.exceptions import AdapterParseError

        lm = self.models.lm("coach", **({} if temperature is None else {"temperature": temperature}))
        # DSPy's own second try, in another form, would not tell the model what was wrong with the first.
        adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
        with dspy.context(lm=lm, adapter=adapter, trace=[], send_stream=None), dspy.track_usage() as usage:
            try:
                prediction = dspy.Predict(signature)(**inputs)
            except AdapterParseError:
                raise _Unreadable("The coach's answer is not in the form asked for.", self._spend(usage)) from None
            except Exception as error:
                failure = failure_of(error)
                if isinstance(failure, BadAnswer):
                    raise _TurnedAway("too_long", _TOO_LONG) from error
                if isinstance(failure, Refused) and bad_request(error) is not None:
                    raise _TurnedAway("refused", _REFUSED) from error
                if failure is not None:
                    raise failure from error
                raise
        spent = self._spend(usage)
        if _is_cut_off(lm):
            raise _Unreadable("The coach's answer was cut off; it must be shorter.", spent)
        return prediction, spent

    def _spend(self, usage: Any) -> Spend:
        price = self.models.caller("coach").price
        calls, tokens, dollars = 0, 0, 0.0
        for entry in (entry for entries in usage.usage_data.values() for entry in entries):
            used = Tokens(
                int(entry.get("prompt_tokens") or entry.get("input_tokens") or 0),
                int(entry.get("completion_tokens") or entry.get("output_tokens") or 0),
                int(entry.get("cache_read_tokens") or 0),
            )
            calls, tokens = calls + 1, tokens + used.input + used.output
            dollars += price.of(used) if price is not None else 0.0
        return Spend(calls, tokens, dollars)


_MEND: Final = "what was wrong with your last answer to this; mend it"
_FORM: Final = "Write every output field under its own marker, and a list as JSON that fits its schema."
_TOO_LONG: Final = "What the coach is shown is longer than its model can read."
_REFUSED: Final = "The service of the coach's model refused this request."


class _Unreadable(Exception):
    def __init__(self, problem: str, spent: Spend) -> None:
        super().__init__(problem)
        self.problem, self.spent = problem, spent


class _TurnedAway(Exception):
    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason, self.problem = reason, problem


def _is_cut_off(lm: Any) -> bool:
    response = lm.history[-1].get("response") if lm.history else None
    return getattr(response, "finish_reason", None) == "length"


# -- the operators --------------------------------------------------------------------------------------------------


class Operator(Protocol):
    """A way to make a new candidate. `name` is the candidate's origin."""

    @property
    def name(self) -> str: ...

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal: ...


@dataclass(frozen=True, slots=True)
class Reflect:
    """The gradient step: from at most `size` lessons to small edits of one text."""

    name: ClassVar[str] = "reflect"
    size: int = BATCH
    signature: Any = None

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        from dspy_selfimprove.optimizers.coach import Reflection

        brief = situation.brief
        lessons = minibatches(situation.lessons, brief, size=self.size, seed=situation.seed)[0]
        inputs = {
            "current_prompt": situation.text,
            "metrics": brief.definitions,
            "target": brief.aim,
            "samples": shown(lessons, situation.predictor, brief) or "None.",
            "tried": history(situation.attempts, situation.predictor, brief),
            "step_size": situation.step.words,
        }
        return _edited(self.name, coach, self.signature or Reflection, inputs, situation)


@dataclass(frozen=True, slots=True)
class Merge:
    """One prompt out of the parent and the `others`, by a coach that reads them all."""

    name: ClassVar[str] = "merge"
    signature: Any = None

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        from dspy_selfimprove.optimizers.coach import Merging

        changes = [edits for edits in situation.changes if edits]
        if not changes:
            return _nothing(self.name)
        inputs = {
            "current_prompt": situation.text,
            "updates": "\n\n".join(f"# Update {number}\n{told(edits)}" for number, edits in enumerate(changes, 1)),
            "metrics": situation.brief.definitions,
            "target": situation.brief.aim,
        }
        return _edited(self.name, coach, self.signature or Merging, inputs, situation, also=situation.others)


@dataclass(frozen=True, slots=True)
class Union:
    """One prompt out of the parent and the `others`, without a coach: each other's edits, as far as they fit in.

    What an earlier one says already is not said twice; where two change the same words, the earlier one has its way.
    """

    name: ClassVar[str] = "union"

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        if not situation.other_texts:
            return _nothing(self.name)
        edits = dict.fromkeys(edit for changes in situation.changes for edit in changes)
        result = edited(situation.text, edits, slots=situation.slots)
        if result.text.strip() == situation.text.strip():
            return NoProposal(operator=self.name, reason="unchanged", problem="No edit of the others fits in.")
        return _proposal(self.name, situation, result, also=situation.others)


@dataclass(frozen=True, slots=True)
class Combine:
    """Several updates from minibatches of their own, computed at once and made into one.

    Updates that are about different things are put together as they are (`Union`), which costs nothing and gains no
    less where it was measured (benchmarks/proposals.py). Where two are about the same thing in different words, `merge`
    has to choose; if it fails, `Union` does it, so that no update that was paid for is lost.
    """

    name: ClassVar[str] = "combine"
    updates: int = 3
    update: Operator = field(default_factory=Reflect)
    merge: Operator = field(default_factory=Merge)
    size: int = BATCH

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        batches = minibatches(
            situation.lessons, situation.brief, size=self.size, count=self.updates, seed=situation.seed
        )
        several = {frozenset(lesson.id for lesson in batch): batch for batch in batches}  # each batch once
        each = propose_all(
            coach, [(self.update, replace(situation, lessons=batch, seed=situation.seed)) for batch in several.values()]
        )
        made = [found for found in each if isinstance(found, Proposal)]
        spent = sum((found.spent for found in each), Spend())
        if not made:
            first = each[0]
            assert isinstance(first, NoProposal)
            return replace(first, operator=self.name, spent=spent)
        together = replace(situation, others=tuple(found.candidate for found in made))
        if len(together.other_texts) == 1:
            return _renamed(made[0], self.name, spent)
        merged: Proposal | NoProposal | None = None
        if meet(together.changes):
            merged = self.merge.propose(coach, together)
            spent += merged.spent
        if not isinstance(merged, Proposal):
            merged = Union().propose(coach, together)
        return _renamed(merged if isinstance(merged, Proposal) else made[0], self.name, spent)


@dataclass(frozen=True, slots=True)
class Compress:
    """The same meaning in fewer words."""

    name: ClassVar[str] = "compress"
    signature: Any = None

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        from dspy_selfimprove.optimizers.coach import Compression

        def use(answer: Any) -> Edited:
            result = _whole(answer.shortened_prompt, situation)
            if len(result.text) >= len(situation.text):
                raise Unfit("unchanged", "The prompt did not get shorter.")
            return result

        return _asked(
            self.name, coach, self.signature or Compression, {"current_prompt": situation.text}, use, situation
        )


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A new prompt out of the prompts tried and their scores, as COPRO does; at most `most` of them, worst first."""

    name: ClassVar[str] = "rewrite"
    most: int = 12
    signature: Any = None

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        from dspy_selfimprove.optimizers.coach import Rewriting

        brief, predictor = situation.brief, situation.predictor
        known = {
            text: (value, trial.means)
            for trial in situation.trials
            if (value := brief.value(trial.means)) is not None and (text := trial.candidate.texts.get(predictor))
        }
        ranked = sorted(known.items(), key=lambda item: (item[1][0], item[0]))[-self.most :]
        if len(ranked) < 2:
            return NoProposal(operator=self.name, reason="nothing", problem="Fewer than two prompts have scores yet.")
        attempts = [
            {
                "prompt": text,
                "score": round(value, 3),
                "by_metric": {name: round(each, 3) for name, each in means.items() if not math.isnan(each)},
            }
            for text, (value, means) in ranked
        ]
        inputs = {
            "attempts": json.dumps(attempts, ensure_ascii=False, indent=1),
            "metrics": brief.definitions,
            "target": brief.aim,
        }
        return _asked(self.name, coach, self.signature or Rewriting, inputs, _text_for(situation), situation)


@dataclass(frozen=True, slots=True)
class Rethink:
    """A restart of one text: from the definitions of the metrics and the baseline's facts, whatever it has come to."""

    name: ClassVar[str] = "rethink"
    signature: Any = None

    def propose(self, coach: Coach, situation: Situation) -> Proposal | NoProposal:
        from dspy_selfimprove.optimizers.coach import Rethinking

        origin = situation.baseline or situation.parent
        restart = replace(situation, parent=origin)
        inputs = {
            "original_prompt": restart.text,
            "metrics": situation.brief.definitions,
            "target": situation.brief.aim,
        }
        use, also = _text_for(restart), (origin,)
        return _asked(self.name, coach, self.signature or Rethinking, inputs, use, situation, also)


def propose_all(coach: Coach, asked: Iterable[tuple[Operator, Situation]]) -> tuple[Proposal | NoProposal, ...]:
    """Several proposals at once, in the order asked for: a thread each, and as many calls as there are slots.

    What is raised in one is raised here, once those under way have come to their end.
    """
    work = list(asked)
    found: dict[int, Proposal | NoProposal] = {}
    lock = threading.Lock()

    def task(number: int, operator: Operator, situation: Situation) -> Task:
        def run() -> Iterable[Task]:
            made = operator.propose(coach, situation)
            with lock:
                found[number] = made
            return ()

        return run

    if len(work) == 1:
        return (work[0][0].propose(coach, work[0][1]),)
    Pool(len(work)).run(task(number, *each) for number, each in enumerate(work))
    return tuple(found[number] for number in range(len(work)))


# -- from an answer to a candidate ----------------------------------------------------------------------------------


def _edited(
    name: str,
    coach: Coach,
    signature: Any,
    inputs: Mapping[str, str],
    situation: Situation,
    also: tuple[Candidate, ...] = (),
) -> Proposal | NoProposal:
    """A proposal of edits, applied by us."""
    return _asked(name, coach, signature, inputs, lambda answer: _by_edits(answer, situation), situation, also)


def _asked(
    name: str,
    coach: Coach,
    signature: Any,
    inputs: Mapping[str, str],
    use: Callable[[Any], Edited],
    situation: Situation,
    also: tuple[Candidate, ...] = (),
) -> Proposal | NoProposal:
    def read(answer: Any) -> tuple[Edited, str]:
        return use(answer), str(answer.get("analysis") or "").strip()

    found = coach.ask(name, signature, inputs, read, situation.temperature)
    if isinstance(found, NoProposal):
        return found
    (result, analysis), spent = found
    return replace(_proposal(name, situation, result, also), analysis=analysis, spent=spent)


def _by_edits(answer: Any, situation: Situation) -> Edited:
    text = situation.text
    asked = [Edit(each.kind, each.quote, each.text) for each in answer.edits]
    whole = unwrapped(str(answer.new_prompt), text)
    result = edited(text, asked, whole=whole, slots=situation.slots)
    if not result.applied and whole.strip() != text.strip() and keeps(text, whole) and _fits(whole, situation):
        # It named no change that can be made, but its text says what it adds and leaves out nothing.
        return Edited(whole, (), result.dropped, whole=True)
    if result.text.strip() == text.strip():
        reasons = "; ".join(dict.fromkeys(reason for _, reason in result.dropped))
        told = f"No edit could be applied ({reasons or 'there was none'}). Copy each quote exactly from current_prompt."
        raise Unfit("unfit" if reasons else "unchanged", "No edit of the coach's changes the prompt.", told)
    return result


def _text_for(situation: Situation) -> Callable[[Any], Edited]:
    return lambda answer: _whole(answer.new_prompt, situation)


def _whole(text: Any, situation: Situation) -> Edited:
    new = unwrapped(str(text), situation.text)
    if not new:
        raise Unfit("unfit", "The coach's text is empty.")
    if new.strip() == situation.text.strip():
        raise Unfit("unchanged", "The coach's text is the one there was.")
    if not _fits(new, situation):
        names = ", ".join(f"{{{{{name}}}}}" for name in slots_of(situation.text)) or "none"
        problem = "The coach's text loses a placeholder, or invents one."
        raise Unfit("unfit", problem, f"{problem} The placeholders are: {names}.")
    return Edited(new, whole=True)


def _fits(text: str, situation: Situation) -> bool:
    there, new = set(slots_of(situation.text)), set(slots_of(text))
    return there <= new <= there | set(situation.slots)


def _proposal(name: str, situation: Situation, result: Edited, also: tuple[Candidate, ...] = ()) -> Proposal:
    return Proposal(
        candidate=situation.parent.child(name, texts={situation.predictor: result.text}, also=also),
        operator=name,
        predictor=situation.predictor,
        edits=difference(situation.text, result.text) if result.whole else result.applied,
        dropped=result.dropped,
    )


def _renamed(proposal: Proposal, name: str, spent: Spend) -> Proposal:
    return replace(proposal, candidate=replace(proposal.candidate, origin=name), operator=name, spent=spent)


def _nothing(name: str) -> NoProposal:
    return NoProposal(operator=name, reason="nothing", problem="There is no other text to merge with.")
