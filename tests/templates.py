# ruff: noqa: E501  a bank of sentences reads better one to a line
"""Realistic prompt templates with known slots, drawn from a seed: the truth that inference is measured against.

A vocabulary is what a domain says; the kinds of values and the way a prompt is put together are the same for all.
Inference was tuned on `TUNED`, then measured on `SECOND` and on `THIRD` and mended after what each of them showed.
`FRESH` was written after the last change and never tuned on: if inference is changed because of it, write another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

SLOT = re.compile(r"<<(\w+)>>")


@dataclass(frozen=True)
class Domain:
    openings: tuple[str, ...]
    facts: tuple[str, ...]  # sentences, most with slots
    lines: tuple[str, ...]  # labelled lines
    blocks: tuple[str, ...]  # with a value of many lines
    rules: tuple[str, ...]
    closings: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """What values are made of."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    cities: tuple[str, ...]
    products: tuple[str, ...]
    plans: tuple[tuple[str, ...], ...]
    tones: tuple[str, ...]
    prose: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    domains: tuple[Domain, ...]
    words: Words


@dataclass(frozen=True)
class Truth:
    """A template: constants and slots by turns. `kinds` names what each slot holds."""

    constants: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(re.sub(r"\d+$", "", name) for name in self.names)

    @property
    def shape(self) -> str:
        return "\0".join(self.constants)

    def fill(self, values: dict[str, str]) -> str:
        pieces = [self.constants[0]]
        for name, constant in zip(self.names, self.constants[1:], strict=True):
            pieces += [values[name], constant]
        return "".join(pieces)


def truth_of(text: str) -> Truth:
    pieces = SLOT.split(text)
    return Truth(tuple(pieces[::2]), tuple(pieces[1::2]))


# --- values ---

DATES: tuple[Callable[[int, int, int], str], ...] = (
    lambda y, m, d: f"{y}-{m:02}-{d:02}",
    lambda y, m, d: f"{d} {MONTHS[m - 1]} {y}",
    lambda y, m, d: f"{MONTHS[m - 1]} {d}, {y}",
    lambda y, m, d: f"{d:02}/{m:02}/{y}",
    lambda y, m, d: f"{d:02}.{m:02}.{y}",
    lambda y, m, d: f"{('Monday', 'Tuesday', 'Friday', 'Sunday')[(m + d) % 4]}, {d} {MONTHS[m - 1]} {y}",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
LOCALES = ("en-US", "de-DE", "fr-FR", "pt-BR", "ja-JP", "es-MX", "nl", "sv-SE")


def sampler(kind: str, words: Words, random: Random) -> Callable[[Random], str]:
    """Draws values of one slot: its form is fixed by `random`, each value by the generator it is given."""
    form = random.randrange(1_000)
    month = 1 + form % 12
    plans = words.plans[form % len(words.plans)]
    currency = (lambda a: f"${a}", lambda a: f"€{a}", lambda a: f"{a} EUR")[form % 3]
    prefix = ("ORD-", "T", "case-", "", "#")[form % 5]

    def paragraph(r: Random) -> str:
        return " ".join(r.choice(words.prose) for _ in range(r.randint(1, 4)))

    def listed(r: Random, least: int = 1) -> list[str]:
        return r.sample(words.products, r.randint(least, 5))

    draw: dict[str, Callable[[Random], str]] = {
        "name": lambda r: f"{r.choice(words.first)} {r.choice(words.last)}",
        "first": lambda r: r.choice(words.first),
        "date": lambda r: DATES[form % len(DATES)](2026, month, r.randint(1, 28)),
        "plan": lambda r: r.choice(plans),
        "count": lambda r: str(r.choice((1, 2, 3, 5, 8, 14, 30, 90, 120))),
        "amount": lambda r: currency(f"{r.randint(0, 2400)}.{r.randint(0, 99):02}"),
        "id": lambda r: f"{prefix}{r.randint(1000, 999999)}" if prefix != "#" else f"{r.randint(16, 255):x}{r.randint(1000, 9999)}",
        "email": lambda r: f"{r.choice(words.first).lower()}.{r.choice(words.last).lower()}@{r.choice(('mail.example', 'acme.test', 'post.example'))}",
        "locale": lambda r: r.choice(LOCALES) if form % 2 else ("en-US" if r.random() < 0.85 else r.choice(LOCALES)),
        "city": lambda r: r.choice(words.cities),
        "tone": lambda r: r.choice(words.tones[form % 3 :]),
        "product": lambda r: r.choice(words.products),
        "time": lambda r: f"{r.randint(0, 23):02}:{r.randint(0, 59):02}",
        "products": lambda r: ", ".join(listed(r)),
        "bullets": lambda r: "\n".join(f"- {item}" for item in listed(r)),
        "numbered": lambda r: "\n".join(f"{n}. {item}" for n, item in enumerate(listed(r), start=1)),
        "chunks": lambda r: "\n".join(f"[{n}] {paragraph(r)}" for n in range(1, r.randint(2, 5))),
        "context": lambda r: "\n\n".join(paragraph(r) for _ in range(r.randint(1, 4))),
        "passage": lambda r: paragraph(r),
        "notes": lambda r: "" if r.random() < 0.3 else paragraph(r),
        "question": lambda r: r.choice(words.questions),
        "records": lambda r: "[" + ", ".join(f'{{"sku": "{r.randint(100, 999)}", "qty": {r.randint(1, 9)}}}' for _ in range(r.randint(0, 3))) + "]",
        "optional": lambda r: "" if r.random() < 0.5 else f"Earlier order: {r.choice(words.products)}, {r.randint(2, 90)} days ago.\n",
        "path": lambda r: f"{r.randint(100, 9999)}",
    }  # fmt: skip
    return draw[kind]


def renderings(truth: Truth, words: Words, random: Random, count: int) -> list[tuple[str, dict[str, str]]]:
    draws = {
        name: sampler(kind, words, Random(f"{name}{random.random()}"))
        for name, kind in zip(truth.names, truth.kinds, strict=True)
    }
    made = []
    for _ in range(count):
        values = {name: draw(random) for name, draw in draws.items()}
        made.append((truth.fill(values), values))
    return made


# What has an edge of its own, whatever its values share: a date is a date, also if all are of one year.
EDGED = frozenset(
    ("date", "time", "amount", "email", "id", "locale", "records", "bullets", "numbered", "chunks", "optional")
)


def identifiable(truth: Truth, values: Sequence[dict[str, str]]) -> bool:
    """Whether the renderings could show the slots at all.

    They cannot if one never changes, if two are always equal, or if all values of one happen to open or close with the
    same word.
    """
    columns = {name: [row[name] for row in values] for name in truth.names}
    for name, kind in zip(truth.names, truth.kinds, strict=True):
        opens = {re.split(r"[\s,]", value, maxsplit=1)[0] for value in columns[name]}
        closes = {re.split(r"[\s,]", value)[-1] for value in columns[name]}
        if len(set(columns[name])) == 1 or (kind not in EDGED and 1 in (len(opens), len(closes))):
            return False
    return len({tuple(column) for column in columns.values()}) == len(columns)


# --- templates ---


def assemble(domain: Domain, random: Random) -> list[str]:
    """A prompt as a list of passages, each a text with `<<kind>>` slots."""
    parts = [random.choice(domain.openings)]
    parts.append(" ".join(random.sample(domain.facts, random.randint(0, min(3, len(domain.facts))))))
    if random.random() < 0.7:
        lines = random.sample(domain.lines, random.randint(1, min(4, len(domain.lines))))
        mark = random.choice(("", "- ", "* "))
        optional = "<<optional>>" if random.random() < 0.2 else ""
        parts.append(optional + "\n".join(mark + line for line in lines))
    if random.random() < 0.6:
        parts.append(random.choice(domain.blocks))
    rules = random.sample(domain.rules, random.randint(2, min(4, len(domain.rules))))
    style = random.randrange(3)
    if style == 0:
        parts.append("Rules:\n" + "\n".join(f"- {rule}" for rule in rules))
    elif style == 1:
        parts.append("## How to answer\n" + "\n".join(f"{n}. {rule}" for n, rule in enumerate(rules, start=1)))
    else:
        parts.append(" ".join(rules))
    if random.random() < 0.6:
        parts.append(random.choice(domain.closings))
    return [part for part in parts if part]


def numbered(parts: Sequence[str], limit: int = 8) -> Truth:
    """One template; each slot gets a number, and slots past the limit their own fixed words."""
    seen = 0

    def name(match: re.Match[str]) -> str:
        nonlocal seen
        seen += 1
        return f"<<{match.group(1)}{seen}>>" if seen <= limit else "none"

    return truth_of(SLOT.sub(name, "\n\n".join(parts)))


def template(vocabulary: Vocabulary, seed: int) -> Truth:
    random = Random(f"template {seed}")
    truth = numbered(assemble(random.choice(vocabulary.domains), random))
    if "name1" in truth.names and random.random() < 0.3:
        # The same variable once more, at the end.
        truth = Truth(
            (*truth.constants[:-1], truth.constants[-1] + "\nSign the reply to ", "."), (*truth.names, "name1")
        )
    return truth


EDITS = ("a sentence", "two sentences", "a rule", "a fact", "rewrite")


def versions(vocabulary: Vocabulary, seed: int, count: int = 3) -> tuple[list[Truth], str]:
    """Versions of one prompt, each an edit of the one before, and what kind of edit."""
    random = Random(f"versions {seed}")
    domain = random.choice(vocabulary.domains)
    edit = EDITS[seed % len(EDITS)]
    # What the edits say is said nowhere else in the prompt.
    rules, facts = random.sample(domain.rules, count), random.sample(domain.facts, count)
    domain = replace(
        domain,
        rules=tuple(rule for rule in domain.rules if rule not in rules),
        facts=tuple(fact for fact in domain.facts if fact not in facts),
    )
    openings, (opening, *body) = random.sample(domain.openings, count), assemble(domain, random)
    made = []
    for nth in range(count):
        parts = [opening, *body]
        if edit == "a sentence":
            parts[0] += f" {rules[nth]} Be patient."
        elif edit == "two sentences":
            parts[0] += " " + rules[nth]
            parts.append(f"{rules[(nth + 1) % count]} Thank you.")
        elif edit == "a rule":
            parts.append("Also:\n" + "\n".join(f"- {rule}" for rule in ("Be patient.", rules[nth], "Be honest.")))
        elif edit == "a fact":
            parts.insert(1, f"{facts[nth]} {rules[nth]}")
        else:
            parts = [openings[nth], *assemble(domain, random)[1:]]
        made.append(numbered(parts))
    return made, edit


def told_apart(origin: Sequence[int], assigned: Sequence[int | None]) -> bool:
    """Whether each version has one template to itself, and no more than 2 % of the texts were refused."""
    pairs = {(true, found) for true, found in zip(origin, assigned, strict=True) if found is not None}
    one_each = len(pairs) == len({true for true, _ in pairs}) == len({found for _, found in pairs})
    whole = {true for true, _ in pairs} == set(origin)
    return one_each and whole and sum(found is None for found in assigned) <= 0.02 * len(origin)


TUNED = Vocabulary(
    domains=(
        Domain(  # customer support
            openings=(
                "You are a support agent of Northwind Mobile.",
                "Act as the first line of support for Northwind Mobile, a phone company.",
                "You answer customers of Northwind Mobile in writing. Be kind and exact.",
            ),
            facts=(
                "You are talking to <<name>>, a <<plan>> customer since <<date>>.",
                "The customer's phone is a <<product>>.",
                "Today is <<date>>.",
                "Their balance is <<amount>> and the last invoice was <<amount>>.",
                "<<first>> has written <<count>> times this month.",
                "Answer in the language of <<locale>> and keep the tone <<tone>>.",
            ),
            lines=(
                "Customer: <<name>>",
                "Plan: <<plan>>",
                "E-mail: <<email>>",
                "Ticket: <<id>>",
                "Open since: <<date>> at <<time>>",
                "City: <<city>> (<<locale>>)",
                "Owed: <<amount>>",
            ),
            blocks=(
                "Known about this case:\n<<bullets>>",
                "Articles from the help centre:\n\n<<context>>\n\nUse nothing else.",
                "<history>\n<<passage>>\n</history>",
                "Agent's notes: <<notes>>",
            ),
            rules=(
                "Never promise a refund before it has been approved.",
                "Keep every reply below five sentences.",
                "Ask at most one question at a time.",
                "Send angry customers to a human colleague without discussion.",
                "Do not mention other companies or their offers.",
                "Explain each step as if the reader had never opened the settings.",
                "If you are unsure, say so and offer to call back.",
            ),
            closings=(
                'Return JSON: {"reply": "...", "escalate": false}',
                "Sign with the name of the team, never with your own.",
                "The question is: <<question>>",
            ),
        ),
        Domain(  # legal
            openings=(
                "You review contracts for a law firm.",
                "You are a careful paralegal. You never give advice, only summaries.",
                "As a contract analyst, read what follows and report the risks in it.",
            ),
            facts=(
                "The client is <<name>> of <<city>>, and the matter has the number <<id>>.",
                "The contract was signed on <<date>> and ends on <<date>>.",
                "The sum in dispute is <<amount>>.",
                "Write for <<first>>, who prefers a <<tone>> style.",
                "The governing law is that of <<city>>, with <<count>> days of notice.",
            ),
            lines=(
                "**Matter:** <<id>>",
                "**Client:** <<name>>",
                "**Deadline:** <<date>>",
                "**Value:** <<amount>>",
                "**Contact:** <<email>>",
            ),
            blocks=(
                "## Clauses\n<<numbered>>",
                "The passage under review:\n\"\"\"\n<<context>>\n\"\"\"",
                "Precedents found:\n<<chunks>>",
            ),
            rules=(
                "Quote the clause before you comment on it.",
                "Mark every obligation that has no deadline.",
                "Use plain words, and explain each term of art once.",
                "List risks from the gravest to the lightest.",
                "Never speculate about what the other side intends.",
                "Point out where the text contradicts itself.",
            ),
            closings=(
                "End with the three questions a judge would ask first.",
                "Answer as a table with the columns | clause | risk | remedy |.",
                "Reply in the language tagged <<locale>>.",
            ),
        ),
        Domain(  # coding
            openings=(
                "You are a senior engineer who reviews pull requests.",
                "Review the change below like a colleague who has to maintain it.",
                "You help developers to find bugs; you do not rewrite their code.",
            ),
            facts=(
                "The repository is <<product>> and the branch was cut on <<date>>.",
                "The author, <<first>>, changed <<count>> files.",
                "Tests ran at <<time>> and took <<count>> seconds.",
                "The reviewer is <<name>> (<<email>>).",
                "See https://git.example/changes/<<path>> for the discussion.",
            ),
            lines=(
                "author: <<email>>",
                "build: <<id>>",
                "locale: <<locale>>",
                "started: <<date>> (<<time>>)",
                "owner: <<name>>",
            ),
            blocks=(
                "```\n<<context>>\n```",
                "Files touched:\n<<bullets>>\n\nFiles not listed are out of scope.",
                'Input:\n{"title": "<<question>>", "size": <<count>>, "items": <<records>>}',
            ),
            rules=(
                "Name the line for every remark.",
                "Do not comment on formatting, a tool does that.",
                "Prefer a failing test to a long explanation.",
                "Say what is good about the change as well.",
                "Treat every input from outside as hostile.",
                "If nothing is wrong, answer with LGTM and nothing else.",
            ),
            closings=(
                'Answer with {"verdict": "approve" | "reject", "remarks": []} only.',
                "Think step by step, but show the result alone.",
                "Use Markdown, with one heading per file.",
            ),
        ),
        Domain(  # retail and retrieval
            openings=(
                "You advise shoppers in the online store of Lindgren & Sons.",
                "You recommend products from the catalogue of Lindgren & Sons and from nowhere else.",
                "You are Freja, the shopping assistant of Lindgren & Sons.",
            ),
            facts=(
                "The shopper, <<first>>, lives in <<city>> and spent <<amount>> so far.",
                "In the basket: <<products>>.",
                "A voucher worth <<amount>> is valid until <<date>>.",
                "They looked at the <<product>> for <<count>> minutes.",
                "Delivery to <<city>>, <<city>> takes <<count>> days.",
            ),
            lines=(
                "Member: <<plan>>",
                "Basket: <<products>>",
                "Order: <<id>> from <<date>>",
                "Ship to: <<name>>, <<city>>",
                "Total: <<amount>>",
            ),
            blocks=(
                "Catalogue:\n<<bullets>>",
                "# Reviews\n\n<<context>>\n\n# Task\n\nSum up what buyers like.",
                "<doc>\n<<chunks>>\n</doc>",
            ),
            rules=(
                "Recommend at most three articles.",
                "Give the price with every article you name.",
                "Do not push what is out of stock.",
                "When the shopper is in a hurry, skip the small talk.",
                "Mention the return policy only if asked.",
                "Compare two articles in a short list, never in prose.",
            ),
            closings=(
                "Finish with a question that moves the purchase on.",
                "Output a list of article numbers, then one sentence.",
                "The shopper asks: <<question>>",
            ),
        ),
    ),
    words=Words(
        first=("Ana", "Bo", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Inès", "Jun", "Kofi", "Lena", "Marek", "Nadia"),
        last=("Smith", "Okafor", "O'Brien", "Lindqvist", "García", "Ito", "van Dyk", "Novak", "Haddad", "Silva", "Weiß"),
        cities=("Berlin", "New York", "Oslo", "São Paulo", "Leeds", "Kyoto", "Cape Town", "Graz", "Lyon"),
        products=("Pixel 9", "kettle", "running shoes", "4K monitor", "desk lamp (oak)", "USB-C cable", "rain jacket", "Moka pot", "garden hose", "wool socks"),
        plans=(("Plus", "Basic"), ("free", "pro", "enterprise"), ("Gold", "Silver", "Bronze", "none")),
        tones=("friendly", "formal", "warm and brief", "neutral", "very precise"),
        prose=(
            "The parcel left the warehouse on Monday.",
            "Nobody answered the door, so the courier took it back.",
            "She asked for a second invoice, with the old address.",
            "A restart of the router solved it for a day.",
            "According to the log, the payment was tried 3 times!",
            "He wants to keep his number.",
            "Is the offer still valid?",
            "Return periods are 30 days (14 for software).",
            "Temperatures above 40 °C shorten the life of the battery.",
            "Please note: the shop is closed on public holidays.",
            "Version 2.4 fixes the crash that users saw at start.",
        ),
        questions=(
            "Where is my order?",
            "Can I change my plan, and what does it cost?",
            "Why was I charged twice?",
            "How do I reset it?",
            "Is there a warranty",
            "I want to speak to somebody!",
            "Do you ship to Norway?",
        ),
    ),
)  # fmt: skip


SECOND = Vocabulary(
    domains=(
        Domain(  # medical triage
            openings=(
                "This assistant sorts incoming messages for the nurses of the Elm Street practice.",
                "Help the reception of a small medical practice decide how urgent a message is.",
                "You triage. A nurse reads your result, never the patient.",
            ),
            facts=(
                "Patient <<name>> was last seen on <<date>> by Dr. Weber.",
                "The appointment is at <<time>> in <<city>>.",
                "<<first>> takes part in the <<plan>> programme and speaks <<locale>>.",
                "There have been <<count>> calls since <<date>>, the latest about <<product>>.",
                "An unpaid bill of <<amount>> must not influence the result.",
            ),
            lines=(
                "Patient: <<name>>",
                "Record no.: <<id>>",
                "Born: <<date>>",
                "Called at: <<time>>",
                "Insurance = <<plan>>",
                "Reply address: <<email>>",
            ),
            blocks=(
                "Symptoms as reported:\n<<bullets>>",
                "<record>\n<<context>>\n</record>",
                "Message of the patient:\n<<passage>>",
                "## Guidelines retrieved\n<<chunks>>",
            ),
            rules=(
                "When in doubt, choose the higher urgency.",
                "Chest pain and trouble with breathing always count as an emergency.",
                "Leave out names and addresses from the summary.",
                "Do not suggest any medicine, not even a harmless one.",
                "State what is missing for a safe decision.",
                "Children under two years are seen the same day.",
            ),
            closings=(
                'Write {"urgency": 1, "why": ""} on a single line, with a number from 1 to 5.',
                "Close with the words that the nurse should use on the telephone.",
                "What the patient wants to know: <<question>>",
            ),
        ),
        Domain(  # travel
            openings=(
                "Plan journeys for guests of the agency Blue Harbor.",
                "Blue Harbor sends people to quiet places; you write their itineraries.",
                "Your job is to answer travellers who have already booked with Blue Harbor.",
            ),
            facts=(
                "The guest flies from <<city>> to <<city>> on <<date>> and stays for <<count>> nights.",
                "<<name>> booked the <<plan>> package for <<amount>>.",
                "Check-in opens at <<time>>, as confirmed to <<email>>.",
                "Write in the manner of a <<tone>> friend, in <<locale>>.",
                "The booking <<id>> includes <<products>>, and nothing more.",
            ),
            lines=(
                "Guest = <<name>>",
                "From: <<city>>",
                "To: <<city>>",
                "Nights: <<count>>",
                "`booking`: <<id>>",
                "Packed: <<products>>",
            ),
            blocks=(
                "What earlier guests wrote:\n\n<<context>>\n\nJudge for yourself how much of that is true.",
                "Stops on the way:\n<<numbered>>",
                "Remarks of the agent: <<notes>>",
                "{\n  \"stops\": <<records>>,\n  \"wish\": \"<<question>>\"\n}",
            ),
            rules=(
                "Leave an hour between two connections.",
                "Never recommend a restaurant that closed for the season.",
                "Prefer trains wherever the trip takes less than six hours.",
                "Warn about strikes and storms, but do not dramatise.",
                "All times are local unless you say otherwise.",
                "Skip museums for families with small children.",
            ),
            closings=(
                "Present each day under a heading of its own.",
                "The traveller writes: <<question>>",
                "Stop after the third day and ask whether to go on.",
            ),
        ),
        Domain(  # teaching
            openings=(
                "You tutor pupils in mathematics at the Hillside school.",
                "A pupil is stuck. Give hints until they find the way alone.",
                "As a patient teacher of mathematics, correct homework without giving away results.",
            ),
            facts=(
                "Your pupil is <<first>>, who has done <<count>> exercises since <<date>>.",
                "The lesson of <<date>> was about <<product>>.",
                "Parents get a report at <<email>> every week, currently for the level <<plan>>.",
                "Sound <<tone>>; the class meets in <<city>> at <<time>>.",
            ),
            lines=(
                "- Pupil: <<first>>",
                "- Level: <<plan>>",
                "- Due: <<date>>",
                "- Points: <<count>> of 150",
                "- Language: <<locale>>",
            ),
            blocks=(
                "### Exercise\n<<passage>>\n\n### Solutions so far\n<<numbered>>",
                "~~~\n<<context>>\n~~~",
                "Teacher's remarks:\n\"<<passage>>\"",
            ),
            rules=(
                "Praise the effort and not the talent.",
                "Ask for the reasoning before you judge the result.",
                "Show a smaller example of the same kind.",
                "One hint per message is enough.",
                "Correct the notation only if it hides a mistake.",
                "Draw a picture with plain characters when geometry is involved.",
            ),
            closings=(
                "The pupil asked: <<question>>",
                "Write formulas between dollar signs.",
                "Be silent about grades.",
            ),
        ),
        Domain(  # insurance, with mark-up
            openings=(
                "<role>Claims assistant of Harrow Mutual</role>",
                "Examine the claim below for Harrow Mutual and propose what to pay.",
                "Harrow Mutual insures homes. You prepare decisions for its clerks.",
            ),
            facts=(
                "The policy <<id>> of <<name>> covers up to <<amount>> per year.",
                "Damage was reported on <<date>> from <<city>>, <<count>> days late.",
                "According to the file, <<product>> and <<product>> were damaged.",
                "The clerk in charge, <<first>>, can be reached at <<email>>.",
                "Documents are kept at https://files.harrow.example/claims/<<path>> until further notice.",
            ),
            lines=(
                "<claimant><<name>></claimant>",
                "<policy><<id>></policy>",
                "<reported><<date>></reported>",
                "<sum><<amount>></sum>",
                "<class><<plan>></class>",
            ),
            blocks=(
                "<evidence>\n<<chunks>>\n</evidence>",
                "Lost or damaged:\n<<bullets>>\n\nEverything else is intact.",
                "---\n<<context>>\n---",
            ),
            rules=(
                "Cite the paragraph of the policy for each deduction.",
                "Wear and tear is never covered.",
                "Suspicion of fraud goes to a human being, without a word to the claimant.",
                "Round sums down to full units.",
                "Explain a refusal in two calm sentences.",
                "Compare the date of the damage with the start of the cover.",
            ),
            closings=(
                "Answer inside <decision> tags.",
                "Finish with the sum alone on the last line.",
                "The letter must be in <<locale>> and sound <<tone>>.",
            ),
        ),
    ),
    words=Words(
        first=(
            "Oskar", "Priya", "Quentin", "Rosa", "Søren", "Tomás", "Ulla", "Viktor", "Wen", "Ximena", "Yusuf", "Zoë",
            "Amara", "Björn",
        ),
        last=("Adeyemi", "Brown", "Castillo", "D'Angelo", "Eriksen", "Fischer-Lund", "Gupta", "Hoang", "de Vries", "Šimić"),
        cities=("Porto", "Los Angeles", "Gdańsk", "Hanoi", "St. Gallen", "Bergen", "Rio de Janeiro", "Perth"),
        products=(
            "back pain", "fractions", "window frame", "cough syrup 5 ml", "sleeping bag", "the left knee", "TV set (55\")",
            "map & compass", "first-aid kit", "equations",
        ),
        plans=(("standard", "comfort"), ("A", "B", "C"), ("Bronze", "Silver", "Gold", "Platinum")),
        tones=("calm", "cheerful", "matter-of-fact", "kind but firm", "plain"),
        prose=(
            "Pain began on Sunday, after a long walk.",
            "It rained through the roof for 2 nights!",
            "No allergies are known.",
            "Where would one park?",
            "The view from the terrace was worth every step.",
            "Add both numbers, then halve the sum.",
            "Our room faced the street; it was loud (trams until 1 am).",
            "An expert put the repair at 640.00 in total.",
            "Her temperature stayed at 38.5 °C.",
            "x is smaller than 7, so there are six cases.",
            "Breakfast: until ten.",
        ),
        questions=(
            "Is it serious?",
            "May I bring the dog?",
            "When will I be paid, and by whom?",
            "I do not get step 2",
            "Could you send it again please",
            "What happens if I cancel tomorrow?",
            "Does 0 count as even?",
        ),
    ),
)  # fmt: skip


THIRD = Vocabulary(
    domains=(
        Domain(  # recruiting
            openings=(
                "You screen applications for Tallis & Berg, an engineering company.",
                "Applications arrive at Tallis & Berg; tell the recruiters which ones deserve a call.",
                "A recruiter of Tallis & Berg will read what you write about an applicant.",
            ),
            facts=(
                "<<name>> applied on <<date>> for a position in <<city>>.",
                "The salary asked for is <<amount>>, with <<count>> weeks of notice.",
                "Interviews for grade <<plan>> begin at <<time>>.",
                "So far <<first>> has sent <<products>>, which the team has read.",
                "Please stay <<tone>> and respect the customs of <<locale>>.",
                "Invitations go out from <<email>>, citing <<id>>.",
            ),
            lines=(
                "Applicant: <<name>>",
                "Grade sought: <<plan>>",
                "File: <<id>>",
                "Available from: <<date>>",
                "Place: <<city>>",
                "Write to: <<email>>",
                "Salary: <<amount>>",
            ),
            blocks=(
                "Skills listed:\n<<bullets>>",
                "<letter>\n<<context>>\n</letter>",
                "### Stations\n<<numbered>>",
                "Impression of the recruiter: <<notes>>",
                "Excerpts from references:\n<<chunks>>\n\nReferences are confidential.",
            ),
            rules=(
                "Age, origin and family are none of your business.",
                "Gaps in a career need no comment.",
                "Weigh work samples above grades from school.",
                "Flag claims that contradict one another.",
                "Every rejection has to name a missing requirement.",
                "Suggest two topics for the interview.",
                "Salaries of colleagues stay secret.",
            ),
            closings=(
                'Give back {"call": true, "because": ["..."]} without any further text.',
                "Put your recommendation into the very first line.",
                "The applicant would like to know: <<question>>",
            ),
        ),
        Domain(  # kitchen
            openings=(
                "You are the voice of the kitchen scale Libra.",
                "Cook together with the owner of a Libra scale, one step after the other.",
                "People talk to their scale, and you reply on its tiny display.",
            ),
            facts=(
                "The owner, <<first>>, cooks for <<count>> people tonight.",
                "Dinner should be on the table at <<time>>, and it is <<date>>.",
                "The pantry holds <<products>>.",
                "Groceries from <<city>> cost <<amount>> last week.",
                "Firmware <<plan>> speaks <<locale>> in a <<tone>> voice.",
            ),
            lines=(
                "owner | <<first>>",
                "servings: <<count>>",
                "budget: <<amount>>",
                "ready at: <<time>>",
                "wish: <<product>>",
                "account: <<email>>",
            ),
            blocks=(
                "Recipe so far:\n<<numbered>>\n\nThe next step is yours.",
                "```text\n<<passage>>\n```",
                "Shopping list\n-------------\n<<bullets>>",
                'State: {"weighed": <<records>>, "asked": "<<question>>"}',
            ),
            rules=(
                "Weights come in grams and temperatures in Celsius.",
                "Raw eggs and small children do not go together.",
                "Replace an ingredient only after asking.",
                "Thirty words fit on the display, hardly more.",
                "Remind the cook of the oven before it is needed.",
                "Humour is welcome, sarcasm is not.",
            ),
            closings=(
                "Finish by saying what to weigh next.",
                "The cook calls out: <<question>>",
                "No emoji, the display cannot show them.",
            ),
        ),
        Domain(  # public transport
            openings=(
                "Inform passengers of the Metroline network about delays.",
                "You work in the control room of Metroline and write the notices on the platforms.",
                "Metroline passengers complain to you. Calm them down with facts.",
            ),
            facts=(
                "Line <<id>> between <<city>> and <<city>> has been interrupted since <<time>>.",
                "On <<date>> there were <<count>> complaints, <<amount>> was paid out.",
                "The passenger holds a <<plan>> pass in the name of <<name>>.",
                "Found in the train: <<product>>. Ask <<email>> about it.",
                "Live data: https://api.metroline.example/v2/lines/<<path>>/state as of now.",
            ),
            lines=(
                "* line: <<id>>",
                "* stop: <<city>>",
                "* since: <<date>>, <<time>>",
                "* pass: <<plan>>",
                "* passenger: <<name>>",
                "* refund: <<amount>>",
            ),
            blocks=(
                "<disruptions>\n<<context>>\n</disruptions>",
                "Reports of the drivers:\n\n<<chunks>>",
                "Complaint:\n> <<question>>",
            ),
            rules=(
                "Guesses about the end of a disruption do more harm than good.",
                "Name the replacement bus first.",
                "Accidents involving people are called incidents.",
                "Refunds start after an hour of waiting.",
                "Wheelchair users need to hear about broken lifts.",
                "Apologise once; repeating it sounds false.",
            ),
            closings=(
                "Use capital letters for nothing but names of stops.",
                "Two lines of forty characters is all the space there is.",
                "Translate the notice to <<locale>> as well.",
            ),
        ),
    ),
    words=Words(
        first=("Agnes", "Bilal", "Carmen", "Dieter", "Esra", "Filip", "Gloria", "Henk", "Ida", "Joao", "Kirsten", "Łukasz"),
        last=("Moreau", "Nilsson", "Öztürk", "Petrov", "Quinn", "Rossi", "Saito", "Thompson", "Ueda", "Vargas", "Al-Farsi"),
        cities=("Turin", "Old Town", "Kraków", "Marseille", "Salt Lake City", "Aarhus", "Izmir", "Ghent", "Lima"),
        products=("oat milk", "a red umbrella", "CAD drawings", "rye bread 750g", "C++", "sea salt", "two keys", "lentils (green)", "an essay", "butter"),
        plans=(("monthly", "yearly"), ("E1", "E2", "E3", "E4"), ("student", "regular", "senior")),
        tones=("polite", "dry", "short and clear", "respectful", "lively"),
        prose=(
            "Signals failed near the depot.",
            "A tree has fallen on the track, and removal takes time.",
            "Beat the whites until they hold (3 minutes).",
            "Led a team of 6 in Dublin!",
            "Who switched off the heating?",
            "Doors 2 to 4 stay shut.",
            "Studied physics; changed to law later.",
            "Simmer, do not boil.",
            "Nothing is known about the cause.",
            "Replacement buses leave from the north exit every 12 minutes.",
            "Speaks Danish: yes, fluently.",
            "Costs rose by 4.5 % in spring.",
        ),
        questions=(
            "How long does it take?",
            "Can I use water instead, or does that ruin it?",
            "Who decides?",
            "it is still frozen",
            "Will the last train wait?",
            "What should I wear",
            "Is that a joke?",
            "Why me!",
        ),
    ),
)  # fmt: skip


FRESH = Vocabulary(
    domains=(
        Domain(  # a public library
            openings=(
                "Readers of the Corvina library ask you about books and loans.",
                "You sit at the information desk of the Corvina library.",
                "Answer for Corvina, a public library with nine branches.",
            ),
            facts=(
                "Reader <<name>> has borrowed <<count>> items, due back on <<date>>.",
                "The branch in <<city>> closes at <<time>> tonight.",
                "A fine of <<amount>> is open; the <<plan>> card expires on <<date>>.",
                "<<first>> looks for <<product>> and prefers books tagged <<locale>>.",
                "Reservations (<<id>>) are confirmed by mail to <<email>>.",
                "Sound <<tone>>, whatever the reader says.",
            ),
            lines=(
                "Card: <<id>>",
                "Reader: <<name>>",
                "Branch: <<city>>",
                "Type of card: <<plan>>",
                "Due: <<date>>",
                "Fines: <<amount>>",
                "Interests: <<products>>",
            ),
            blocks=(
                "Shelf:\n<<bullets>>\n\nWhat is not on the shelf must be ordered.",
                "<catalogue>\n<<chunks>>\n</catalogue>",
                "Regulations, as far as they matter here:\n\n<<context>>",
                "Remark at the desk: <<notes>>",
            ),
            rules=(
                "Loans of other readers are private.",
                "Fines can be halved, but never waived.",
                "Children may not borrow films for adults.",
                "Offer the nearest branch that has a copy.",
                "Old prints stay in the reading room.",
                "Two titles are better than a long list.",
            ),
            closings=(
                "Finish with the opening hours of tomorrow.",
                "The reader says: <<question>>",
                'Form: {"answer": "", "titles": []}',
            ),
        ),
        Domain(  # machines
            openings=(
                "Technicians in the field describe faults; name the likely cause.",
                "You are the service manual of Ketterer presses, made to speak.",
                "Diagnose hydraulic presses made by Ketterer.",
            ),
            facts=(
                "Press <<id>> stands in <<city>> and ran <<count>> hours since <<date>>.",
                "The technician on site is <<first>>, reachable under <<email>>.",
                "An hour of standstill costs <<amount>>.",
                "The contract is <<plan>>, so <<product>> and <<product>> are free of charge.",
                "The alarm came at <<time>>, see https://plant.ketterer.example/log/<<path>> for details.",
            ),
            lines=(
                "serial: <<id>>",
                "site = <<city>>",
                "contract: <<plan>>",
                "alarm: <<time>>",
                "spare part: <<product>>",
                "answer to: <<email>>",
            ),
            blocks=(
                "=== log ===\n<<context>>\n=== end ===",
                "Done so far:\n<<numbered>>",
                "# Manual\n\n<<passage>>\n\n# Fault\n\n<<question>>",
                "Readings: <<records>>",
            ),
            rules=(
                "Safety first: pressure off, key out.",
                "Cheap checks come before expensive ones.",
                "A guess has to be called a guess.",
                "Parts have numbers, so use them.",
                "Loud noises are never normal.",
                "Whoever is tired should wait for the second shift.",
            ),
            closings=(
                "Keep it short enough to be read aloud.",
                "Say in the end when to call the factory.",
                "The fault in the words of the operator: <<question>>",
            ),
        ),
    ),
    words=Words(
        first=("Alba", "Benoît", "Cem", "Dorothea", "Enzo", "Fatima", "Gábor", "Hanna", "Ivo", "Jana", "Keiko", "Luis"),
        last=("Abel", "Bonnet", "Çelik", "Dunn", "Esposito", "Farkas", "van den Berg", "Horvat", "Iversen", "Müller-Lang"),
        cities=("Basel", "Saint-Denis", "Pécs", "Buenos Aires", "Tampere", "Hull", "Nara", "Las Palmas"),
        products=("O-ring 12 mm", "poetry", "a valve", "crime novels (Nordic)", "oil filter", "atlases", "sensor B7", "comics & manga", "gauge", "seed catalogues"),
        plans=(("blue", "green"), ("full", "reduced", "guest"), ("S", "M", "L", "XL")),
        tones=("helpful", "quiet", "brisk but warm", "factual", "encouraging"),
        prose=(
            "Oil dripped from the left cylinder.",
            "It was returned late, with a stain on page 40.",
            "Who ordered the second copy?",
            "The sensor read 7.5 bar (limit: 6.0).",
            "Nothing moved after the restart!",
            "Reading rooms open at nine; the cellar does not.",
            "Someone had loosened all screws.",
            "Borrowers must be over 16.",
            "Vibration grew worse during the night.",
            "Copies cost 0.10 per page.",
            "Replace it every 2,000 hours.",
        ),
        questions=(
            "Do you have it in large print?",
            "it hisses, then stops",
            "May I keep it longer, say until May?",
            "Is the pump broken?",
            "Why does the card not work!",
            "Where do I find the fuse",
            "Can somebody come today?",
        ),
    ),
)  # fmt: skip
