"""Labels: found in what was said, graded on an order, and counted over a set as by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.metrics.label import classification, graded, label_in, match, set_f1

ORDER = ("low", "normal", "high", "urgent")
labels = st.sampled_from(ORDER)


@given(labels, st.sampled_from(["{}", "**{}**", "The priority is: {}.", '"{}"', "  {}\n"]))
def test_a_label_is_found_however_it_is_dressed(label, dress):
    assert label_in(dress.format(label.upper()), ORDER) == label


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("high or urgent", None),
        ("I do not know", None),
        ("", None),
        ("highly likely", None),
        ("not helpful", "not helpful"),
        ("It is helpful.", "helpful"),
    ],
)
def test_what_is_not_one_label_is_none(said, found):
    assert label_in(said, [*ORDER, "helpful", "not helpful"]) == found


SIGNED = (
    "-1",
    "+1",
    "1",
    ".5",
    "5",
    "<5",
    ">5",
    "A",
    "A+",
    "A-",
    "A*",
    "C",
    "C++",
    "C#",
    "\U0001f44d",
    "\U0001f44e",
    "?",
)


@given(st.sampled_from(SIGNED), st.sampled_from(SIGNED))
def test_signs_that_say_something_tell_labels_apart(one, other):
    assert match(one, other).value == (one == other)
    assert match(one, other, labels=SIGNED).value == (one == other)
    assert graded(one, other, order=SIGNED).value <= 1 - (one != other) / (len(SIGNED) - 1)


@given(
    st.sampled_from(SIGNED), st.sampled_from(["**{}**", '"{}".', "({})", "- {}", "# {}", "  {}\n", "It is {}, then."])
)
def test_and_are_found_however_they_are_dressed(label, dress):
    assert label_in(dress.format(label), SIGNED) == label


@pytest.mark.parametrize(
    ("said", "labels"),
    [("-1", "01"), ("It is 1.5.", "15"), ("An A+ it is.", "AB"), ("I say A-.", "AB"), ("Use C++", ["C", "Java"])],
)
def test_another_label_is_none_of_those_there_are(said, labels):
    assert label_in(said, labels) is None


def test_decoration_is_no_part_of_a_label():
    for said in ("\u2705 refund", "refund \U0001f389", "**Refund**!", "> refund", "~~refund~~", "_refund_"):
        assert match(said, "refund").value == 1, said
    assert match("\u22121", "-1").value == 1


def test_labels_that_would_be_taken_for_each_other_are_refused():
    with pytest.raises(UsageError, match="case or punctuation alone"):
        label_in("refund", ["refund", "Refund!"])
    assert label_in("refund", ["refund", "refund", "login"]) == "refund"


def test_a_match_is_one_label_or_nothing():
    assert match("Refund", "refund").value == 1
    assert match("The topic is refund", "refund").value == 0
    assert match("The topic is refund", "refund", labels=["refund", "login"]).value == 1
    wrong = match("login", "refund", labels=["refund", "login"])
    assert (wrong.value, wrong.label, wrong.feedback) == (0, "login", "'login' was given, 'refund' expected.")


@given(labels, labels)
def test_partial_credit_falls_with_distance(given_one, wanted):
    away = abs(ORDER.index(given_one) - ORDER.index(wanted))
    assert graded(given_one, wanted, ORDER).value == pytest.approx(1 - away / 3)
    assert graded(given_one, wanted, ORDER[::-1]).value == graded(given_one, wanted, ORDER).value


def test_what_is_no_label_scores_nothing_and_what_was_not_known_is_missing():
    assert graded("whatever", "low", ORDER).value == 0
    assert graded("low", "whatever", ORDER).is_missing
    with pytest.raises(UsageError, match="two labels or more"):
        graded("low", "low", ("low", "Low"))


@given(st.sets(labels), st.sets(labels))
def test_sets_by_their_f1(given_ones, wanted):
    both = len(given_ones & wanted)
    by_hand = 1 if not given_ones | wanted else 2 * both / (len(given_ones) + len(wanted))
    assert set_f1(", ".join(given_ones), wanted).value == pytest.approx(by_hand)


def test_a_set_names_what_is_missing_and_what_is_too_much():
    assert set_f1("low; high", ["high", "urgent"]).feedback == "Missing: urgent. Not expected: low."


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_a_classification_is_counted_as_by_hand(pairs):
    given_ones, wanted = zip(*pairs, strict=True)
    found = classification(given_ones, wanted)
    assert found.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.micro_f1 == pytest.approx(found.accuracy)
    hits, asked, right = Counter(a for a, b in pairs if a == b), Counter(given_ones), Counter(wanted)
    assert set(found.labels) == set(given_ones) | set(wanted)
    for label, seen in found.labels.items():
        assert seen.support == right[label]
        assert seen.f1 == pytest.approx(2 * hits[label] / (asked[label] + right[label]))
        if asked[label]:
            assert seen.precision == pytest.approx(hits[label] / asked[label])
        else:
            assert math.isnan(seen.precision)
        if not right[label]:
            assert math.isnan(seen.recall)
    assert found.macro_f1 == pytest.approx(sum(seen.f1 for seen in found.labels.values()) / len(found.labels))


def test_pairs_without_two_labels_are_counted_apart():
    found = classification(["spam", None, "ham"], ["Spam ", "ham", None])
    assert (found.n, found.missing, found.accuracy) == (1, 2, 1)
    assert math.isnan(classification([None], ["spam"]).accuracy)
    with pytest.raises(UsageError, match="as many"):
        classification(["spam"], [])
