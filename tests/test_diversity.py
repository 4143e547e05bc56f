"""The diverse draw: its chances are what it says, its estimates hold, it finds what is rare, and any pool will do."""

from __future__ import annotations

import doctest
import importlib.util
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.diversity import Draw, Topics, draw, find_topics
from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score

NAN = math.nan


def loaded(name: str) -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


benchmark = loaded("diversity")


@dataclass(frozen=True)
class Study:
    name: str
    pool: Any
    topics: Topics
    draws: list[Draw]


@pytest.fixture(scope="module", params=sorted(benchmark.POOLS))
def study(request: pytest.FixtureRequest) -> Study:
    """500 draws of 100 from 6,000, on topics that are strong and on topics that are weak."""
    pool = benchmark.make_pool(benchmark.POOLS[request.param])
    topics = find_topics(pool.texts, 100)
    draws = [topics.draw(scores=pool.scores, seed=seed) for seed in range(500)]
    return Study(request.param, pool, topics, draws)


# --- what it is for: rare topics, low scores, and an interval that covers ---


def test_the_interval_covers_the_truth(study: Study) -> None:
    scores = study.pool.scores
    estimates = [each.estimate(scores[each.indices]) for each in study.draws]
    assert {len(each) for each in study.draws} == {100}
    assert np.mean([each.low <= scores.mean() <= each.high for each in estimates]) >= 0.93
    assert np.mean([each.value for each in estimates]) == pytest.approx(scores.mean(), abs=0.005)
    assert np.std([each.value for each in estimates]) < 0.03


def test_rare_topics_and_low_scores_are_well_represented(study: Study) -> None:
    pool, generator = study.pool, np.random.default_rng(5)
    rare = np.mean([pool.share_of_rare(each.indices) for each in study.draws])
    uniform = np.mean([pool.share_of_rare(generator.choice(6_000, 100, replace=False)) for _ in range(500)])
    low = np.mean([(pool.scores[each.indices] <= 0.25).mean() for each in study.draws])
    assert low > 1.5 * (pool.scores <= 0.25).mean()
    said = " ".join(study.topics.notes)
    if study.name == "strong topics":
        assert rare >= 2.0 * uniform
        assert study.topics.agreement > 0.5
        assert "weak" not in said
    else:
        assert rare >= 0.9 * uniform
        assert study.topics.agreement < 0.2
        assert "Topics are weak" in said


def test_without_scores_the_interval_covers_too(study: Study) -> None:
    scores = study.pool.scores
    draws = [study.topics.draw(seed=seed) for seed in range(200)]
    estimates = [each.estimate(scores[each.indices]) for each in draws]
    assert np.mean([each.low <= scores.mean() <= each.high for each in estimates]) >= 0.93
    assert draws[0].worth is None


def test_what_a_draw_is_worth_is_what_it_turns_out_to_be(study: Study) -> None:
    scores, first = study.pool.scores, study.draws[0]
    errors = [(scores[each.indices] - scores.mean()) @ each.weights / 6_000 for each in study.draws]
    assert first.worth == pytest.approx(scores.var() / np.var(errors), rel=0.2)
    assert f"worth {first.worth:,.0f} drawn uniformly" in first.notes[-1]


# --- the chances ---


def frequencies(topics: Topics, scores: list[float] | None, times: int) -> tuple[np.ndarray, np.ndarray]:
    seen, chances = np.zeros(len(topics.clusters)), np.full(len(topics.clusters), NAN)
    for seed in range(times):
        drawn = topics.draw(scores=scores, seed=seed)
        seen[drawn.indices] += 1
        known = chances[drawn.indices]
        assert np.all(np.isnan(known) | np.isclose(known, drawn.probabilities))  # of the pool, not of the draw
        chances[drawn.indices] = drawn.probabilities
    return seen / times, chances


@pytest.mark.parametrize("scored", [False, True])
def test_each_text_is_drawn_as_often_as_its_chance_says(scored: bool) -> None:
    """Circles, clusters with several draws and a tilt at once: every single chance is met."""
    generator = np.random.default_rng(2)
    stems = [
        " ".join(f"w{chr(97 + int(i))}{chr(97 + int(j))}" for i, j in generator.integers(26, size=(9, 2)))
        for _ in range(14)
    ]
    texts = [stem for i, stem in enumerate(stems) for _ in range([1, 1, 2, 5][i % 4])]
    texts = [f"{text} no {i}" for i, text in enumerate(texts)]
    scores = generator.random(len(texts)).tolist() if scored else None
    vectors_of_few = find_topics(texts, 6)
    assert len(np.unique(vectors_of_few.circles)) == len(stems)
    times = 2_500
    seen, chances = frequencies(vectors_of_few, scores, times)
    assert not np.isnan(chances).any()
    assert chances.sum() == pytest.approx(6.0)
    error = np.sqrt(chances * (1.0 - chances) / times)
    assert np.all(np.abs(seen - chances) < 4.5 * error + 1e-9)


def test_several_from_one_cluster_keep_their_chances() -> None:
    """Few places and many draws: equal vectors make one cluster, from which all are drawn."""
    vectors = np.repeat(np.eye(3, dtype=np.float32), [20, 10, 2], axis=0)
    topics = find_topics(vectors, 8)
    scores = np.linspace(0.0, 1.0, 32).tolist()
    seen, chances = frequencies(topics, scores, 2_000)
    assert chances.sum() == pytest.approx(8.0)
    error = np.sqrt(chances * (1.0 - chances) / 2_000)
    assert np.all(np.abs(seen - chances) < 4.5 * error + 1e-9)


def test_the_lowest_score_is_four_times_as_likely_and_a_missing_one_is_as_usual() -> None:
    vectors = np.ones((40, 2), np.float32)
    scores = np.array([0.0, NAN, *[0.8] * 30, *[1.0] * 8])
    chances = {}
    topics = find_topics(vectors, 1)
    for seed in range(400):
        drawn = topics.draw(scores=scores, seed=seed)
        chances[int(drawn.indices[0])] = float(drawn.probabilities[0])
    assert chances[0] == pytest.approx(4.0 * chances[5])
    assert all(chance == pytest.approx(chances[5]) for index, chance in chances.items() if index)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 3), st.booleans())
@settings(max_examples=20)
def test_weights_stand_for_the_whole_pool(count: int, size: int, seed: int, scored: bool) -> None:
    generator = np.random.default_rng(seed)
    texts = [" ".join(f"x{'abcdefg'[int(i)]}" for i in generator.integers(7, size=4)) for _ in range(count)]
    scores = generator.random(count).tolist() if scored else None
    drawn = draw(texts, size, scores=scores, seed=seed)
    circles = find_topics(texts, size, seed=seed).circles
    assert len(drawn) == min(size, len(np.unique(circles)))
    assert len(set(circles[drawn.indices].tolist())) == len(drawn)  # one of each circle
    assert np.all((drawn.probabilities > 0.0) & (drawn.probabilities <= 1.0 + 1e-12))
    assert len(drawn.clusters) == count
    assert sorted(drawn.indices.tolist()) == drawn.indices.tolist()
    counts = np.bincount(drawn.clusters)
    assert (np.diff(counts) <= 0).all() if len(counts) > 1 else True
    assert counts.min() > 0
    if not scored and len(counts) == len(drawn):
        assert drawn.weights.sum() == pytest.approx(count)
    again = draw(texts, size, scores=scores, seed=seed)
    assert (again.indices.tolist(), again.notes) == (drawn.indices.tolist(), drawn.notes)


# --- pools of every kind ---


def test_a_pool_no_larger_than_the_draw_is_taken_whole() -> None:
    texts = ["reset my key", "Reset my key!", "delete the account", "find the log"]
    drawn = draw(texts, 10)
    assert len(drawn) == 3
    assert sorted(drawn.weights.tolist()) == [1.0, 1.0, 2.0]
    assert drawn.estimate([1.0, 1.0, 1.0]).value == 1.0
    assert "so all of them were taken" in " ".join(drawn.notes)


def test_equal_texts_are_one_that_stands_for_all() -> None:
    drawn = draw(["hello"] * 50, 5)
    assert (len(drawn), drawn.weights.tolist()) == (1, [50.0])
    assert draw([""] * 4, 2).clusters.tolist() == [0] * 4


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_draw_of_a_few(size: int) -> None:
    pool = benchmark.make_pool(0.6, 200)
    values = [
        (each := draw(pool.texts, size, seed=seed)).estimate(pool.scores[each.indices]).value for seed in range(5)
    ]
    assert len(draw(pool.texts, size)) == size
    assert all(0.0 <= value <= 1.0 for value in values)


def test_a_flood_of_one_text_takes_one_place_and_keeps_its_weight() -> None:
    pool = benchmark.make_pool(0.6, 400)
    texts = ["Is the service up? Check 17."] * 600 + pool.texts
    scores = np.concatenate([np.full(600, 0.9), pool.scores])
    drawn = draw(texts, 40, scores=scores)
    flood = drawn.weights[drawn.indices < 600]
    assert flood.tolist() == [600.0]
    topics = find_topics(texts, 40)
    draws = [topics.draw(scores=scores, seed=seed) for seed in range(100)]
    values = [each.estimate(scores[each.indices]).value for each in draws]
    assert np.mean(values) == pytest.approx(scores.mean(), abs=0.01)
    assert "near-duplicates of others" in " ".join(drawn.notes)


def test_scores_that_are_all_missing_or_equal_tilt_nothing() -> None:
    texts = benchmark.make_pool(0.6, 200).texts
    plain = draw(texts, 20)
    for scores in ([NAN] * 200, [0.5] * 200):
        same = draw(texts, 20, scores=scores)
        assert same.indices.tolist() == plain.indices.tolist()
        assert same.worth is None


def test_samples_bring_text_and_scores_and_go_out_with_weight_and_cluster() -> None:
    pool = benchmark.make_pool(0.6, 120)
    samples = [
        Sample(
            id=f"T{i}",
            chat_history=({"role": "user", "content": text},),
            output={"role": "assistant", "content": "done"},
            scores={"a": Score(float(score)), "b": Score.missing("outage")},
        )
        for i, (text, score) in enumerate(zip(pool.texts, pool.scores, strict=True))
    ]
    drawn = draw(samples, 15)
    picked = drawn.pick(samples)
    assert [each.id for each in picked] == [f"T{i}" for i in drawn.indices]
    assert [each.weight for each in picked] == drawn.weights.tolist()
    assert [each.cluster for each in picked] == drawn.clusters[drawn.indices].tolist()
    assert drawn.worth is not None
    assert samples[0].weight == 1.0
    with pytest.raises(UsageError, match="not the 120"):
        drawn.pick(samples[:-1])


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to draw from"):
        draw([], 5)
    with pytest.raises(UsageError, match="at least one"):
        draw(["a"], 0)
    with pytest.raises(UsageError, match="do not fit"):
        draw(["a", "b"], 1, scores=[0.5])
    with pytest.raises(UsageError, match="finite"):
        draw(np.array([[NAN, 1.0]], np.float32), 1)


def test_an_embedder_of_ones_own_is_used_and_named() -> None:
    class Lengths:
        name = "lengths"

        def embed(self, texts: object) -> np.ndarray:
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    drawn = draw(["aa bb", "cc dd ee ff", "gg hh ii jj kk ll"], 2, embedder=Lengths())
    assert drawn.notes[0] == "Embedded by lengths, in 2 clusters."


# --- the picture ---


def test_the_picture_shows_what_was_taken_and_none_of_the_texts() -> None:
    pool = benchmark.make_pool(0.6, 300)
    drawn = draw(pool.texts, 30)
    svg = drawn.plot().to_svg()
    assert "30 of 300 texts taken" in svg
    clusters = len(set(drawn.clusters.tolist()))
    assert svg.count("#3b82c4") + svg.count("#e07b1f") >= 30 + clusters  # on the map, and on each cluster
    words = {word for text in pool.texts for word in text.split() if len(word) > 6}
    assert not words & set(re.findall(r"\w+", svg))


@pytest.mark.parametrize("texts", [["a"], ["a", "b"], ["same"] * 9, [f"t{chr(97 + i)}" for i in range(6)]])
def test_the_smallest_pools_have_a_picture_too(texts: list[str]) -> None:
    assert draw(texts, 3).plot().to_svg().startswith("<svg")


def test_a_draw_made_by_hand_can_be_estimated_and_drawn() -> None:
    zeros = np.zeros(2, np.int32)
    drawn = Draw(np.array([0, 2], np.int32), np.array([0.5, 0.5]), zeros, np.zeros(4, np.int32))
    assert drawn.estimate([0.0, 1.0]).value == 0.5
    assert drawn.plot().to_svg().startswith("<svg")


@pytest.mark.parametrize("name", ["duplicates", "embedding", "diversity", "plot"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dspy_selfimprove.{name}"))
    assert (result.failed, result.attempted > 0) == (0, True)
