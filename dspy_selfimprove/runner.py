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
from dspy_selfimprove.checkpoint import Checkpoint, Origin, Samples
from dspy_selfimprove.composition import compose
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.message import digest
from dspy_selfimprove.progress import step
from dspy_selfimprove.sample import EvalSpec, Sample
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

    @property
    def folder(self) -> Path:
        """Where this project's production is kept; made on first use."""
        if self._folder is not None:
            return files.writable(Path(self._folder).absolute())
        return files.writable(files.home() / "production" / _slug(self.project))

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
        """What this window knows, on disk. `scales` names the lowest and highest verdict of untracked metrics."""
        if self._checkpoint is not None and not renew and not scales:
            return self._checkpoint
        source, evaluators = self._read(renew), self.evaluators()
        origin, into = self._origin(source, evaluators, scales or {}), self.folder / self._written
        if origin.key is not None and Checkpoint.key(into) == origin.key:
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

        A dataset of that name that exists is loaded as it is; `extend=True` adds a sample of what production did since.
        """
        from dspy_selfimprove import dataset

        checkpoint = self.checkpoint()
        seen = checkpoint.prompt(prompt_version)
        name = name or f"{_slug(self.project)}-{seen.version[:6]}"
        pool = checkpoint.of(seen.version)
        if (standing := _standing(name)) is not None:
            self._dataset = standing
            return self._extended(standing, pool, size, seed) if extend else standing
        drawn, samples = self._drawn(pool, size, seed)
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
            self._dataset = dataset.split(samples, name, seed=seed, origin=about)
            done(len(samples))
        return self._dataset

    def examples(self, program: dspy.Module) -> Examples:
        """What the traces show of a DSPy program: its calls, and each of its predictors', as Examples."""
        from dspy_selfimprove.program import examples_of

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
        return summarise(self._source, self._checkpoint, self._draw, self._dataset)

    def __repr__(self) -> str:
        return f"Runner({self.project!r}, since={self._since!r})"

    def _read(self, renew: bool) -> Source:
        if self._source is not None and not renew:
            return self._source
        self._checkpoint = None
        if self._given is not None:
            with step("Reading spans", shown=self._show) as done:
                self._source = _opened(self._given, self.window)
                done(len(self._source.frame()))
            return self._source
        from dspy_selfimprove.telemetry.spans import pull

        assert self.window is not None
        with step("Reading spans from Phoenix", shown=self._show) as done:
            found = pull(self.project, self.window.since, self.window.until, into=self.folder / "spans", progress=done)
            done(len(found))
        if not len(found):
            raise UsageError(
                f"The project {self.project!r} has no span from {self.window}.", remedy="Choose an earlier `since`."
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

    def _drawn(self, pool: Samples, size: int, seed: int) -> tuple[Draw, tuple[Sample, ...]]:
        from dspy_selfimprove.diversity import draw

        with step("Drawing a diverse sample", shown=self._show) as done:
            items = list(pool)
            self._draw = draw(items, size, seed=seed)
            taken = self._draw.pick(items)
            done(len(taken))
        return self._draw, taken

    def _extended(self, standing: Dataset, pool: Samples, size: int, seed: int) -> Dataset:
        """The dataset with a sample of what is newer than all that the first one was drawn from."""
        from dspy_selfimprove import dataset

        before = standing.card["origin"].get("until")
        newer = [sample for sample in pool if sample.time and (before is None or sample.time.isoformat() > before)]
        if not newer:
            return standing
        from dspy_selfimprove.diversity import draw

        with step("Adding what is new", shown=self._show) as done:
            self._draw = draw(newer, size, seed=seed)
            self._dataset = dataset.extend(standing, self._draw.pick(newer))
            done(len(self._draw))
        return self._dataset


def _standing(name: str) -> Dataset | None:
    from dspy_selfimprove import dataset

    folder = files.nearest_home() / "datasets" / name
    return dataset.load(folder) if (folder / dataset.CARD).is_file() else None


def _latest(pool: Samples) -> str | None:
    return max((sample.time.isoformat() for sample in pool if sample.time), default=None)


def _opened(source: Any, window: Window | None) -> Source:
    """A file or a frame as a source; what is one already stays."""
    if hasattr(source, "exchanges"):
        return cast("Source", source)
    from dspy_selfimprove.telemetry import exports

    return exports.read(source, window.since if window else None, window.until if window else None)


def _name_of(source: Any) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "export"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "project"


def _folder_name(since: object, until: object) -> str:
    written = "_".join(str(each) for each in (since, until) if each is not None)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", written)[:80]
