"""Wording: overlaps are bounded and symmetric, agree with the plain definition, and ignore what does not matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.embedding import embedder
from dspy_selfimprove.metrics import text

sentences = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "42", "é"]), max_size=12).map(" ".join)
OVERLAPS = [text.token_f1, text.rouge_l]


def slow_subsequence(first, second):
    """The textbook table."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=30))
def test_the_longest_common_subsequence_is_the_textbooks(first, second):
    assert text.common_subsequence(first, second) == slow_subsequence(first, second)


@pytest.mark.parametrize("overlap", OVERLAPS)
@given(first=sentences, second=sentences)
def test_an_overlap_is_symmetric_bounded_and_whole_for_the_same(overlap, first, second):
    value = overlap(first, second).value
    assert 0 <= value <= 1
    assert value == overlap(second, first).value
    assert overlap(first, first).value == 1


@given(sentences, sentences)
def test_order_can_only_cost(first, second):
    assert text.rouge_l(first, second).value <= text.token_f1(first, second).value
    assert (text.token_f1(first, second).value == 1) == (sorted(text.words(first)) == sorted(text.words(second)))
    assert (text.rouge_l(first, second).value == 1) == (text.words(first) == text.words(second))


@given(st.text(max_size=40), st.text(max_size=40))
def test_each_stricter_one_implies_the_looser(first, second):
    if text.exact(first, second).value:
        assert text.normalised(first, second).value
    if text.normalised(first, second).value:
        assert text.rouge_l(first, second).value == 1
        assert text.contains(first, second).value


@given(st.text(max_size=60))
def test_case_and_outer_space_do_not_matter(some):
    assert text.normalised(f"  {some}\n", some).value == 1
    assert text.words(some.casefold()) == text.words(some)


def test_values_by_hand():
    assert text.token_f1("The cat sat on the mat.", "the cat lay on the mat").value == pytest.approx(5 / 6)
    assert text.rouge_l("on the mat the cat sat", "the cat sat on the mat").value == pytest.approx(3 / 6)
    assert text.token_f1("yes", "yes it is").value == pytest.approx(2 * 1 / 4)
    assert text.exact(" Paris\n", "Paris").value == 1
    assert text.exact("paris", "Paris").value == 0
    assert text.normalised("«Paris»!", "paris").value == 1
    assert text.contains("It is New York, of course.", "new york").value == 1
    assert text.contains("It is York, New Jersey.", "new york").value == 0
    assert text.words("Don\u2019t pay 1,000!") == ("don't", "pay", "1,000")
    assert text.words("東京へ行く") == ("東", "京", "へ", "行", "く")


def test_of_several_right_answers_the_nearest_counts_and_is_named():
    score = text.token_f1("the big apple", ["New York", "the apple"])
    assert score.value == pytest.approx(0.8)
    assert score.feedback == "Expected: the apple"
    assert text.token_f1("the apple", ["New York", "the apple"]).feedback == ""
    assert text.token_f1("x", []).is_missing
    assert text.likeness("x", [], embedder()).is_missing


def test_likeness_is_the_cosine_of_a_real_embedder():
    words = embedder()
    same = text.likeness("the parcel is late", "the parcel is late", words)
    other = text.likeness("the parcel is late", ["cats chase mice"], words)
    assert same.value == pytest.approx(1, abs=1e-5)
    assert other.value < 0.2
    best = text.likeness("the parcel is late", ["cats chase mice", "the parcel is late"], words)
    assert best.value == pytest.approx(1, abs=1e-5)
