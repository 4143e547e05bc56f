"""Embeddings: texts as unit vectors, so that near means alike.

Two ways, and `name` says which one it was. Unless a model is named, word statistics: TF-IDF over the words of the pool
itself, brought down to 256 directions by a truncated SVD. It needs no model, no download and no network, tells topics
apart by the words they use, and embeds about a hundred times as many texts a second as a small model on the same
processor. It knows no synonyms, and its vectors mean something only beside others of the same call.

With a model, sentence-transformers (the extra `embeddings`): a name or a folder, whatever it can load. To name one is
to agree to its download, so none is ever fetched by default.

Why 256: of the rare topics in a long-tailed pool of 6,000 texts, 100 clusters found .84 with 256 directions and .56
with 128. Centring and whitening were tried, and lost.

Memory: the words are learned on at most 20,000 texts, drawn by seed, and all are embedded in batches. Vectors beyond
256 MB are kept in a temporary file that vanishes with them, not in memory.

Not covered: the order of words (without a model), texts longer than a model reads (it sees their beginning), and the
same vectors to the last bit on another processor.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dspy_selfimprove.errors import SetupError, UsageError
from dspy_selfimprove.message import encodable

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Vectors: TypeAlias = NDArray[np.float32]

_DIRECTIONS = 256
_LEARNED_FROM = 20_000
_WORDS_KEPT = 30_000
# Below this, a word in one text only is no noise, and one in most of them no filler.
_FEW = 50
_BATCH = 4_096
_IN_MEMORY = 256 * 2**20

# Words of any length in scripts without spaces would be whole sentences; they go by characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = rf"(?u)[{_UNSPACED}]|[^\W{_UNSPACED}]{{2,}}"


class Embedder(Protocol):
    """Turns texts into float32 vectors of length one, a row per text. `name` goes into reports."""

    @property
    def name(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> Vectors: ...


def embedder(model: str | None = None, *, seed: int = 0) -> Embedder:
    """The embedder for `model`, a name or folder for sentence-transformers; by word statistics if None.

    >>> vectors = embedder().embed(["refund my order", "refund of an order", "the app crashes"])
    >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
    True
    """
    if model is None:
        return WordEmbedder(seed)
    if not model.strip():
        raise UsageError("The embedding model has no name.", remedy="Name one, or leave it out.")
    return ModelEmbedder(model)


@dataclass(frozen=True, slots=True)
class WordEmbedder:
    """TF-IDF and truncated SVD, learned afresh from the texts of each call.

    The last direction is kept for texts without a known word, such as an empty one: they are like each other and like
    nothing else.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        return "TF-IDF + SVD"

    def embed(self, texts: Sequence[str]) -> Vectors:
        generator = np.random.default_rng(self.seed)
        chosen: Sequence[str] = texts
        if len(texts) > _LEARNED_FROM:
            chosen = [texts[i] for i in np.sort(generator.choice(len(texts), _LEARNED_FROM, replace=False))]
        counter, counts = _counted(chosen)
        if counter is None or counts is None:
            vectors = np.zeros((len(texts), 1), np.float32)
            vectors[:, -1] = 1.0
            return vectors
        svd = None
        if counts.shape[1] > _DIRECTIONS:
            from sklearn.decomposition import TruncatedSVD

            with one_thread():
                svd = TruncatedSVD(min(_DIRECTIONS, counts.shape[0]), random_state=self.seed).fit(counts)
        width = svd.n_components if svd is not None else counts.shape[1]
        vectors = _room(len(texts), width + 1)
        for start, batch in _batches(texts):
            known = counter.transform(batch)
            rows = svd.transform(known) if svd is not None else known.toarray()
            vectors[start : start + len(batch)] = _unit(rows)
        return vectors


@dataclass(frozen=True, slots=True)
class ModelEmbedder:
    """A sentence-transformers model, loaded when this is made; no code that comes with a model is run."""

    model: str
    _encoder: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_encoder", _loaded(self.model))

    @property
    def name(self) -> str:
        # A folder's place on this machine is nobody's business in a report.
        return f"sentence-transformers {Path(self.model).name if Path(self.model).exists() else self.model}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors | None = None
        for start, batch in _batches(texts):
            rows = np.asarray(
                self._encoder.encode(
                    [encodable(text) for text in batch], convert_to_numpy=True, show_progress_bar=False
                ),
                np.float32,
            )
            if vectors is None:
                vectors = _room(len(texts), rows.shape[1] + 1)
            vectors[start : start + len(batch)] = _unit(rows)
        return np.zeros((0, 1), np.float32) if vectors is None else vectors


def one_thread() -> AbstractContextManager[object]:
    """Numerics on one thread: the same result on any number of cores, and no crawl on busy ones.

    Work of this size gains little from more; beside other processes two threads took up to fifteen times as long.
    """
    limits: AbstractContextManager[object] = import_module("threadpoolctl").threadpool_limits(limits=1)
    return limits


def _loaded(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise SetupError(
            "An embedding model needs sentence-transformers, which is not installed.",
            remedy="pip install 'dspy-selfimprove[embeddings]', or name no model.",
        ) from None
    try:
        return SentenceTransformer(model, trust_remote_code=False)
    except Exception as error:  # a library of libraries: what a missing file or network raises there is not one type
        raise SetupError(
            f"The embedding model {model} cannot be loaded ({type(error).__name__}).",
            remedy="Check its name, download it first, or give the folder it is in.",
        ) from None


def _counted(texts: Sequence[str]) -> tuple[Any, csr_matrix | None]:
    """A TF-IDF counter and its counts of `texts`; None where they hold no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    strict = {"min_df": 2, "max_df": 0.5} if len(texts) >= _FEW else {}
    for rules in (strict, {}):
        counter = TfidfVectorizer(
            token_pattern=_WORD, sublinear_tf=True, max_features=_WORDS_KEPT, dtype=np.float32, **rules
        )
        try:
            return counter, counter.fit_transform(texts)
        except ValueError:  # nothing left to count
            continue
    return None, None


def _unit(rows: NDArray[Any]) -> Vectors:
    """Rows of length one, with a last column that is one where there was nothing to scale."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    known = np.isfinite(lengths) & (lengths > 1e-6)
    scaled = np.where(known, rows / np.where(known, lengths, 1.0), 0.0)
    return np.hstack([scaled, ~known]).astype(np.float32)


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(texts), _BATCH):
        yield start, texts[start : start + _BATCH]


def _room(rows: int, columns: int) -> Vectors:
    if math.prod((rows, columns, 4)) <= _IN_MEMORY:
        return np.zeros((rows, columns), np.float32)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the name, and the file goes with the mapping
        return np.memmap(file, np.float32, "w+", shape=(rows, columns))
