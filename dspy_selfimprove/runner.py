"""Runner: the story. From a project and a date to a checkpoint and a split dataset; later to a better prompt.

    runner = Runner("support", since="7d")
    runner.spans()        # what production did                     .selfimprove/production/support/spans/
    runner.evaluators()   # what judged it
    runner.checkpoint()   # samples, prompts, where they came from  .selfimprove/production/support/7d/
    runner.dataset()      # a diverse sample, on three sides        .selfimprove/datasets/support-<prompt version>/
    print(runner.summary())

Each step brings about the ones before it, shows its progress, and does nothing twice: spans that are held are not
fetched again, a checkpoint of the same spans, verdicts and evaluators is loaded, and a dataset that exists is never
split again. After an interruption, or in another process, the same calls go on where they were. `renew=True` looks at
production again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from dspy_selfimprove import files
from dspy_selfimprove.checkpoint import Checkpoint, Origin
from dspy_selfimprove.composition import compose
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import digest
from dspy_selfimprove.progress import step
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.standing import slug
from dspy_selfimprove.summary import Summary, summarise
from dspy_selfimprove.window import Window

if TYPE_CHECKING:
    import dspy
    import pandas as pd

    from dspy_selfimprove.dataset import Dataset
    from dspy_selfimprove.diversity import Draw
    from dspy_selfimprove.program.examples import Examples
    from dspy_selfimprove.telemetry.pages import Source

COMPOSER: Final = 1  # raised when the same spans would give another checkpoint
AS_IT_WAS: Final = (
    "It was there, and stays as it was drawn, verdicts included: `extend` adds what is new, another name draws anew."
)
SIZE: Final = 300  # samples in a dataset, unless told otherwise


class Runner:
    """One pull of production, step by step. `project` is Phoenix's; `since` and `until` are as people write them.

    `source` is a file or a DataFrame of spans from elsewhere instead of a Phoenix, or any `Source`; `folder` is where
    to keep things. Which Phoenix is used is settled as everywhere (`PHOENIX_COLLECTOR_ENDPOINT`, else the project's).

    >>> from dspy_selfimprove.runner import Runner
    >>> Runner("support", since="7d")
    Runner('support', since='7d')
    """

    def __init__(
        self,
        project: str | None = None,
        since: str | date | timedelta | None = None,
        until: str | date | timedelta | None = None,
        *,
        source: Any = None,
        folder: str | Path | None = None,
        show: bool = True,
    ) -> None:
        if until is not None and since is None:
            raise UsageError("`until` needs a `since`.", remedy="Say where the window begins.")
        if source is None and (not project or since is None):
            raise UsageError(
                "The runner needs a project and a date.", remedy="Write Runner('support', since='7d'), or pass source=."
            )
        self.project = project or _name_of(source)
        self.window = None if since is None else Window.parse(since, until)
        self._written = "all" if since is None else _folder_name(since, until)
        self._since = since
        self._given, self._folder, self._show = source, folder, show
        self._source: Source | None = None
        self._evaluators: tuple[EvalSpec, ...] | None = None
        self._checkpoint: Checkpoint | None = None
        self._draw: Draw | None = None
        self._dataset: Dataset | None = None
        self._notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where this project's production is kept; made on first use."""
        if self._folder is not None:
            return files.writable(Path(self._folder).absolute())
        return files.writable(files.home() / "production" / slug(self.project))

    def _kept(self, name: str) -> Path:
        """A folder for production data in ours, out of every commit."""
        return files.private(self.folder / name)

    def spans(self, *, renew: bool = False) -> pd.DataFrame:
        """One line for each span of the window, without its texts: to look at and to count."""
        return self._read(renew).frame()

    def evaluators(self) -> tuple[EvalSpec, ...]:
        """The evaluators that were tracked in this folder (`track_evaluators`), each as it ran last."""
        if self._evaluators is None:
            from dspy_selfimprove.telemetry import evaluators

            self._evaluators = evaluators.latest()
        return self._evaluators

    def checkpoint(self, *, scales: Mapping[str, tuple[float, float]] | None = None, renew: bool = False) -> Checkpoint:
        """What this window knows, on disk. `scales` names the lowest and highest verdict of untracked metrics.

        Scales once named hold until others are.
        """
        if self._checkpoint is not None and not renew and scales is None:
            return self._checkpoint
        source, evaluators, into = self._read(renew), self.evaluators(), self._kept(self._written)
        before = Checkpoint.origin_in(into)
        if scales is None:
            scales = before.scales if before else {}
        origin = self._origin(source, evaluators, scales)
        if before is not None and before.key == origin.key is not None:
            self._checkpoint = Checkpoint.load(into)
            return self._checkpoint
        with step("Composing samples", shown=self._show) as done:
            self._checkpoint = compose(
                source, into, origin=origin, evaluators=evaluators, scales=scales, progress=lambda count: done(count)
            )
        return self._checkpoint

    def dataset(
        self,
        size: int = SIZE,
        *,
        prompt_version: str | None = None,
        name: str | None = None,
        seed: int = 0,
        extend: bool = False,
    ) -> Dataset:
        """A diverse sample of one prompt version, split in train, validation and a sealed test.

        A dataset that exists is loaded as it stands, whatever `size` and `seed` say; `extend=True` adds a sample of
        what production did since. What an earlier version's dataset put on one side stays on that side.
        """
        from dspy_selfimprove import dataset, standing

        checkpoint = self.checkpoint()
        seen = checkpoint.prompt(prompt_version)
        name = name or f"{slug(self.project)}-{seen.version[:6]}"
        pool = list(checkpoint.of(seen.version))
        found = standing.standing(name, project=self.project, prompt=seen.version)
        if found is not None:
            self._dataset = self._extended(found, pool, size, seed) if extend else found
            if not extend:
                self._notes = (AS_IT_WAS,)
            return self._dataset
        drawn, samples = self._drawn(pool, size, seed)
        groups, mute = standing.telling_groups(samples)
        self._notes = tuple(f"Nearly all samples share one {each}: it does not group them." for each in mute)
        about = {
            "project": self.project,
            "window": str(self.window or "all there was"),
            "checkpoint": checkpoint.version,
            "prompt": seen.version,
            "pool": len(pool),
            "until": _latest(pool),
            "drawn": list(drawn.notes),
        }
        with step("Splitting into train, validation and test", shown=self._show) as done:
            beside = list(standing.relatives(self.project))
            self._dataset = dataset.split(samples, name, seed=seed, groups=groups, origin=about, beside=beside)
            done(len(samples))
        return self._dataset

    def examples(self, program: dspy.Module) -> Examples:
        """What the traces show of a DSPy program: its calls, and each of its predictors', as Examples."""
        import dspy

        from dspy_selfimprove.program import examples_of

        if not isinstance(program, dspy.Module):
            raise UsageError("That is not a DSPy program.", remedy="Pass an instance of a dspy.Module, not its class.")
        return examples_of(self._read(False).steps(), program)

    def run(self, size: int = SIZE, *, prompt_version: str | None = None, name: str | None = None) -> Summary:
        """Every step there is, one after the other."""
        self.dataset(size, prompt_version=prompt_version, name=name)
        return self.summary()

    @property
    def draw(self) -> Draw | None:
        """How the dataset's samples were drawn, if this runner drew them; `draw.plot()` shows it."""
        return self._draw

    def summary(self) -> Summary:
        """How far this runner is, and what it found."""
        return summarise(self._source, self._checkpoint, self._draw, self._dataset, self._notes)

    def __repr__(self) -> str:
        return f"Runner({self.project!r}, since={self._since!r})"

    def _read(self, renew: bool) -> Source:
        if self._source is not None and not renew:
            return self._source
        self._checkpoint = self._evaluators = None
        if self._given is not None:
            with step("Reading spans", shown=self._show) as done:
                self._source = _opened(self._given, self.window)
                done(len(self._source))
            return self._source
        from dspy_selfimprove.telemetry.spans import pull

        assert self.window is not None
        with step("Reading spans from Phoenix", shown=self._show) as done:
            found = pull(self.project, self.window.since, self.window.until, into=self._kept("spans"), progress=done)
            done(len(found))
        if not len(found):
            raise UsageError(
                f"The project {self.project!r} has no span from {self.window}.", remedy="Choose another window."
            )
        self._source = found
        return found

    def _origin(
        self, source: Source, evaluators: Iterable[EvalSpec], scales: Mapping[str, tuple[float, float]]
    ) -> Origin:
        window = self.window
        version = source.version
        key = version and digest([COMPOSER, version, sorted(spec.version for spec in evaluators), dict(scales)])
        return Origin(
            source="phoenix" if self._given is None else "export",
            project=self.project,
            since=window.since if window else None,
            until=window.until if window else None,
            made=datetime.now(UTC),
            key=key,
        )

    def _drawn(self, pool: list[Sample], size: int, seed: int) -> tuple[Draw, tuple[Sample, ...]]:
        from dspy_selfimprove.diversity import draw

        with step("Drawing a diverse sample", shown=self._show) as done:
            self._draw = draw(pool, size, seed=seed)
            taken = self._draw.pick(pool)
            done(len(taken))
        return self._draw, taken

    def _extended(self, found: Dataset, pool: list[Sample], size: int, seed: int) -> Dataset:
        """The dataset with a sample of what is newer than all that it was drawn from so far."""
        from dspy_selfimprove import dataset
        from dspy_selfimprove.standing import seen_until

        before = seen_until(found.card)
        newer = [sample for sample in pool if sample.time and (before is None or sample.time.isoformat() > before)]
        if not newer:
            self._notes = ("Nothing is newer than what it was drawn from.",)
            return found
        _, taken = self._drawn(newer, size, seed)
        with step("Adding what is new", shown=self._show) as done:
            extended = dataset.extend(found, taken, origin={"until": _latest(newer), "pool": len(newer)})
            done(sum(extended.sizes.values()) - sum(found.sizes.values()))
        return extended


def _latest(pool: list[Sample]) -> str | None:
    return max((sample.time.isoformat() for sample in pool if sample.time), default=None)


def _opened(source: Any, window: Window | None) -> Source:
    """A file or a frame as a source; what is one already stays."""
    if hasattr(source, "exchanges"):
        return cast("Source", source)
    import pandas as pd

    if not isinstance(source, str | Path | pd.DataFrame):
        raise UsageError(
            f"A {type(source).__name__} is no source of spans.", remedy="Pass a file, a folder, or a pandas DataFrame."
        )
    from dspy_selfimprove.telemetry import exports

    return exports.read(source, window.since if window else None, window.until if window else None)


def _name_of(source: Any) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "export"


def _folder_name(since: object, until: object) -> str:
    written = "_".join(str(each) for each in (since, until) if each is not None)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", written)[:80]
