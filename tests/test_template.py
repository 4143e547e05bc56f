"""Templates from rendered texts: never a wrong rendering, exact slots where they can be known, versions apart."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import templates
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.prompt import ChatPrompt, fill, parts, slots_of
from dspy_selfimprove.template import (
    AMBIGUOUS,
    NOTHING_IN_COMMON,
    TOO_FEW,
    Hint,
    Inference,
    Template,
    infer,
)
from dspy_selfimprove.template.alignment import align
from dspy_selfimprove.template.tokens import tokenize

NAMES = ("Ana", "Bo", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jun", "Kofi", "Lena")
LISTS = ("- a", "- b\n- c", "- d\n- e\n- f")
REASONS = {AMBIGUOUS, NOTHING_IN_COMMON, TOO_FEW}


def holds(texts: Sequence[str], result: Inference) -> None:
    """What must be true of any inference: each text comes back character for character, or is refused with a reason."""
    assert len(result.renderings) == len(texts)
    for text, rendering in zip(texts, result.renderings, strict=True):
        if rendering.refusal:
            assert rendering.refusal in REASONS
            assert rendering.template is None
            continue
        assert rendering.template is not None
        template = result.templates[rendering.template]
        assert set(rendering.variables) == set(template.slots)
        assert template.render(rendering.variables) == text
        assert fill(template.text, rendering.variables, template.slots) == text
        prompt = ChatPrompt(system=template.text, variables=template.slots)
        if text:
            assert prompt.messages([], **rendering.variables)[0]["content"] == text
    assert sum(result.refused.values()) + sum(found.texts for found in result.found) == len(texts)


def shape(template: Template) -> str:
    return "\0".join(parts(template.text, template.slots)[::2])


def inferred(texts: Sequence[str], **more: Sequence[Hint | None]) -> Inference:
    result = infer(texts, **more)
    holds(texts, result)
    return result


def only(result: Inference) -> Template:
    assert not result.refused
    assert len(result.templates) == 1
    return result.templates[0]


# --- whatever the texts ---

nasty = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "\n", "\n\n", "{{x}}", "{{slot_1}}", "{{ name }}", "{", "}}", "\\1", "a b", ". ", "Ana"]),
    st.lists(st.sampled_from(["- a", "- b", "plan", "{{x}}", "2026-11-05", "you", ":"]), max_size=4).map("\n".join),
)  # fmt: skip
usual = st.sampled_from(["You help ", ", who has the plan ", ". Today is ", "\n\nContext:\n", "\n- ", " "])
constants = st.one_of(nasty, usual)


@st.composite
def renderings(draw: st.DrawFn) -> tuple[list[str], list[dict[str, str]], str]:
    """Texts of one template with up to eight slots, whose values hold anything, the template's own words too."""
    slots = draw(st.integers(0, 8))
    pieces = draw(st.lists(constants, min_size=slots + 1, max_size=slots + 1))
    value = st.one_of(nasty, st.sampled_from(pieces))
    rows = draw(st.lists(st.lists(value, min_size=slots, max_size=slots), min_size=1, max_size=14))
    texts = ["".join(a + b for a, b in zip(pieces, [*row, ""], strict=True)) for row in rows]
    said = [{f"v{n}": cell for n, cell in enumerate(row)} for row in rows]
    names = [f"{{{{v{n}}}}}" for n in range(slots)]
    return texts, said, "".join(a + b for a, b in zip(pieces, [*names, ""], strict=True))


@given(renderings())
@settings(max_examples=150)
def test_every_text_comes_back_or_is_refused(case: tuple[list[str], list[dict[str, str]], str]) -> None:
    texts, said, template = case
    inferred(texts)
    inferred(texts, hints=[Hint(variables=variables) for variables in said])
    inferred(texts, hints=[Hint(template, variables, str(len(variables))) for variables in said])


@given(st.lists(nasty, max_size=12), st.lists(nasty, min_size=1, max_size=5))
def test_unrelated_texts_and_lying_hints_do_no_harm(texts: list[str], lies: list[str]) -> None:
    hints = [
        Hint(lies[n % len(lies)], {"x": text, "name": lies[-1]}, lies[0]) if n % 3 else None
        for n, text in enumerate(texts)
    ]
    inferred(texts, hints=hints)


@given(st.text(alphabet="aB1 .\n-:é漢\u0301{}@'", max_size=60))
def test_tokens_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text
    assert all(tokenize(text))


@given(st.lists(st.lists(st.sampled_from(["a", "b", " ", "\n", ",", "c"]), max_size=12), min_size=1, max_size=10))
def test_an_alignment_is_its_rows(rows: list[list[str]]) -> None:
    pieces = align(rows)
    for n, row in enumerate(rows):
        again = []
        for piece in pieces:
            again += piece if isinstance(piece, tuple) else row[slice(*piece[n])]
        assert again == row


@given(renderings())
@settings(max_examples=60)
def test_a_template_reads_what_it_rendered_or_says_nothing(case: tuple[list[str], list[dict[str, str]], str]) -> None:
    texts, said, text = case
    if "{{v" in "".join(value for row in said for value in row.values()):
        return
    template = Template(text, slots_of(text))
    for rendered in texts:
        values = template.match(rendered)
        assert values is None or template.render(values) == rendered


@given(st.permutations(range(24)))
@settings(max_examples=10)
def test_the_order_of_the_texts_decides_nothing(order: list[int]) -> None:
    texts = [f"Help {NAMES[n % 12]} of group {n // 2}. {'Be brief' if n % 2 else 'Be kind'}." for n in range(24)]
    texts += [f"Translate the {n}. letter into Latin, please." for n in range(24)]
    plain, shuffled = infer(texts), infer([texts[n] for n in order] + texts[24:])
    assert plain.found == shuffled.found
    assert shuffled.renderings[:24] == tuple(plain.renderings[n] for n in order)


# --- realistic prompts ---


def test_slots_are_exact_in_realistic_prompts() -> None:
    """The measurement is benchmarks/infer_templates.py; this holds its line on a part of it."""
    exact = known = refused = 0
    for seed in range(1_000, 1_080):
        truth = templates.template(templates.FRESH, seed)
        made = templates.renderings(truth, templates.FRESH.words, Random(seed), 30)
        result = inferred([text for text, _ in made])
        refused += sum(result.refused.values())
        if templates.identifiable(truth, [values for _, values in made]):
            known += 1
            exact += bool(result.found) and shape(result.templates[0]) == truth.shape
    assert known >= 60
    assert exact >= 0.95 * known
    assert refused <= 0.02 * 80 * 30


def test_three_versions_in_one_window_are_told_apart() -> None:
    apart = 0
    for seed in range(1_000, 1_040):
        truths, _ = templates.versions(templates.FRESH, seed)
        random = Random(seed)
        texts, origin = [], []
        for nth, truth in enumerate(truths):
            texts += [text for text, _ in templates.renderings(truth, templates.FRESH.words, random, 30)]
            origin += [nth] * 30
        result = inferred(texts)
        apart += templates.told_apart(origin, [rendering.template for rendering in result.renderings])
    assert apart >= 38


# --- what tells a slot from a version ---


def greetings(rule: str, count: int = 12) -> list[str]:
    return [
        f"You help {NAMES[n]}, a {('Plus', 'Basic')[n % 2]} customer. {rule} Today is 2026-11-{n + 10}."
        for n in range(count)
    ]


def test_a_changed_sentence_is_a_version_and_a_plan_is_a_slot() -> None:
    result = inferred(
        greetings("Answer in at most three short sentences.") + greetings("Never talk about prices or competitors.", 9)
    )
    assert [found.texts for found in result.found] == [12, 9]
    assert all(len(template.slots) == 3 for template in result.templates)
    assert "at most three" in result.templates[0].text


def test_recorded_versions_separate_what_differs_in_one_word_and_nothing_else_can() -> None:
    texts = greetings("Be brief.") + greetings("Be kind.")
    assert len(inferred(texts).templates) == 1
    hints = [Hint(version="v1")] * 12 + [Hint(version="v2")] * 12
    result = inferred(texts, hints=hints)
    assert sorted(found.version or "" for found in result.found) == ["v1", "v2"]
    assert {rendering.template for rendering in result.renderings[:12]} == {result.renderings[0].template}


def test_a_version_label_that_never_changes_does_not_hide_a_version() -> None:
    texts = greetings("Answer in at most three short sentences.") + greetings("Never talk about prices or competitors.")
    assert len(inferred(texts, hints=[Hint(version="prod")] * 24).templates) == 2


def test_one_text_of_another_version_is_refused_and_the_others_stand() -> None:
    texts = [
        *greetings("Answer in at most three short sentences."),
        greetings("Never talk about prices, or rivals.")[3],
    ]
    result = inferred(texts)
    assert result.refused == {TOO_FEW: 1}
    assert result.renderings[-1].refusal == TOO_FEW


def test_two_constant_prompts_that_came_often_are_two_templates() -> None:
    first, second = "You are a tutor. Give hints only.", "You write the final answer and explain every step of it."
    result = inferred([first] * 40 + [second] * 25)
    assert [(found.template.text, found.texts, found.renderings) for found in result.found] == [
        (first, 40, 1),
        (second, 25, 1),
    ]


def test_what_is_known_is_said_with_the_template() -> None:
    (found,) = inferred(["You are kind."]).found
    assert (found.template, found.texts, found.proven) == (Template("You are kind."), 1, False)
    assert inferred(["You are kind."] * 200).found[0].proven
    assert not inferred(greetings("Be kind.", 5)).found[0].proven
    assert inferred(greetings("Be kind.")).found[0].proven
    assert inferred([]) == Inference((), ())


def test_texts_without_common_text_are_refused() -> None:
    result = inferred(["Alpha beta gamma", "delta epsilon", "zeta, eta; theta"])
    assert result.refused == {NOTHING_IN_COMMON: 3}


# --- slots ---


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("Ship to {{0}}, {{1}} at once.", [NAMES, ("Rome", "Oslo", "Graz", "Lyon")]),
        ("Since {{0}} for {{1}}'s order:\n{{2}}\n\nBe kind.", [[f"2026-11-{n}" for n in range(10, 29)], NAMES, LISTS]),
        ('Return {"user": "{{0}}", "level": {{1}}, "x": {"y": 1}} and no more.', [NAMES, [str(n) for n in range(7)]]),
        ("Notes:\n{{0}}\n\nTask: help {{1}} now.", [["", "Paid twice.", "Called.\nNo answer!"], NAMES]),
        ("The {{0}} {{1}} plan began.", [["free", "paid", "trial"], [f"{n} May 2026" for n in range(1, 25)]]),
        ("Speak {{0}} with them, please.", [["German"] * 9 + ["French"]]),
        ("你是客服。客户是{{0}}。请礼貌回答。", [["王伟", "李娜", "张敏", "刘洋"]]),
    ],
)  # fmt: skip
def test_slots_end_where_a_person_would_end_them(template: str, columns: list[Sequence[str]]) -> None:
    random = Random(0)
    rows = [[random.choice(list(column)) for column in columns] for _ in range(40)]
    names = [str(n) for n in range(len(columns))]
    texts = []
    for row in rows:
        text = template
        for name, value in zip(names, row, strict=True):
            text = text.replace("{{" + name + "}}", value)
        texts.append(text)
    found = only(inferred(texts))
    blank = template
    for name in names:
        blank = blank.replace("{{" + name + "}}", "\0")
    assert shape(found) == blank


def test_a_variable_used_twice_is_one_slot() -> None:
    template = only(inferred([f"Help {name} today. Sign your reply with: for {name}, yours." for name in NAMES]))
    assert template.text == "Help {{slot_1}} today. Sign your reply with: for {{slot_1}}, yours."
    assert template.match("Help Bo today. Sign your reply with: for Al, yours.") is None


def test_an_optional_line_is_a_slot_that_may_be_empty() -> None:
    texts = [
        f"Help {name} today.\n" + (f"They returned {n} parcels before.\n" if n % 2 else "") + "Be kind to everyone."
        for n, name in enumerate(NAMES)
    ]
    result = inferred(texts)
    assert only(result).text == "Help {{slot_1}} today.\n{{slot_2}}Be kind to everyone."
    assert result.renderings[0].variables["slot_2"] == ""


def test_slots_are_named_by_what_stands_before_them_or_what_they_hold() -> None:
    texts = [
        f"- **Customer name**: {name}\n- Today is 2026-11-{n + 10}.\n<notes>\nSaw {n}\n</notes>"
        for n, name in enumerate(NAMES)
    ]
    assert only(inferred(texts)).slots[:2] == ("customer_name", "date")


def test_a_name_that_stands_in_the_text_is_not_used() -> None:
    template = only(inferred([f"Keep {{{{slot_1}}}} as it is and greet {name} well." for name in NAMES]))
    assert template.text == "Keep {{slot_1}} as it is and greet {{slot_1_2}} well."
    assert template.slots == ("slot_1_2",)


def test_a_value_that_holds_the_text_after_it_is_refused_as_ambiguous() -> None:
    texts = [
        f"Greet {name}, who lives in {city}."
        for name, city in zip(NAMES * 9, ["Rome", "Oslo", "Graz"] * 36, strict=True)
    ]
    odd = "Greet Ana, who lives in sin, who lives in Rome."
    result = inferred([*texts, odd])
    assert result.refused == {AMBIGUOUS: 1}
    assert result.templates[0].match(odd) is None


def test_a_stored_template_reads_texts_it_never_saw() -> None:
    stored = only(inferred(greetings("Be kind.")))
    again = Template(stored.text, stored.slots)
    text = "You help Zoë van Dyk, a Gold customer. Be kind. Today is 5 May 2027."
    values = again.match(text)
    assert values is not None
    assert list(values.values()) == ["Zoë van Dyk", "Gold", "5 May 2027"]
    assert again.match("You help nobody.") is None


# --- what the application said ---


@pytest.mark.parametrize("written", ["Hi {name}, {{ok}} {n}.", "Hi {{name}}, {ok} {{ n }}.", "Hi {name}, {ok} {n}."])
def test_a_hint_that_gives_the_text_back_is_taken_in_any_style(written: str) -> None:
    texts = [f"Hi {name}, {{ok}} {n}." for n, name in enumerate(NAMES[:3])]
    hints = [Hint(written, {"name": name, "n": n}) for n, name in enumerate(NAMES[:3])]  # type: ignore[dict-item]
    result = inferred(texts, hints=hints)
    assert only(result) == Template("Hi {{name}}, {ok} {{n}}.", ("name", "n"))
    assert result.found[0].proven
    assert dict(result.renderings[1].variables) == {"name": "Bo", "n": "1"}


def test_a_hint_that_lies_is_not_taken() -> None:
    texts = greetings("Be kind.")
    plain = inferred(texts)
    for hint in (Hint("{all}", {"all": texts[0]}), Hint("Hello {name}", {"name": "Ana"}), Hint(texts[0])):
        assert inferred(texts, hints=[hint] * 12).templates == plain.templates
    assert inferred(texts, hints=[Hint("{all}", {"all": text}) for text in texts]).templates == plain.templates


def test_variables_alone_give_the_names() -> None:
    texts = greetings("Be kind.")
    hints = [Hint(variables={"client name": NAMES[n], "tier": ("Plus", "Basic")[n % 2], "k": "v"}) for n in range(12)]
    assert only(inferred(texts, hints=hints)).slots == ("client_name", "tier", "date")


def test_misuse_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="Pass a list"):
        infer("one text")
    with pytest.raises(UsageError, match="Pass None"):
        infer(["a"], hints=[])


def test_a_few_odd_texts_do_not_keep_the_others_from_being_understood():
    values = ("\x1b[31mred\x1b[0m", "[bold red]markup[/bold red]", "<script>x</script>", "a\x00b", "big", "{{name}}")
    texts = [f"Answer for {value} now. Customer {number} please." for value in values for number in range(3)]
    result = infer([*texts, *(value * 3 for value in values)])
    assert result.templates[0].text == "Answer for {{slot_1}} now. Customer {{slot_2}} please."
    assert result.found[0].texts == 18
    assert result.refused == {NOTHING_IN_COMMON: 6}
