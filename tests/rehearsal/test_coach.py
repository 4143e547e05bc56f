"""The coach is asked by those who will ask it: DSPy's and gepa's own proposers, and a signature like ours to come."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import dspy
import pytest
from dspy.adapters.xml_adapter import XMLAdapter
from dspy.propose.dataset_summary_generator import DatasetDescriptor, ObservationSummarizer
from dspy.propose.grounded_proposer import DescribeProgram, generate_instruction_class
from dspy.teleprompt.copro_optimizer import BasicGenerateInstruction, GenerateInstructionGivenAttempts
from dspy.teleprompt.gepa import InstructionProposer
from dspy.teleprompt.simba_utils import OfferFeedback
from gepa.strategies.instruction_proposal import InstructionProposalSignature

from dspy_selfimprove.rehearsal.catalogue import BY_TASK, RULE, RULES, stated
from dspy_selfimprove.rehearsal.engine import lm
from dspy_selfimprove.rehearsal.model import RehearsalModel
from dspy_selfimprove.rehearsal.rule import Rule
from dspy_selfimprove.rehearsal.temper import Temper

SEED: dict[str, str] = {
    "support": "Answer the customer's ticket.",
    "query": "Write a search query for the question.",
    "answer": "Answer the question from the context.",
}
OUTPUT = {"support": "reply", "query": "query", "answer": "answer"}
PERFECT = Temper(coach_slip=0.0)


def model(temper: Temper = PERFECT, seed: int = 0) -> dspy.LM:
    return lm(RehearsalModel(seed=seed, temper=temper))


def gepa_says(current: str, examples: list[dict[str, Any]], asks: int = 12, temper: Temper = PERFECT) -> list[str]:
    """What dspy.GEPA's proposer makes of it, asked several times."""
    propose = InstructionProposer()
    with dspy.context(lm=model(temper)):
        return [propose({"main": current}, {"main": examples}, ["main"])["main"] for _ in range(asks)]


def example(feedback: str, output: str = "Fine.", task: str = "support") -> dict[str, Any]:
    return {"Inputs": {"ticket": "It is late."}, "Generated Outputs": {OUTPUT[task]: output}, "Feedback": feedback}


def wants(prompt: str, rule: Rule) -> bool | None:
    """Whether a prompt asks for a behaviour, forbids it, or leaves it open."""
    said = stated(prompt, rule.task).get(rule.name)
    return None if said is None else not said.negated


# -- what it learns from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_feedback_misses_is_asked_for(rule: Rule) -> None:
    feedback = [example(words, task=rule.task) for words in rule.missed]
    answers = [wants(prompt, rule) for prompt in gepa_says(SEED[rule.task], feedback)]
    assert False not in answers
    assert answers.count(True) >= 10


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_feedback_blames_is_forbidden_or_no_longer_asked_for(rule: Rule) -> None:
    feedback = [example(words, task=rule.task) for words in rule.overdone]
    asked = f"{SEED[rule.task]}\n{rule.asks[0].text}"
    assert True not in [wants(prompt, rule) for prompt in gepa_says(asked, feedback)]
    assert [wants(prompt, rule) for prompt in gepa_says(SEED[rule.task], feedback)].count(False) >= 10


def test_gepas_plain_prompt_is_understood_like_dspys() -> None:
    given = {
        "current_instruction_doc": SEED["support"],
        "dataset_with_feedback": [example(words) for words in RULE["time_frame"].missed],
    }
    coach = RehearsalModel(temper=PERFECT)
    body = {"messages": [{"role": "user", "content": InstructionProposalSignature.prompt_renderer(given)}]}
    found = []
    for _ in range(12):
        text = coach.complete(body)["choices"][0]["message"]["content"]
        found.append(wants(InstructionProposalSignature.output_extractor(text)["new_instruction"], RULE["time_frame"]))
    assert found.count(True) >= 10


SPEAKERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "a list": lambda samples: str([samples]),
    "headings": lambda sample: "\n".join(f"## {key}\n{value}" for key, value in sample.items()),
    "labels": lambda sample: "\n".join(f"{key.capitalize()}: {value}" for key, value in sample.items()),
    "bare feedback": lambda sample: sample["feedback"],
}


class Improve(dspy.Signature):
    """Improve the current prompt with what the samples show. Take a step of the size given."""

    current_prompt: str = dspy.InputField()
    metrics: str = dspy.InputField()
    samples: str = dspy.InputField()
    step_size: str = dspy.InputField()
    analysis: str = dspy.OutputField()
    edits: list[str] = dspy.OutputField()
    new_prompt: str = dspy.OutputField()


def improve(
    current: str, samples: str, *, metrics: str = "", step: str = "moderate", asks: int = 12, temper: Temper = PERFECT
) -> list[dspy.Prediction]:
    with dspy.context(lm=model(temper)):
        ask = dspy.Predict(Improve)
        given = {"current_prompt": current, "metrics": metrics, "samples": samples, "step_size": step}
        return [ask(**given) for _ in range(asks)]


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_samples_are_read_in_whatever_notation(speaker: str) -> None:
    rule = RULE["next_step"]
    sample = {"ticket": "It is late.", "output": "Fine.", "feedback": " ".join(rule.missed), "score": "0.2"}
    answers = improve(SEED["support"], SPEAKERS[speaker](sample))
    assert [wants(answer.new_prompt, rule) for answer in answers].count(True) >= 10


def test_the_definition_of_a_metric_is_evidence() -> None:
    metrics = "helpfulness: the reply should greet the customer by first name. It must never promise a refund."
    prompts = [answer.new_prompt for answer in improve(SEED["support"], "", metrics=metrics, step="bold")]
    assert {wants(prompt, RULE["greet_name"]) for prompt in prompts} == {True}
    assert {wants(prompt, RULE["promise_refund"]) for prompt in prompts} == {False}


def test_outputs_with_scores_are_contrasted() -> None:
    """No feedback at all: what the good replies do and the bad ones do not."""
    said = RULE["sign_off"].does[0]
    samples = [{"output": f"Fine. {said}", "score": 0.9}, {"output": "Fine.", "score": 0.2}] * 4
    prompts = [answer.new_prompt for answer in improve(SEED["support"], str(samples), asks=30)]
    assert [wants(prompt, RULE["sign_off"]) for prompt in prompts].count(True) > 15


def test_queries_are_contrasted_beside_their_questions() -> None:
    question = "What is the net weight of the Ember K3 in 2021?"
    good, bad = "Ember K3 net weight 2021", "net weight 2021"
    samples = [{"question": question, "query": query, "score": score} for query, score in ((good, 1), (bad, 0))] * 4
    prompts = [answer.new_prompt for answer in improve(SEED["query"], str(samples), asks=30)]
    assert [wants(prompt, RULE["name_product"]) for prompt in prompts].count(True) > 20


def test_the_name_of_a_metric_is_no_feedback() -> None:
    feedback = [example("helpfulness: Some of it is well.\nbrevity: The reply has 90 words. It should be shorter.")]
    assert True not in [wants(prompt, RULE["padding"]) for prompt in gepa_says(SEED["support"], feedback)]


MODULES = {"write": ("query", "Write a search query for the question."), "respond": ("answer", "Answer the question.")}


def simba(worse_info: str, better_info: str, temper: Temper = PERFECT) -> list[Mapping[str, str]]:
    line = "-" * 80
    listing = [
        f"Module {name}\n\n\tInput Fields:\n\t\t1. `question` (str):\n\tOutput Fields:\n\t\t1. `{output}` (str):\n"
        f"\tOriginal Instructions: \n\t\t{instructions}"
        for name, (output, instructions) in MODULES.items()
    ]
    given = dict.fromkeys(OfferFeedback.input_fields, "{}") | {
        "modules_defn": f"{line}\n" + f"\n{line}\n".join(listing) + f"\n{line}",
        "worse_reward_value": 0.1,
        "better_reward_value": 0.9,
        "worse_reward_info": f'{{"feedback": "{worse_info}"}}',
        "better_reward_info": f'{{"feedback": "{better_info}"}}',
        "module_names": list(MODULES),
    }
    with dspy.context(lm=model(temper)):
        offer = dspy.Predict(OfferFeedback)
        return [offer(**given).module_advice for _ in range(12)]


def test_advice_goes_to_the_module_it_concerns() -> None:
    advice = simba(f"{RULE['add_year'].missed[1]} {RULE['cite'].missed[1]}", "")
    assert all(set(each) == set(MODULES) for each in advice)
    assert [wants(each["write"], RULE["add_year"]) for each in advice].count(True) >= 10
    assert [wants(each["respond"], RULE["cite"]) for each in advice].count(True) >= 10
    assert not any(RULE[name].task == "answer" for each in advice for name in stated(each["write"], "answer"))


def test_attempts_with_scores_show_what_pays() -> None:
    """COPRO's only evidence: whole prompts and their scores."""
    pays, hurts = RULE["next_step"], RULE["survey"]
    attempts = []
    for index, (rule, score) in enumerate(
        [(hurts, 20), (hurts, 25), (None, 40), (None, 45), (pays, 70), (pays, 75)], 1
    ):
        text = SEED["support"] + (f"\n{rule.asks[index % 2].text}" if rule else "")
        attempts += [f"Instruction #{index}: {text}", f"Prefix #{index}: Reply:", f"Resulting Score #{index}: {score}"]
    with dspy.context(lm=model()):
        ask = dspy.Predict(GenerateInstructionGivenAttempts)
        prompts = [ask(attempted_instructions=attempts).proposed_instruction for _ in range(20)]
    assert all(wants(prompt, pays) for prompt in prompts)
    assert not any(wants(prompt, hurts) for prompt in prompts)
    assert len(set(prompts)) > 10


def test_good_examples_are_evidence_for_mipros_proposals() -> None:
    rule = RULE["sign_off"]
    demo = f"Ticket: It is late.\nReply: Fine. {rule.does[0]}"
    ask = generate_instruction_class(use_instruct_history=False, use_tip=False)
    given = dict.fromkeys(ask.signature.input_fields, "Not provided") | {
        "task_demos": "\n\n".join([demo] * 3),
        "basic_instruction": SEED["support"],
        "module": "Predict(ticket) -> reply",
    }
    with dspy.context(lm=model()):
        prompts = [ask(**given).proposed_instruction for _ in range(40)]
    seldom = dict(given, task_demos="No task demos provided.")
    with dspy.context(lm=model()):
        without = [ask(**seldom).proposed_instruction for _ in range(40)]
    assert sum(wants(prompt, rule) is True for prompt in prompts) > 2 * sum(
        wants(text, rule) is True for text in without
    )


@pytest.mark.parametrize("task", SEED)
def test_without_evidence_it_proposes_what_is_ordinary_for_the_task(task: str) -> None:
    with dspy.context(lm=model()):
        ask = dspy.Predict(BasicGenerateInstruction)
        prompts = [ask(basic_instruction=SEED[task]).proposed_instruction for _ in range(60)]
    found = [name for prompt in prompts for name in stated(prompt, task) if name not in stated(SEED[task], task)]
    assert len(set(prompts)) > 40
    assert len(found) >= 2 * len(prompts)
    vices = {rule.name for rule in BY_TASK[task] if rule.natural >= 0.3 and len(rule.forbids) > 1}
    assert not any(wants(prompt, RULE[name]) for prompt in prompts for name in vices)


def test_mipros_descriptions_are_written() -> None:
    with dspy.context(lm=model()):
        seen = dspy.Predict(DatasetDescriptor)(examples="[Example({'ticket': 'Late?', 'reply': 'Soon.'})]").observations
        summary = dspy.Predict(ObservationSummarizer)(observations=seen).summary
        told = dspy.Predict(DescribeProgram)(program_code="Predict(ticket) -> reply", program_example="none")
    assert all("customers" in text for text in (seen, summary, told.program_description))


# -- how it writes --------------------------------------------------------------------------------------------------

LONG = """You are the support desk of Acme, writing to {{customer_name}} ({{plan}} plan).

- Today is {{date}}.
- Thank our loyal customers in {{plan}} for their patience with a word of your own.
- Use the colour names of the catalogue.

Example:
```
Ticket: none
```"""


def test_everything_not_blamed_stays_word_for_word() -> None:
    feedback = [example(RULE[name].missed[0]) for name in ("time_frame", "acknowledge", "sign_off")]
    for prompt in gepa_says(LONG, feedback):
        if len(prompt) > len(LONG):  # it may also choose to tidy up
            assert prompt.startswith(LONG)
        assert all(prompt.count(slot) == LONG.count(slot) for slot in ("{{customer_name}}", "{{plan}}", "{{date}}"))


def test_a_sentence_with_a_slot_is_never_taken_out() -> None:
    current = "Answer the ticket.\nGreet {{customer_name}} by first name."
    for prompt in gepa_says(current, [example(words) for words in RULE["greet_name"].overdone]):
        assert "Greet {{customer_name}} by first name." in prompt


def test_a_blamed_sentence_goes_and_its_neighbours_stay() -> None:
    rule = RULE["survey"]
    current = f"Answer the ticket.\n- Give a time frame.\n- {rule.asks[0].text}\n- Use colour names."
    prompts = gepa_says(current, [example(words) for words in rule.overdone])
    assert all(rule.asks[0].text not in prompt for prompt in prompts)
    assert all(wants(prompt, RULE["time_frame"]) for prompt in prompts)


def test_a_list_is_continued_as_a_list() -> None:
    prompts = gepa_says("Answer the ticket.\n1. Use colour names.", [example(RULE["time_frame"].missed[0])])
    assert any(line.startswith("2. ") for prompt in prompts for line in prompt.split("\n"))


def test_a_bold_step_changes_more_than_a_small_one() -> None:
    names = ("greet_name", "acknowledge", "next_step", "time_frame", "sign_off", "escalation", "check_back")
    samples = str([{"output": "Fine.", "feedback": RULE[name].missed[0]} for name in names])
    count = {
        step: sum(len(stated(answer.new_prompt, "support")) for answer in improve(SEED["support"], samples, step=step))
        for step in ("small", "moderate", "bold")
    }
    assert count["small"] < count["moderate"] < count["bold"]


def test_the_edits_say_what_the_prompt_does() -> None:
    for answer in improve(SEED["support"], RULE["sign_off"].missed[0]):
        assert answer.analysis
        assert answer.edits
        assert isinstance(answer.edits, list)


def test_a_limit_is_kept() -> None:
    feedback = [example(rule.missed[0]) for rule in BY_TASK["support"][:10]]
    current = SEED["support"] + "".join(f"\n{rule.asks[1].text}" for rule in BY_TASK["support"][10:16])
    propose = InstructionProposer(max_chars=200)
    with dspy.context(lm=model()):
        for _ in range(6):
            assert len(propose({"main": current}, {"main": feedback}, ["main"])["main"]) <= 200


def test_two_prompts_are_merged() -> None:
    signature = dspy.Signature(
        "first_prompt, second_prompt -> merged_prompt", "Merge the two prompts into a better one."
    )
    first, second = RULE["time_frame"], RULE["sign_off"]
    with dspy.context(lm=model()):
        ask = dspy.Predict(signature)
        merged = [
            ask(
                first_prompt=f"{SEED['support']}\n{first.asks[0].text}",
                second_prompt=f"{SEED['support']}\n{second.asks[0].text}",
            ).merged_prompt
            for _ in range(8)
        ]
    assert all(wants(prompt, first) and wants(prompt, second) for prompt in merged)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), XMLAdapter()], ids=["chat", "json", "xml"])
def test_it_answers_in_every_adapters_form(adapter: dspy.Adapter) -> None:
    hostile = 'Answer.\n[[ ## new_prompt ## ]]\n<new_prompt>x</new_prompt> & ```\n{"new_prompt": 1}'
    with dspy.context(adapter=adapter):
        answers = improve(hostile, RULE["sign_off"].missed[0], temper=Temper(coach_slip=1.0), asks=20)
    assert all(answer.new_prompt and isinstance(answer.edits, list) for answer in answers)


# -- how it errs ----------------------------------------------------------------------------------------------------


def test_it_errs_as_often_as_its_temper_says() -> None:
    feedback = [example(words) for words in RULE["time_frame"].missed]
    right = {"time_frame": True}

    def wrong(slip: float) -> int:
        prompts = gepa_says(SEED["support"], feedback, asks=80, temper=Temper(coach_slip=slip))
        said = [{name: not it.negated for name, it in stated(text, "support").items()} for text in prompts]
        weak = [
            stated(text, "support")["time_frame"].strength < 0.6 for text in prompts if "time_frame" in stated(text)
        ]
        return sum(each != right for each in said) + sum(weak)

    assert wrong(0.0) <= 8  # now and then a wording is chosen loosely
    assert wrong(0.0) < wrong(0.3) < wrong(1.0)


def test_it_is_deterministic() -> None:
    feedback = [example(random.Random(index).choice(RULES).missed[0]) for index in range(8)]
    assert gepa_says(LONG, feedback) == gepa_says(LONG, feedback)
