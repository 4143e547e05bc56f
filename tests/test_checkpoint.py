"""A checkpoint on disk: whole or not at all, the same when it is read back, readable without the world around it."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from dspy_selfimprove.checkpoint import Checkpoint, Origin, SeenPrompt, writing
from dspy_selfimprove.errors import DataError, UsageError
from dspy_selfimprove.prompt import ChatPrompt
from dspy_selfimprove.sample import EvalSpec, Sample
from dspy_selfimprove.score import Score
from dspy_selfimprove.wire import Tokens

NOON = datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC)
OLD, NEW, RARE = (ChatPrompt(system=f"{word} {{{{name}}}}.", model="m") for word in ("Greet", "Welcome", "Try"))
PROMPTS = (
    SeenPrompt(OLD, 60, 50, first=NOON.replace(day=1), last=NOON.replace(day=12), declared="v1"),
    SeenPrompt(NEW, 40, 40, first=NOON.replace(day=10), last=NOON.replace(day=20)),
    SeenPrompt(RARE, 2, 2, first=NOON.replace(day=19), last=NOON.replace(day=19)),
)


def sample(number: int, prompt: ChatPrompt = OLD) -> Sample:
    return Sample(
        id=f"s{number}",
        chat_history=(
            {"role": "user", "content": [{"type": "text", "text": f"Question {number}"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
            {"role": "tool", "tool_call_id": "c", "content": "\ud83d half an emoji, \x00 and {{braces}}"},
        ),
        output={"role": "assistant", "content": f"Answer {number}"},
        scores={"helpfulness": Score(0.5, label="fair", feedback="No time.", details={"written": 3})},
        human={"thumb": Score.missing("a label without a number")},
        variables={"name": "Ana"},
        prompt=prompt.version,
        session_id="c1",
        time=NOON,
        parameters={"seed": 7, "user": "u1"},
        cluster=3,
        seconds=1.5,
        tokens=Tokens(10, 5, 2),
        dollars=0.001,
        metadata={"ticket": {"id": 4}},
        tags=("a", "b"),
    )


def write(folder: Path, samples, **about) -> Checkpoint:
    with writing(folder) as writer:
        for each in samples:
            writer.add(each)
        writer.finish(
            {
                "origin": Origin("phoenix", "support", since=NOON, made=NOON, spans=9, key="k1").to_json(),
                "prompts": [seen.to_json() for seen in PROMPTS],
                "evaluators": [EvalSpec("tone", "LLM", choices={"good": 1, "bad": 0}).to_json()],
                "set_aside": {"the call failed": 4},
                "notes": ["Said."],
                **about,
            }
        )
    return Checkpoint.load(folder)


def test_what_was_written_comes_back(tmp_path):
    samples = [sample(number, prompt) for number, prompt in enumerate([OLD, NEW, OLD])]
    found = write(tmp_path, samples)
    assert list(found.samples) == samples
    assert found.samples[-1] == samples[2]
    assert list(found.samples[:2]) == samples[:2]
    assert found.prompts == PROMPTS
    assert [spec.name for spec in found.evaluators] == ["tone"]
    assert found.origin == Origin("phoenix", "support", since=NOON, made=NOON, spans=9, key="k1")
    assert (dict(found.set_aside), found.notes) == ({"the call failed": 4}, ("Said.",))
    assert Checkpoint.origin_in(tmp_path) == found.origin
    assert list(found.samples.take([])) == []
    with pytest.raises(IndexError):
        _ = found.samples[3]


texts = st.text(max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.builds(
        Sample,
        id=st.text(st.characters(exclude_categories=["Cs"])),
        chat_history=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), max_size=3),
        output=st.fixed_dictionaries({"role": st.just("assistant"), "content": texts | st.none()}),
        variables=st.dictionaries(st.text(max_size=5), texts, max_size=3),
        scores=st.dictionaries(texts, st.builds(Score, st.floats(0, 1), label=st.none() | texts), max_size=2),
        weight=st.floats(0.01, 100),
        cluster=st.none() | st.integers(0, 10**6),
        seconds=st.none() | st.floats(0, 1e6),
        user_id=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        tags=st.lists(texts, max_size=2),
    )
)
def test_any_sample_comes_back(tmp_path, each):
    assert list(write(tmp_path, [each]).samples) == [each]


def test_versions_are_kept_apart_and_the_newest_one_in_real_use_is_the_default(tmp_path):
    found = write(tmp_path, [sample(1, OLD), sample(2, NEW), sample(3, OLD)])
    assert found.newest.prompt == NEW  # RARE began later, and is somebody trying something
    assert [each.id for each in found.of()] == ["s2"]
    assert [each.id for each in found.of("v1")] == ["s1", "s3"]
    assert [each.id for each in found.of(OLD.version[:8])] == ["s1", "s3"]
    with pytest.raises(UsageError, match="No prompt version"):
        found.of(OLD.version[:1])  # too short to name one
    with pytest.raises(UsageError, match="No prompt version 'v9'") as refused:
        found.of("v9")
    assert NEW.version in refused.value.remedy


def test_the_samples_can_be_looked_at_as_a_table(tmp_path):
    found = write(tmp_path, [sample(1)])
    row = found.samples.frame().loc["s1"]
    assert (row["answered"], row["helpfulness"], row["turns"]) == ("Answer 1", 0.5, 3)
    assert pd.isna(row["human.thumb"])
    assert found.samples[0].asked.startswith("Question 1")


def test_a_second_one_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    write(tmp_path, [sample(1)])
    found = write(tmp_path, [sample(2)])
    assert [each.id for each in found.samples] == ["s2"]
    assert len(list(tmp_path.glob("samples-*"))) == 1
    assert not list(tmp_path.glob("*.part"))


def test_one_that_fails_half_way_leaves_the_first(tmp_path):
    write(tmp_path, [sample(1)])
    with pytest.raises(RuntimeError), writing(tmp_path) as writer:
        writer.add(sample(2))
        raise RuntimeError("out of memory, say")
    assert [each.id for each in Checkpoint.load(tmp_path).samples] == ["s1"]


def spoil(folder: Path, what: str) -> None:
    about, table = folder / "checkpoint.json", next(folder.glob("*.parquet"))
    if what == "gone":
        table.unlink()
    elif what == "cut":
        table.write_bytes(table.read_bytes()[:100])
    elif what == "no json":
        about.write_text("{")
    elif what == "other json":
        about.write_text("[1, 2]")
    elif what == "newer":
        about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("gone", "is not whole"),
        ("cut", "is not the file that belongs"),
        ("no json", "cannot be read as a checkpoint"),
        ("other json", "cannot be read as a checkpoint"),
        ("newer", "newer version"),
    ],
)
def test_a_damaged_one_is_one_sentence_with_a_remedy(tmp_path, what, sentence):
    write(tmp_path, [sample(1)])
    spoil(tmp_path, what)
    with pytest.raises(DataError, match=sentence) as refused:
        Checkpoint.load(tmp_path)
    assert refused.value.remedy


def test_none_at_all_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"does not exist\. Run `collect`"):
        Checkpoint.load(tmp_path / "nowhere")
    assert Checkpoint.origin_in(tmp_path / "nowhere") is None


def test_a_second_writer_is_refused_and_the_folder_keeps_itself_out_of_commits(tmp_path):
    with writing(tmp_path), pytest.raises(DataError, match="Another process is writing"), writing(tmp_path):
        pass
    assert (tmp_path / ".gitignore").read_text() == "*\n"
    assert tmp_path.stat().st_mode & 0o077 == 0


def test_loading_needs_neither_phoenix_nor_dspy(tmp_path):
    write(tmp_path, [sample(1)])
    code = (
        "import sys; from dspy_selfimprove.checkpoint import Checkpoint;"
        f"print(Checkpoint.load({str(tmp_path)!r}).samples[0].id, 'phoenix' in sys.modules, 'dspy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["s1", "False", "False"]
