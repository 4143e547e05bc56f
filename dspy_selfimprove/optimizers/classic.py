"""DSPy's own optimizers behind our protocol: MIPROv2, COPRO, SIMBA, GEPA and random search over demonstrations.

Each is DSPy's class, unchanged, with `Metrics` as its metric. What is ours is what stands around it:

    the program   a copy whose class also tells who answered; it names the same source, so a coach may still read it
    the LMs       a gate before each call: what was asked and answered before is answered from memory, or the journal
    the metric    tells which candidate every verdict is of, so that single-number optimizers leave a pool and a front

**An outage** gives the program an empty answer that the metric knows: it stands in with its mean so far (metric.py),
where DSPy would score 0. **A budget** that is used up, a broken set-up and ctrl-C leave as `Halt`, which is no
`Exception`, so nothing in DSPy takes it for a bad answer: every thread that asks for more is turned away, and what was
in flight comes to its end. **Memory**: DSPy's optimizers ask the same again and again, and count on DSPy's cache, which
is off here. So the gate gives the same answer to the same request of a worker within a program's call; SIMBA's other
tries (`rollout_id`) and a coach that is asked again get answers of their own. A run that was killed is played back from
the journal that way, for nothing, to the place where it ended: exactly with one slot, nearly with several.

Part of the budget is held back to measure finalists: whatever the optimizer saw on all of the validation set already
costs nothing more, the best of the rest are measured by our own `evaluate`, and `judged` chooses among them all.

How a budget becomes DSPy's settings is said at each class. Room is counted in *answers*: what one answer cost with its
verdicts is known from the baseline. Without a cap an optimizer has what DSPy calls a light run.

Not covered: COPRO's prefixes (no adapter of today shows them); dspy.Flex code under GEPA; parents of a candidate, which
only GEPA would tell: all descend from the baseline here; teachers; what a judge spends that has a model of its own. A
journal is one run's: what it says was spent counts against the budget. While a search runs, what is printed is not
shown, nor what DSPy logs: it quotes examples in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import random
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_selfimprove.budget import ROLES, Role, Spend
from dspy_selfimprove.candidate import Candidate
from dspy_selfimprove.errors import BadAnswer, BudgetExhausted, Outage, SelfImproveError, UsageError
from dspy_selfimprove.evaluation import Evaluation, evaluate
from dspy_selfimprove.message import FrozenDict, digest, thaw
from dspy_selfimprove.metric import Metrics
from dspy_selfimprove.model import Caller
from dspy_selfimprove.optimizer import Descent, Optimizer, Stop, Trial, judged, sides
from dspy_selfimprove.outage import failure_of
from dspy_selfimprove.program import apply_candidate, example_of, read_candidate
from dspy_selfimprove.progress import step
from dspy_selfimprove.rollout import meaning_of, plain, questions
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score, Scorecard
from dspy_selfimprove.statistics import estimate_mean
from dspy_selfimprove.wire import BODY, Body, response_of

if TYPE_CHECKING:
    from dspy.lm15 import Request, Response

    from dspy_selfimprove.journal import Journal
    from dspy_selfimprove.model import Models

FINALISTS: Final = 3  # measured besides what the optimizer itself saw on all of the validation set
LIGHT: Final = 400  # answers of a run without a cap, and no less than this many times the validation set:
LIGHT_SETS: Final = 12
_LEAST_SEEN: Final = 4  # verdicts before a candidate can be a finalist
_PATIENCE: Final = 3  # calls of the coach in a row that may fail; GEPA would go on for ever
_NEVER: Final = 10**9  # errors after which DSPy would give up


class Halt(BaseException):
    """Leaves a search from anywhere inside DSPy, which takes every Exception for a score of 0 and goes on."""


# What was asked before.

# Within one call of a program: which try it is (DSPy's rollout_id), and how often each request was made in it.
_call: ContextVar[tuple[Any, Counter[str]] | None] = ContextVar("_call", default=None)


class _Memory:
    """Completions by request, in the journal if there is one. Who asks what another is asking waits for its answer."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal, self._kept = journal, dict[str, Mapping[str, Any]]()
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def answer(self, key: str, role: Role, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            known = self._known(key)
            if known is None:
                known = ask()
                if self._journal is not None:
                    self._journal.append("answer", key, {"role": role, "completion": thaw(known)})
            with self._lock:
                self._kept[key] = known
        return known

    def _known(self, key: str) -> Mapping[str, Any] | None:
        with self._lock:
            known = self._kept.get(key)
        if known is None and self._journal is not None and (entry := self._journal.get("answer", key)) is not None:
            known = entry["completion"]
        return known


class _Book:
    """Writes what the ledger says into the journal as it comes, and reads it back for a run that goes on."""

    def __init__(self, models: Models, journal: Journal | None) -> None:
        self._ledger, self._journal, self._lock = models.ledger, journal, threading.Lock()
        if journal is not None and models.ledger.total == Spend() and not models.ledger.in_flight:
            models.ledger.restore(journal.spent())
        self._written = dict(models.ledger.spent)

    def write(self) -> None:
        if self._journal is None:
            return
        with self._lock:
            spent = self._ledger.spent
            for role in ROLES:
                if (more := spent[role] - self._written[role]) != Spend():
                    self._journal.add_spend(role, more)
                    self._written[role] = spent[role]


class _Gate:
    """One role's engine. During a search it turns away what the search may not ask any more."""

    def __init__(self, role: Role, caller: Caller, memory: _Memory, book: _Book, search: _Search | None = None) -> None:
        self.role, self.caller = role, caller
        self._memory, self._book, self._search = memory, book, search

    def __deepcopy__(self, memo: dict[int, Any]) -> _Gate:
        return self  # optimizers copy programs, LM and all

    def complete(self, request: Request) -> Response:
        body = _body(request)
        return response_of(request.model, self._memory.answer(self._key(body), self.role, lambda: self._asked(body)))

    def _asked(self, body: Body) -> Mapping[str, Any]:
        if self._search is not None:
            self._search.admit()
        try:
            completion = self.caller.ask(body)
        except Exception as error:
            if self._search is not None:
                self._search.look_at(error, self.role)
            raise
        finally:
            self._book.write()
        if self._search is not None:
            self._search.heard(self.role)
        return completion

    def _key(self, body: Body) -> str:
        asked = digest([self.role, self.caller.model.name, self.caller.model.base_url, plain(body)], 32)
        if self.role == "coach" and self._search is not None:
            return digest([asked, self._search.count(asked)], 32)
        rollout, made = _call.get() or (None, Counter())
        made[asked] += 1
        return digest([asked, rollout, made[asked]], 32)


class _AsyncGate:
    """The same for whoever awaits."""

    def __init__(self, gate: _Gate) -> None:
        self._gate, self.caller = gate, gate.caller

    def __deepcopy__(self, memo: dict[int, Any]) -> _AsyncGate:
        return self

    async def complete(self, request: Request) -> Response:
        return await asyncio.to_thread(self._gate.complete, request)


def _body(request: Request) -> Body:
    if (own := (request.config.extensions or {}).get(BODY)) is not None:
        body: Body = thaw(own)
        return body
    # DSPy keeps the writer of chat-completion bodies in a module of its own; there is no public door to it.
    from dspy.clients.lm15_boundary import request_kwargs

    made: Body = request_kwargs(request, "chat")
    return made


# A search under way.


@dataclass(slots=True)
class _Seen:
    """A candidate, and the verdicts on it by example: the reward, and each metric's value."""

    candidate: Candidate
    rewards: dict[str, float] = field(default_factory=dict)
    values: dict[str, Mapping[str, float]] = field(default_factory=dict)


class _Search:
    """What is known while DSPy searches: who was tried, whether it is over, who is still answering."""

    def __init__(self, session: _Session, held: Spend, seconds: float) -> None:
        self._session, self._held, self._seconds = session, held, seconds
        self.stop: Stop | None = None
        self.error: SelfImproveError | None = None
        self.pool: dict[str, _Seen] = {}
        self.answers = 0
        self.told: Callable[[], None] = lambda: None  # whoever shows how far it is
        self._active = self._unheard = 0
        self._asked: Counter[str] = Counter()
        self._change = threading.Condition()
        self._last = threading.local()

    # Whether it goes on.

    def close(self, stop: Stop, error: SelfImproveError | None = None) -> None:
        """Nothing more is begun. The first reason stays."""
        with self._change:
            if self.stop is None:
                self.stop, self.error = stop, error

    def go_on(self) -> None:
        if self.stop is not None:
            raise Halt

    def admit(self) -> None:
        """Room for one more call, or Halt: a part of the budget is held back for the finalists."""
        self.go_on()
        ledger, held = self._session.models.ledger, self._held
        spent, flying = ledger.total, ledger.in_flight
        for name in ("calls", "tokens", "dollars"):
            cap = getattr(ledger.budget, name)
            each = getattr(spent, name) / max(1, spent.calls)
            if cap is not None and getattr(spent, name) + each * (flying + 1) > cap - getattr(held, name):
                self.close(Stop("budget", f"The budget of {cap:g} {name} was used up."))
        cap = ledger.budget.seconds
        if cap is not None and ledger.seconds >= cap - self._seconds:
            self.close(Stop("budget", f"The budget of {cap:g} seconds was used up."))
        self.go_on()

    def look_at(self, error: Exception, role: Role) -> None:
        """End the search if no other call would fare better; anything else is the caller's to bear."""
        failure = failure_of(error)
        if isinstance(failure, BudgetExhausted):
            self.close(Stop("budget", "The budget was used up: " + _lower(failure.problem)), failure)
            raise Halt from error
        if role == "coach" and failure is not None and not isinstance(failure, Outage | BadAnswer):
            self.close(Stop("failed", f"The coach cannot be asked. {failure.problem}"), failure)
            raise Halt from error
        if role == "coach":
            with self._change:
                self._unheard += 1
                silent = self._unheard >= _PATIENCE
            if silent and failure is not None:
                self.close(
                    Stop("outage", f"The coach stayed silent {_PATIENCE} times in a row. {failure.problem}"), failure
                )
                raise Halt from error

    def heard(self, role: Role) -> None:
        """An answer came."""
        if role == "coach":
            with self._change:
                self._unheard = 0

    def count(self, asked: str) -> int:
        """How often the coach was asked this before."""
        with self._change:
            self._asked[asked] += 1
            return self._asked[asked]

    def drain(self) -> None:
        """Wait until nobody answers any more."""
        with self._change:
            while self._active:
                self._change.wait(0.1)

    # Who is tried.

    def call(self, module: Any, run: Any, args: Any, kwargs: Any) -> Any:
        """One answer of a candidate; without one through no fault of its own, an empty one that the metric knows."""
        with self._change:
            self.go_on()
            self._active += 1
            self.answers += 1
        try:
            self.told()
            seen = self._seen(module)
            self._last.seen = seen
            made, missing = None, None
            try:
                made = run(*args, **kwargs)
            except Exception as error:
                missing = self._missing(error)
                if missing is None:
                    self._record(seen, _key_of(kwargs), 0.0, dict.fromkeys(self._session.metrics.names, 0.0))
                    raise
            # Under GEPA a program may be one that gives its trace as well.
            traced = isinstance(made, tuple) or (missing is not None and "forward" in vars(module))
            answer = made[0] if isinstance(made, tuple) else made
            if missing is not None:
                answer = dspy.Prediction()
                answer._missing = missing
            if isinstance(answer, dspy.Example):
                answer._seen = seen.candidate.id  # and not itself: optimizers copy what they are given
            return (answer, made[1] if isinstance(made, tuple) else []) if traced else answer
        finally:
            with self._change:
                self._active -= 1
                self._change.notify_all()

    def _missing(self, error: Exception) -> str | None:
        """Why there is no answer; None if that is the candidate's own fault. Halts where no other would fare better."""
        try:
            meaning = meaning_of(error)
        except BudgetExhausted as full:
            self.close(Stop("budget", "The budget was used up: " + _lower(full.problem)), full)
        except SelfImproveError as broken:
            self.close(Stop("failed", broken.problem), broken)
        else:
            return meaning.get("failure")
        raise Halt from error

    def _seen(self, module: Any) -> _Seen:
        candidate = read_candidate(module)
        with self._change:
            known = self.pool.get(candidate.id)
            if known is None:
                origin = self._session.origin
                if candidate.id != origin.id:
                    candidate = replace(candidate, parents=(origin.id,), origin=self._session.name)
                known = self.pool[candidate.id] = _Seen(candidate)
            else:
                return known
        if self._session.journal is not None:
            self._session.journal.add_candidate(known.candidate)
        return known

    def judge(self, example: Any, pred: Any, *places: Any) -> Any:
        """The verdict for DSPy, noted."""
        self.go_on()
        metrics = self._session.fresh
        reason = getattr(pred, "_missing", None)
        try:
            verdict = metrics(example, pred, *places) if reason is None else metrics.without(reason)
        except BudgetExhausted as full:
            self.close(Stop("budget", "The budget was used up: " + _lower(full.problem)), full)
        except Outage as away:
            self.close(Stop("outage", away.problem), away)
        except SelfImproveError as broken:
            self.close(Stop("failed", broken.problem), broken)
        else:
            seen = self.pool.get(getattr(pred, "_seen", "")) or getattr(self._last, "seen", None)
            if seen is not None and not verdict.is_missing:
                self._record(seen, _key_of(example.inputs()), float(verdict.score), verdict.objective_scores)
            return verdict
        finally:
            self._session.book.write()
        raise Halt

    def _record(self, seen: _Seen, key: str, reward: float, values: Mapping[str, float]) -> None:
        with self._change:
            if key in seen.rewards:
                return
            seen.rewards[key], seen.values[key] = reward, dict(values)
        if self._session.journal is not None:
            card = Scorecard(key, {name: Score(value) for name, value in values.items()})
            self._session.journal.add_scorecard(seen.candidate.id, card)


class _Judge:
    """The metric as DSPy calls it. Its five parameters are GEPA's."""

    def __init__(self, search: _Search, names: tuple[str, ...]) -> None:
        self._search, self.names = search, names

    def __deepcopy__(self, memo: dict[int, Any]) -> _Judge:
        return self

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        return self._search.judge(example, pred, trace, pred_name, pred_trace)


def _watched(program: dspy.Module, search: _Search | None) -> Any:
    """A copy of `program` that tells `search` of each answer. Copies of the copy do the same."""
    kind: Any = type(program)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        def run(*args: Any, **kwargs: Any) -> Any:
            lm = next((each.lm for each in self.predictors() if each.lm is not None), dspy.settings.lm)
            token = _call.set((getattr(lm, "kwargs", {}).get("rollout_id"), Counter()))
            try:
                return kind.__call__(self, *args, **kwargs)
            finally:
                _call.reset(token)

        return run(*args, **kwargs) if search is None else search.call(self, run, args, kwargs)

    # By the same name and place, since optimizers show a program's source to the coach, and look it up by these.
    known = ("__module__", "__qualname__", "__doc__", "__firstlineno__")
    own = {name: vars(kind)[name] for name in known if name in vars(kind)}
    watched = type(kind)(kind.__name__, (kind,), {"__qualname__": kind.__qualname__, **own, "__call__": __call__})
    copied = apply_candidate(read_candidate(program), program)
    copied.__class__ = watched
    copied._compiled = False  # BootstrapFewShot refuses what was compiled before
    return copied


def _key_of(inputs: Any) -> str:
    return digest(plain(dict(inputs.items())), 16)


def _lower(problem: str) -> str:
    return problem[:1].lower() + problem[1:]


# A run.


@dataclass(frozen=True)
class Desk:
    """What a search gets. `answers` is how many it may ask a program for; `usual` the baseline's mean reward.

    `train` and `validation` are dspy.Examples; `metric` and both LMs note what they are asked.
    """

    student: Any
    train: list[Any]
    validation: list[Any]
    metric: Any
    worker: Any
    coach: Any
    threads: int
    seed: int
    answers: int
    usual: float

    @property
    def predictors(self) -> int:
        return len(self.student.predictors())

    def part(self, examples: list[Any], size: int) -> list[Any]:
        """So many of them, drawn by the seed."""
        size = max(1, min(size, len(examples)))
        return examples if size == len(examples) else random.Random(self.seed).sample(examples, size)


class _Session:
    """One compile."""

    def __init__(
        self, optimizer: Classic, student: dspy.Module, trainset: Sequence[Any], valset: Sequence[Any] | None
    ) -> None:
        self.optimizer, self.student, self.name = optimizer, student, optimizer.name
        self.models, self.journal, self.seed = optimizer.models, optimizer.journal, optimizer.seed
        self.metrics: Metrics = optimizer.metrics
        # What stands in for a missing verdict is this run's mean, and no other's.
        self.fresh = Metrics(replace(each) for each in self.metrics)
        self.train, self.validation = sides(trainset, valset, seed=self.seed)
        self.origin = read_candidate(student)
        self._refuse_strange()
        self.before = self.models.ledger.spent  # before the book adds what an earlier part of the run spent
        self.memory, self.book = _Memory(self.journal), _Book(self.models, self.journal)
        self.search: _Search | None = None
        self._stopped = threading.Event()  # before there is a search to stop

    def _refuse_strange(self) -> None:
        if not hasattr(type(self.student), "forward"):
            raise UsageError(
                "The program can only be awaited, and DSPy's optimizers call it.", remedy="Give it a forward method."
            )
        callers = [self.models.caller(role) for role in ROLES]
        for name, predictor in self.student.named_predictors():
            caller = getattr(getattr(predictor.lm, "engine", None), "caller", None)
            if predictor.lm is not None and not any(getattr(caller, "ledger", None) is c.ledger for c in callers):
                raise UsageError(
                    f"The predictor {name!r} has an LM of its own, whose calls no budget would count.",
                    remedy="Take it out with program.set_lm(None): the worker of `models` answers.",
                )

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped.set()
        if self.search is not None:
            self.search.close(Stop("interrupted", "It was interrupted."))

    def result(self) -> dspy.Module:
        start = time.perf_counter()
        baseline = self._evaluation(self.origin, show=self.optimizer.show)
        answers, held, seconds = self._plan(baseline)
        self.search = search = _Search(self, held, seconds)
        if self._stopped.is_set():
            search.close(Stop("interrupted", "It was interrupted."))
        winner = None if baseline.partial else self._searched(search, baseline, answers)
        if baseline.partial:
            search.close(
                Stop("budget", f"It ended before the baseline was measured: {_lower(baseline.stopped or '')}.")
            )
        found = [(self.origin, baseline), *self._measured(search, winner)]
        ids = {candidate.id for candidate, _ in found}
        unproven = [_unproven(seen) for name, seen in search.pool.items() if name not in ids]
        unproven.sort(key=lambda trial: -trial.n)
        self.book.write()
        assert search.stop is not None
        spent = self.models.ledger.spent
        improvement = judged(
            found,
            by=self.name,
            preference=self.metrics.preference,
            min_improvement=self.optimizer.min_improvement,
            stopped=search.stop,
            unproven=unproven,
            spent=FrozenDict({role: each for role in ROLES if (each := spent[role] - self.before[role]) != Spend()}),
            lineage=FrozenDict(
                {name: Descent(seen.candidate.parents, seen.candidate.origin) for name, seen in search.pool.items()}
            ),
            tried=len({self.origin.id, *search.pool}),
            seconds=time.perf_counter() - start,
            seed=self.seed,
        )
        if self.journal is not None:
            self.journal.log("improvement", improvement.to_json())
        chosen = apply_candidate(improvement.chosen.candidate, self.student)
        chosen.improvement = improvement
        return chosen

    # Before.

    def _plan(self, baseline: Evaluation) -> tuple[int, Spend, float]:
        """How many answers a search may ask for, and what of the budget is held back to measure finalists.

        A run that goes on has the plan it began with: its baseline came from the journal, and cost nothing.
        """
        key = digest(
            [
                [self.name, self.seed, self.origin.id, baseline.program, repr(self.models.ledger.budget)],
                [[each.name, each.version] for each in baseline.metrics],
                [[each.fingerprint for each in questions(side)] for side in (self.train, self.validation)],
            ],
            32,
        )
        # What the journal held cost nothing this time.
        count = len(baseline.outcomes)
        share = count / max(1, count - baseline.remembered)
        paid = sum(baseline.spent.values(), Spend())
        spent = Spend(round(paid.calls * share), round(paid.tokens * share), paid.dollars * share)
        made: dict[str, Any] = {
            "room": self._room(baseline, spent),
            "each": spent.to_json(),
            "seconds": baseline.seconds,
        }
        if self.journal is not None:
            made = self.journal.append("plan", key, made).data
        room, size = made["room"], len(self.validation)
        whole = Spend(**made["each"])
        if room is None:
            return max(LIGHT, LIGHT_SETS * size), Spend(), 0.0
        finalists = min(self.optimizer.finalists, int(room / (3 * size)))
        held = Spend(whole.calls * finalists, whole.tokens * finalists, whole.dollars * finalists)
        return max(1, int(room - finalists * size)), held, made["seconds"] * finalists

    def _room(self, baseline: Evaluation, spent: Spend) -> float | None:
        """How many answers, with their verdicts, the rest of the budget pays for; None without a cap."""
        ledger, count = self.models.ledger, max(1, len(baseline.outcomes))
        rooms = []
        for name in ("calls", "tokens", "dollars"):
            cap, cost = getattr(ledger.budget, name), getattr(spent, name) / count
            if cap is not None and cost:
                rooms.append((cap - getattr(ledger.total, name)) / cost)
        if ledger.budget.seconds is not None and baseline.seconds:
            rooms.append((ledger.budget.seconds - ledger.seconds) / (baseline.seconds / count))
        return max(0.0, min(rooms)) if rooms else None

    # While.

    def _searched(self, search: _Search, baseline: Evaluation, answers: int) -> Candidate | None:
        """Let DSPy search; gives its own winner, if it came that far."""
        rewards = [self.metrics.reward(card) for card in baseline.scorecards]
        known = [reward for reward in rewards if reward is not None]
        worker = self._lm("worker", search)
        desk = Desk(
            student=_watched(self.student, search),
            train=_examples(self.train),
            validation=_examples(self.validation),
            metric=_Judge(search, self.metrics.names),
            worker=worker,
            coach=self._lm("coach", search),
            threads=self.models.slots.size,
            seed=self.seed,
            answers=answers,
            usual=math.fsum(known) / len(known) if known else 0.0,
        )
        winner: Candidate | None = None
        with (
            step(f"Searching ({self.name})", shown=self.optimizer.show) as done,
            _quiet(everything=not self.optimizer.show),
            # Without a history: programs are copied all the time, and theirs with them.
            dspy.context(lm=worker, max_errors=_NEVER, num_threads=desk.threads, disable_history=True),
        ):
            search.told = lambda: done(search.answers, answers)
            try:
                winner = read_candidate(self.optimizer.search(desk))
                search.close(Stop("finished", "The search came to its own end."))
            except Halt:
                pass
            except KeyboardInterrupt:
                search.close(Stop("interrupted", "It was interrupted."))
            except Exception as error:
                failure = failure_of(error)
                if search.stop is None and failure is None and len(search.pool) < 2:
                    raise  # it never began: nothing to conclude from, and the traceback says more
                reason, words = (
                    ("outage", "The model's service stayed away.")
                    if isinstance(failure, Outage)
                    else (
                        "failed",
                        f"DSPy's optimizer raised {type(error).__name__}.",
                    )
                )
                search.close(Stop(reason, failure.problem if failure else words), failure)  # type: ignore[arg-type]
            finally:
                search.close(Stop("interrupted", "It was interrupted."))
                search.drain()
        assert search.stop is not None
        if search.error is not None and search.stop.reason == "failed" and len(search.pool) < 2:
            raise search.error  # a set-up that is broken from the start
        return winner

    # After.

    def _measured(self, search: _Search, winner: Candidate | None) -> Iterator[tuple[Candidate, Evaluation]]:
        """The candidates that were, or can still be, measured on all of the validation set."""
        wanted = {_key_of(each.inputs()) for each in _examples(self.validation)}
        pool = {name: seen for name, seen in search.pool.items() if name != self.origin.id}
        whole = [seen.candidate for seen in pool.values() if wanted <= seen.rewards.keys()]
        known = {candidate.id for candidate in whole}
        rest = [seen for name, seen in pool.items() if name not in known and len(seen.rewards) >= _LEAST_SEEN]
        rest.sort(key=lambda seen: -estimate_mean(list(seen.rewards.values())).low)
        finalists = [seen.candidate for seen in rest]
        if winner is not None and winner.id not in {*known, self.origin.id}:
            finalists.insert(0, replace(winner, parents=(self.origin.id,), origin=self.name))
        finalists = list({each.id: each for each in finalists}.values())[:FINALISTS]
        stop = search.stop
        for candidate in [*whole, *([] if stop is not None and stop.reason == "interrupted" else finalists)]:
            try:
                yield candidate, self._evaluation(candidate, show=False)
            except SelfImproveError:
                return  # the budget, or an outage: what is known stands
            except KeyboardInterrupt:
                search.stop = Stop("interrupted", "It was interrupted.")
                return

    def _evaluation(self, candidate: Candidate, *, show: bool) -> Evaluation:
        program = _watched(apply_candidate(candidate, self.student), None)
        with dspy.context(lm=self._lm("worker", None), disable_history=True):
            try:
                return evaluate(
                    program,
                    self.validation,
                    self.metrics,
                    slots=self.models.slots.size,
                    journal=self.journal,
                    show=show,
                )
            finally:
                self.book.write()

    def _lm(self, role: Role, search: _Search | None) -> Any:
        ours = self.models.lm(role)
        gate = _Gate(role, self.models.caller(role), self.memory, self.book, search)
        lm = dspy.LM(
            ours.model, engine=gate, async_engine=_AsyncGate(gate), cache=False, num_retries=0, **dict(ours.kwargs)
        )
        lm.inspect_history = lambda *args, **kwargs: None  # COPRO has it printed, prompts and all
        return lm


def _examples(given: Sequence[Any]) -> list[Any]:
    return [example_of(each) if isinstance(each, Sample) else each for each in given]


def _unproven(seen: _Seen) -> Trial:
    names = {name: None for values in seen.values.values() for name in values}
    means = {name: estimate_mean([values.get(name, math.nan) for values in seen.values.values()]) for name in names}
    return Trial(seen.candidate, FrozenDict(means), len(seen.rewards), "unproven")


@contextlib.contextmanager
def _quiet(*, everything: bool) -> Iterator[None]:
    """Neither what DSPy prints nor what it logs, for both quote examples; nor its bars, if nobody is to see any."""
    loggers = [logging.getLogger(name) for name in ("dspy", "gepa", "optuna")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if everything:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class Classic(Optimizer, Teleprompter):  # type: ignore[misc]
    """One of DSPy's optimizers. `search` is all that a kind has to say; `finalists` is for how many it needs room."""

    finalists: ClassVar[int] = FINALISTS

    def compile(
        self, student: dspy.Module, *, trainset: Sequence[Any], valset: Sequence[Any] | None = None
    ) -> dspy.Module:
        return _Session(self, student, trainset, valset).result()

    async def acompile(
        self, student: dspy.Module, *, trainset: Sequence[Any], valset: Sequence[Any] | None = None
    ) -> dspy.Module:
        session = _Session(self, student, trainset, valset)
        working = asyncio.ensure_future(asyncio.to_thread(session.result))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            session.stop()
            await asyncio.wait([working])
            raise

    @abstractmethod
    def search(self, desk: Desk) -> dspy.Module:
        """Run DSPy's optimizer; gives the program it would choose."""


# The kinds.


class MIPROv2(Classic):
    """Instructions by a coach that has seen the data, demonstrations by trial, and the best pairing by TPE.

    Each trial is of the whole validation set where the room allows six of them, else of a quarter of it with every
    fifth trial's best on all. Two trials are made for each text and each set of demonstrations, 2 to 12 of them. A
    demonstration must have earned more than the baseline's mean: without a threshold MIPROv2 takes any above 0.
    """

    name = "mipro"
    finalists = 1

    def search(self, desk: Desk) -> dspy.Module:
        size = len(desk.validation)
        whole = desk.answers >= 6 * size
        part = size if whole else max(1, size // 4)
        each = size if whole else part + size / 5
        trials = max(2, int((desk.answers - min(len(desk.train), desk.answers / 4)) / each))
        count = min(12, max(2, trials // 2))
        mipro = dspy.MIPROv2(
            metric=desk.metric,
            prompt_model=desk.coach,
            task_model=desk.worker,
            auto=None,
            num_candidates=count,
            max_bootstrapped_demos=2,
            max_labeled_demos=0,
            metric_threshold=desk.usual or None,
            num_threads=desk.threads,
            seed=desk.seed,
        )
        return mipro.compile(
            desk.student,
            trainset=desk.train,
            valset=desk.validation,
            num_trials=trials,
            minibatch=not whole,
            minibatch_size=part,
            seed=desk.seed,
        )


class COPRO(Classic):
    """A coach rewrites the instructions, then again with all attempts and their scores before it.

    It has no validation set: attempts are scored on training examples, a sample of them if the room would not allow
    twelve attempts otherwise. Up to ten attempts a round, for as many rounds as the room allows; with several
    predictors DSPy scores every text anew each round, so there are two rounds.
    """

    name = "copro"

    def search(self, desk: Desk) -> dspy.Module:
        train = desk.part(desk.train, max(8, desk.answers // 12))
        attempts = max(4, desk.answers // len(train))
        rounds = 3 * desk.predictors if desk.predictors > 1 else 3
        breadth = max(2, min(10, attempts // rounds))
        depth = max(2, attempts // breadth) if desk.predictors == 1 else 2
        copro = dspy.COPRO(prompt_model=desk.coach, metric=desk.metric, breadth=breadth, depth=depth)
        return copro.compile(desk.student, trainset=train, eval_kwargs={"num_threads": desk.threads})


class SIMBA(Classic):
    """Several tries at each example of a small batch; what a good one did and a bad one did not becomes advice or a
    demonstration.

    Three to six candidates a step on batches of up to 32, the more the larger the room; as many steps, 1 to 16, as it
    allows besides the last look, which is of all that won a step on the training examples it was given.
    """

    name = "simba"

    def search(self, desk: Desk) -> dspy.Module:
        candidates = 3 if desk.answers < 200 else 4 if desk.answers < 1000 else 6
        train = desk.part(desk.train, max(8, desk.answers // 20))
        batch = min(32, len(train), max(4, desk.answers // 40))
        steps = (desk.answers - (candidates + 1) * len(train)) // (batch * (2 * candidates + 1))
        simba = dspy.SIMBA(
            metric=desk.metric,
            bsize=batch,
            num_candidates=candidates,
            max_steps=min(16, max(1, steps)),
            max_demos=2,
            prompt_model=desk.coach,
            num_threads=desk.threads,
        )
        return simba.compile(desk.student, trainset=train, seed=desk.seed)


class GEPA(Classic):
    """A coach reads answers with their feedback and rewrites the instructions of one predictor at a time.

    What it may ask for is the room, told to GEPA as metric calls; the baseline's are from memory. Where the room is
    less than ten validation sets, it keeps its front on a part of the set. With several metrics its front has each of
    them besides each example.
    """

    name = "gepa"
    finalists = 1

    def search(self, desk: Desk) -> dspy.Module:
        validation = desk.part(desk.validation, max(6, desk.answers // 10))
        several = len(desk.metric.names) > 1
        gepa = dspy.GEPA(
            metric=desk.metric,
            max_metric_calls=desk.answers + len(validation),
            reflection_lm=desk.coach,
            num_threads=desk.threads,
            warn_on_score_mismatch=False,
            seed=desk.seed,
            gepa_kwargs={"frontier_type": "hybrid"} if several else None,
        )
        return gepa.compile(desk.student, trainset=desk.train, valset=validation)


class Bootstrap(Classic):
    """DSPy's BootstrapFewShotWithRandomSearch: the program's own good answers as demonstrations, in random sets.

    As many sets, 1 to 16, as the room allows measurements on the whole validation set.
    """

    name = "bootstrap"
    finalists = 0

    def search(self, desk: Desk) -> dspy.Module:
        train = list(desk.train)
        random.Random(desk.seed).shuffle(train)  # DSPy's own seeds are fixed
        room = desk.answers - min(len(train), desk.answers // 4)
        search = dspy.BootstrapFewShotWithRandomSearch(
            metric=desk.metric,
            max_bootstrapped_demos=3,
            max_labeled_demos=0,
            num_candidate_programs=min(16, max(1, room // len(desk.validation) - 1)),
            metric_threshold=desk.usual or None,
            num_threads=desk.threads,
        )
        return search.compile(desk.student, trainset=train, valset=desk.validation)
