"""From exchanges to a checkpoint: each call finds its prompt, and makes the recorded request again."""

from datetime import UTC, datetime, timedelta

import pytest

from dspy_selfimprove.checkpoint import Origin
from dspy_selfimprove.composition import IN_PARTS, NO_JSON, compose
from dspy_selfimprove.errors import DataError, UsageError
from dspy_selfimprove.exchange import Aside, Exchange, Reading
from dspy_selfimprove.message import canonical, thaw
from dspy_selfimprove.sample import EvalSpec

NAMES = ("Ana Silva", "Ben Okoro", "Chiara Rossi", "Dev Patel", "Eva Novak", "Femi Ade", "Greta Lund", "Hugo Roy")
PLANS = ("Basic", "Plus", "Family", "Business")
QUESTIONS = ("My parcel is late.", "The lamp blinks red.", "I was charged twice.", "How do I cancel?", "It is broken.")
FIRST = datetime(2026, 11, 1, tzinfo=UTC)
SYSTEM = "You answer for Northwind Home.\nYou are talking to {name}, whose plan is {plan}.\nBe friendly and brief."
LATER = "You are Northwind Home's assistant.\nThe customer is {name} ({plan}).\nName the next step in every answer."


class Recorded:
    """A source that holds what it was given."""

    def __init__(self, exchanges):
        self.all = list(exchanges)

    def exchanges(self):
        return iter(self.all)


def rendered(template, number):
    return template.format(name=NAMES[number % 8], plan=PLANS[number % 3])


def exchange(number, *messages, reading=(), **more):
    parameters = more.pop("parameters", {"model": "gpt-4o-mini", "temperature": 0.7})
    asked = {"role": "user", "content": f"{QUESTIONS[number % 5]} Order {number}."}
    return Exchange(
        id=f"span{number}",
        request={"messages": [*messages, asked], **parameters},
        output={"role": "assistant", "content": f"Answer {number}"},
        time=FIRST + timedelta(minutes=number),
        readings=tuple(Reading(f"span{number}", **each) for each in reading),
        **more,
    )


def system(template, number, role="system"):
    return {"role": role, "content": rendered(template, number)}


def composed(exchanges, folder, **more):
    return compose(Recorded(exchanges), folder, origin=Origin("test"), **more)


def asked_again(checkpoint):
    """Every request as the checkpoint's prompts and samples make it, by span."""
    prompts = {seen.version: seen.prompt for seen in checkpoint.prompts}
    return {
        each.id: {**prompts[each.prompt].request(each.chat_history, **each.variables), **thaw(each.parameters)}
        for each in checkpoint.samples
    }


def test_rendered_prompts_become_one_template_and_each_sample_its_variables(tmp_path):
    calls = [exchange(number, system(SYSTEM, number)) for number in range(40)]
    found = composed(calls, tmp_path)
    (seen,) = found.prompts
    assert (seen.count, len(seen.prompt.variables), seen.prompt.temperature) == (40, 2, 0.7)
    assert seen.distinct == len({rendered(SYSTEM, number) for number in range(40)})
    assert (seen.first, seen.last) == (FIRST, FIRST + timedelta(minutes=39))
    first = found.samples[0]
    assert set(first.variables.values()) == {"Ana Silva", "Basic"}
    assert [message["role"] for message in first.chat_history] == ["user"]
    assert {name: canonical(made) for name, made in asked_again(found).items()} == {
        call.id: canonical(call.request) for call in calls
    }
    assert not found.notes


def test_versions_of_the_text_and_of_the_parameters_are_kept_apart(tmp_path):
    hot = {"model": "gpt-4o-mini", "temperature": 1.2}
    calls = [exchange(number, system(SYSTEM, number)) for number in range(30)]
    calls += [exchange(number, system(LATER, number)) for number in range(30, 60)]
    calls += [exchange(number, system(LATER, number), parameters=hot) for number in range(60, 80)]
    found = composed(calls, tmp_path)
    assert sorted((seen.count, seen.prompt.temperature) for seen in found.prompts) == [(20, 1.2), (30, 0.7), (30, 0.7)]
    assert found.newest.prompt.temperature == 1.2
    assert {each.id for each in found.of()} == {f"span{number}" for number in range(60, 80)}
    assert any("3 versions" in note for note in found.notes)


def test_what_differs_from_call_to_call_stays_with_the_sample_and_somebodys_id_always_does(tmp_path):
    calls = [
        exchange(
            number,
            system(SYSTEM, number),
            parameters={"model": "m", "seed": number, "user": "customer-9", "top_p": 0.5},
        )
        for number in range(30)
    ]
    found = composed(calls, tmp_path)
    (seen,) = found.prompts
    assert seen.prompt.parameters == {"model": "m", "top_p": 0.5}
    assert dict(found.samples[7].parameters) == {"seed": 7, "user": "customer-9"}


def test_how_a_reply_was_delivered_is_no_part_of_the_request(tmp_path):
    streamed = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    calls = [
        exchange(number, system(SYSTEM, number), parameters={"model": "m"} if number % 2 else streamed)
        for number in range(20)
    ]
    found = composed(calls, tmp_path)
    assert [dict(seen.prompt.parameters) for seen in found.prompts] == [{"model": "m"}]


def test_tools_and_formats_belong_to_the_prompt_and_an_empty_list_is_sent_again(tmp_path):
    tools = [{"type": "function", "function": {"name": "find", "strict": True, "parameters": {"type": "object"}}}]
    given = {
        "model": "m",
        "tools": tools,
        "tool_choice": "auto",
        "stop": [],
        "response_format": {"type": "text"},
        "top_k": 5,
    }
    calls = [exchange(number, system(SYSTEM, number), parameters=given) for number in range(20)]
    found = composed(calls, tmp_path)
    (seen,) = found.prompts
    assert thaw(seen.prompt.tools) == tools
    assert dict(seen.prompt.extra) == {"top_k": 5}
    assert dict(found.samples[0].parameters) == {"stop": ()}
    assert canonical(asked_again(found)["span0"]) == canonical(calls[0].request)


def test_turns_that_every_call_repeats_are_few_shot_turns(tmp_path):
    shots = ({"role": "user", "content": "Example?"}, {"role": "assistant", "content": "Like this."})
    found = composed([exchange(number, system(SYSTEM, number), *shots) for number in range(20)], tmp_path)
    (seen,) = found.prompts
    assert thaw(seen.prompt.few_shot) == list(shots)
    assert len(found.samples[0].chat_history) == 1


def test_the_turns_of_one_long_conversation_are_not(tmp_path):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    calls = []
    for number in range(12):
        talk = [
            *talk,
            {"role": "user", "content": f"And {number}?"},
            {"role": "assistant", "content": f"Yes, {number}."},
        ]
        calls.append(exchange(number, system("Constant instructions.", 0), *talk))
    found = composed(calls, tmp_path)
    assert not found.prompts[0].prompt.few_shot


def test_instructions_in_the_first_user_message_are_found(tmp_path):
    text = "Classify the following message of a customer as praise or complaint.\nMessage: {}\nAnswer with one word."
    calls = [
        Exchange(
            id=f"s{number}",
            request={
                "model": "m",
                "messages": [{"role": "user", "content": text.format(f"{QUESTIONS[number % 5]} {number}")}],
            },
            output={"role": "assistant", "content": "complaint"},
        )
        for number in range(30)
    ]
    found = composed(calls, tmp_path)
    (seen,) = found.prompts
    assert (seen.prompt.role, len(seen.prompt.variables)) == ("user", 1)
    assert seen.prompt.system.startswith("Classify the following")
    assert not found.samples[0].chat_history
    assert canonical(asked_again(found)["s3"]) == canonical(calls[3].request)


def test_questions_alone_are_no_instructions_and_it_is_said(tmp_path):
    found = composed([exchange(number) for number in range(40)], tmp_path)
    (seen,) = found.prompts
    assert seen.prompt.system is None
    assert len(found.samples[0].chat_history) == 1
    assert any("no system prompt" in note for note in found.notes)


def test_the_developer_may_be_the_one_who_says_it(tmp_path):
    found = composed([exchange(number, system(SYSTEM, number, "developer")) for number in range(20)], tmp_path)
    assert found.prompts[0].prompt.role == "developer"
    assert asked_again(found)["span0"]["messages"][0]["role"] == "developer"


def test_a_system_prompt_that_is_more_than_text_is_set_aside(tmp_path):
    parts = {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    named = {"role": "system", "content": "Be kind.", "name": "rules"}
    calls = [
        exchange(0, parts),
        exchange(1, named),
        *(exchange(number, system(SYSTEM, number)) for number in range(2, 20)),
    ]
    found = composed([*calls, Aside("x", "the call failed")], tmp_path)
    assert dict(found.set_aside) == {IN_PARTS: 2, "the call failed": 1}
    assert len(found.samples) == 18


def test_verdicts_become_scores_and_peoples_are_kept_apart(tmp_path):
    tone = EvalSpec("tone", "LLM", "minimize", choices={"rude": 1, "kind": 0})
    verdicts = [
        {"name": "tone", "kind": "LLM", "score": 0.0, "label": "kind", "explanation": "Warm.", "time": FIRST},
        {"name": "tone", "kind": "LLM", "score": 1.0, "identifier": "old", "time": FIRST - timedelta(days=1)},
        {"name": "stars", "kind": "HUMAN", "score": 4},
    ]
    others = [{"name": "stars", "kind": "HUMAN", "score": stars} for stars in (1, 5)]
    calls = [exchange(0, system(SYSTEM, 0), reading=verdicts)]
    calls += [exchange(number, system(SYSTEM, number), reading=[others[number % 2]]) for number in range(1, 20)]
    found = composed(calls, tmp_path, evaluators=[tone])
    first = next(each for each in found.samples if each.id == "span0")
    assert (first.scores["tone"].value, first.scores["tone"].feedback) == (1.0, "Warm.")
    assert first.scores["tone"].details["others"] == 1
    assert (first.human["stars"].value, "stars" in first.scores) == (0.75, False)
    assert any("people's stars was taken from its numbers, 1 to 5" in note for note in found.notes)
    named = composed(calls, tmp_path, evaluators=[tone], scales={"stars": (0, 5)})
    assert next(each for each in named.samples if each.id == "span0").human["stars"].value == 0.8
    with pytest.raises(UsageError, match="No verdict is named 'star'"):
        composed(calls, tmp_path, scales={"star": (0, 5)})


def test_scores_that_are_all_equal_are_said(tmp_path):
    calls = [exchange(n, system(SYSTEM, n), reading=[{"name": "ok", "kind": "CODE", "score": 1}]) for n in range(10)]
    assert any("cannot tell better from worse" in note for note in composed(calls, tmp_path).notes)


def test_nothing_to_make_a_sample_of_is_one_sentence_that_counts_the_reasons(tmp_path):
    with pytest.raises(UsageError, match=r"No call can become a sample: the call failed \(3\)"):
        composed([Aside(str(number), "the call failed") for number in range(3)], tmp_path)
    with pytest.raises(UsageError, match="There is no call of a model"):
        composed([], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_it_is_the_same_checkpoint_every_time(tmp_path):
    calls = [exchange(number, system(SYSTEM if number % 2 else LATER, number)) for number in range(50)]
    assert composed(calls, tmp_path / "a").version == composed(calls, tmp_path / "b").version


def test_a_prompt_holds_nothing_that_is_somebodys(tmp_path):
    secret = {
        "model": "m",
        "api_key": "sk-secret",
        "base_url": "https://key@host",
        "headers": {"authorization": "Bearer x"},
        "extra_body": {"end_user": "ana@example.com"},
        "prediction": {"type": "content", "content": "Dear Ana Silva"},
        "seed": 7,
    }
    found = composed([exchange(number, system(SYSTEM, number), parameters=secret) for number in range(20)], tmp_path)
    assert found.prompts[0].prompt.parameters == {"model": "m"}
    about = (tmp_path / "checkpoint.json").read_text()
    for word in ("sk-secret", "key@host", "Bearer", "ana@example.com", "Dear Ana"):
        assert word not in about


def test_one_customers_repeated_words_are_no_instructions(tmp_path):
    text = "My name is Ana Silva of 12 Rua Nova in Porto and parcel {} has not come although you promised it."
    calls = [
        Exchange(
            id=f"s{number}",
            request={"model": "m", "messages": [{"role": "user", "content": text.format(number % 7)}]},
            output={"role": "assistant", "content": "Sorry."},
            user_id="u1",
        )
        for number in range(14)
    ]
    found = composed(calls, tmp_path)
    assert all(seen.prompt.system is None for seen in found.prompts)


def test_more_traffic_makes_no_more_versions(tmp_path):
    calls = [
        exchange(number, system(SYSTEM, number), parameters={"model": "m", "max_tokens": 100 + number % 30})
        for number in range(620)
    ]
    assert len(composed(calls, tmp_path).prompts) == 1


def test_what_is_no_json_is_set_aside_and_the_rest_stands(tmp_path):
    odd = exchange(0, system(SYSTEM, 0), parameters={"model": "m", "temperature": float("nan")})
    found = composed([odd, *(exchange(number, system(SYSTEM, number)) for number in range(1, 20))], tmp_path)
    assert len(found.samples) == 19
    assert dict(found.set_aside) == {NO_JSON: 1}


def test_a_source_that_changes_while_it_is_read_is_said(tmp_path):
    class Changing(Recorded):
        def exchanges(self):
            yield from self.all
            self.all = self.all[:-5]

    calls = Changing(exchange(number, system(SYSTEM, number)) for number in range(20))
    with pytest.raises(DataError, match="changed while it was read"):
        compose(calls, tmp_path, origin=Origin("test"))


def test_of_two_prompts_side_by_side_the_most_used_is_taken(tmp_path):
    calls = [exchange(number, system(SYSTEM if number % 3 else LATER, number)) for number in range(60)]
    assert composed(calls, tmp_path).newest.count == 40
