"""Embeddings: unit vectors that put like beside like, whatever the texts, and a model when one is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove import embedding
from dspy_selfimprove.embedding import embedder
from dspy_selfimprove.errors import SetupError, UsageError


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def topical(count: int, seed: int = 0, words: int = 400) -> tuple[list[str], np.ndarray]:
    """Texts of ten topics: half of the words from the topic's own fifty, half from a common stock."""
    generator = np.random.default_rng(seed)
    topics = generator.integers(10, size=count)
    texts = [
        " ".join(
            [f"own{topic}x{word}" for word in generator.integers(50, size=8)]
            + [f"common{word}" for word in generator.integers(words, size=8)]
        )
        for topic in topics
    ]
    return texts, topics


@given(st.lists(st.text(max_size=40), max_size=70))
@settings(max_examples=50)
def test_any_texts_give_finite_unit_vectors(texts: list[str]) -> None:
    vectors = embedder().embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == len(texts)
    assert np.allclose(lengths(vectors), 1.0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 60, 300])
def test_equal_texts_have_equal_vectors(count: int) -> None:
    vectors = embedder().embed(["the same words again"] * count)
    assert np.allclose(vectors @ vectors[0], 1.0, atol=1e-5)


def test_texts_without_a_word_are_like_each_other_and_like_nothing_else() -> None:
    vectors = embedder().embed(["", "refund my order", "refund the order", "…", "?"])
    likeness = vectors @ vectors.T
    assert likeness[0, 3] == likeness[0, 4] == pytest.approx(1.0)
    assert likeness[0, 1] == likeness[3, 2] == pytest.approx(0.0)
    assert likeness[1, 2] > 0.3
    assert embedder().embed(["", ""]).shape == (2, 1)
    assert embedder().embed([]).shape[0] == 0


def test_more_texts_than_directions_and_fewer() -> None:
    """Three hundred words and more: reduced to the directions there are."""
    few, _ = topical(100)
    many, _ = topical(1_000)
    assert embedder().embed(few).shape[1] <= 101
    assert embedder().embed(many).shape[1] == 257


def test_texts_of_one_topic_are_nearer_to_each_other_than_to_others() -> None:
    texts, topics = topical(1_500)
    vectors = embedder().embed(texts)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1.0)
    assert np.mean(topics[likeness.argmax(axis=1)] == topics) > 0.95


def test_scripts_without_spaces_are_told_apart() -> None:
    likeness = (lambda v: v @ v.T)(embedder().embed(["我的订单在哪里", "订单什么时候到", "怎么取消账户"]))
    assert likeness[0, 1] > likeness[0, 2]


def test_the_same_seed_gives_the_same_vectors() -> None:
    texts, _ = topical(600)
    assert np.array_equal(embedder(seed=3).embed(texts), embedder(seed=3).embed(texts))


def test_learning_on_a_part_embeds_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens beyond twenty thousand texts, at a size that is quick: a part is learned from, a file is filled."""
    monkeypatch.setattr(embedding, "_LEARNED_FROM", 500)
    monkeypatch.setattr(embedding, "_IN_MEMORY", 1_000)
    texts, topics = topical(1_500)
    vectors = embedder().embed(texts)
    assert isinstance(vectors, np.memmap)
    assert np.allclose(lengths(vectors), 1.0, atol=1e-5)
    likeness = np.asarray(vectors @ vectors.T)
    np.fill_diagonal(likeness, -1.0)
    assert np.mean(topics[likeness.argmax(axis=1)] == topics) > 0.9


def test_a_model_without_the_extra_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SetupError, match=r"pip install 'dspy-selfimprove\[embeddings\]'"):
        embedder("all-MiniLM-L6-v2")
    with pytest.raises(UsageError, match="no name"):
        embedder(" ")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights and its own vocabulary, saved as sentence-transformers saves one."""
    pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    inner = folder.with_name("inner")
    inner.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"own{i}" for i in range(20)), "refund", "order"]
    (inner / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(inner)
    BertTokenizerFast(vocab_file=str(inner / "vocab.txt")).save_pretrained(inner)
    SentenceTransformer(str(inner), device="cpu").save(str(folder))  # which adds the mean over a text's tokens
    return folder


@pytest.mark.embeddings
def test_a_model_in_a_folder_embeds_offline(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = embedder(str(tiny_model))
    assert chosen.name == "sentence-transformers tiny-bert"
    texts = ["refund order", "own1 own2 own3", "refund order", "", "own1 " * 500]
    vectors = chosen.embed(texts)
    assert vectors.dtype == np.float32
    assert np.allclose(lengths(vectors), 1.0, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    assert np.allclose(vectors, embedder(str(tiny_model)).embed(texts), atol=1e-5)
    assert chosen.embed([]).shape[0] == 0


@pytest.mark.embeddings
def test_a_model_that_cannot_be_loaded_is_a_setup_error(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SetupError, match="cannot be loaded"):
        embedder(str(broken))
