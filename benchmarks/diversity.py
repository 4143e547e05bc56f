"""What the diverse draw gives and costs, beside a uniform one of the same size; and how near-duplicates are found.

The pools are made of invented words: 6,000 texts in 40 topics whose sizes fall as 1/rank^1.5. With strong topics three
words in five come from the topic's own vocabulary, with weak ones one in sixteen. Scores depend on the topic and on
chance. "Rare" is a topic of which a uniform draw of 100 expects less than one text.

With a number, only this: 1,000 drawn from a pool of that many short texts, with time and memory.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_selfimprove.diversity import find_topics
from dspy_selfimprove.duplicates import near_duplicates

TEXTS, TOPICS, SIZE, DRAWS = 6_000, 40, 100, 500
POOLS = {"strong topics": 0.6, "weak topics": 0.06}
_SYLLABLES = ("ba", "ko", "ri", "tu", "mel", "san", "dro", "vi", "pa", "lun", "ge", "fo", "tar", "wim", "ze", "qua")


@dataclass(frozen=True, slots=True)
class Pool:
    """Texts with their true topics and scores."""

    texts: list[str]
    topics: NDArray[np.intp]
    scores: NDArray[np.float64]

    @property
    def rare(self) -> set[int]:
        counts = np.bincount(self.topics, minlength=TOPICS)
        return set(np.flatnonzero((counts > 0) & (counts * SIZE < len(self.texts))).tolist())

    def share_of_rare(self, indices: NDArray[np.integer]) -> float:
        return len(self.rare & set(self.topics[indices].tolist())) / len(self.rare)


def words(generator: np.random.Generator, count: int) -> NDArray[np.str_]:
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(generator.choice(_SYLLABLES, generator.integers(2, 5))))
    return generator.permutation(sorted(found))


def make_pool(own_share: float, texts: int = TEXTS, seed: int = 0, longest: int = 40) -> Pool:
    """A long-tailed pool; `own_share` of a text's words are its topic's own."""
    generator = np.random.default_rng(seed)
    vocabulary = words(generator, 3_000 + 60 * TOPICS)
    common, own = vocabulary[:3_000], vocabulary[3_000:].reshape(TOPICS, 60)
    common_weights, own_weights = 1.0 / np.arange(1, 3_001), np.arange(1, 61) ** -0.7
    sizes = np.arange(1, TOPICS + 1) ** -1.5
    topics = generator.choice(TOPICS, texts, p=sizes / sizes.sum())
    quality = generator.beta(3.0, 1.5, TOPICS)
    lengths = generator.integers(longest // 4, longest, texts)
    owners = np.repeat(topics, lengths)
    ranks = generator.choice(60, len(owners), p=own_weights / own_weights.sum())
    from_common = generator.choice(common, len(owners), p=common_weights / common_weights.sum())
    said = np.where(generator.random(len(owners)) < own_share, own[owners, ranks], from_common).tolist()
    ends = np.cumsum(lengths).tolist()
    made = [" ".join(said[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    scores = np.round(np.clip(quality[topics] + generator.normal(0.0, 0.2, texts), 0.0, 1.0) * 4) / 4
    return Pool(made, topics, scores)


def plant(count: int, seed: int = 0, changed: int = 4) -> tuple[list[str], NDArray[np.intp]]:
    """`count` texts of forty words; a quarter are another with one to `changed` words replaced, named by its index."""
    generator = np.random.default_rng(seed)
    vocabulary = words(generator, 20_000)
    chances = 1.0 / np.arange(1, len(vocabulary) + 1)
    originals = generator.choice(vocabulary, (count * 3 // 4, 40), p=chances / chances.sum())
    sources = np.concatenate(
        [np.arange(len(originals)), generator.integers(len(originals), size=count - len(originals))]
    )
    texts = [" ".join(row) for row in originals.tolist()]
    for source in sources[len(originals) :]:
        row = originals[source].copy()
        places = generator.choice(40, int(generator.integers(1, changed + 1)), replace=False)
        row[places] = generator.choice(vocabulary, len(places))
        texts.append(" ".join(row.tolist()))
    return texts, sources


def root_mean_square(errors: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def compare(name: str, pool: Pool) -> None:
    start = time.perf_counter()
    topics = find_topics(pool.texts, SIZE)
    seconds = time.perf_counter() - start
    truth, generator = float(pool.scores.mean()), np.random.default_rng(1)
    rows: dict[str, tuple[list[float], list[float], list[float], list[float]]] = {}
    for seed in range(DRAWS):
        for kind, scores in (("diverse", None), ("diverse, low scores more", pool.scores)):
            drawn = topics.draw(scores=scores, seed=seed)
            estimate = drawn.estimate(pool.scores[drawn.indices])
            row = rows.setdefault(kind, ([], [], [], []))
            row[0].append(pool.share_of_rare(drawn.indices))
            row[1].append(estimate.value - truth)
            row[2].append(estimate.low <= truth <= estimate.high)
            row[3].append(float((pool.scores[drawn.indices] <= 0.25).mean()))
        uniform = generator.choice(len(pool.texts), SIZE, replace=False)
        row = rows.setdefault("uniform", ([], [], [], []))
        row[0].append(pool.share_of_rare(uniform))
        row[1].append(float(pool.scores[uniform].mean()) - truth)
        row[3].append(float((pool.scores[uniform] <= 0.25).mean()))
    print(
        f"\n{name}: {SIZE} of {len(pool.texts):,}, {len(pool.rare)} rare topics, agreement {topics.agreement:.2f}, ",
        end="",
    )
    print(f"clustered in {seconds:.1f} s")
    print(f"{'':26} rare topics   error of the mean   95 % interval covers   low scores")
    for kind in ("uniform", "diverse", "diverse, low scores more"):
        rare, errors, covers, low = rows[kind]
        held = f"{np.mean(covers):.3f}" if covers else "-"
        print(f"{kind:26} {np.mean(rare):11.2f}   {root_mean_square(errors):17.4f}   {held:>20}   {np.mean(low):10.2f}")


def find_planted(count: int) -> None:
    texts, sources = plant(count)
    start = time.perf_counter()
    found = near_duplicates(texts)
    seconds = time.perf_counter() - start
    planted = np.arange(count * 3 // 4, count)
    recall = float((found.labels[planted] == found.labels[sources[planted]]).mean())
    order = np.lexsort((sources, found.labels))
    mixed = (np.diff(found.labels[order]) == 0) & (np.diff(sources[order]) != 0)
    print(f"{count:9,} texts {seconds:7.2f} s   recall {recall:.4f}   joined wrongly {int(mixed.sum())}")


def draw_from_many(count: int) -> None:
    pool = make_pool(0.6, count, longest=16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    topics = find_topics(pool.texts, 1_000)
    middle = time.perf_counter()
    drawn = topics.draw(scores=pool.scores)
    end = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{count:,} short texts: clustered in {middle - start:.0f} s, {len(drawn):,} drawn in {end - middle:.1f} s, "
    )
    print(f"{time.process_time():.0f} s of processor in all; peak {after:,.0f} MB ({before:,.0f} making the texts)")


def main() -> None:
    if sys.argv[1:]:
        draw_from_many(int(sys.argv[1]))
        return
    for name, share in POOLS.items():
        compare(name, make_pool(share))
    print("\nnear-duplicates, 1 to 4 of 40 words changed")
    for count in (20_000, 100_000):
        find_planted(count)


if __name__ == "__main__":
    main()
