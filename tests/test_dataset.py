"""Splits: nothing straddles, nothing moves, the test stays sealed. Checked by brute force, not by the code at work."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import itertools
import json
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import types
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from dspy_selfimprove.dataset import Dataset, extend, find, load, split
from dspy_selfimprove.errors import DataError, SetupError, UsageError
from dspy_selfimprove.journal import Journal
from dspy_selfimprove.sample import Sample
from dspy_selfimprove.score import Score
from dspy_selfimprove.seal import open_test, openings
from dspy_selfimprove.sides import SHARES, SIDES, place
from dspy_selfimprove.wire import Tokens

REPLY = {"role": "assistant", "content": "On its way."}


def sample(name: str, text: str = "", **fields) -> Sample:
    turns = ({"role": "user", "content": text or f"Question {name}"},)
    return Sample(name, turns, REPLY, **fields)


def letters(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in str(number))


def strangers(count: int, start: int = 0, **fields) -> list[Sample]:
    """Samples that have nothing to do with each other."""
    return [sample(f"S{n}", letters(n), **fields) for n in range(start, start + count)]


def sides_of(folder: Path) -> dict[str, str]:
    """The side of each id, read from the files and by nothing else."""
    return {
        json.loads(line)["id"]: side for side in SIDES for line in (folder / f"{side}.jsonl").read_text().splitlines()
    }


def bigrams(one: Sample) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", one.chat_history[0]["content"].lower())
    return set(itertools.pairwise(["<", *words, ">"]))


def straddling(samples: list[Sample], sides: dict[str, str], overlap: float) -> list[tuple[str, str]]:
    """Brute force: every pair on two sides that shares a session, a user, or most pairs of neighbouring words."""
    samples = [one for one in samples if sides.get(one.id)]
    found = []
    for field in ("session_id", "user_id", "trace_id"):
        first: dict[str, Sample] = {}
        for one in samples:
            value = getattr(one, field)
            if value and sides[first.setdefault(value, one).id] != sides[one.id]:
                found.append((first[value].id, one.id))
    places: dict[object, int] = {}
    rows = [[places.setdefault(pair, len(places)) for pair in bigrams(one)] for one in samples]
    at = [(row, column) for row, columns in enumerate(rows) for column in columns]
    table = csr_matrix(([1] * len(at), tuple(zip(*at, strict=True))), shape=(len(rows), len(places)))
    common = (table @ table.T).tocoo()
    for a, b, shared in zip(common.row.tolist(), common.col.tolist(), common.data.tolist(), strict=True):
        near = shared >= overlap * (len(rows[a]) + len(rows[b]) - shared)
        if a < b and near and sides[samples[a].id] != sides[samples[b].id]:
            found.append((samples[a].id, samples[b].id))
    return found


# Production as it is: 26,000 samples of users who come back, with near-copies planted among strangers.


@pytest.fixture(scope="module")
def production() -> list[Sample]:
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=6)) for _ in range(20_000)]
    samples: list[Sample] = []
    while len(samples) < 26_000:
        user = f"U{len(samples)}" if draw.random() < 0.8 else None
        for _ in range(min(20, int(draw.paretovariate(1.5)))):
            text = draw.choices(words, k=40)
            if samples and draw.random() < 0.04:
                text = draw.choice(samples).chat_history[0]["content"].split()
                for _ in range(draw.randrange(3)):
                    text[draw.randrange(40)] = draw.choice(words)
            samples.append(
                sample(
                    f"S{len(samples)}",
                    " ".join(text),
                    user_id=user,
                    session_id=f"{user}/{draw.randrange(2)}" if user else None,
                    trace_id=f"trace{len(samples) // 2}" if draw.random() < 0.05 else None,
                    cluster=int(draw.paretovariate(0.6)) % 60,
                    prompt=draw.choice(["v1", "v1", "v2"]),
                )
            )
    return samples[:26_000]


def test_20_000_samples_with_planted_duplicates_and_30_percent_more(production, tmp_path):
    old, new = production[:20_000], production[20_000:]
    dataset = split(old, tmp_path / "big", seed=3)
    before = sides_of(dataset.folder)
    assert len(before) == 20_000
    by_turns = {one.id: SIDES[n % 3] for n, one in enumerate(old[:5_000])}
    assert len(straddling(old, by_turns, overlap=0.75)) > 1_000, "the checker can fail"
    for side, share in zip(SIDES, SHARES, strict=True):
        assert abs(dataset.sizes[side] - 20_000 * share) <= 2
    sizes = Counter(one.cluster for one in old)
    for side, share in zip(SIDES, SHARES, strict=True):
        here = Counter(one.cluster for one in old if before[one.id] == side)
        assert all(abs(here[topic] - share * size) <= 8 for topic, size in sizes.items())

    after_dataset = extend(dataset, new)
    after = sides_of(dataset.folder)
    assert {key: after[key] for key in before} == before, "an old example moved"
    assert straddling(production, after, overlap=0.75) == []  # hence neither did it among the old ones
    aside = 26_000 - len(after)
    assert after_dataset.set_aside == {"it would join two sides": aside}
    assert 0 < aside < 600
    for side, share in zip(SIDES, SHARES, strict=True):
        assert abs(after_dataset.sizes[side] / len(after) - share) < 0.02


# Small worlds, any shape.

TOPICS = (
    "my parcel has been lost somewhere between the depot and my front door",
    "please explain why the invoice of last month shows a second charge",
    "how can a forgotten password be changed without access to any mail",
    "the lamp blinks red whenever somebody opens the window upstairs",
    "we would like to move from the family plan to business next spring",
    "does anybody there speak portuguese and know about garden sensors",
)


@st.composite
def worlds(draw, most=24, ids="S"):
    few = st.none() | st.integers(0, 9).map(str)
    return [
        Sample(
            f"{ids}{n}",
            ({"role": "user", "content": TOPICS[topic] if topic is not None else f"{ids} {letters(n)} {letters(n)}"},),
            REPLY,
            user_id=draw(few),
            session_id=draw(few),
            cluster=draw(st.none() | st.integers(0, 3)),
        )
        for n in range(draw(st.integers(1, most)))
        for topic in [draw(st.none() | st.none() | st.integers(0, len(TOPICS) - 1))]
    ]


def shared(one: Sample) -> set[tuple[str, object]]:
    text = one.chat_history[0]["content"]
    ids = ("user_id", "session_id", "trace_id")
    return {(name, getattr(one, name)) for name in ids if getattr(one, name)} | {("text", text)}


def groups_of(samples: list[Sample]) -> list[list[Sample]]:
    """By walking from neighbour to neighbour."""
    left, found = list(samples), []
    while left:
        group, todo = [], [left.pop()]
        while todo:
            one = todo.pop()
            group.append(one)
            near = [other for other in left if shared(one) & shared(other)]
            left = [other for other in left if other not in near]
            todo += near
        found.append(group)
    return found


@given(worlds(), st.integers(0, 5), st.sampled_from([SHARES, (0.34, 0.33, 0.33), (0.1, 0.1, 0.8)]), st.randoms())
def test_groups_are_whole_and_shares_as_near_as_groups_allow(world, seed, shares, chance):
    placement = place(world, seed=seed, shares=shares)
    groups = groups_of(world)
    side = {one.id: found for one, found in zip(world, placement.sides, strict=True)}
    assert all(len({side[one.id] for one in group}) == 1 for group in groups)
    assert None not in placement.sides
    assert sum(placement.groups.values()) == len(groups)
    assert Counter(side[group[0].id] for group in groups) == {name: n for name, n in placement.groups.items() if n}
    largest = max(map(len, groups))
    if len(groups) >= 3:
        assert set(placement.sides) == set(SIDES), "a side was left empty"
    if largest <= max(shares) * len(world):
        for name, share in zip(SIDES, shares, strict=True):
            assert -2 * largest < placement.sides.count(name) - share * len(world) < largest
    shuffled = chance.sample(world, len(world))
    again = place(shuffled, seed=seed, shares=shares)
    assert {one.id: found for one, found in zip(shuffled, again.sides, strict=True)} == side, "the order matters"


def joins_none(samples: list[Sample], side: dict[str, str]) -> bool:
    return all(len({side[one.id] for one in group if one.id in side}) < 2 for group in groups_of(samples))


def is_settled(held: list[Sample], kept: list[Sample], side: dict[str, str]) -> bool:
    """No chain of new samples joins two sides. Old samples hold sides, but pass nothing on."""
    ends = defaultdict(set)
    for one in held:
        for key in shared(one):
            ends[key].add(side[one.id])
    return all(
        len({each for one in group for key in shared(one) for each in ends[key]}) < 2 for group in groups_of(kept)
    )


@settings(max_examples=120)
@given(worlds(), worlds(most=9, ids="N"), st.booleans())
def test_new_samples_join_and_never_bridge(world, new, two_sides):
    old = dict(zip([one.id for one in world], place(world).sides, strict=True))
    if two_sides:
        old = {key: "train" if found == "validation" else found for key, found in old.items()}
    held = {side: [one for one in world if old[one.id] == side] for side in SIDES}
    placement = place(new, held=held)
    side = {one.id: found for one, found in zip(new, placement.sides, strict=True) if found}
    everything = [*world, *(one for one in new if one.id in side)]
    assert joins_none(everything, {**old, **side})
    assert is_settled(world, [one for one in new if one.id in side], old)
    out = [one for one in new if one.id not in side]
    kept = [one for one in new if one.id in side]
    assert not any(is_settled(world, [*kept, one], old) for one in out), "one could have been put back"
    fewest = next(
        size
        for size in range(len(new) + 1)
        for gone in itertools.combinations(new, size)
        if is_settled(world, [one for one in new if one not in gone], old)
    )
    assert len(out) == fewest if two_sides else len(out) <= 2 * fewest


def test_the_fewest_of_a_chain_are_set_aside():
    """Nine come through one new user; eight of them belong to train, one to the test. The one goes."""
    held = {"train": [sample(f"a{n}", session_id=f"a{n}") for n in range(8)], "test": [sample("b", session_id="b")]}
    new = [sample("n-b", "bb", session_id="b", user_id="new")]
    new += [sample(f"n-a{n}", letters(n), session_id=f"a{n}", user_id="new") for n in range(8)]
    assert place(new, held=held, groups=("session_id", "user_id")).sides == (None, *["train"] * 8)


def test_one_sample_between_three_sides_is_enough():
    held = {side: [sample(side, session_id=side)] for side in SIDES}
    ends = [sample(f"n-{side}", session_id=side, user_id=side) for side in SIDES]
    middle = [sample(f"m{n}", trace_id="middle", user_id=side) for n, side in enumerate(SIDES)]
    sides = place([*middle, *ends], held=held, groups=("session_id", "user_id", "trace_id")).sides
    assert sides.count(None) == 2
    hub = [sample(f"h-{side}", trace_id=side, session_id=side) for side in SIDES]
    links = [sample(f"l-{side}", trace_id=side, user_id="hub") for side in SIDES]
    assert place([*hub, *links], held=held, groups=("session_id", "user_id", "trace_id")).sides.count(None) == 2


def test_nothing_could_be_put_back_in_tangles_between_three_sides():
    fields = ("session_id", "user_id", "trace_id")
    held = {side: [sample(side, **dict.fromkeys(fields, letter))] for side, letter in zip(SIDES, "abc", strict=True)}
    old = {side: side for side in SIDES}
    world = [one for side in SIDES for one in held[side]]
    for seed in range(120):
        draw = random.Random(seed)
        few = [None, *"abcdefghij"]
        new = [sample(f"n{n}", **{name: draw.choice(few) for name in fields}) for n in range(draw.randint(12, 40))]
        placement = place(new, held=held, groups=fields)
        kept = [one for one, side in zip(new, placement.sides, strict=True) if side]
        assert is_settled(world, kept, old)
        out = [one for one in new if one not in kept]
        assert not any(is_settled(world, [*kept, one], old) for one in out), seed


def test_topics_and_prompt_versions_are_shared_out():
    draw = random.Random(1)
    samples = [sample(f"S{n}", cluster=int(draw.expovariate(0.1)), prompt=draw.choice("ab")) for n in range(1_000)]
    placement = place(samples, groups=())
    for field in ("cluster", "prompt"):
        sizes = Counter(getattr(one, field) for one in samples)
        for side, share in zip(SIDES, SHARES, strict=True):
            pairs = zip(samples, placement.sides, strict=True)
            here = Counter(getattr(one, field) for one, found in pairs if found == side)
            assert all(abs(here[value] - share * size) < 3.5 for value, size in sizes.items()), (field, side)


def test_rare_topics_come_to_the_test_as_often_as_common_ones():
    """Without that the test's mean would not be production's. Topics of 1, 2, 4, 8 and 16, over 300 seeds."""
    topics = [n for n, size in enumerate([1] * 16 + [2] * 8 + [4] * 4 + [8] * 2 + [16]) for _ in range(size)]
    samples = [sample(f"S{n}", cluster=topic) for n, topic in enumerate(topics)]
    sizes = Counter(topics)
    found = defaultdict(Counter)
    for seed in range(300):
        for topic, side in zip(topics, place(samples, seed=seed, groups=()).sides, strict=True):
            found[sizes[topic]][side] += 1
    for size, counts in found.items():
        for side, share in zip(SIDES, SHARES, strict=True):
            assert abs(counts[side] / counts.total() - share) < 0.03, (size, side)


def test_the_seed_decides():
    samples = strangers(100)
    assert place(samples, seed=1) == place(samples, seed=1)
    assert place(samples, seed=1).sides != place(samples, seed=2).sides


# Too large, too small.


def test_a_user_with_most_of_the_data_goes_to_train_and_it_is_said(tmp_path):
    crowd = [sample(f"A{n}", letters(n), user_id="anonymous") for n in range(120)]
    dataset = split([*crowd, *strangers(80, start=1_000)], tmp_path / "crowd")
    assert {one.user_id for one in dataset.train} == {"anonymous"}
    assert abs(dataset.sizes["test"] - 48) <= 1
    note = next(note for note in dataset.notes if "60%" in note)
    assert "shares one user_id" in note
    assert "groups=" in note
    assert "anonymous" not in " ".join(dataset.notes)
    assert any("train holds 60% of the samples, not 50%" in note for note in dataset.notes)
    without = split([*crowd, *strangers(80, start=1_000)], tmp_path / "without", groups=("session_id", "text"))
    assert without.notes == ()
    assert dict(without.sizes) == {"train": 100, "validation": 40, "test": 60}
    # Even where the test's share is the largest, for a test of one user shows nothing.
    assert place([*crowd, *strangers(70, start=1_000)], shares=(0.2, 0.2, 0.6)).sides[0] == "train"


def test_a_chain_through_many_is_called_one(tmp_path):
    chain = [sample(f"C{n}", letters(n), user_id=str(n // 2), session_id=str((n + 1) // 2)) for n in range(150)]
    dataset = split([*chain, *strangers(50, start=1_000)], tmp_path / "chain")
    assert any("75%" in note and "a chain through many" in note for note in dataset.notes)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_groups_are_refused(tmp_path, count):
    with pytest.raises(UsageError, match=r"cannot be split in three\. Widen the window"):
        split(strangers(count), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    with pytest.raises(UsageError, match="50 samples in 1 independent groups"):
        split(strangers(50, user_id="everybody"), tmp_path / "tiny")


@pytest.mark.parametrize("count", [3, 10, 29])
def test_few_groups_are_split_and_it_is_said_that_they_prove_nothing(tmp_path, count):
    dataset = split(strangers(count), tmp_path / "small")
    assert min(dataset.sizes.values()) >= 1
    assert sum(dataset.sizes.values()) == count
    assert any(f"{count} independent groups" in note and "Widen the window" in note for note in dataset.notes)


def test_a_side_that_others_left_empty_is_written_read_and_said(tmp_path):
    first = split(strangers(60), tmp_path / "first")
    few = first.train[:3]
    small = split(few, tmp_path / "small", beside=[first])
    assert small.sizes == {"train": 3, "validation": 0, "test": 0}
    again = load(tmp_path / "small")
    assert [each.id for each in again.train] == [each.id for each in few]
    assert again.validation == ()
    assert sum("holds no sample" in note for note in again.notes) == 2
    assert split(strangers(30, start=500), tmp_path / "third", beside=[first, small]).sizes["validation"] >= 1
    (tmp_path / "small" / "validation.jsonl").unlink()
    assert load(tmp_path / "small").validation == ()


def test_thirty_groups_carry_no_note(tmp_path):
    assert split(strangers(30), tmp_path / "enough").notes == ()


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.7, 0.3, 0.0), (50, 20, 30), (0.5, 0.2, 0.2), (0.5, float("nan"), 0.3)]
)
def test_shares_that_cannot_be(tmp_path, shares):
    with pytest.raises(UsageError, match="three numbers"):
        split(strangers(9), tmp_path / "s", shares=shares)


def test_an_id_that_comes_twice_counts_once(tmp_path):
    dataset = split([*strangers(40), *strangers(3)], tmp_path / "twice")
    assert sum(dataset.sizes.values()) == 40
    assert dict(dataset.set_aside) == {"its id came twice, and the first one counts": 3}
    assert any("3 samples were set aside" in note for note in dataset.notes)


# What two texts have in common.


def test_two_pictures_are_two_questions():
    def picture(name):
        image = {"type": "image_url", "image_url": {"url": f"https://example.org/{name}.png"}}
        turn = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}
        return Sample(name, (turn,), REPLY)

    same = Sample("again", picture("a").chat_history, REPLY)
    labels = [one.asked for one in (picture("a"), picture("b"), same)]
    assert labels[0] == labels[2] != labels[1]
    sides = place([picture(letters(n)) for n in range(30)], groups=("text",)).sides
    assert Counter(sides) == {"train": 15, "validation": 6, "test": 9}


def test_the_system_prompt_is_not_what_was_asked_and_variables_stand_in():
    system = {"role": "developer", "content": "Be kind."}
    turn = {"role": "user", "content": "Hello"}
    assert Sample("a", (system, turn, {"role": "assistant", "content": None}), REPLY).asked == "Hello"
    assert Sample("a", (), REPLY, variables={"question": "Where?"}).asked == "Where?"
    assert Sample("a", (), REPLY).asked
    ids = {"session_id": "", "user_id": ""}
    assert len(set(place([sample(letters(n), **ids) for n in range(9)]).sides)) == 3, "an empty id joins nobody"


# The seal.


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return split(strangers(60, cluster=2), tmp_path / "desk", origin={"project": "desk", "since": "2026-11-01"})


def reachable(root: object) -> list[object]:
    """Everything an object leads to: its attributes, elements, closures, defaults and whatever gc sees.

    Not a class, a module or a function's module: those are the program, and hold what is in it for anybody.
    """
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType):
            continue
        seen[id(one)] = one
        if isinstance(one, types.FunctionType):
            todo += [*(one.__closure__ or ()), *(one.__defaults__ or ()), one.__kwdefaults__, one.__dict__]
        else:
            todo += gc.get_referents(one)
            todo += [getattr(one, name, None) for name in (*getattr(one, "__dict__", ()), *slots_of(one))]
    return list(seen.values())


def slots_of(one: object) -> list[str]:
    found = [getattr(kind, "__slots__", ()) for kind in type(one).__mro__]
    return [name for names in found for name in ([names] if isinstance(names, str) else names)]


def test_what_the_search_is_given_leads_to_no_test_row(dataset):
    texts = [json.loads(line)["chat_history"][0]["content"] for line in (dataset.folder / "test.jsonl").open()]
    assert len(texts) == 18
    found = reachable(dataset.search)
    strings = {one for one in found if isinstance(one, str)}
    assert dataset.train[0].chat_history[0]["content"] in strings, "the walk finds rows at all"
    assert dataset.validation[0].id in strings
    assert not strings & set(texts)
    assert not [one for one in strings if str(dataset.folder) in one or "test.jsonl" in one]
    plain = (str, int, float, type(None), tuple, dict, datetime, Sample, type(dataset.search))
    assert not [one for one in found if not isinstance(one, plain)], "something other than data"
    # The walk would see it: through an attribute, a closure, a default.
    secret = open_test(dataset, purpose="a test of the test").samples

    class Leaky:
        def __init__(self):
            self.rows = lambda: secret

    for leak in (Leaky(), lambda rows=secret: rows, {"deep": [(secret,)]}):
        assert texts[0] in [one for one in reachable(leak) if isinstance(one, str)]


def test_after_splitting_no_test_row_is_left_in_the_process(tmp_path):
    dataset = split((sample(f"gone{n}", letters(n)) for n in range(60)), tmp_path / "gone")
    dataset = extend(dataset, (sample(f"gone{n}", letters(n)) for n in range(500, 520)))
    gc.collect()
    ours = {one.id for one in gc.get_objects() if isinstance(one, Sample) and one.id.startswith("gone")}
    assert ours == {one.id for one in (*dataset.train, *dataset.validation)}
    assert len(ours) < len(sides_of(dataset.folder)) == 80


WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.open") else None)
from dspy_selfimprove.dataset import load
dataset = load(sys.argv[1] + "/")
assert len(dataset.search.train) == 30 and len(dataset.to_frame()) == 42, dataset
print([path for path in opened if path.endswith(".jsonl")])
"""


def test_loading_never_touches_the_test_file(dataset):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(dataset.folder)], capture_output=True, text=True, check=True
    )
    assert [Path(path).name for path in eval(done.stdout)] == ["train.jsonl", "validation.jsonl"]
    (dataset.folder / "test.jsonl").unlink()
    (dataset.folder / "test.jsonl").mkdir()
    assert load(dataset.folder).search == dataset.search
    with pytest.raises(UsageError, match=r"The test is sealed\. Open it with open_test"):
        dataset.to_examples("test")
    with pytest.raises(DataError):
        open_test(dataset, purpose="there is none")
    assert openings(dataset) == ()


def test_each_opening_is_counted(dataset, tmp_path):
    with Journal.open(tmp_path / "run.db") as journal:
        opened = open_test(dataset, purpose="final proof", journal=journal)
        assert (opened.number, opened.first, opened.standing) == (1, True, "first use")
        assert {one.id for one in opened.samples} == {
            key for key, side in sides_of(dataset.folder).items() if side == "test"
        }
        again = open_test(str(dataset.folder), purpose="another look", journal=journal)
        assert (again.first, again.standing) == (False, "not first use: this is opening 2 of the test")
        assert again.samples == opened.samples
        entries = [entry.data for entry in journal.entries("opening")]
    assert [(each["number"], each["purpose"], each["dataset"]) for each in entries] == [
        (1, "final proof", "desk"),
        (2, "another look", "desk"),
    ]
    assert [each.purpose for each in openings(dataset)] == ["final proof", "another look"]
    assert load(dataset.folder).card["openings"] == 2
    assert "opened 2 times" in load(dataset.folder).summary()
    assert open_test(extend(dataset, strangers(9, start=500)), purpose="a third").number == 3
    tests = [each.test for each in openings(dataset)]
    assert tests[0] == tests[1] != tests[2]


def test_a_record_that_was_cut_does_not_make_an_opening_the_first(dataset):
    for number in (1, 2):
        assert open_test(dataset, purpose="x").number == number
    record = dataset.folder / "openings.jsonl"
    record.unlink()
    assert open_test(dataset, purpose="x").number == 3
    record.write_text(record.read_text() + '{"number": 4, "purp')  # a crash in the middle of a line
    assert open_test(dataset, purpose="x").number == 4
    assert [each.number for each in openings(dataset)] == [3, 4]
    card = yaml.safe_load((dataset.folder / "dataset.yaml").read_text())
    (dataset.folder / "dataset.yaml").write_text(yaml.safe_dump({**card, "openings": 0}))
    record.write_text("".join(f"{json.dumps({'number': n})}\n" for n in range(9)))
    assert open_test(dataset, purpose="x").number == 10, "nor does a card that was set back"


def test_no_row_is_given_out_that_is_not_counted(dataset):
    with pytest.raises(UsageError, match="needs a purpose"):
        open_test(dataset, purpose=" ")
    (dataset.folder / "openings.jsonl").mkdir()
    with pytest.raises(SetupError, match="the test stays sealed"):
        open_test(dataset, purpose="x")


def test_a_test_that_was_changed_is_refused(dataset):
    path = dataset.folder / "test.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    for content in ("".join(rows[1:]), "".join(reversed(rows)), "", rows[0].replace("content", "Content")):
        path.write_text(content)
        with pytest.raises(DataError, match="not what its card says"):
            open_test(dataset, purpose="x")
        with pytest.raises(DataError, match="not what its card says"):
            extend(dataset, strangers(3, start=900))
    assert openings(dataset) == ()
    path.write_text("".join(rows))
    assert open_test(dataset, purpose="x").first


def test_openings_at_once_get_numbers_of_their_own(dataset):
    numbers = []
    threads = [
        threading.Thread(target=lambda: numbers.append(open_test(dataset, purpose="x").number)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


# On the disk.

texts = st.text(st.characters(codec=None), max_size=8)  # halves of surrogate pairs included: models do write them
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
scores = st.dictionaries(
    texts, st.builds(Score, st.floats(0, 1), st.none() | texts, texts) | st.builds(Score.missing, st.text(min_size=1))
)
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.none() | texts})
zones = st.none() | st.integers(-1_000, 1_000).map(lambda minutes: timezone(timedelta(minutes=minutes)))
samples_of_any_kind = st.builds(
    Sample,
    id=texts,
    chat_history=st.lists(messages, max_size=3),
    output=messages,
    scores=scores,
    human=scores,
    variables=st.dictionaries(texts, texts, max_size=2),
    prompt=st.none() | texts,
    trace_id=st.none() | texts,
    session_id=st.none() | texts,
    user_id=st.none() | texts,
    time=st.none() | st.datetimes(timezones=zones),
    weight=st.floats(0, 1e9),
    parameters=st.dictionaries(texts, plain, max_size=2),
    cluster=st.none() | st.integers(0, 999),
    seconds=st.none() | st.floats(0, 1e6),
    tokens=st.none() | st.builds(Tokens, st.integers(0), st.integers(0), st.integers(0)),
    dollars=st.none() | st.floats(0, 10),
    metadata=st.dictionaries(texts, plain, max_size=2),
    tags=st.lists(texts, max_size=2),
)


@settings(max_examples=100)
@given(samples_of_any_kind)
def test_a_sample_comes_back_from_json(one):
    written = json.dumps(one.to_json())
    assert written.isascii()
    if not re.search(r"\\ud[89ab]..\\ud[c-f]", written):  # two halves side by side are one letter in JSON
        again = Sample.from_json(json.loads(written))
        assert again == one
        assert again.time is None or again.time.utcoffset() == one.time.utcoffset()
        assert [type(value) for value in (again.weight, again.tags)] == [float, tuple]
    assert Sample.from_json({**one.to_json(), "a field of a later version": 1}).id == one.id


def test_rows_come_back_from_disk_as_they_were(tmp_path):
    odd = dataclasses.replace(
        strangers(1)[0],
        chat_history=({"role": "user", "content": "half \ud83d, line \u2028 and \r\n end"},),
        scores={"brevity": Score(0.25, feedback="long"), "tone": Score.missing("429")},
        time=datetime(2026, 11, 21, 12, 30, 0, 5, tzinfo=UTC),
        tokens=Tokens(5, 6, 1),
        weight=2.5,
    )
    given_ = [odd, *strangers(39, start=1)]
    dataset = split(given_, tmp_path / "back")
    rows = [*dataset.train, *dataset.validation, *open_test(dataset, purpose="x").samples]
    assert len(Dataset(dataset.folder, tuple(rows), (), dataset.card).to_frame()) == 40
    assert sorted(rows, key=lambda one: int(one.id[1:])) == given_
    assert all((dataset.folder / f"{side}.jsonl").read_bytes().isascii() for side in SIDES)
    with pytest.raises(UsageError, match="not JSON"):
        split([dataclasses.replace(one, metadata={"at": object()}) for one in given_], tmp_path / "object")


def test_the_card_says_what_is_there_and_no_word_of_a_customer(tmp_path):
    rows = [sample(f"S{n}", f"zebra {letters(n)}", user_id=f"zebra-{n}", cluster=n % 3) for n in range(60)]
    dataset = split(rows, tmp_path / "carded", seed=5, origin={"project": "desk", "until": datetime(2026, 11, 2)})
    text = (dataset.folder / "dataset.yaml").read_text()
    card = yaml.safe_load(text)
    assert "zebra" not in text
    assert card["name"] == "carded"
    assert card["licence"] == "not for publication: production data"
    assert card["origin"] == {"project": "desk", "until": datetime(2026, 11, 2)}
    assert (card["seed"], card["format"], card["openings"]) == (5, 1, 0)
    for side in SIDES:
        raw = (dataset.folder / f"{side}.jsonl").read_bytes()
        about = card["splits"][side]
        assert about["sha256"] == hashlib.sha256(raw).hexdigest()
        assert about["samples"] == raw.count(b"\n") == dataset.sizes[side]
        assert about["clusters"] == 3
        assert about["groups"] == about["samples"] == about["weight"]
    for path in dataset.folder.glob("*.jsonl"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(dataset.folder.stat().st_mode) == 0o700
    with pytest.raises(UsageError, match="not plain data"):
        split(rows, tmp_path / "odd", origin={"client": object()})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".jsonl", ".yaml")}


def test_what_is_there_is_not_split_again_and_adding_it_again_changes_nothing(dataset):
    before = content(dataset.folder)
    with pytest.raises(UsageError, match=r"there already.*extend"):
        split(strangers(60), dataset.folder)
    extend(dataset, strangers(60))
    assert content(dataset.folder) == before
    more = strangers(30, start=50)
    bigger = extend(extend(dataset, more), more)
    assert sum(bigger.sizes.values()) == 80
    assert [each["added"] for each in bigger.card["extended"]] == [20]


def test_a_sample_set_aside_twice_counts_once(tmp_path):
    rows = [sample(f"S{n}", letters(n), session_id=f"s{n}", user_id=f"u{n}") for n in range(60)]
    dataset = split(rows, tmp_path / "aside")
    side = sides_of(dataset.folder)
    one, other = (
        next(n for n in range(60) if side[f"S{n}"] == "train"),
        next(n for n in range(60) if side[f"S{n}"] == "test"),
    )
    bridge = sample("bridge", "something else", session_id=f"s{one}", user_id=f"u{other}")
    for _ in range(2):
        dataset = extend(dataset, [bridge])
        assert dict(dataset.set_aside) == {"it would join two sides": 1}
        assert dict(dataset.sizes) == {"train": 30, "validation": 12, "test": 18}
    assert [json.loads(line)["id"] for line in (dataset.folder / "aside.jsonl").open()] == ["bridge"]
    assert len(dataset.card["extended"]) == 1


def test_a_crash_before_the_card_leaves_the_old_dataset(dataset, tmp_path):
    """The new rows are in the files, the card still counts the old ones: the moment before the last step."""
    old_card = (dataset.folder / "dataset.yaml").read_bytes()
    more = strangers(40, start=500)
    after = extend(dataset, more)
    (dataset.folder / "dataset.yaml").write_bytes(old_card)
    assert load(dataset.folder).search == dataset.search
    assert len(open_test(dataset, purpose="x").samples) == 18
    again = extend(dataset, more)
    assert again.search == after.search
    assert again.card["splits"] == after.card["splits"]
    # A first split that got no card is no dataset, and no obstacle.
    shutil.copytree(dataset.folder, tmp_path / "begun")
    (tmp_path / "begun" / "dataset.yaml").unlink()
    (tmp_path / "begun" / "aside.jsonl").write_text('{"id": "X1", "reason": "it would join two sides"}\n')
    with pytest.raises(UsageError, match="There is no dataset"):
        load(tmp_path / "begun")
    begun = split(strangers(30), tmp_path / "begun")
    assert sum(begun.sizes.values()) == 30
    assert not begun.set_aside


GROWING = """
import sys
from dspy_selfimprove.dataset import extend
from dspy_selfimprove.sample import Sample
reply = {"role": "assistant", "content": "Yes."}
def question(name, n):
    return Sample(f"{name}{n}", ({"role": "user", "content": f"{name} {chr(97 + n % 26) * n}"},), reply)
for n in range(int(sys.argv[2]), 10**6, 5):
    rows = [question(sys.argv[3], m) for m in range(n, n + 5)]
    extend(sys.argv[1] + "/", rows)
    print(n, flush=True)
    if len(sys.argv) > 4 and n >= int(sys.argv[4]):
        break
"""


def growing(folder: Path, start: int, letter: str, *end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", GROWING, str(folder), str(start), letter, *end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_leaves_a_whole_dataset_and_a_reader_meets_no_half(dataset):
    known = sides_of(dataset.folder)
    start = 0
    for stop_after in (0, 10, 15):
        with growing(dataset.folder, start, "k") as writer:
            for line in writer.stdout:
                seen = load(dataset.folder)  # while it writes on
                assert len(seen.train) == seen.sizes["train"]
                assert sum(seen.sizes.values()) >= len(known)
                start = int(line) + 5
                if int(line) >= stop_after:
                    writer.kill()
        open_test(dataset, purpose="whole")
        assert known.items() <= sides_of(dataset.folder).items()
        known = sides_of(dataset.folder)


def test_two_writers_take_turns(dataset):
    writers = [growing(dataset.folder, 0, letter, "20") for letter in "ab"]
    for writer in writers:
        with writer:
            assert writer.stdout.read().split() == ["0", "5", "10", "15", "20"]
        assert writer.returncode == 0
    assert sum(load(dataset.folder).sizes.values()) == 60 + 2 * 25
    assert len(sides_of(dataset.folder)) == 110
    outcomes = []

    def try_to_split():
        try:
            outcomes.append(split(strangers(40), dataset.folder.with_name("race")).name)
        except UsageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_to_split) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"race": 1, "refused": 3}


@pytest.mark.parametrize("card", ["", "a: [", "[]", "format: 2", "format: 1", "format: 1\nsplits: {}"])
def test_a_broken_card_is_one_sentence(dataset, card):
    (dataset.folder / "dataset.yaml").write_text(card)
    with pytest.raises((DataError, UsageError)) as raised:
        load(dataset.folder)
    assert raised.value.remedy


# Where it is put.


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_name_goes_where_git_does_not_look(project):
    dataset = split(strangers(30), "desk")
    assert dataset.folder == project / ".selfimprove" / "datasets" / "desk"
    assert find("desk") == dataset.folder
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, cwd=project)
    assert status.stdout == ""
    assert load("desk").search == dataset.search


def test_data_goes_into_a_commit_only_if_asked(project, monkeypatch):
    target = project / "data" / "desk"
    with pytest.raises(UsageError, match="does not ignore it"):
        split(strangers(30), target)
    assert not target.exists()
    (project / ".gitignore").write_text("data/\n")
    assert split(strangers(30), target).name == "desk"
    assert split(strangers(30), project / "kept" / "desk", commit=True).name == "desk"
    assert split(strangers(30), project.parent / "outside").name == "outside"
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    with pytest.raises(UsageError, match="does not ignore it"):
        split(strangers(30), project / "other")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="does not ignore it"):
        split(strangers(30), project / "other")
    assert split(strangers(30), "by_name").name == "by_name"


def test_names(project):
    split(strangers(30), "support_desk")
    with pytest.raises(UsageError, match=r"no dataset 'suport_desk'\. Did you mean 'support_desk'\?"):
        load("suport_desk")
    with pytest.raises(UsageError, match=r"no dataset 'xyz'\. There is .*support_desk"):
        load("xyz")
    with pytest.raises(UsageError, match="a form of its own"):
        load("support_tickets")
    with pytest.raises(UsageError, match="There is no dataset in"):
        load(project / "nowhere")
    for name in ("", ".hidden", "a b", "x" * 200):
        with pytest.raises(UsageError, match="cannot be the name"):
            split(strangers(30), name)
    with pytest.raises(UsageError, match="'users' groups no samples"):
        split(strangers(30), "other", groups=("users",))


# To look at, and to hand on.


def test_a_dataset_shows_itself(dataset):
    assert repr(dataset) == "Dataset(desk: 30 train, 12 validation, 18 test (sealed))"
    assert dataset.summary().splitlines() == [
        "desk: 60 samples",
        "  train           30 samples in 30 groups, 1 clusters",
        "  validation      12 samples in 12 groups, 1 clusters",
        "  test            18 samples in 18 groups, 1 clusters",
        "  the test is sealed",
    ]
    frame = dataset.to_frame()
    assert frame["side"].value_counts().to_dict() == {"train": 30, "validation": 12}
    assert frame.loc[dataset.train[0].id, "asked"] == dataset.train[0].chat_history[0]["content"]


def test_examples_have_their_inputs_set(dataset):
    found = dataset.to_examples("validation")
    assert [one["id"] for one in found] == [one.id for one in dataset.validation]
    assert all(one.inputs().keys() for one in found)
    assert found[0].inputs()["conversation"] == [dict(turn) for turn in dataset.validation[0].chat_history]
    assert len(open_test(dataset, purpose="x").to_examples()) == 18


def test_train_and_validation_are_pushed_to_phoenix_and_the_test_is_not(project, phoenix):
    from phoenix.client import Client

    dataset = split([sample(letters(number), f"About {letters(number)}") for number in range(40)], "pushed")
    pushed = dataset.push(f"pushed {dataset.card['made']}", endpoint=phoenix.url)
    held = Client(base_url=phoenix.url).datasets.get_dataset(dataset=pushed.id)
    assert {each["id"] for each in held.examples} == {sample.id for sample in (*dataset.train, *dataset.validation)}
    assert dataset.push(f"pushed {dataset.card['made']}", endpoint=phoenix.url) == pushed
