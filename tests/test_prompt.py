import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from dspy_selfimprove.errors import MissingVariable, UsageError
from dspy_selfimprove.prompt import ChatPrompt, fill, slots_of

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(max_size=40)


@given(st.lists(st.tuples(texts, names), max_size=5), texts, st.data())
def test_filling_is_one_pass_and_leaves_all_else_alone(pieces, tail, data):
    """Built from known pieces, so the right answer is known without a second implementation of the parser."""
    pieces = [(text.replace("{", "(").replace("}", ")"), name) for text, name in pieces]
    tail = tail.replace("{{", "((").replace("}}", "))")
    values = {
        name: data.draw(texts | st.sampled_from(["{{x}}", "{{" + name + "}}", "\\1", "{}"])) for _, name in pieces
    }
    template = "".join(text + "{{" + name + "}}" for text, name in pieces) + tail
    assert fill(template, values, values) == "".join(text + values[name] for text, name in pieces) + tail


@given(texts)
def test_a_prompt_without_declared_variables_is_verbatim(text):
    prompt = ChatPrompt(system=text or "x", variables=())
    assert prompt.messages([{"role": "user", "content": "hi"}])[0] == {"role": "system", "content": text or "x"}


def test_only_declared_names_are_slots():
    prompt = ChatPrompt(system='Answer {{name}} as {"a": {"b": "{{c}}"}}.', variables=("name",))
    assert prompt.messages(name="Ana")[0]["content"] == 'Answer Ana as {"a": {"b": "{{c}}"}}.'
    assert ChatPrompt(system="{{a}} {{ b }} {{a}}").variables == ("a", "b")
    assert slots_of(None) == ()


def test_a_request_holds_exactly_what_was_set():
    prompt = ChatPrompt(
        system="Be brief, {{name}}.",
        user="Ticket: {{ticket}}",
        few_shot=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        model="gpt-4o-mini",
        temperature=0.0,
        stop=("END",),
        tools=({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},),
        extra={"logprobs": True},
    )
    request = prompt.request([{"role": "user", "content": "before"}], name="Ana", ticket="help")
    assert request == {
        "model": "gpt-4o-mini",
        "temperature": 0.0,
        "stop": ["END"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "logprobs": True,
        "messages": [
            {"role": "system", "content": "Be brief, Ana."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "before"},
            {"role": "user", "content": "Ticket: help"},
        ],
    }
    request["messages"][1]["content"] = "changed by the caller"
    request["tools"][0]["function"]["name"] = "g"
    assert prompt.few_shot[0]["content"] == "a"
    assert prompt.request(name="", ticket="")["tools"][0]["function"]["name"] == "f"


def test_every_field_is_a_parameter_of_the_api():
    own = {"system", "user", "variables", "few_shot", "role", "extra"}
    fields = {entry.name for entry in dataclasses.fields(ChatPrompt)} - own
    assert fields <= set(CompletionCreateParamsNonStreaming.__annotations__) | set(
        CompletionCreateParamsNonStreaming.__mro__[0].__annotations__
    ) | {name for kind in CompletionCreateParamsNonStreaming.__orig_bases__ for name in kind.__annotations__}


def test_equal_content_means_equal_version():
    a = ChatPrompt(system="Hello {{x}}", tools=({"type": "function", "function": {"name": "f"}},))
    b = ChatPrompt(system="Hello {{x}}", variables=("x",), tools=({"function": {"name": "f"}, "type": "function"},))
    assert a.version == b.version
    assert a.version != dataclasses.replace(a, temperature=0.5).version
    assert a.version != a.with_system("Hi {{x}}").version
    assert len({a, b}) == 1


def test_json_round_trip_also_through_text():
    prompt = ChatPrompt(
        system="S {{x}}",
        few_shot=({"role": "user", "content": "a"},),
        stop=("a", "b"),
        response_format={"type": "json_object"},
    )
    again = ChatPrompt.from_json(json.loads(json.dumps(prompt.to_json())))
    assert again == prompt
    assert again.version == prompt.version
    static = ChatPrompt(system="literal {{x}}", variables=())
    assert ChatPrompt.from_json(static.to_json()).variables == ()


def test_the_mistakes_a_user_makes_are_named():
    prompt = ChatPrompt(system="Hello {{customer_name}}, {{plan}}")
    with pytest.raises(MissingVariable, match=r"needs 'plan'\. Pass plan=\.\.\."):
        prompt.request([{"role": "user", "content": "x"}], customer_name="Ana")
    with pytest.raises(UsageError, match="Did you mean customer_name"):
        prompt.request(customer_name="a", plan="b", customer_nam="c")
    with pytest.raises(UsageError, match="has a place for"):
        ChatPrompt(system="x", extra={"temperature": 1})
    with pytest.raises(UsageError, match="is a list of messages"):
        prompt.request("hello", customer_name="a", plan="b")
    with pytest.raises(UsageError, match="no message"):
        ChatPrompt(model="m").request()
    with pytest.raises(UsageError, match="no field 'temprature'"):
        ChatPrompt.from_json({"system": "x", "temprature": 1})


def test_a_new_system_text_may_drop_a_variable_and_the_application_goes_on():
    prompt = ChatPrompt(system="{{a}} {{b}}", user="{{q}}")
    shorter = prompt.with_system("only {{a}}")
    assert shorter.variables == ("a", "b", "q")
    assert shorter.messages(a="1", b="2", q="3") == shorter.messages(a="1", q="3")
    with pytest.raises(UsageError, match=r"a slot 'nmae' that the prompt does not know\. It knows 'a', 'b', 'q'"):
        prompt.with_system("Hi {{nmae}}")
    literal = ChatPrompt(system='Use {{x}} and "{{y}}".', variables=("x",))
    assert literal.with_system('"{{y}}" it is, {{x}}.').messages(x="1")[0]["content"] == '"{{y}}" it is, 1.'


def test_what_says_the_same_is_the_same():
    assert ChatPrompt(system="x", temperature=1).version == ChatPrompt(system="x", temperature=1.0).version
    bare = ChatPrompt(system="x")
    empty = ChatPrompt(system="x", user="", tools=(), stop=(), response_format={}, tool_choice={})
    assert empty == bare
    assert empty.version == bare.version
    assert empty.parameters == {}
    assert ChatPrompt.from_json(empty.to_json()) == empty


def test_the_apis_own_user_can_be_sent():
    prompt = ChatPrompt(system="x", extra={"user": "u1"})
    assert prompt.request([{"role": "user", "content": "hi"}])["user"] == "u1"
