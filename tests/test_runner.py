"""The story, step by step: each brings about the ones before it, and nothing is done twice."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from dspy_selfimprove import Runner, open_test
from dspy_selfimprove.cli import main
from dspy_selfimprove.errors import PhoenixUnreachable, UsageError

EXAMPLES = Path(__file__).parent.parent / "examples"
TRACES = EXAMPLES / "support_traces.jsonl"
NAMES = ("Ana Silva", "Ben Okoro", "Chiara Rossi", "Dev Patel", "Eva Novak", "Femi Ade", "Greta Lund", "Hugo Roy")
TOPICS = ("parcel", "invoice", "lamp", "router", "refund", "password", "delivery", "warranty", "speaker", "camera")
PROMPT = "You answer for Northwind Home.\nCustomer: {name}\nBe friendly."


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(number, *, system=PROMPT, start=None, **more):
    draw = random.Random(number)
    asked = (
        f"My {draw.choice(TOPICS)} {draw.choice(TOPICS)} is {draw.choice(('late', 'broken', 'wrong'))}, {draw.random()}"
    )
    request = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": system.format(name=NAMES[number % 8])},
            {"role": "user", "content": asked},
        ],
    }
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Reply {number}"}}
    began = (start or datetime(2026, 11, 1, tzinfo=UTC)) + timedelta(minutes=number)
    return {
        "context.span_id": f"{number:016x}",
        "context.trace_id": f"{number:032x}",
        "name": "ChatCompletion",
        "span_kind": "LLM",
        "status_code": "OK",
        "start_time": began.isoformat(),
        "end_time": (began + timedelta(seconds=1)).isoformat(),
        "attributes.input.value": json.dumps(request),
        "attributes.output.value": json.dumps({"choices": [choice], "model": "gpt-4o-mini"}),
        "eval.tone.score": number % 2,
        **more,
    }


def written(folder, rows):
    path = folder / "spans.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_one_call_does_it_all_and_a_second_runner_does_nothing_twice(project):
    runner = Runner("support", source=TRACES, show=False)
    dataset = runner.dataset(80)
    assert sum(dataset.sizes.values()) == 80
    said = str(runner.summary())
    for word in (
        "120 read: 120 LLM",
        "samples   120",
        "slot_1, plan, date",
        "clusters  48",
        "40 train, 16 validation, 24 test",
    ):
        assert word in said
    checkpoint = project / ".selfimprove" / "production" / "support" / "all" / "checkpoint.json"
    before = checkpoint.read_text(), checkpoint.stat().st_mtime_ns
    again = Runner("support", source=TRACES, show=False)
    assert again.dataset(80).card == dataset.card
    assert (checkpoint.read_text(), checkpoint.stat().st_mtime_ns) == before
    assert again.draw is None


def test_each_step_can_be_taken_and_looked_at_alone(project):
    runner = Runner("support", source=TRACES, show=False)
    assert str(runner.summary()).startswith("nothing")
    frame = runner.spans()
    assert len(frame) == 120
    assert set(frame["kind"]) == {"LLM"}
    assert runner.evaluators() == ()
    checkpoint = runner.checkpoint()
    assert checkpoint.newest.prompt.variables == ("slot_1", "plan", "date")
    assert checkpoint.samples[0].scores["brevity"].value == pytest.approx(0.9333, abs=1e-3)
    assert "<table>" in runner.summary()._repr_html_()
    examples = runner.dataset(60).search.to_examples("validation")
    assert examples[0].inputs().keys() == ["conversation", "variables", "parameters"]


def test_a_changed_verdict_makes_another_checkpoint(project):
    first = Runner("support", source=written(project, map(row, range(40))), show=False).checkpoint()
    changed = [row(0, **{"eval.tone.score": 1}), *map(row, range(1, 40))]
    second = Runner("support", source=written(project, changed), show=False).checkpoint()
    assert first.version != second.version
    assert second.samples[0].scores["tone"].value == 1


def test_of_several_versions_the_newest_is_taken_and_each_can_be_named(project):
    versions = ("You are a clerk of {name}.", "Assist {name} well, please.", "Be brief with {name} today.")
    rows = [row(number, system=versions[number // 40]) for number in range(120)]
    runner = Runner("support", source=pd.DataFrame(rows), show=False)
    assert any("3 versions" in note for note in runner.checkpoint().notes)
    assert "used unless you name another" in str(runner.summary())
    assert "Be brief with {{slot_1}} today." in str(runner.summary())
    assert runner.dataset(30).card["origin"]["prompt"] == runner.checkpoint().newest.version
    assert "Be brief with" in (runner.checkpoint().newest.prompt.system or "")
    old = runner.checkpoint().prompt(runner.checkpoint().prompts[0].version)
    assert runner.dataset(30, prompt_version=old.version).card["origin"]["prompt"] == old.version
    with pytest.raises(UsageError, match="No prompt version 'nonsense'"):
        runner.dataset(prompt_version="nonsense")


def test_new_data_are_added_without_moving_the_old(project):
    Runner("support", source=written(project, map(row, range(100))), show=False).dataset(60, name="d")
    runner = Runner("support", source=written(project, map(row, range(160))), show=False)
    standing = runner.dataset(60, name="d")
    assert "stays as it was drawn" in str(runner.summary())
    grown = runner.dataset(30, name="d", extend=True)
    assert sum(grown.sizes.values()) > 60
    assert {sample.id for sample in standing.train} <= {sample.id for sample in grown.train}
    new = {sample.id for sample in (*grown.train, *grown.validation)} - {f"{number:016x}" for number in range(100)}
    assert new
    # What was drawn beside the first sixty is never drawn from again, so each stretch of time counts once.
    weights = sum(sample.weight for sample in every(grown))
    assert weights == pytest.approx(160, rel=0.25)
    again = Runner("support", source=written(project, map(row, range(160))), show=False)
    assert again.dataset(30, name="d", extend=True).sizes == grown.sizes


def every(dataset):
    return [*dataset.train, *dataset.validation, *open_test(dataset, purpose="the test of a test").samples]


def test_a_new_version_of_the_prompt_keeps_each_example_on_its_side(project):
    """The plan is always the same at first; once it varies there is a slot more, hence another version."""
    system = "You answer for Northwind Home.\nCustomer: {name}\nPlan: %s\nBe friendly."
    before = [row(number, system=system % "Plus") for number in range(60)]
    after = [row(number, system=system % ("Plus", "Basic", "Gold")[number % 3]) for number in range(60, 120)]
    first = Runner("support", source=written(project, before), show=False).dataset(60)
    second = Runner("support", source=written(project, [*before, *after]), show=False).dataset(120)
    assert first.name != second.name
    sides = [
        {sample.id: side for side in ("train", "validation") for sample in getattr(dataset, side)}
        | {sample.id: "test" for sample in open_test(dataset, purpose="the test of a test").samples}
        for dataset in (first, second)
    ]
    common = sides[0].keys() & sides[1].keys()
    assert len(common) > 40
    assert all(sides[0][each] == sides[1][each] for each in common)


def test_a_name_is_one_projects_and_one_prompts(project):
    source = written(project, map(row, range(60)))
    Runner("support", source=source, show=False).dataset(20, name="d")
    with pytest.raises(UsageError, match="made of another project"):
        Runner("sales", source=source, show=False).dataset(20, name="d")
    other = written(project, [row(number, system="Help {name}.") for number in range(60)])
    with pytest.raises(UsageError, match="made of another prompt"):
        Runner("support", source=other, show=False).dataset(20, name="d")
    assert Runner("客服", source=source).folder != Runner("支持", source=source).folder
    assert Runner("Support Desk", source=source).folder != Runner("support-desk", source=source).folder


def test_production_data_keep_themselves_out_of_commits_wherever_they_are_put(project):
    Runner("support", source=TRACES, folder=project / "data", show=False).checkpoint()
    assert (project / "data" / "all" / ".gitignore").read_text() == "*\n"


def test_an_id_that_everybody_shares_groups_nobody(project):
    rows = [row(number, **{"attributes.user.id": "anonymous"}) for number in range(60)]
    runner = Runner("support", source=written(project, rows), show=False)
    assert min(runner.dataset(40).sizes.values()) >= 8
    assert "share one user_id" in str(runner.summary())


def test_scales_once_named_hold(project):
    rows = [row(number, **{"annotation.stars.score": 1 + number % 4}) for number in range(40)]
    source = written(project, rows)
    Runner("support", source=source, show=False).checkpoint(scales={"stars": (1, 5)})
    again = Runner("support", source=source, show=False).checkpoint()
    assert max(sample.human["stars"].value for sample in again.samples) == 0.75


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row(n, status_code="ERROR") for n in range(5)], r"No call can become a sample: the call failed \(5\)"),
        (
            [row(n, **{"attributes.input.value": "__REDACTED__"}) for n in range(5)],
            r"No call can become a sample: what was asked is redacted \(5\)",
        ),
        ([row(n) for n in range(2)], "cannot be split in three"),
        ([row(n, span_kind="CHAIN") for n in range(5)], "There is no call of a model"),
    ],
)
def test_what_cannot_become_a_dataset_is_one_sentence_with_the_remedy(project, rows, sentence):
    with pytest.raises(UsageError, match=sentence) as refused:
        Runner("support", source=written(project, rows), show=False).dataset(10)
    assert refused.value.remedy


def test_mistakes_are_refused_before_anything_is_read(project):
    with pytest.raises(UsageError, match="`until` needs a `since`"):
        Runner("support", until="1d", source=TRACES)
    with pytest.raises(UsageError, match="is no source of spans"):
        Runner("support", source=[{"span_id": "a"}], show=False).spans()
    for arguments in ({}, {"project": "support"}, {"since": "7d"}):
        with pytest.raises(UsageError, match="needs a project and a date"):
            Runner(**arguments)
    with pytest.raises(UsageError, match="in the future"):
        Runner("support", since="2999-01-01")
    with pytest.raises(PhoenixUnreachable, match="phoenix start"):
        Runner("support", since="7d", show=False).spans()
    with pytest.raises(UsageError):
        Runner("support", source=project / "nowhere.parquet", show=False).spans()
    (project / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UsageError, match=r"broken\.parquet"):
        Runner("support", source=project / "broken.parquet", show=False).spans()
    assert not (project / ".selfimprove" / "datasets").exists()


def test_from_phoenix_it_comes_by_itself_and_only_once(project, phoenix):
    """The desk's calls, written as spans; the project's name mistyped; an empty window; again without reading again."""
    from dspy_selfimprove.telemetry.client import Address, connect

    began = datetime.now(UTC) - timedelta(hours=2)
    spans = []
    for number in range(40):
        made = row(number, start=began)
        spans.append(
            {
                "name": made["name"],
                "context": {"trace_id": made["context.trace_id"], "span_id": made["context.span_id"]},
                "span_kind": "LLM",
                "start_time": made["start_time"],
                "end_time": made["end_time"],
                "status_code": "OK",
                "attributes": {
                    "openinference.span.kind": "LLM",
                    "input.value": made["attributes.input.value"],
                    "output.value": made["attributes.output.value"],
                },
            }
        )
    import time

    with connect(Address(phoenix.url)) as client:
        client.spans.log_spans(project_identifier="runner-support", spans=spans)
        deadline = time.monotonic() + 30
        while len(client.spans.get_spans_dataframe(project_identifier="runner-support", limit=100)) < 40:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOENIX_COLLECTOR_ENDPOINT", phoenix.url)
        with pytest.raises(UsageError, match="runner-support"):
            Runner("runner-suport", since="1d", show=False).spans()
        with pytest.raises(UsageError, match="has no span from"):
            Runner("runner-support", since="1m", until=datetime.now(UTC) + timedelta(days=1), show=False).spans()
        runner = Runner("runner-support", since="1d", show=False)
        assert sum(runner.dataset(30).sizes.values()) == 30
        assert runner.checkpoint().newest.prompt.variables == ("customer",)
        assert Runner("runner-support", since="1d", show=False).checkpoint().version == runner.checkpoint().version


def test_the_command_line_tells_what_it_found_and_where_it_is(project, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["collect", "--source", str(TRACES), "--samples", "60", "--name", "tickets"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "tickets: 30 train, 12 validation, 18 test (sealed)" in said.out
    assert "Drawing a diverse sample: 60" in said.err
    (plot,) = (project / ".selfimprove" / "production").glob("support-traces-*/all/clusters.svg")
    assert plot.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["collect"], "Say which project, and since when."),
        (["collect", "--project", "x", "--since", "soon"], "no moment"),
        (["collect", "--source", str(TRACES), "--scale", "tone"], "is not NAME=LOW:HIGH"),
        (["collect", "--source", str(TRACES), "--scale", "nonsense=1:5"], "No verdict is named 'nonsense'"),
        (["collect", "--source", "/nowhere"], "does not exist"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(project, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code not in (0, None)
    assert sentence in capsys.readouterr().err


def test_in_a_notebook_each_step_shows_its_progress_and_the_summary_is_a_table(project):
    book = nbformat.read(EXAMPLES / "collect.ipynb", as_version=4)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = json.dumps(outputs)
    assert "Composing samples: 120" in text
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert any("<svg" in output.get("data", {}).get("image/svg+xml", "") for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
