"""What customers write: tickets of one topic each, from templates, the same for the same dice.

Every ticket is understood as its topic by `topic_of`, whatever fills its slots, and none is signed: a first name can
be read from the prompt alone. Some go on for a second turn that says nothing new.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from dspy_selfimprove.message import FrozenDict, Message, freeze_messages

_OPENERS = ("Hello,", "Hi there,", "Good morning,", "Good evening,", "Dear all,", "")
_CLOSERS = (
    "What can you do?",
    "I would be glad of some help.",
    "This is the second time I write about it.",
    "Can somebody look into it?",
    "It is rather urgent.",
    "Many thanks in advance.",
    "",
)
_ITEMS = ("kettle", "floor lamp", "fan heater", "vacuum cleaner", "thermostat", "air purifier", "coffee maker", "fan")
_FOLLOW_UPS = (
    "That is all there is to it. What now?",
    "As I wrote before. Any news?",
    "I have nothing to add. Can we go on?",
    "Nothing more to tell. I am waiting for your reply.",
)
ASKING_BACK = "Thank you for writing. Could you describe it in a little more detail?"

FIRST_NAMES = (
    "Maria", "Jonas", "Aisha", "Pedro", "Yuki", "Elena", "Tomas", "Priya", "Lars", "Zoe", "Omar", "Ingrid", "Kofi",
    "Nadia", "Paolo", "Sofia", "Anton", "Leila", "Marek", "Carla", "Hugo", "Mina", "Felix", "Rosa",
)  # fmt: skip
PLANS = ("Solo", "Plus", "Family")

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "late_delivery": (
        "My {item} should have come {n} days ago and the parcel has still not arrived.",
        "Order {order} is late. The shipment page has not moved for {n} days.",
        "Where is my {item}? The courier was due {n} days ago.",
        "I am still waiting for the {item} from order {order}, now {n} days late.",
    ),
    "refund": (
        "I sent the {item} back {n} days ago and have seen no refund.",
        "When do I get my money back for the {item}, order {order}?",
        "The {item} did not suit us. I asked for a refund {n} days ago.",
        "Please reimburse me for order {order}, I returned it {n} days ago.",
    ),
    "double_charge": (
        "You charged me twice for order {order}.",
        "There are two charges for the same {item} in my bank account.",
        "My bank shows a second charge for order {order}, debited {n} days ago.",
        "I was charged double this month for one {item}.",
    ),
    "login": (
        "I cannot log in any more, it says my password is wrong.",
        "I have been locked out of my account for {n} days.",
        "The verification code never comes, so I cannot sign in.",
        "Sign in fails since {n} days, although my password is right.",
    ),
    "cancel_subscription": (
        "I want to cancel my subscription at the end of the month.",
        "How do I cancel? I do not use the service any more since {n} days.",
        "Please terminate my subscription, we do not need it any longer.",
        "I tried to unsubscribe {n} days ago and it still runs.",
    ),
    "damaged_item": (
        "The {item} came out of its box with a cracked side, it is damaged.",
        "My {item} is broken, the glass was smashed when I opened the box.",
        "Order {order}: the {item} is badly scratched and dented.",
        "The {item} was in pieces when I opened the box {n} days ago.",
    ),
    "setup_wifi": (
        "The {item} does not find my wifi, although the router is next to it.",
        "My {item} will not pair with the router since {n} days.",
        "I cannot connect the {item} to our wifi network at home.",
        "The hub is always offline, the wifi works for everything else.",
    ),
    "change_plan": (
        "I would like to upgrade to a bigger plan from next month on.",
        "Can I downgrade? We hardly use what we have since {n} days.",
        "How do I change my plan to the cheaper plan?",
        "Is there a way to switch my plan in the middle of the month?",
    ),
    "return_label": (
        "I need a return label for the {item}, order {order}.",
        "I would like to send it back, but the {item} came without a label.",
        "The return label for the {item} cannot be printed.",
        "I am returning the {item}; {n} days ago I asked for a label.",
    ),
    "warranty": (
        "My {item} stopped working after {n} months, is it under warranty?",
        "The {item} is faulty, does the warranty cover a repair?",
        "After {n} months the {item} has a defect. I claim the warranty.",
        "Is the motor of the {item} covered by your warranty?",
    ),
    "invoice_copy": (
        "I need a copy of the invoice for order {order} for my accountant.",
        "Could I have the receipt for the {item} with the tax on it?",
        "The invoice for order {order} lacks the vat number.",
        "For my bookkeeping I need the invoice of {n} months ago.",
    ),
    "address_change": (
        "We are moving in {n} days, please change my address.",
        "My new address has another postcode, and I cannot enter it.",
        "I moved {n} days ago and your letters go to the old address.",
        "How do I put a new address on order {order}? We have moved.",
    ),
    "privacy_deletion": (
        "Please delete all my data and confirm it.",
        "Under the gdpr I ask you to erase my personal data.",
        "I want my data deleted, I asked for it {n} days ago.",
        "What personal data do you hold? I want the erasure of everything.",
    ),
    "gift_card": (
        "The gift card I got for my birthday cannot be redeemed.",
        "I bought a gift card {n} days ago and the code does not come.",
        "How do I redeem two gift cards at once for one {item}?",
        "My gift voucher shows the wrong value.",
    ),
    "api_error": (
        "Your api answers with status code 500 since {n} days.",
        "The webhook of our integration gets no json any more.",
        "I get http 429 from the endpoint with a fresh token.",
        "The sdk and the api disagree about the endpoint for devices.",
    ),
    "accessibility": (
        "My screen reader does not read the buttons of your app.",
        "The contrast of the app is too weak for me, I am nearly blind.",
        "I use the keyboard only and cannot reach the menu of the {item}.",
        "Are there captions or large print for the manual of the {item}?",
    ),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to answer. `group` is the customer: what belongs together when data are split.

    Support desk: a conversation and the variables of the prompt. Question answering: a question and its reference.
    `topic` is for looking at results; no model is sent it.
    """

    id: str
    group: str
    topic: str
    variables: FrozenDict = field(default_factory=FrozenDict)
    conversation: tuple[Message, ...] = ()
    question: str = ""
    reference: str = ""

    @property
    def text(self) -> str:
        """What a judge is shown as the input."""
        if self.question:
            return self.question
        speakers = {"user": "Customer", "assistant": "Desk"}
        return "\n".join(f"{speakers[str(m['role'])]}: {m['content']}" for m in self.conversation)


def write_ticket(topic: str, dice: random.Random) -> str:
    """The first message of a ticket on a topic."""
    body = dice.choice(_TEMPLATES[topic]).format(
        item=dice.choice(_ITEMS), n=dice.randrange(2, 20), order=dice.randrange(20_000, 90_000)
    )
    return " ".join(part for part in (dice.choice(_OPENERS), body, dice.choice(_CLOSERS)) if part)


def write_conversation(topic: str, dice: random.Random) -> tuple[Message, ...]:
    """A ticket, in one case of five over two turns."""
    first = {"role": "user", "content": write_ticket(topic, dice)}
    if dice.random() >= 0.2:
        return freeze_messages([first])  # type: ignore[list-item]
    back = {"role": "assistant", "content": ASKING_BACK}
    again = {"role": "user", "content": dice.choice(_FOLLOW_UPS)}
    return freeze_messages([first, back, again])  # type: ignore[list-item]


def templates() -> dict[str, tuple[str, ...]]:
    """The bodies of all tickets by topic, slots open."""
    return dict(_TEMPLATES)
