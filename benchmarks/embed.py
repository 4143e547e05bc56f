"""Embedding 10,000 short texts: word statistics, and sentence-transformers where the extra is installed.

The model is one of six layers and 384 dimensions, as small models are, with random weights: as fast as a trained one,
and nothing to download. It embeds a tenth of the texts and its time is multiplied. Name other models or folders as
arguments to measure them instead.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dspy_selfimprove.embedding import Embedder, embedder

TEXTS = 10_000


def make_texts() -> list[str]:
    generator = np.random.default_rng(0)
    words = np.array([f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(8_000)])
    chances = 1.0 / np.arange(1, len(words) + 1)
    return [" ".join(row) for row in generator.choice(words, (TEXTS, 25), p=chances / chances.sum()).tolist()]


def small_model(folder: Path) -> str:
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    inner = folder / "inner"
    inner.mkdir()
    letters = [chr(97 + i) for i in range(26)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (inner / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1_536}
    BertModel(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(inner)
    BertTokenizerFast(vocab_file=str(inner / "vocab.txt")).save_pretrained(inner)
    path = folder / "random-6x384"
    model = SentenceTransformer(str(inner))  # which adds the mean over a text's tokens
    model.max_seq_length = 48  # a token is a letter here; 25 ordinary words would be about so many
    model.save(str(path))
    return str(path)


def measure(chosen: Embedder, texts: list[str]) -> float:
    chosen.embed(texts[:50])
    start, used = time.perf_counter(), time.process_time()
    vectors = chosen.embed(texts)
    seconds, processor = (
        TEXTS / len(texts) * (now - then) for now, then in ((time.perf_counter(), start), (time.process_time(), used))
    )
    print(f"{chosen.name:44} {vectors.shape[1]:5} dimensions {seconds:8.2f} s ({processor:.2f} s of processor)")
    return seconds


def main() -> None:
    texts = make_texts()
    words = measure(embedder(), texts)
    models = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if not models and importlib.util.find_spec("sentence_transformers"):
            models = [small_model(Path(folder))]
        for model in models:
            print(f"{'':44} {measure(embedder(model), texts[: TEXTS // 10]) / words:.0f} times as long")
    if not models:
        print("sentence-transformers is not installed: pip install 'dspy-selfimprove[embeddings]'")


if __name__ == "__main__":
    main()
