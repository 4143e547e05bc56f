"""Evaluators that run are recorded so that the same ones can be built again: same request on the wire, same score."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import wrapt
from phoenix.evals import (
    LLM,
    ClassificationEvaluator,
    Evaluator,
    Score,
    async_evaluate_dataframe,
    bind_evaluator,
    create_evaluator,
    evaluate_dataframe,
)
from phoenix.evals.llm.prompts import PromptTemplate, TemplateFormat
from phoenix.evals.metrics import FaithfulnessEvaluator, MatchesRegex, exact_match
from pydantic import BaseModel, field_validator

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.sample import EvalSpec
from dspy_selfimprove.telemetry import evaluators
from dspy_selfimprove.telemetry.evaluators import track_evaluators

ROOT = Path(__file__).parents[2]
ROW = {"input": "How do I reset it?", "output": 'Press {"reset": "twice"} & wait', "context": ["a", {"b": 1}]}


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "evaluators"


@pytest.fixture
def judge(chat) -> LLM:
    return LLM(
        provider="openai", model="gpt-x", base_url=chat.url, api_key="sk-very-secret-key-0123456789",
        initial_per_second_request_rate=1e6,
    )  # fmt: skip


def helpfulness(judge: LLM, **changes) -> ClassificationEvaluator:
    settings = {
        "name": "helpfulness",
        "llm": judge,
        "prompt_template": "Was this helpful?\n{{input}} -> {{output}}",
        "choices": {"yes": 1.0, "no": 0},
    }
    return ClassificationEvaluator(**{**settings, **changes})


def rebuild(spec: EvalSpec, judge: LLM) -> Evaluator:
    """What the spec says and nothing else; it has been through the disk."""
    data = EvalSpec.from_json(json.loads(json.dumps(spec.to_json()))).to_json()
    if data["source"]:
        module, _, name = data["source"].partition(":")
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if not isinstance(found, Evaluator):
            found = create_evaluator(name=data["name"], direction=data["optimization_direction"])(found)
        return bind_evaluator(evaluator=found, input_mapping=data["input_mapping"] or None)
    choices = data["choices"]
    if data["descriptions"]:
        choices = {label: (number, data["descriptions"][label]) for label, number in choices.items()}
    elif not any(number is not None for number in choices.values()):
        choices = list(choices)
    built = ClassificationEvaluator(
        name=data["name"],
        llm=judge,
        prompt_template=PromptTemplate(
            template=data["messages"],
            template_format=TemplateFormat(data["template_format"]) if data["template_format"] else None,
        ),
        choices=choices,
        include_explanation=data["include_explanation"],
        direction=data["optimization_direction"],
        **data["invocation_parameters"],
    )
    built.bind(data["input_mapping"] or None)
    return built


# Enough to build it again.

TEMPLATES = {
    "mustache text": "Judge {{input}}: {{output}} & {{{context}}}",
    "indented text": "\n    Judge this:\n      {{input}}\n    {{output}}\n",
    "f-string text": "Judge {input}: {output}",
    "f-string with escaped braces": 'Judge {input}. Answer like {{"label": "yes"}}.',
    "messages": [
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "{{input}} -> {{output}}"},
        {"role": "assistant", "content": "Let me see."},
        {"role": "human", "content": "Well?"},
    ],
    "messages of mixed formats": [
        {"role": "developer", "content": 'Answer like {"label": "yes"}; mind {{context}}.'},
        {"role": "user", "content": "{input} -> {output}"},
    ],
    "content parts": [
        {"role": "user", "content": [{"type": "text", "text": "{{input}}"}, {"type": "text", "text": "?"}]}
    ],
    "a section": "{{#context}}[{{.}}]{{/context}} {{output}}",
    "forced mustache": PromptTemplate(template="{input} {{output}}", template_format=TemplateFormat.MUSTACHE),
    "forced f-string": PromptTemplate(template="{input} {{output}}", template_format=TemplateFormat.F_STRING),
    "hostile": "half \ud83d, nul \x00, \u202e {{input}}",
}
CHOICES = {
    "labels": ["yes", "no", "unsure"],
    "numbers": {"yes": 1.0, "no": 0, "unsure": 0.5},
    "another order": {"no": 0, "yes": 1.0, "unsure": 0.5},
    "descriptions": {"yes": (1.0, "it helps"), "no": (0, "it does not")},
    "some numbers": {"yes": 1, "unsure": None},
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_any_template_builds_the_same_request(store, judge, chat, template):
    if "half" in str(template):  # no HTTP client can send half a surrogate pair
        judge_only = helpfulness(judge, prompt_template=template)
        assert rebuild(evaluators.specify(judge_only), judge).prompt_template.render({"input": "x"}) == (
            judge_only.prompt_template.render({"input": "x"})
        )
        return
    with track_evaluators(store):
        (score,) = helpfulness(judge, prompt_template=template).evaluate(ROW)
    (again,) = rebuild(evaluators.get("helpfulness", store=store), judge).evaluate(ROW)
    assert chat.bodies[0] == chat.bodies[1]
    assert again == score


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("include_explanation", [True, False])
def test_any_choices_and_parameters_build_the_same_request(store, judge, chat, choices, include_explanation):
    evaluator = helpfulness(
        judge, choices=choices, include_explanation=include_explanation, direction="minimize", temperature=0.0,
        max_tokens=64, seed=7, logit_bias={"50256": -100}, stop=["\n\n"], user="desk",
    )  # fmt: skip
    with track_evaluators(store):
        (score,) = evaluator.evaluate(ROW)
    spec = evaluators.get("helpfulness", store=store)
    assert spec.unrecorded == ()
    assert (spec.provider, spec.model, spec.optimization_direction) == ("openai", "gpt-x", "minimize")
    (again,) = rebuild(spec, judge).evaluate(ROW)
    assert chat.bodies[0] == chat.bodies[1]
    assert again == score


def test_a_built_in_evaluator_is_recorded_as_the_classifier_it_is(store, judge, chat):
    with track_evaluators(store):
        (score,) = FaithfulnessEvaluator(llm=judge, temperature=0.0).evaluate(ROW | {"context": "c"})
    spec = evaluators.get("faithfulness", store=store)
    assert (spec.kind, spec.source, spec.unrecorded) == ("LLM", None, ())
    (again,) = rebuild(spec, judge).evaluate(ROW | {"context": "c"})
    assert chat.bodies[0] == chat.bodies[1]
    assert again == score


def test_bound_evaluators_are_recorded_with_their_mapping(store, judge, chat):
    row = {"question": "q", "answers": [{"text": "a"}]}
    mapping = {"input": "question", "output": "answers[0].text"}
    with track_evaluators(store):
        (score,) = bind_evaluator(evaluator=helpfulness(judge), input_mapping=mapping).evaluate(row)
        helpfulness(judge).evaluate(row, mapping)
        helpfulness(judge).evaluate(row, input_mapping=mapping)
    (spec,) = evaluators.versions("helpfulness", store=store)
    assert dict(spec.input_mapping) == mapping
    (again,) = rebuild(spec, judge).evaluate(row)
    assert chat.bodies[0] == chat.bodies[-1]
    assert again == score


def test_code_evaluators_are_recorded_by_where_to_import_them(store):
    with track_evaluators(store):
        scores = exact_match.evaluate({"output": "a", "expected": "b"})
    spec = evaluators.get("exact_match", store=store)
    assert (spec.kind, spec.source, spec.unrecorded) == ("CODE", "phoenix.evals.metrics.exact_match:exact_match", ())
    # The package's own name for it hides the module of the same name.
    found = vars(sys.modules["phoenix.evals.metrics.exact_match"])["exact_match"]
    assert found.evaluate({"output": "a", "expected": "b"}) == scores


CODE = """
    from phoenix.evals import Evaluator, Score, create_evaluator

    def words(output):
        return len(output.split())

    count = create_evaluator(name="count", direction="minimize")(words)

    @create_evaluator(name="short")
    def short(output):
        return len(output) < 20

    class Length(Evaluator):
        def __init__(self):
            super().__init__(name="length", kind="code", input_schema=None)
        def _evaluate(self, eval_input):
            return [Score(name="length", score=float(len(eval_input["output"])))]
"""


def test_code_evaluators_run_again_from_their_source(store, tmp_path, monkeypatch, judge):
    (tmp_path / "shop_checks.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(tmp_path)
    import shop_checks

    row, mapping = {"answer": "three short words"}, {"output": "answer"}
    with track_evaluators(store):
        expected = {each.name: each.evaluate(row, mapping) for each in (shop_checks.count, shop_checks.short)}
        shop_checks.Length().evaluate(row, mapping)
    specs = {spec.name: spec for spec in evaluators.latest(store=store)}
    assert {name: spec.source for name, spec in specs.items()} == {
        "count": "shop_checks:words",
        "short": "shop_checks:short",
        "length": "shop_checks:Length",
    }
    assert not any(spec.unrecorded for spec in specs.values())
    for name, scores in expected.items():
        assert rebuild(specs[name], judge).evaluate(row) == scores


# Honest about what is left out.


class Lowered(BaseModel):
    input: str
    output: str

    @field_validator("output")
    @classmethod
    def lower(cls, value: str) -> str:
        return value.lower()


class Rating(ClassificationEvaluator):
    def _evaluate(self, eval_input):
        return [Score(name=self.name, score=0.5)]


def test_what_data_cannot_hold_is_named(store, judge):
    by_hand = create_evaluator(name="by hand")(lambda output: 1.0)
    with track_evaluators(store):
        helpfulness(judge, name="schema", input_schema=Lowered).evaluate(ROW)
        helpfulness(judge, name="mapping").evaluate(ROW, {"input": "input", "output": lambda row: row["output"]})
        Rating(
            name="rating", llm=judge, prompt_template="{input}", choices=["a"]
        ).evaluate(ROW)  # fmt: skip
        by_hand.evaluate(ROW)
        MatchesRegex(pattern="a+").evaluate(ROW)
    left_out = {spec.name: spec.unrecorded for spec in evaluators.latest(store=store)}
    assert left_out == {
        "schema": ("input_schema",),
        "mapping": ("input_mapping.output",),
        "rating": ("arguments",),
        "by hand": ("source",),
        "matches_regex": ("arguments",),
    }
    assert evaluators.get("rating", store=store).source.endswith(":Rating")


def test_no_secret_is_recorded(store, chat):
    secrets = {
        "extra_headers": {"Authorization": "Bearer abcdefgh12345678"},
        "extra_query": {"key": "query-secret"},
        "extra_body": {"api_key": "body-secret", "harmless": 1, "proxy": "http://me:password-secret@host/"},
        "user": "sk-live_abcdefghijklmnop1234",
        "timeout": 10.0,
    }
    judge = LLM(
        provider="openai", model="gpt-x", base_url=chat.url.replace("//", "//admin:url-secret@"),
        api_key="sk-very-secret-key-0123456789", default_headers={"x-token": "header-secret"},
    )  # fmt: skip
    with track_evaluators(store):
        helpfulness(judge, **secrets).evaluate(ROW)
    (file,) = store.iterdir()
    text = file.read_text()
    assert re.findall(r"[\w-]*secret|abcdefgh\w*|admin|127\.0\.0\.1", text) == []
    spec = evaluators.get("helpfulness", store=store)
    assert dict(spec.invocation_parameters) == {"extra_body": {"harmless": 1}, "timeout": 10.0}
    assert set(spec.unrecorded) == {
        "invocation_parameters.extra_headers",
        "invocation_parameters.extra_query",
        "invocation_parameters.extra_body.api_key",
        "invocation_parameters.extra_body.proxy",
        "invocation_parameters.user",
    }


# Every path, once.


def test_every_path_is_seen_and_one_definition_is_one_record(store, judge, chat):
    frame = pd.DataFrame([ROW] * 3)

    def fresh():  # one LLM's asynchronous client belongs to one loop
        return LLM(
            provider="openai", model="gpt-x", base_url=chat.url, api_key="k", initial_per_second_request_rate=1e6
        )

    with track_evaluators(store):
        helpfulness(judge, name="sync").evaluate(ROW)
        asyncio.run(helpfulness(fresh(), name="async").async_evaluate(ROW))
        evaluate_dataframe(dataframe=frame, evaluators=[helpfulness(judge, name="frame")], hide_tqdm_bar=True)
        asyncio.run(
            async_evaluate_dataframe(
                dataframe=frame, evaluators=[helpfulness(fresh(), name="async frame")], hide_tqdm_bar=True
            )
        )
        threaded = helpfulness(judge, name="threads")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(threaded.evaluate, [ROW] * 16))
        with pytest.raises(ValueError, match="output"):
            helpfulness(judge, name="refused").evaluate({"input": "only"})
    assert [spec.name for spec in evaluators.latest(store=store)] == [
        "async", "async frame", "frame", "refused", "sync", "threads",
    ]  # fmt: skip
    assert len(list(store.iterdir())) == 6


def test_each_definition_is_a_version_and_the_last_to_run_is_the_latest(store, judge):
    evaluator = helpfulness(judge)
    with track_evaluators(store):
        evaluator.evaluate(ROW)
        evaluator.bind({"input": "input", "output": "input"})
        evaluator.evaluate(ROW)
        evaluator.invocation_parameters["temperature"] = 0.5
        evaluator.evaluate(ROW)
        evaluator.evaluate(ROW)
    newest, middle, oldest = evaluators.versions("helpfulness", store=store)
    assert dict(newest.invocation_parameters) == {"temperature": 0.5}
    assert (dict(middle.input_mapping), dict(oldest.input_mapping)) == ({"input": "input", "output": "input"}, {})
    assert evaluators.get("helpfulness", store=store) == newest
    assert evaluators.get("helpfulness", oldest.version[:8], store=store) == oldest
    with track_evaluators(store):  # rolled back
        helpfulness(judge).evaluate(ROW)
    assert evaluators.get("helpfulness", store=store) == oldest
    assert len(list(store.iterdir())) == 3


def test_the_order_in_which_choices_are_offered_is_part_of_the_version(judge):
    one, other = (evaluators.specify(helpfulness(judge, choices=choices)) for choices in (["yes", "no"], ["no", "yes"]))
    assert one.version != other.version


# The evaluation comes first.


def test_recording_that_fails_is_one_warning_and_the_score_is_the_same(tmp_path, judge, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    (expected,) = helpfulness(judge).evaluate(ROW)
    with track_evaluators(blocked):
        evaluator = helpfulness(judge)
        assert [evaluator.evaluate(ROW), evaluator.evaluate(ROW)] == [[expected]] * 2
        asked = helpfulness(judge, name="another").evaluate(ROW)
    assert asked[0].label == expected.label
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_project_that_cannot_be_written_to_is_one_warning(tmp_path, monkeypatch, caplog, judge):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".selfimprove").write_text("a file where the folder should be")
    with track_evaluators():
        assert helpfulness(judge).evaluate(ROW)[0].label == "yes"
        assert helpfulness(judge, name="another").evaluate(ROW)[0].label == "yes"
    (record,) = caplog.records
    assert str(tmp_path / ".selfimprove") in record.message


def test_an_evaluator_that_raises_raises_as_ever(store):
    @create_evaluator(name="breaks")
    def breaks(output):
        raise ZeroDivisionError

    with track_evaluators(store), pytest.raises(ZeroDivisionError):
        breaks.evaluate({"output": "x"})
    assert evaluators.get("breaks", store=store).kind == "CODE"


def test_odd_evaluators_are_recorded_all_the_same(store):
    class Odd(Evaluator):
        __hash__ = None

        def __init__(self):
            super().__init__(name="odd/../name \x00 ü", kind="code", input_schema=None)

        def __eq__(self, other):
            raise RuntimeError

        def _evaluate(self, eval_input):
            return [Score(name="odd", score=1.0)]

    with track_evaluators(store):
        for _ in range(3):
            Odd().evaluate({"a": 1}, {"a": "a"})
    (file,) = store.iterdir()
    assert re.fullmatch(r"odd-name\.[0-9a-f]{16}\.json", file.name)
    assert evaluators.get("odd/../name \x00 ü", store=store).unrecorded == ("source",)


# Gone without a trace.


def methods():
    return [vars(Evaluator)["evaluate"], vars(Evaluator)["async_evaluate"]]


def same(left, right) -> bool:
    return not any(one is not other for one, other in zip(left, right, strict=True))


def test_stop_puts_the_original_methods_back(store, judge):
    before = methods()
    tracking = track_evaluators(store)
    assert not any(one is other for one, other in zip(before, methods(), strict=True))
    tracking.stop()
    tracking.stop()
    assert same(methods(), before)
    helpfulness(judge).evaluate(ROW)
    assert not store.exists()


def test_recordings_overlap_and_each_ends_by_itself(tmp_path, judge, chat):
    before = methods()
    outer = track_evaluators(tmp_path / "outer")
    with track_evaluators(tmp_path / "inner"):
        wrapped = methods()
        with track_evaluators(tmp_path / "inner"):
            assert same(methods(), wrapped)
            helpfulness(judge).evaluate(ROW)
    helpfulness(judge, name="later").evaluate(ROW)
    outer.stop()
    assert same(methods(), before)
    assert [spec.name for spec in evaluators.latest(store=tmp_path / "outer")] == ["helpfulness", "later"]
    assert [spec.name for spec in evaluators.latest(store=tmp_path / "inner")] == ["helpfulness"]
    assert len(chat.bodies) == 2


def test_another_wrapper_on_top_stays_and_ours_goes_silent(store, judge):
    before = methods()
    seen = []

    def note(call, evaluator, args, kwargs):
        seen.append(evaluator.name)
        return call(*args, **kwargs)

    tracking = track_evaluators(store)
    wrapt.wrap_function_wrapper(Evaluator, "evaluate", note)
    tracking.stop()
    helpfulness(judge, name="silent").evaluate(ROW)
    with track_evaluators(store):
        helpfulness(judge, name="heard").evaluate(ROW)
    Evaluator.evaluate = before[0]
    assert seen == ["silent", "heard"]
    assert [spec.name for spec in evaluators.latest(store=store)] == ["heard"]
    assert same(methods(), before)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=arguments[0], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_nothing_of_phoenix_is_imported_and_a_later_import_is_seen(tmp_path):
    ended = run(
        """
        import sys
        from pathlib import Path
        from dspy_selfimprove.telemetry.evaluators import latest, track_evaluators
        tracking = track_evaluators()
        print(sorted(name for name in sys.modules if name.startswith(("phoenix", "pandas", "openai"))))
        from phoenix.evals import create_evaluator
        @create_evaluator(name="late")
        def late(output): return 1.0
        late.evaluate({"output": "x"})
        print([(spec.name, spec.source, spec.unrecorded) for spec in latest()])
        print(Path(".selfimprove/evaluators").is_dir())
        """,
        tmp_path,
    )
    assert ended.stderr == ""
    assert ended.stdout == "[]\n[('late', '__main__:late', ('source',))]\nTrue\n"


def test_stopped_before_the_import_nothing_is_wrapped(tmp_path):
    ended = run(
        """
        from dspy_selfimprove.telemetry.evaluators import track_evaluators
        track_evaluators().stop()
        from phoenix.evals import Evaluator
        print(type(vars(Evaluator)["evaluate"]).__name__)
        """,
        tmp_path,
    )
    assert (ended.stdout, ended.stderr) == ("function\n", "")


# The store.


def code_evaluator(name: str) -> Evaluator:
    return create_evaluator(name=name)(lambda output: 1.0)


def test_the_projects_store_is_made_by_the_first_record_and_stays_where_it_is(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    with track_evaluators():
        assert list(project.iterdir()) == []
        monkeypatch.chdir(elsewhere)
        code_evaluator("check").evaluate({"output": "x"})
    assert list(elsewhere.iterdir()) == []
    assert (project / ".selfimprove" / ".gitignore").read_text() == "*\n"
    assert [spec.name for spec in evaluators.latest(store=project / ".selfimprove" / "evaluators")] == ["check"]


def test_looking_for_evaluators_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluators.latest() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_store_may_be_named_as_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with track_evaluators("store"):
        code_evaluator("check").evaluate({"output": "x"})
    assert evaluators.get("check", store="store") == evaluators.versions("check", store=tmp_path / "store")[0]
    assert evaluators.latest(store="store") == (evaluators.get("check", store="store"),)


def test_which_ran_last_is_known_however_fast_they_run(store):
    evaluator = code_evaluator("check")
    mappings = [{"output": f"field {number}"} for number in range(40)]
    row = {f"field {number}": "x" for number in range(40)}
    with track_evaluators(store):
        for mapping in [*mappings, *reversed(mappings)]:
            evaluator.evaluate(row, mapping)
    assert [dict(spec.input_mapping) for spec in evaluators.versions("check", store=store)] == mappings


def test_processes_that_record_at_once_share_the_store(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from dspy_selfimprove.telemetry.evaluators import track_evaluators
        from phoenix.evals import create_evaluator
        tracking = track_evaluators()
        for number in range(30):
            create_evaluator(name=f"check {number}")(lambda output: 1.0).evaluate({"output": "x"})
        """
    )
    command = [sys.executable, "-c", script]
    (tmp_path / ".selfimprove").mkdir()
    children = [subprocess.Popen(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    store = tmp_path / ".selfimprove" / "evaluators"
    assert len(evaluators.latest(store=store)) == 30
    assert len(list(store.iterdir())) == 30


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 1}', '{"format": 1, "spec": {"name": 3}}', '{"format": 9}']
)
def test_a_damaged_record_is_left_out_reported_and_healed(store, judge, caplog, damage):
    with track_evaluators(store):
        helpfulness(judge).evaluate(ROW)
        helpfulness(judge, name="sound").evaluate(ROW)
    (file,) = store.glob("helpfulness.*")
    file.write_text(damage)
    assert [spec.name for spec in evaluators.latest(store=store)] == ["sound"]
    assert file.name in caplog.text
    with track_evaluators(store):
        helpfulness(judge).evaluate(ROW)
    assert [spec.name for spec in evaluators.latest(store=store)] == ["helpfulness", "sound"]


def test_an_unknown_name_or_version_names_what_there_is(store, judge):
    with pytest.raises(UsageError, match="Call track_evaluators"):
        evaluators.get("helpfulness", store=store)
    with track_evaluators(store):
        helpfulness(judge).evaluate(ROW)
        helpfulness(judge, name="toxicity").evaluate(ROW)
    with pytest.raises(UsageError, match="The nearest name is 'helpfulness'"):
        evaluators.get("helpfullness", store=store)
    with pytest.raises(UsageError, match=evaluators.get("toxicity", store=store).version):
        evaluators.get("toxicity", "0000", store=store)
