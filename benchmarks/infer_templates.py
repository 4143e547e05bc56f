"""Whether slots and prompt versions are found again in realistic prompts whose truth is known, and how fast.

Exact means: the template found has its slots where the true one has them, character for character. Cases whose values
cannot show it (one that never changes, or all beginning with the same word) are counted apart. The wording is kept in
`tests/templates.py`: inference was tuned on the first vocabulary, mended after the second and the third, and never saw
the last. Versions are measured with equal shares (30, 30, 30) and unequal ones (40, 20, 12) by turns.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import templates as known

from dspy_selfimprove.prompt import parts
from dspy_selfimprove.template import infer

VOCABULARIES = {"tuned": known.TUNED, "second": known.SECOND, "third": known.THIRD, "fresh": known.FRESH}


def percent(part: int, whole: int) -> str:
    return f"{part:5d} of {whole:5d} = {100 * part / max(whole, 1):5.1f} %"


def slots(vocabulary: known.Vocabulary, seeds: range, renderings: int) -> None:
    exact = identifiable = refused = 0
    missed: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for seed in seeds:
        truth = known.template(vocabulary, seed)
        made = known.renderings(truth, vocabulary.words, Random(seed), renderings)
        result = infer([text for text, _ in made])
        refused += sum(result.refused.values())
        if not known.identifiable(truth, [values for _, values in made]):
            continue
        identifiable += 1
        best = result.templates[0] if result.templates else None
        right = best is not None and "\0".join(parts(best.text, best.slots)[::2]) == truth.shape
        exact += right
        kinds = set(truth.kinds)
        met.update(kinds)
        if not right:
            missed.update(kinds)
    print(f"  slots exact          {percent(exact, identifiable)}   ({len(seeds) - identifiable} not identifiable)")
    print(f"  texts refused        {percent(refused, len(seeds) * renderings)}")
    if missed:
        print("  kinds in what failed ", ", ".join(f"{kind} {n}/{met[kind]}" for kind, n in missed.most_common(8)))


def versions(vocabulary: known.Vocabulary, seeds: range) -> None:
    apart: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for seed in seeds:
        truths, edit = known.versions(vocabulary, seed)
        random = Random(seed)
        texts: list[str] = []
        origin: list[int] = []
        for nth, (truth, count) in enumerate(zip(truths, ((30, 30, 30), (40, 20, 12))[seed % 2], strict=True)):
            texts += [text for text, _ in known.renderings(truth, vocabulary.words, random, count)]
            origin += [nth] * count
        result = infer(texts)
        cases[edit] += 1
        apart[edit] += known.told_apart(origin, [rendering.template for rendering in result.renderings])
    print(f"  versions told apart  {percent(apart.total(), cases.total())}")
    print("  by kind of edit      ", ", ".join(f"{edit} {apart[edit]}/{cases[edit]}" for edit in cases))


def speed(count: int) -> None:
    truths, _ = known.versions(known.TUNED, 4)
    random, texts = Random(0), []
    pad = "\n\nBackground:\n" + "The policy says that every case counts and that nobody waits twice. " * 15
    for truth, share in zip(truths, (0.6, 0.3, 0.1), strict=True):
        texts += [text + pad for text, _ in known.renderings(truth, known.TUNED.words, random, round(count * share))]
    random.shuffle(texts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = infer(texts)
    taken = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = sum(map(len, texts)) / len(texts)
    print(f"{len(texts)} texts of {size:.0f} characters: {len(texts) / taken:.0f} texts/s ({taken:.1f} s)")
    print(
        f"  peak memory grew by {grown:.0f} MiB; found {[found.texts for found in result.found]}, "
        f"refused {result.refused}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--renderings", type=int, default=30)
    parser.add_argument("--texts", type=int, default=100_000)
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + asked.cases)
    for name, vocabulary in VOCABULARIES.items():
        print(f"{name} wording, {asked.cases} templates, {asked.renderings} renderings each")
        slots(vocabulary, seeds, asked.renderings)
        versions(vocabulary, seeds)
    speed(asked.texts)


if __name__ == "__main__":
    main()
