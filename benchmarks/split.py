"""Splitting 20,000 and 100,000 samples: seconds by stage, and how near each side comes to its share.

The pool: topics by Zipf's law, users who write once to forty times, one text in twenty a near-copy of one of the same
user, one in a hundred of anybody's. Beside it stands the usual way, a side per user by hash: what it misses its shares
by, and how many near-copies it lets straddle. Then: do rare topics get their share of the test (over 200 seeds, by the
size of the topic)? And what becomes of a pool where every tenth text is a near-copy of anybody's, so that all hangs
together?
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from dspy_selfimprove.dataset import extend, load, split
from dspy_selfimprove.duplicates import near_duplicates
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.sides import SHARES, SIDES, asked, place


def pool(size: int, *, topics: int = 200, copies: float = 0.01, seed: int = 0) -> list[Sample]:
    draw = random.Random(seed)
    weights = [1 / rank for rank in range(1, topics + 1)]
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=6)) for _ in range(20_000)]
    samples: list[Sample] = []
    while len(samples) < size:
        user = f"U{len(samples)}"
        for _ in range(min(40, int(draw.paretovariate(1.2)))):
            text = draw.choices(words, k=40)
            chance = draw.random()
            if samples and (chance < copies or (chance > 0.95 and samples[-1].user_id == user)):
                source = draw.choice(samples) if chance < copies else samples[-1]
                text = str(source.chat_history[0]["content"]).split()
                text[draw.randrange(40)] = draw.choice(words)
            samples.append(
                Sample(
                    f"S{len(samples)}",
                    ({"role": "user", "content": " ".join(text)},),
                    {"role": "assistant", "content": " ".join(draw.choices(words, k=60))},
                    user_id=user,
                    session_id=f"{user}/{draw.randrange(3)}",
                    prompt=draw.choices(["v1", "v2"], [4, 1])[0],
                    cluster=draw.choices(range(topics), weights)[0],
                )
            )
    return samples[:size]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def balance(samples: Sequence[Sample], sides: Sequence[str | None], side: str) -> tuple[float, float]:
    """How far a side is from its share over all, and by topic (root mean square, in samples)."""
    share = SHARES[SIDES.index(side)]
    sizes, here = Counter(s.cluster for s in samples), Counter[int | None]()
    for sample, found in zip(samples, sides, strict=True):
        here[sample.cluster] += found == side
    misses = [here[topic] - share * size for topic, size in sizes.items()]
    return sum(misses), statistics.fmean(miss**2 for miss in misses) ** 0.5


def hashed(samples: Sequence[Sample]) -> list[str]:
    """A side per user, by hash."""
    dealt = {user: random.Random(user).choices(SIDES, SHARES)[0] for user in {sample.user_id for sample in samples}}
    return [dealt[sample.user_id] for sample in samples]


def straddling(samples: Sequence[Sample], sides: Sequence[str | None]) -> int:
    """Near-duplicate groups on more than one side."""
    found = defaultdict(set)
    for label, side in zip(near_duplicates(map(asked, samples)).labels.tolist(), sides, strict=True):
        found[label].add(side)
    return sum(len(each - {None}) > 1 for each in found.values())


def main() -> None:
    for size in (20_000, 100_000):
        samples = pool(size)
        old, new = samples[: size * 10 // 13], samples[size * 10 // 13 :]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pool"
            alike = timed(lambda samples=samples: near_duplicates(map(asked, samples)))
            sides = timed(lambda samples=samples: place(samples, groups=("session_id", "user_id", "trace_id")))
            whole = timed(lambda old=old, path=path: split(old, path))
            more = timed(lambda new=new, path=path: extend(path, new))
            again = timed(lambda path=path: load(path))
            print(f"{size:,} samples: near-duplicates {alike:.1f} s, sides without them {sides:.1f} s; on disk:")
            print(
                f"  split 10/13 of them {whole:.1f} s, extend by the rest {more:.1f} s, load for a search {again:.1f} s"
            )
            print("  " + load(path).summary().replace("\n", "\n  "))
        placement = place(samples)
        usual = hashed(samples)
        print(f"  {'':10} {'off by':>8} {'by topic (rms)':>15}     a side per user: off by, by topic (rms)")
        for side in SIDES:
            off, by = balance(samples, placement.sides, side)
            off_usual, by_usual = balance(samples, usual, side)
            print(f"  {side:10} {off:+8.1f} {by:15.2f} {off_usual:+27.1f} {by_usual:12.2f}")
        print(f"  near-duplicate groups that straddle: {straddling(samples, placement.sides)}", end="")
        print(f"; with a side per user {straddling(samples, usual)}")

    samples = pool(1_000, topics=400)
    sizes = Counter(sample.cluster for sample in samples)
    found: dict[str, list[bool]] = defaultdict(list)
    for seed in range(200):
        for sample, side in zip(samples, place(samples, seed=seed, groups=("user_id",)).sides, strict=True):
            size = sizes[sample.cluster]
            found["1" if size == 1 else "2-4" if size < 5 else "5-19" if size < 20 else "20 and more"].append(
                side == "test"
            )
    print("share of a topic's samples that fall into the test, over 200 seeds (should be 30 %):")
    for name in ("1", "2-4", "5-19", "20 and more"):
        print(f"  topics of {name:12} {statistics.fmean(found[name]):6.1%}")

    print("20,000 samples, every tenth text a near-copy of anybody's:")
    placement = place(pool(20_000, copies=0.1))
    counts = Counter(placement.sides)
    print(f"  {', '.join(f'{side} {counts[side]:,} in {placement.groups[side]:,} groups' for side in SIDES)}")
    print("  " + "\n  ".join(placement.notes))


if __name__ == "__main__":
    main()
