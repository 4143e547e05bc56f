"""`dspy-selfimprove metrics` as a shell runs it: what it shows, what it asks, what it keeps, what it refuses."""

import json
import re

import pytest

from dspy_selfimprove.cli import main
from dspy_selfimprove.rehearsal import RehearsalModel, Temper, serve


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line in a project of its own: exit code, output, errors."""
    (tmp_path / ".selfimprove").mkdir()
    monkeypatch.chdir(tmp_path)

    def command(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main(["metrics", *arguments])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def server():
    with serve(RehearsalModel(seed=1, temper=Temper(judge_noise=0.1, judge_length_bias=0.4))) as served:
        yield served


@pytest.fixture
def judge(server):
    server.reset()
    return ("--judge-model", "openai/rehearsal", "--base-url", server.url)


@pytest.mark.parametrize("columns", [80, 120])
def test_list_names_every_metric_within_the_width_of_the_terminal(run, columns):
    code, out, _ = run("list", columns=columns)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    said = re.sub(r"\s+", " ", out)
    assert re.search(r"brevity code output", said)
    assert re.search(r"tone judge input, output rude … excellent", said)


def test_a_metric_of_ones_own_is_listed_and_shown(run, tmp_path):
    own = tmp_path / ".selfimprove" / "metrics" / "calm.yaml"
    own.parent.mkdir()
    own.write_text("name: calm\nmessages: 'Is {{output}} calm?'\nchoices: {calm: 1, upset: 0}\n")
    assert "calm" in run("list")[1]
    code, out, _ = run("show", "calm")
    assert code == 0
    assert "calm 1, upset 0" in out
    assert "│ Is {{output}} calm?" in out


def test_show_gives_the_whole_prompt_and_keeps_to_the_width(run):
    code, out, _ = run("show", "tone", columns=80)
    assert code == 0
    assert max(map(len, out.splitlines()[:8] + out.splitlines()[10:])) <= 80
    assert "{{input}}" in out
    assert "excellent 1, good 0.75" in out
    assert "usage:brevity" in run("show", "brevity")[1]


@pytest.mark.parametrize("columns", [80, 120])
def test_check_says_plainly_what_it_found_and_keeps_it(run, judge, server, tmp_path, columns):
    code, out, _ = run("check", "helpfulness", *judge, "--repeats", "3", "--limit", "8", columns=columns)
    assert code == 0
    assert server.counts().calls == 8 * 3 * 4
    assert max(map(len, out.splitlines())) <= columns
    said = re.sub(r"\s+", " ", out)
    assert "helpfulness openai/rehearsal, 8 rows, 3 verdicts each" in said
    assert re.search(r"noise ±\.\d+ \[\.\d+, \.\d+\]: a second verdict differs in \d+% of the cases", said)
    assert "on 8 labelled rows" in said
    assert "per 100 words" in said
    assert "right \\ judge useless poor fair good excellent" in said
    assert "warning" not in said
    (kept,) = (tmp_path / ".selfimprove" / "calibration").glob("*.json")
    about = json.loads(kept.read_text())
    assert (about["metric"], about["model"], about["rows"], about["repeats"]) == (
        "helpfulness",
        "openai/rehearsal",
        8,
        3,
    )
    # A second run asks nobody; --again does.
    asked = server.counts().calls
    assert run("check", "helpfulness", *judge, "--repeats", "3", "--limit", "8", columns=columns)[1] == out
    assert server.counts().calls == asked
    run("check", "helpfulness", *judge, "--repeats", "2", "--limit", "2", "--again")
    assert server.counts().calls == asked + 2 * 2 * 4


def test_without_a_name_every_judge_is_checked_and_the_worker_may_be_warned_of(run, judge):
    code, out, _ = run("check", *judge, "--repeats", "2", "--limit", "2", "--worker-model", "openai/rehearsal")
    assert code == 0
    for name in ("compliance", "correctness", "format", "groundedness", "helpfulness", "refusal", "tone"):
        assert f"{name}  openai/rehearsal" in out
    assert "brevity" not in out
    assert re.sub(r"\s+", " ", out).count("The judge is the same model as the worker:") == 7


def test_data_of_ones_own_is_judged(run, judge, tmp_path):
    turn, reply = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}
    verdict = {"thumb": {"value": 1.0}}
    row = {"id": "1", "chat_history": [turn], "output": reply, "human": verdict}
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({**row, "id": str(n)}) for n in range(3)))
    code, out, _ = run("check", "tone", *judge, "--data", "mine.jsonl", "--human", "thumb", "--repeats", "2")
    assert code == 0
    assert "3 rows" in out
    assert "agreement" in out


def test_what_is_the_same_for_every_row_is_given(run, judge, tmp_path):
    (tmp_path / "policy.md").write_text("Never promise a date.", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"input": "When?", "output": "On Friday."}\n' * 2, encoding="utf-8")
    command = ("check", "compliance", *judge, "--data", "rows.jsonl", "--repeats", "2")
    code, _, err = run(*command)
    assert code != 0
    assert "needs 'policy'" in err
    assert run(*command, "--given", "policy=@policy.md")[0] == 0
    assert run(*command, "--given", "policy=Never promise a date.")[0] == 0
    for wrong, said in (("policy", "is not NAME=TEXT"), ("policy=@gone.md", "cannot be read")):
        code, _, err = run(*command, "--given", wrong)
        assert code == 2
        assert said in err


def test_a_code_metric_needs_no_model(run):
    code, out, _ = run("check", "brevity", "--data", "judge_helpfulness", "--repeats", "2")
    assert code == 0
    assert "none seen" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "tone"), "dspy-selfimprove rehearsal serve"),
        (("check", "tone", "--judge-model", "gpt"), "who serves the model"),
        (("check", "tone", "--judge-model", "openai/x", "--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (("check", "ton"), "Did you mean 'tone'?"),
        (("show", "nothing_like_it"), "There is no metric"),
        (("check", "brevity"), "no labelled set for 'brevity'"),
        (("check", "brevity", "--data", "nowhere"), "There is no dataset 'nowhere'"),
        (("check", "brevity", "--data", "broken.jsonl"), "Line 1 of"),
        (("check", "brevity", "--data", "empty.jsonl"), "no rows"),
        (("check", "brevity", "--data", "folder"), "no dataset and no checkpoint"),
        (("check", "brevity", "--data", "judge_helpfulness", "--repeats", "1"), "repeats"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_asked(run, tmp_path, arguments, said):
    (tmp_path / "broken.jsonl").write_text("not json")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder").mkdir()
    code, out, err = run(*arguments)
    assert code in (1, 2)
    assert said in err
    assert "Traceback" not in err
    assert not out


def test_a_judge_that_is_away_ends_the_check_with_what_to_mend(run, monkeypatch):
    monkeypatch.setattr("dspy_selfimprove.model._FIRST_WAIT", 0.01)
    code, _, err = run("check", "tone", "--judge-model", "openai/x", "--base-url", "http://127.0.0.1:9/v1")
    assert code == 1
    assert "Check that the service" in err
