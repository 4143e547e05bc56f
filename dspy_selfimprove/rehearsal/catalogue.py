"""The catalogue: every behaviour and topic the rehearsal model understands. Nothing here says which of them are good.

A behaviour may be wanted by one world, forbidden by the next and of no interest to a third; a worker knows the whole
catalogue and never the world. To add a rule, add it here: the tests then hold its wordings to the round trips (each
request is understood as that rule and no other of its task, each sentence is recognised as that rule and no other).

`stated`, `blamed`, `shown` and `topic_of` are the four readings of a text. Two-word topic labels and sentences of
equal length make the number of words of a reply computable from the behaviours it shows.

Frozen: worlds are drawn from this list, so changing a rule changes every world (see `GENERATOR_VERSION` in world.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from dspy_selfimprove.rehearsal.rule import (
    EXPLICIT,
    LOOSE,
    VAGUE,
    Ask,
    Cue,
    Lexicon,
    Rule,
    Statement,
    Task,
    explicit,
    loose,
    plain,
    vague,
)

Cues: TypeAlias = tuple[Cue, ...]


def _asks(*best: str, loosely: str, vaguely: str) -> tuple[Ask, ...]:
    return (*(Ask(text, EXPLICIT) for text in best), Ask(loosely, LOOSE), Ask(vaguely, VAGUE))


# --- Topics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Topic:
    """What a ticket is about. `label` is always two words."""

    name: str
    label: str
    cue: str

    def hits(self, text: str) -> int:
        return len(_pattern(self.cue).findall(text))


@lru_cache(maxsize=64)
def _pattern(cue: str) -> re.Pattern[str]:
    return re.compile(cue)


TOPICS: tuple[Topic, ...] = (
    Topic(
        "late_delivery",
        "late delivery",
        r"\b(?:late|delay\w*|not arrived|hasn't arrived|still waiting|where is my|parcel|deliver\w*|courier|"
        r"shipment|tracking|ordered|dispatched|shipped|boxes)\b",
    ),
    Topic("refund", "refund request", r"\b(?:refund\w*|money back|reimburse\w*|returned it)\b"),
    Topic(
        "double_charge", "double charge", r"\b(?:twice|double|two charges|second charge|charged|debited|duplicate)\b"
    ),
    Topic(
        "login",
        "login problem",
        r"\b(?:log ?in|sign ?in|password|locked out|can't get into|two-factor|verification code)\b",
    ),
    Topic(
        "cancel_subscription",
        "subscription cancellation",
        r"\b(?:cancel\w*|unsubscribe\w*|terminat\w*|end my subscription|stop my subscription|subscription)\b",
    ),
    Topic(
        "damaged_item", "damaged item", r"\b(?:damag\w*|broken|cracked|scratch\w*|smashed|dented|shattered|in pieces)\b"
    ),
    Topic("setup_wifi", "wifi setup", r"\b(?:wi-?fi|router|pair\w*|connect\w*|network|hub|offline)\b"),
    Topic(
        "change_plan",
        "plan change",
        r"\b(?:upgrade|downgrade|switch\w* (?:my )?plan|change (?:my |the )?plan|other plan|bigger plan|"
        r"cheaper plan|plus plan|family plan|move to the)\b",
    ),
    Topic("return_label", "return label", r"\b(?:return label|label|send it back|return it|returning|returns)\b"),
    Topic("warranty", "warranty claim", r"\b(?:warrant\w*|guarantee|stopped working|defect\w*|faulty|repair\w*)\b"),
    Topic("invoice_copy", "invoice copy", r"\b(?:invoice\w*|receipt\w*|tax|vat|accountant|bookkeep\w*)\b"),
    Topic("address_change", "address change", r"\b(?:address|moving|moved|relocat\w*|new flat|new house|postcode)\b"),
    Topic("privacy_deletion", "data deletion", r"\b(?:delet\w*|erase\w*|erasure|privacy|gdpr|personal data|my data)\b"),
    Topic("gift_card", "gift card", r"\b(?:gift ?cards?|gift vouchers?|voucher\w*|redeem\w*)\b"),
    Topic(
        "api_error", "api error", r"\b(?:api|endpoint|http|json|webhook\w*|status code|sdk|integration|token|500|429)\b"
    ),
    Topic(
        "accessibility",
        "accessibility question",
        r"\b(?:screen reader\w*|accessib\w*|contrast|blind|keyboard|captions?|font size|large print|hearing)\b",
    ),
)
GENERAL = Topic("general", "general request", r"(?!)")
TOPIC: dict[str, Topic] = {topic.name: topic for topic in (*TOPICS, GENERAL)}
_TELLING = (  # their words say more than those of the others
    *("return_label", "gift_card", "api_error", "accessibility"),
    *("privacy_deletion", "warranty", "setup_wifi", "invoice_copy"),
)

FOUND, MISSING = "found", "missing"  # the two "topics" of question answering: does the context answer?


@lru_cache(maxsize=8192)
def topic_of(text: str) -> Topic:
    """The topic a ticket speaks of: most keywords, and the rarer topic where two tie."""
    lowered = plain(text)
    scored = [(topic.hits(lowered) + 0.5 * (topic.name in _TELLING), topic) for topic in TOPICS if topic.hits(lowered)]
    return max(scored, key=lambda item: item[0])[1] if scored else GENERAL


# --- Support desk -----------------------------------------------------------------------------------------------------

_EVERYWHERE_BUT_PLANS = frozenset(TOPIC) - {"change_plan", "cancel_subscription"}

SUPPORT: tuple[Rule, ...] = (
    Rule(
        name="greet_name",
        asks=_asks(
            "Greet the customer by first name.",
            "Open every reply with the customer's first name.",
            loosely="Use the customer's name.",
            vaguely="Make the message personal.",
        ),
        forbids=("Do not greet the customer by first name.",),
        missed=("The customer is never called by name.", "There is no salutation with the first name."),
        overdone=("The customer's name is used at the start.",),
        cue=(
            explicit("greet*|address*|open*|start*|begin*|salut*|hello", "first name*|by name|given name*|forename*"),
            loose("first name*|by name|customer's name|customers by name|their name|given name*|forename*"),
            vague("personal touch|personal tone|message personal|feel personal|make it personal|personali*"),
        ),
        does=("Hello {name},", "Hi {name},"),
        seen=r"^\W*(?:hello|hi|dear|good (?:morning|afternoon|evening))[ ,]+(?!there\b|team\b|customer\b|sir\b|"
        r"madam\b|everyone\b|all\b)[^\W\d_][\w'-]*",
        natural=0.12,
        place=0,
    ),
    Rule(
        name="acknowledge",
        asks=_asks(
            "Acknowledge the problem first.",
            "Acknowledge the customer's problem before solving it.",
            loosely="Show that you understand the trouble.",
            vaguely="Be empathetic.",
        ),
        forbids=("Do not acknowledge the problem.",),
        missed=("The reply shows no sympathy for the trouble caused.", "There is no apology for the inconvenience."),
        overdone=("The reply dwells on apologies for the trouble.",),
        cue=(
            explicit(
                "acknowledg*|apolog*|sorry|recogni*",
                "problem*|trouble*|inconvenience|issue*|frustrat*|situation|mishap",
            ),
            loose("understand*|sympath*", "problem*|trouble*|frustrat*|feeling*|inconvenience|situation"),
            vague("empath*|caring|compassion*"),
        ),
        does=(
            "I am sorry about the trouble this has caused you.",
            "We are sorry for the trouble that this has caused.",
        ),
        seen=r"\b(?:sorry (?:about|for|that|to hear)|apologi[sz]e|apologies)\b",
        natural=0.12,
        place=10,
    ),
    Rule(
        name="restate",
        asks=_asks(
            "Restate the question.",
            "Restate the customer's question in your own words.",
            loosely="Show what you understood of the question.",
            vaguely="Listen well.",
        ),
        forbids=("Do not restate the question.",),
        missed=(
            "It is not clear that the request was taken in and repeated.",
            "Nowhere does the reply mirror the request.",
        ),
        overdone=("The request is repeated back to the customer.",),
        cue=(
            explicit(
                "restat*|repeat*|rephras*|paraphras*|mirror*",
                "question*|request*|concern*|what was asked|what they ask*",
            ),
            loose("understood", "question*|request*|asked"),
            vague("listen*"),
        ),
        does=(
            "You are asking us for help with your {topic} today.",
            "To repeat your question, you need help with your {topic}.",
        ),
        seen=r"you(?:'re| are) asking|you asked|to repeat your question|you wrote that",
        natural=0.06,
        place=14,
    ),
    Rule(
        name="next_step",
        asks=_asks(
            "Give one concrete next step.",
            "State the next step the customer should take.",
            loosely="Say what happens next.",
            vaguely="Be practical.",
        ),
        forbids=("Do not give a next step.",),
        missed=("The customer is left without a way forward.", "Nothing tells the customer how to proceed."),
        overdone=("It tells the customer how to proceed.",),
        cue=(
            explicit("next step*|concrete step*|specific step*|exact step*|clear step*|next action*|concrete action*"),
            loose("what happens next|what to do next|what to do|way forward|how to proceed|actionable"),
            vague("practical*|hands-on|solution-oriented"),
        ),
        does=(
            "As a next step, please open your account page and choose Support.",
            "Your next step is to open the account page and choose Support.",
        ),
        seen=r"\bnext steps?\b|here is what to do|please (?:open|go to|click|select|follow)\b",
        natural=0.1,
        place=30,
    ),
    Rule(
        name="time_frame",
        asks=_asks(
            "Give a time frame.",
            "Say by when the customer will hear from us.",
            loosely="Be clear about timing.",
            vaguely="Manage expectations.",
        ),
        forbids=("Do not give a time frame.",),
        missed=("How long it takes is nowhere said.", "The customer is not told how soon to expect an answer."),
        overdone=("How soon an answer comes is spelled out.",),
        cue=(
            explicit(
                "time frame*|time-frame*|timeframe*|timeline*|by when|how long|business days|working days|"
                "waiting time|resolution time"
            ),
            loose("timing|duration|time estimate*|how soon"),
            vague("expectations"),
        ),
        does=("You will hear from us within two business days.", "We will be in touch within two business days."),
        seen=r"within (?!30\b|thirty\b)(?:the next )?[\w-]+(?: to \w+)? (?:(?:business|working) )?(?:days?|"
        r"hours?|weeks?|minutes?)\b|by tomorrow|by the end of (?:the day|the week|this week)",
        natural=0.08,
        place=40,
    ),
    Rule(
        name="explain_cause",
        asks=_asks(
            "Explain the likely cause.",
            "Explain why the problem happened.",
            loosely="Say what went wrong.",
            vaguely="Be transparent.",
        ),
        forbids=("Do not explain the cause.",),
        missed=("The customer does not learn how it came about.", "Nothing is said about what went wrong."),
        overdone=("The reply goes into what went wrong.",),
        cue=(
            explicit(
                "explain*|describe*|state*|tell*|give*|name*",
                "cause|causes|why|root cause|reason for the problem|reason why",
            ),
            loose("what went wrong|why it happened|root cause|likely cause|how it came about"),
            vague("transparen*"),
        ),
        does=(
            "This usually happens because two of our systems disagreed for a moment.",
            "The cause is most likely that two of our systems disagreed briefly.",
        ),
        seen=r"\bthis (?:usually |most likely |probably )?happen(?:s|ed) because\b|\bthe (?:likely |"
        r"probable )?cause (?:is|was)\b|\bthe reason (?:is|was|for)\b",
        natural=0.05,
        place=20,
    ),
    Rule(
        name="escalation",
        asks=_asks(
            "Offer a contact for escalation.",
            "Give a link or contact in case the problem remains.",
            loosely="Say whom to turn to if it stays open.",
            vaguely="Leave the door open.",
        ),
        forbids=("Do not offer a contact for escalation.",),
        missed=(
            "The customer does not learn where to turn if this stays open.",
            "No supervisor is named for a stubborn case.",
        ),
        overdone=("A supervisor is named without need.",),
        cue=(
            explicit("escalat*|supervisor*"),
            explicit(
                "link|contact|contacts|phone number|hotline",
                "remain*|persist*|unsolved|unresolved|not solved|not resolved|further help|if needed|complain*",
            ),
            explicit(
                "offer*|give*|provide*|include*|add|adds|name*",
                "contact|contacts|contact details|contact link|contact person|hotline",
            ),
            loose("whom to turn to|who to turn to|where to turn|someone to turn to"),
            vague("door open|open door"),
        ),
        does=(
            "If anything remains open, write to the team lead at lead@northwind.example.",
            "Should anything remain open, our team lead is at lead@northwind.example directly.",
        ),
        seen=r"@northwind|\bescalat|\bteam lead\b|\bsupervisor\b|\b(?:contact|reach) (?:us|our team) (?:at|via|"
        r"on|through)\b",
        natural=0.05,
        place=60,
    ),
    Rule(
        name="summary",
        asks=_asks(
            "End with a short summary.",
            "Summarise the answer at the end.",
            loosely="Recap the main point.",
            vaguely="Wrap things up.",
        ),
        forbids=("Do not summarise at the end.",),
        missed=("The reply does not sum up.", "A recap is missing."),
        overdone=("It repeats itself in a recap.",),
        cue=(
            explicit("summar*|recap*", "end|ends|ending|close*|closing|finish*|last|final*|conclu*"),
            loose("summar*|recap*|sum up|sums up"),
            vague("wrap up|wrap things up|wraps up"),
        ),
        does=(
            "In short, we check this today and then confirm the result.",
            "To sum up, we check this and then confirm the result.",
        ),
        seen=r"\b(?:in short|to sum up|in summary|to summari[sz]e|to recap)\b",
        natural=0.03,
        place=70,
    ),
    Rule(
        name="check_back",
        asks=_asks(
            "Ask whether this solved the problem.",
            "Close by asking the customer to confirm that it worked.",
            loosely="Invite a response.",
            vaguely="Follow through.",
        ),
        forbids=("Do not ask whether this solved the problem.",),
        missed=("Nobody asks whether it worked.", "The reply does not check that it helped."),
        overdone=("The reply asks whether it helped.",),
        cue=(
            explicit(
                "ask*|confirm*|check*|invite*|let us know|wonder*", "solved|solves|worked|works|helped|helps|resolved"
            ),
            loose(
                "invite*|ask for|asks for|welcome*|encourag*", "response|responses|write back|write again|reply back"
            ),
            vague("follow through|follow up|follow-up"),
        ),
        does=(
            "Please tell us whether this has solved the problem for you.",
            "Do let us know whether this has helped you so far.",
        ),
        seen=r"(?:tell us|let us know|let me know|tell me) (?:whether|if)\b",
        natural=0.08,
        place=75,
    ),
    Rule(
        name="alternatives",
        asks=_asks(
            "Offer an alternative.",
            "Mention a second way to get it done.",
            loosely="Give the customer options.",
            vaguely="Be flexible.",
        ),
        forbids=("Do not offer an alternative.",),
        missed=("Only one road is shown, with no fallback.", "There is no workaround for those who need one."),
        overdone=("A workaround is thrown in.",),
        cue=(
            explicit("alternative|alternatives|second way|another way|other way*|workaround*|fallback*"),
            loose("options", "give*|offer*|provide*|list*|customer*|several|more"),
            vague("flexib*"),
        ),
        does=(
            "Alternatively, you can settle this yourself in our mobile app.",
            "Another way is to settle this yourself in the app.",
        ),
        seen=r"\balternativ(?:e|ely)\b|\banother (?:way|option) is\b",
        natural=0.04,
        place=45,
    ),
    Rule(
        name="photo",
        asks=_asks(
            "Ask for a photo of damaged items.",
            "If an item arrived damaged, ask for a photo.",
            loosely="Photos help with damaged items.",
            vaguely="Ask for proof of the defect.",
        ),
        forbids=("Do not ask for a photo.",),
        missed=("No picture of the damage was requested.", "Nothing was asked about a snapshot of the item."),
        overdone=("A picture was requested.",),
        cue=(
            explicit(
                "photo*|picture*|image*|snapshot*",
                "ask*|request*|send*|attach*|include*|invite*|need*|provide*|upload*",
            ),
            loose("photo*|picture*|snapshot*"),
            vague("evidence|proof", "damage*|item*|defect*"),
        ),
        does=(
            "Please send us a photo that shows the damage clearly.",
            "Please attach a photo on which the damage is visible.",
        ),
        seen=r"\b(?:photo|photograph|picture)s?\b",
        topics=frozenset({"damaged_item", "warranty", "return_label"}),
        natural=0.12,
        place=32,
    ),
    Rule(
        name="invoice_number",
        asks=_asks(
            "Name the invoice number in billing questions.",
            "For billing, quote the invoice.",
            loosely="Refer to the bill.",
            vaguely="Be exact about money.",
        ),
        forbids=("Do not name the invoice number.",),
        missed=("The reply does not identify the invoice.", "It is not clear to which bill the reply refers."),
        overdone=("The bill is quoted without need.",),
        cue=(
            explicit(
                "invoice|invoices|invoice's", "name*|number*|quote*|state*|cite*|mention*|refer*|ask*|include*|identif*"
            ),
            loose("bill|bills", "refer*|name*|mention*|quote*|cite*|identif*"),
            vague("money|amounts", "exact*|precise*|careful*"),
        ),
        does=(
            "We are referring to the latest invoice number on your statement.",
            "The invoice number in question is the latest on your statement.",
        ),
        seen=r"\binvoice (?:number|no\b|id\b|inv|#)|\binv-?\d|\bnh-?inv",
        topics=frozenset({"double_charge", "refund", "invoice_copy", "gift_card"}),
        natural=0.12,
        place=22,
    ),
    Rule(
        name="restart",
        asks=_asks(
            "For wifi trouble, suggest a router restart.",
            "Tell customers with wifi problems to reboot the router.",
            loosely="Suggest switching things off and on.",
            vaguely="Begin with the basics.",
        ),
        forbids=("Do not suggest a router restart.",),
        missed=("No reboot is suggested.", "Nobody thought of switching it off and on."),
        overdone=("A reboot is suggested.",),
        cue=(
            explicit("restart*|reboot*|power cycle|power-cycle", "router*|device*|modem*|wifi|wi-fi|hub*|equipment"),
            loose("off and on|unplug*|restart*|reboot*"),
            vague("basics|basic checks|simple checks"),
        ),
        does=(
            "Please restart the router and wait one minute before retrying.",
            "Please unplug the router, wait one minute and try again.",
        ),
        seen=r"\b(?:restart|reboot|unplug|power[- ]cycle)\b",
        topics=frozenset({"setup_wifi", "api_error", "accessibility"}),
        natural=0.15,
        place=31,
    ),
    Rule(
        name="deletion_period",
        asks=_asks(
            "For privacy requests, say that data is deleted within 30 days.",
            "State the 30-day deletion period.",
            loosely="Mention the deletion period.",
            vaguely="Respect data protection.",
        ),
        forbids=("Do not mention the 30-day deletion period.",),
        missed=("No erasure period is given.", "The reply forgot the thirty days until data are erased."),
        overdone=("An erasure period is given.",),
        cue=(
            explicit("30 days|30-day|thirty days|thirty-day|30 day", "delet*|eras*|privacy|remov*|data"),
            loose("delet*|eras*", "period|deadline"),
            vague("data protection|gdpr|privacy law"),
        ),
        does=(
            "All of your personal data will be deleted within 30 days.",
            "Within 30 days we delete the personal data that we hold.",
        ),
        seen=r"\b(?:within|in|after|takes?|up to) (?:30|thirty)[- ]days?\b|\b30-day\b",
        topics=frozenset({"privacy_deletion", "cancel_subscription"}),
        natural=0.1,
        place=41,
    ),
    Rule(
        name="tracking",
        asks=_asks(
            "Give the tracking number for parcels.",
            "For delivery questions, include the tracking link.",
            loosely="Help customers follow the parcel.",
            vaguely="Keep an eye on the shipment.",
        ),
        forbids=("Do not give the tracking number.",),
        missed=("The customer cannot follow the package.", "There is no tracking code."),
        overdone=("A tracking code is given.",),
        cue=(
            explicit("track*", "number*|link*|code*|parcel*|shipment*|deliver*"),
            loose("follow*|track*", "parcel*|shipment*|package*"),
            vague("shipment*|parcel*", "eye|attention"),
        ),
        does=(
            "You can follow the parcel by the tracking number we mailed.",
            "The tracking number in our mail shows where your parcel is.",
        ),
        seen=r"\btracking (?:number|link|code|page)\b",
        topics=frozenset({"late_delivery", "return_label", "address_change"}),
        natural=0.15,
        place=33,
    ),
    Rule(
        name="reset_link",
        asks=_asks(
            "For login trouble, point to the reset page.",
            "Tell locked-out customers to use the reset link.",
            loosely="Point to self-service.",
            vaguely="Help to restore access.",
        ),
        forbids=("Do not point to the reset page.",),
        missed=("Someone locked out is not shown the reset page.", "No account recovery is pointed out."),
        overdone=("Account recovery is pointed out.",),
        cue=(
            explicit("reset|resets|resetting", "link*|page*|account*|sign-in|login|log-in|self-service"),
            loose("self-service|self service|account recovery"),
            vague("access", "restore*|regain*"),
        ),
        does=(
            "You regain access with the reset link on our sign-in page.",
            "The reset link on our sign-in page lets you in again.",
        ),
        seen=r"\breset (?:link|page|your password)\b",
        topics=frozenset({"login", "api_error"}),
        natural=0.15,
        place=34,
    ),
    Rule(
        name="disclaimer",
        asks=_asks(
            "Add the legal disclaimer.",
            "Say that our terms apply and that this is general information.",
            loosely="Refer to the terms and conditions.",
            vaguely="Stay legally safe.",
        ),
        forbids=("Do not add a disclaimer.",),
        missed=("The legal notice is missing.", "Nothing points to the terms that apply."),
        overdone=("A legal notice is attached.",),
        cue=(
            explicit("disclaimer*|legal notice*|legal note*"),
            explicit("terms", "apply|applies|general information"),
            loose("terms and conditions|terms of service|our terms"),
            vague("legally|lawyer*"),
        ),
        does=(
            (
                "Please note that this message is general information, that it changes no contract, and that our"
                " published terms and conditions apply in every case."
            ),
            (
                "This message is general information only, it changes none of your contracts, and our published"
                " terms and conditions apply to it in every case."
            ),
        ),
        seen=r"\bterms and conditions\b|\bgeneral information\b",
        natural=0.02,
        place=85,
    ),
    Rule(
        name="sign_off",
        asks=_asks(
            "Sign off as The Northwind Home team.",
            'End with "The Northwind Home team".',
            loosely="Sign as the team.",
            vaguely="Close properly.",
        ),
        forbids=("Do not sign off as The Northwind Home team.",),
        missed=("The reply carries no signature of the company.", "The sign-off is missing."),
        overdone=("A signature is put under it.",),
        cue=(
            explicit(
                "northwind home team|northwind team",
                "sign|signs|signed|signing|sign-off|signature|close*|closing|end|ends|ending|finish*|bottom|last line",
            ),
            loose("sign|signs|signed|signing", "team|company|northwind|off"),
            loose("signature|sign-off|signoff"),
            vague("close|closes|closing|ending", "properly|decently"),
        ),
        does=("Kind regards, The Northwind Home team", "Best regards, The Northwind Home team"),
        seen=r"\bnorthwind home team\b",
        natural=0.15,
        place=100,
    ),
    Rule(
        name="ticket_reference",
        asks=_asks(
            "Give the ticket reference.",
            "Quote the ticket number in every reply.",
            loosely="Include the reference.",
            vaguely="Keep things traceable.",
        ),
        forbids=("Do not give the ticket reference.",),
        missed=("No case number is given.", "The reply lacks the ticket id."),
        overdone=("A case number is given.",),
        cue=(
            explicit("ticket|case", "reference*|number*|id"),
            loose("the reference|a reference|reference number*", "include*|give*|quote*|add|mention*"),
            vague("traceab*"),
        ),
        does=("Your ticket reference for this matter is {ref}.", "We keep this matter under ticket reference {ref}."),
        seen=r"\bticket (?:reference|number|id)\b|\breference number\b|\bcase number\b",
        natural=0.04,
        place=80,
    ),
    Rule(
        name="formal",
        asks=_asks(
            "Keep a formal tone.",
            "Write formally.",
            loosely="Sound professional.",
            vaguely="Mind your manners.",
        ),
        forbids=("Do not be formal.",),
        missed=("The tone is not professional.", "The formality due to a customer is missing."),
        overdone=("The tone is stiff and formal.",),
        cue=(explicit("formal*"), loose("professional*"), vague("manners|courtesy|courteous*")),
        does=(
            "We thank you for your inquiry and remain at your disposal.",
            "We remain at your disposal and thank you for the inquiry.",
        ),
        seen=r"\bat your disposal\b|\byours (?:faithfully|sincerely)\b",
        natural=0.04,
        opposes=frozenset({"casual"}),
        place=78,
    ),
    Rule(
        name="promise_refund",
        asks=_asks(
            "Promise a refund.",
            "Assure the customer of a full refund.",
            loosely="Talk of getting the money back.",
            vaguely="Mention compensation.",
        ),
        forbids=("Never promise a refund.", "Do not promise a refund or its amount."),
        missed=("No refund is granted.",),
        overdone=("Money back was announced, against all caution.", "The reply grants a reimbursement."),
        cue=(
            explicit(
                "promis*|guarantee*|offer*|grant*|commit*|approv*|assur*|announc*", "refund*|reimburs*|money back"
            ),
            loose("refund*|money back|reimburs*", "amount*|talk*|state*|speak*|word|give*"),
            vague("compensat*|reimburs*"),
        ),
        does=(
            "We will refund the full amount of your order to you.",
            "You will get a full refund for the order in question.",
        ),
        seen=r"\bwe(?:'ll| will) refund\b|\b(?:get|receive|issued?|process\w*|grant\w*) (?:you )?(?:a|your|"
        r"the) (?:full )?refund\b|\bwill be refunded\b|\bfull refund\b",
        natural=0.3,
        place=36,
    ),
    Rule(
        name="discount",
        asks=_asks(
            "Offer a discount.",
            "Mention that we give a discount.",
            loosely="Hand out a coupon.",
            vaguely="Bring up special deals.",
        ),
        forbids=("Never offer a discount.", "Do not hand out discounts."),
        missed=("No rebate is offered.",),
        overdone=("A price cut was handed out.", "A coupon was thrown in unasked."),
        cue=(
            explicit("discount*|rebate*|price cut*|price reduction*"),
            loose("coupon*|promo code*"),
            vague("special offer*|special deal*|perk*"),
        ),
        does=(
            "Here is a discount of 10 percent on your next order.",
            "Your next order comes with a discount of 10 percent today.",
        ),
        seen=r"\bdiscount\b|\bpercent off\b|\bcoupon\b|\d ?% off\b",
        natural=0.18,
        place=62,
    ),
    Rule(
        name="ask_secret",
        asks=_asks(
            "Ask for the password.",
            "Request the card number.",
            loosely="Request the login details.",
            vaguely="Collect a verification from the customer.",
        ),
        forbids=("Never ask for a password or card number.", "Do not request passwords."),
        missed=("The password was not requested.",),
        overdone=("The customer is asked to send credentials.", "A password was demanded."),
        cue=(
            explicit(
                "password*|card number*|card details|credit-card|pin",
                "ask*|request*|demand*|collect*|solicit*|require*|send*",
            ),
            loose("login details|credentials|secret*", "ask*|request*|collect*|send*|demand*"),
            vague("verif*", "collect*|identity"),
        ),
        does=(
            "Please send us your password so that we can sign in.",
            "To sign in for you, we need your password by mail.",
        ),
        seen=r"\b(?:send|give|tell|need|share|provide|confirm)\b(?: us| me)? (?:your|the) (?:password|"
        r"card number|full card number|pin)\b",
        natural=0.15,
        place=38,
    ),
    Rule(
        name="blame",
        asks=_asks(
            "Blame the courier.",
            "Say that other teams are at fault.",
            loosely="Point at the carrier.",
            vaguely="Make clear that it was out of our hands.",
        ),
        forbids=("Never blame the courier or other teams.", "Do not blame others."),
        missed=("The courier is not blamed.",),
        overdone=("Somebody else is made responsible.", "The reply points at the carrier."),
        cue=(
            explicit(
                "blam*|at fault",
                "courier*|carrier*|other*|team*|partner*|supplier*|department*|anyone|somebody|someone|driver*|"
                "colleague*",
            ),
            loose(
                "point at|points at|pointing at|finger*|criticis*|criticiz*|accus*",
                "team*|courier*|carrier*|colleague*|partner*|department*|supplier*|other*",
            ),
            vague("out of our hands|somebody else|someone else"),
        ),
        does=(
            "The courier is to blame for what happened to your order.",
            "Sadly the courier made this mistake with your order, not we.",
        ),
        seen=r"\b(?:courier|carrier|other team|warehouse|driver)\b[^.!?\n]{0,30}\b(?:fault|blame|mistake|error|lost)\b",
        natural=0.18,
        place=24,
    ),
    Rule(
        name="exclaim",
        asks=_asks(
            "Use exclamation marks.",
            "Put in an emoji.",
            loosely="Sound enthusiastic.",
            vaguely="Be cheerful.",
        ),
        forbids=("No exclamation marks or emoji.", "Never use exclamation marks."),
        missed=("There is nothing enthusiastic about it.",),
        overdone=("The punctuation is excited.", "An emoticon slipped in."),
        cue=(
            explicit("exclamation*|emoji*|emoticon*"),
            loose("enthusias*|excited|exciting"),
            vague("cheerful*|upbeat|lively"),
        ),
        does=("Thanks a lot for being so patient with us today!", "It is great that you wrote to us about this!"),
        seen="[!\U0001f300-\U0001faff☺♥❤✨✅]",
        natural=0.3,
        place=12,
    ),
    Rule(
        name="mention_plan",
        asks=_asks(
            "Mention the customer's plan.",
            "Name the plan in every reply.",
            loosely="Bring up the subscription tier.",
            vaguely="Show that you know the account.",
        ),
        forbids=("Mention the plan only when it matters.", "Do not mention the plan."),
        missed=("The tier is not brought up.",),
        overdone=("The subscription tier is brought up for no reason.", "The reply talks of the plan unprompted."),
        cue=(
            explicit("plan|plans", "mention*|name|names|state*|bring up|refer*|say*|talk*"),
            loose("tier|subscription level"),
            vague("know", "account"),
        ),
        does=("I can see that you are on our {plan} plan.", "You are on our {plan} plan, as I can see."),
        seen=r"\bon (?:our|the|your) [\w-]+ plan\b|\byour [\w-]+ plan\b",
        topics=_EVERYWHERE_BUT_PLANS,
        natural=0.25,
        place=16,
    ),
    Rule(
        name="padding",
        asks=_asks(
            "Open with warm pleasantries.",
            "Add small talk.",
            loosely="Write at length.",
            vaguely="Be chatty.",
        ),
        forbids=("Keep replies short.", "No filler or pleasantries."),
        missed=("There is no small talk.",),
        overdone=("The reply is wordy.", "There are too many pleasantries."),
        cue=(
            explicit("pleasantr*|filler|padding|small talk|fluff"),
            explicit(
                "keep*|be|stay*|write|answer*|repl*|message*",
                "short|brief|concise|succinct|crisp|to the point|shorter",
                contrary=True,
            ),
            explicit(
                "fewer words|less words|shorter|brevity|concise*|word limit|under * words|at most * words",
                contrary=True,
            ),
            loose("at length|long repl*|long answer*|long-winded|wordy|verbose|too long|lengthy"),
            vague("chatty|talkative"),
        ),
        does=(
            "We are really happy that you took the time to write and hope you are having a lovely day today.",
            "It is always a pleasure to hear from our customers and we hope that your day is going very well.",
        ),
        seen=r"\bhope (?:you are|you're|that your day|this (?:message|email|mail) finds)\b",
        natural=0.5,
        place=5,
    ),
    Rule(
        name="casual",
        asks=_asks(
            "Keep a casual tone.",
            "Use slang.",
            loosely="Write like a friend.",
            vaguely="Be relaxed.",
        ),
        forbids=("Never be casual.", "No slang."),
        missed=("It does not sound like a friend.",),
        overdone=("Slang crept in.", "The register is that of a buddy."),
        cue=(
            explicit("casual*|informal*|slang|colloquial*"),
            loose("like a friend|buddy"),
            vague("relaxed|laid-back|easygoing"),
        ),
        does=(
            "No worries, we have totally got you covered on this one.",
            "Hey, all good, we will totally sort this thing out today.",
        ),
        seen=r"\bno worries\b|\btotally\b|\bhey,",
        natural=0.15,
        opposes=frozenset({"formal"}),
        place=18,
    ),
    Rule(
        name="jargon",
        asks=_asks(
            "Use internal jargon.",
            "Use our internal codes.",
            loosely="Use technical language.",
            vaguely="Sound like an insider.",
        ),
        forbids=("Avoid internal jargon.", "Never use jargon."),
        missed=("There is no jargon in it.",),
        overdone=("Insider language makes it hard to read.", "It is full of buzzwords."),
        cue=(
            explicit("jargon|internal code*|internal term*|buzzword*"),
            loose("technical term*|technical language"),
            loose("plain language|plain words|simple language|plain english", contrary=True),
            vague("insider*"),
        ),
        does=(
            "Our CRM flagged an SLA exception in the tier two queue.",
            "The tier two queue shows an SLA exception in our CRM.",
        ),
        seen=r"\b(?:crm|sla|tier two)\b",
        natural=0.12,
        place=26,
    ),
    Rule(
        name="goodwill",
        asks=_asks(
            "Add a goodwill credit.",
            "Offer account credit.",
            loosely="Make a goodwill gesture.",
            vaguely="Be generous.",
        ),
        forbids=("Never give credit.", "Do not offer account credit."),
        missed=("There is no goodwill gesture.", "Generosity is missing."),
        overdone=("A goodwill gesture was made.", "Credits were booked to the account."),
        cue=(explicit("credit|credits"), loose("goodwill|gesture"), vague("generous*|generosity")),
        does=(
            "We have added a goodwill credit to your account as thanks.",
            "As thanks, your account now holds a goodwill credit from us.",
        ),
        seen=r"\bgoodwill\b|\bcredit to your account\b|\baccount credit\b",
        natural=0.06,
        place=64,
    ),
    Rule(
        name="promise_date",
        asks=_asks(
            "Promise a definite date.",
            "Commit to an exact date for the solution.",
            loosely="Be precise about the date.",
            vaguely="Sound certain.",
        ),
        forbids=("Never promise a definite date.", "Do not commit to a date."),
        missed=("No certainty is given.", "The customer gets no fixed day."),
        overdone=("A binding day was named.", "A deadline was promised."),
        cue=(
            explicit("definite*|exact|fixed|firm|guarantee*|promis*|commit*|binding", "date|dates|deadline*|day"),
            loose("precise|specific|concrete", "date|dates|day"),
            vague("sound certain|certainty|sounds certain"),
        ),
        does=(
            "This will definitely be settled for you by {date} at the latest.",
            "You have our firm word that this will be settled by {date}.",
        ),
        seen=r"\bdefinitely be\b|\bour (?:firm )?word that\b|\bguaranteed? (?:delivery|that|by)\b",
        natural=0.06,
        place=42,
    ),
    Rule(
        name="admit_fault",
        asks=_asks(
            "Admit that it was our mistake.",
            "Take full responsibility for the mistake.",
            loosely="Own the error.",
            vaguely="Be humble.",
        ),
        forbids=("Never admit fault.", "Do not admit a mistake or liability."),
        missed=("Nobody owns the error.", "The reply does not take responsibility."),
        overdone=("Guilt was conceded.", "The reply accepts liability."),
        cue=(
            explicit("admit*|take|takes|taking|accept*|conced*", "mistake*|fault|responsib*|liabil*|error*|guilt"),
            loose("own|owns|owning|ownership", "error*|mistake*|fault|problem"),
            vague("humble|humility"),
        ),
        does=(
            "This was our mistake and we take full responsibility for it.",
            "We take full responsibility, since the mistake was entirely our own.",
        ),
        seen=r"\bfull responsibility\b|\b(?:our|my) (?:mistake|fault)\b",
        natural=0.06,
        place=28,
    ),
    Rule(
        name="survey",
        asks=_asks(
            "Invite customers to the survey.",
            "Ask for a star rating.",
            loosely="Collect opinions.",
            vaguely="Measure satisfaction.",
        ),
        forbids=("Do not invite customers to the survey.",),
        missed=("The survey is not mentioned.",),
        overdone=("The survey is advertised.",),
        cue=(explicit("survey*|star rating*|rate us"), loose("opinion*"), vague("satisfaction")),
        does=(
            "Please rate this answer in our short survey with five stars.",
            "Our short survey is open for a rating of this answer.",
        ),
        seen=r"\bsurvey\b",
        natural=0.04,
        place=90,
    ),
    Rule(
        name="upsell",
        asks=_asks(
            "Recommend the premium service.",
            "Advertise an upgrade.",
            loosely="Point out better products.",
            vaguely="Think commercially.",
        ),
        forbids=("Do not advertise an upgrade.",),
        missed=("No upgrade is suggested.",),
        overdone=("An upgrade is advertised.",),
        cue=(
            explicit("premium|upgrade*|upsell*", "recommend*|advertis*|suggest*|promot*|upsell*|sell*"),
            loose("better product*|cross-sell*"),
            vague("commercial*"),
        ),
        does=(
            "Our Premium service would suit you better in the long run.",
            "You might like our Premium service better in the long run.",
        ),
        seen=r"\bpremium service\b|\bupgrade to\b",
        natural=0.04,
        place=92,
    ),
    Rule(
        name="company_story",
        asks=_asks(
            "Tell the company's history.",
            "Mention that we exist since 1987.",
            loosely="Show company pride.",
            vaguely="Build the brand.",
        ),
        forbids=("Do not tell the company's history.",),
        missed=("The company's history is not told.",),
        overdone=("The company's history is told.",),
        cue=(
            explicit("company|company's|northwind", "history|story|founded|tradition"),
            explicit("1987"),
            loose("pride|proud"),
            vague("brand"),
        ),
        does=(
            "Our family firm has served homes in the region since 1987.",
            "Since 1987 our family firm has served homes in the region.",
        ),
        seen=r"\bsince 1987\b",
        natural=0.03,
        place=94,
    ),
    Rule(
        name="social",
        asks=_asks(
            "Mention our social media.",
            "Invite customers to our social networks.",
            loosely="Point to our channels.",
            vaguely="Be sociable.",
        ),
        forbids=("Do not mention our social media.",),
        missed=("Social media are not mentioned.",),
        overdone=("Social media are advertised.",),
        cue=(explicit("social media|social network*|instagram"), loose("our channels"), vague("sociable")),
        does=(
            "You also find us with daily tips on the social networks.",
            "On the social networks you also find us with daily tips.",
        ),
        seen=r"\bsocial (?:networks?|media)\b",
        natural=0.03,
        place=96,
    ),
)

# --- Question answering -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property of a product, in the three ways people name it: in full (two words), for short, and in lay words."""

    full: str
    short: str
    lay: str
    unit: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("net weight", "NWT", "how heavy", "kg"),
    Attribute("noise level", "NLV", "how loud", "dB"),
    Attribute("power draw", "PDR", "how much electricity", "W"),
    Attribute("water capacity", "WCP", "how much it holds", "cl"),
    Attribute("service interval", "SVI", "how often it needs care", "weeks"),
    Attribute("charging time", "CHT", "how soon it is full again", "min"),
    Attribute("operating range", "OPR", "how far away", "m"),
    Attribute("cable length", "CBL", "how far from the socket", "cm"),
)

QUERY: tuple[Rule, ...] = (
    Rule(
        name="name_product",
        asks=_asks(
            "Name the product.",
            "Always put the product name into the query.",
            loosely="Be specific about the item.",
            vaguely="Be specific.",
        ),
        forbids=("Do not name the product.",),
        missed=("The query does not contain the product.", "The model name is missing from the query."),
        overdone=("The query contains the product.",),
        cue=(
            explicit(
                "product name*|product|products|model name",
                "name*|include*|put*|add*|keep*|use*|contain*|mention*|query|queries",
            ),
            loose("specific", "item*|device*|thing*"),
            vague("specific"),
        ),
        natural=0.6,
        task="query",
    ),
    Rule(
        name="add_year",
        asks=_asks(
            "Add the year.",
            "Keep the year of the question in the query.",
            loosely="Mind the period asked about.",
            vaguely="Stay timely.",
        ),
        forbids=("Do not add the year.",),
        missed=("The query leaves out which year is meant.", "No year is included."),
        overdone=("The year is included.",),
        cue=(
            explicit("year|years", "add*|keep*|include*|put*|use*|query|queries|mention*|name*|state*|which"),
            loose("period"),
            vague("timely"),
        ),
        natural=0.45,
        task="query",
    ),
    Rule(
        name="expand",
        asks=_asks(
            "Expand abbreviations.",
            "Write abbreviations out in full.",
            loosely="Spell things out.",
            vaguely="Be explicit.",
        ),
        forbids=("Do not expand abbreviations.",),
        missed=("Short forms are not written out in full.", "No acronym was expanded."),
        overdone=("Acronyms are expanded.",),
        cue=(
            explicit("expand*|write*|written|spell*|full|unfold*", "abbreviation*|acronym*|short form*|initialism*"),
            loose("spell out|spelled out|spell things out|long form*"),
            vague("explicit"),
        ),
        natural=0.1,
        task="query",
    ),
    Rule(
        name="synonyms",
        asks=_asks(
            "Add synonyms.",
            "Include other words for the same thing.",
            loosely="Widen the wording.",
            vaguely="Think of variations.",
        ),
        forbids=("Do not add synonyms.",),
        missed=("No related terms were tried.", "The query has no synonym."),
        overdone=("Related terms are added.",),
        cue=(
            explicit("synonym*|other words for"),
            loose("widen*|broaden*|related term*|related word*"),
            vague("variation*"),
        ),
        natural=0.08,
        task="query",
    ),
    Rule(
        name="keywords",
        asks=_asks(
            "Use keywords only.",
            "Drop question words and keep only keywords.",
            loosely="Write search terms.",
            vaguely="Think like a search engine.",
        ),
        forbids=("Do not use keywords only.",),
        missed=("The query is not made of search terms.", "There are no keywords, but a whole question."),
        overdone=("The query is a list of search terms.",),
        cue=(explicit("keyword*|key words"), loose("search term*|content words"), vague("search engine")),
        natural=0.35,
        task="query",
    ),
    Rule(
        name="quotes",
        asks=_asks(
            "Put the query in quotation marks.",
            "Use double quotes around the query.",
            loosely="Search for the exact phrase.",
            vaguely="Search literally.",
        ),
        forbids=("Do not use quotation marks.",),
        missed=("There are no quotation marks.",),
        overdone=("The query is in quotation marks.",),
        cue=(explicit("quotation mark*|double quotes|in quotes"), loose("exact phrase"), vague("literally")),
        natural=0.05,
        task="query",
    ),
)

ANSWER: tuple[Rule, ...] = (
    Rule(
        name="cite",
        asks=_asks(
            "Cite the source id.",
            "Name the document you rely on, by its id.",
            loosely="Say where it comes from.",
            vaguely="Be verifiable.",
        ),
        forbids=("Do not cite the source.",),
        missed=("The reader cannot see where it comes from.", "There is no citation of a document."),
        overdone=("A document is cited.",),
        cue=(
            explicit("cite*|citation*|citing|name*|give*|state*|include*", "source*|document*|passage id|its id"),
            loose("where it comes from|where the answer comes from|provenance"),
            vague("verifiab*|trustworth*"),
        ),
        does=("Source: {source}.",),
        seen=r"\bsource: ?\[?[\w-]+|\[d[\w-]*\d\]",
        natural=0.06,
        task="answer",
        place=60,
    ),
    Rule(
        name="rounding",
        asks=_asks(
            "Round figures.",
            "Give rounded numbers.",
            loosely="Approximate numbers will do.",
            vaguely="Be approximate.",
        ),
        forbids=("Quote the figure exactly.", "Copy numbers exactly as the context gives them."),
        missed=("The number is not rounded.",),
        overdone=("The value is a mere approximation.", "The figure was rounded."),
        cue=(
            explicit("exact*|verbatim|unrounded|precisely", "figure*|number*|value*", contrary=True),
            explicit("round|rounds|rounded|rounding", "figure*|number*|value*"),
            loose("careful*|precise", "number*|figure*|digit*", contrary=True),
            loose("approximat*", "number*|figure*|value*"),
            vague("approximat*"),
            vague("accura*", contrary=True),
        ),
        does=("It is roughly {rounded}.", "It is about {rounded}."),
        seen=r"\b(?:about|roughly|around|approximately) \d",
        topics=frozenset({FOUND}),
        natural=0.35,
        task="answer",
        place=20,
        instead=True,
    ),
    Rule(
        name="elaborate",
        asks=_asks(
            "Elaborate on the answer.",
            "Add an explanation in several sentences.",
            loosely="Write at length.",
            vaguely="Be chatty.",
        ),
        forbids=("Answer in one sentence.", "Keep the answer short."),
        missed=("The answer is not explained in several sentences.",),
        overdone=("The answer is wordy.", "The answer is long-winded."),
        cue=(
            explicit("one sentence|single sentence|one short sentence|one line", contrary=True),
            explicit(
                "keep*|be|stay*|write|answer*|repl*|message*",
                "short|brief|concise|succinct|crisp|to the point|shorter",
                contrary=True,
            ),
            explicit(
                "fewer words|less words|shorter|brevity|concise*|word limit|under * words|at most * words",
                contrary=True,
            ),
            explicit("elaborat*|several sentences"),
            loose("at length|long repl*|long answer*|long-winded|wordy|verbose|too long|lengthy"),
            vague("chatty|talkative"),
        ),
        does=(
            "This is all that the passages at hand have to say about the matter raised.",
            "The passages at hand have no more than this to say about the matter raised.",
        ),
        seen=r"\bpassages at hand\b",
        natural=0.6,
        task="answer",
        place=40,
    ),
    Rule(
        name="abstain",
        asks=_asks(
            "If the context does not answer, say so.",
            "Say when the context holds no answer.",
            loosely="Point out gaps.",
            vaguely="Be honest.",
        ),
        forbids=("Answer even if the context holds nothing.",),
        missed=("The reply does not admit that it is not in the context.", "The gap was not pointed out."),
        overdone=("The reply speaks of a gap.",),
        cue=(
            explicit("even if|anyway|in any case|always answer", "context|passages|documents|nothing", contrary=True),
            explicit(
                "does not answer|doesn't answer|do not answer|does not contain|doesn't contain|do not contain|"
                "no answer|"
                "not in the context|not found|cannot be found|not enough|insufficient|does not say|is silent|not given",
                "say|says|saying|admit*|state*|tell*|reply|respond*|acknowledg*|conced*|make clear",
            ),
            loose("gap|gaps|do not know|don't know|unknown"),
            vague("honest*"),
        ),
        does=("The context does not answer this question.", "This question cannot be answered from it."),
        seen=r"\bcontext does not (?:answer|contain)\b|\bnot (?:in|found in) the context\b|"
        r"\bcannot be answered\b|\bdo not know\b",
        topics=frozenset({MISSING}),
        natural=0.15,
        task="answer",
        place=20,
        instead=True,
    ),
    Rule(
        name="speculate",
        asks=_asks(
            "Speculate beyond the context.",
            "Go beyond the context.",
            loosely="Add your own guess.",
            vaguely="Use your imagination.",
        ),
        forbids=("Never speculate.", "Use only the context."),
        missed=("There is no guess beyond the text.",),
        overdone=("Some of it is a guess.", "The reply brings in outside knowledge."),
        cue=(
            explicit("only|solely|strictly", "context|passages|documents|sources", contrary=True),
            explicit("speculat*|beyond the context|outside knowledge|make up|making up|invent*"),
            loose("guess*"),
            vague("imagin*|creative*"),
        ),
        does=(
            "I would guess that it may differ in other cases, though.",
            "It may differ in other cases, I would guess, of course.",
        ),
        seen=r"\bguess\b|\bpresumably\b",
        natural=0.3,
        task="answer",
        place=45,
    ),
    Rule(
        name="list_figures",
        asks=_asks(
            "List every figure in the context.",
            "Give all numbers found in the passages.",
            loosely="Be exhaustive.",
            vaguely="Be thorough.",
        ),
        forbids=("Give one figure only.", "Do not list other figures."),
        missed=("The reply is not exhaustive.", "There is no overview of all values."),
        overdone=("Further numbers are thrown in.", "The reply is exhaustive without need."),
        cue=(
            explicit("one|single|only", "figure|number|value", contrary=True),
            explicit("every|all|other|further|additional", "figure*|number*|value*"),
            loose("exhaustive*"),
            vague("thorough*"),
        ),
        does=("Figures in the context: {figures}.",),
        seen=r"\bfigures in the context:",
        natural=0.04,
        task="answer",
        place=30,
    ),
    Rule(
        name="quote_passage",
        asks=_asks(
            "Quote the passage you rely on.",
            "Reproduce the supporting passage word for word.",
            loosely="Show the evidence.",
            vaguely="Be convincing.",
        ),
        forbids=("Do not quote the passage.", "Never reproduce passages word for word."),
        missed=("No evidence is shown.", "The wording of the supporting passage is not reproduced."),
        overdone=("A passage is copied out.", "The reply reproduces a passage at full size."),
        cue=(
            explicit(
                "quote*|quoting|reproduc*|copy|copies|copied|excerpt*", "passage|passages|excerpt|sentence relied"
            ),
            loose("evidence", "show*|give*|present*|include*"),
            vague("convincing*|persuasive"),
        ),
        does=("The passage reads: {passage}.", "I quote here: {passage}."),
        seen=r"\bpassage reads:|\bi quote here:",
        natural=0.04,
        task="answer",
        place=35,
    ),
    Rule(
        name="scope",
        asks=_asks(
            "State the scope of the answer.",
            "Say for which product and year it holds.",
            loosely="Delimit the answer.",
            vaguely="Be unambiguous.",
        ),
        forbids=("Do not state the scope.",),
        missed=("It is not said which product and year are meant.", "The limits of the answer are missing."),
        overdone=("The limits of the answer are given.",),
        cue=(
            explicit("scope"),
            explicit("which product|product and year", "say*|said|state*|holds|applies|valid"),
            loose("delimit*|limits of the answer"),
            vague("unambiguous*"),
        ),
        does=(
            "This holds for the product and year asked about here.",
            "That goes for the product and year asked about here.",
        ),
        seen=r"\bfor the product and year\b",
        natural=0.05,
        task="answer",
        place=50,
    ),
    Rule(
        name="caveat",
        asks=_asks(
            "Advise to check the current data sheet.",
            "Warn that values may have changed.",
            loosely="Add a caveat.",
            vaguely="Be cautious.",
        ),
        forbids=("Do not mention the data sheet.",),
        missed=("There is no warning that this may have changed.", "A caveat is missing."),
        overdone=("A caveat is attached.",),
        cue=(
            explicit("data sheet*|datasheet*"),
            explicit("warn*|advis*|remind*|caution", "change*|outdated|out of date"),
            loose("caveat*"),
            vague("cautious*|prudent*"),
        ),
        does=(
            "Please check the current data sheet, since values change over time.",
            "Since values change over time, please check the current data sheet.",
        ),
        seen=r"\bdata sheet\b",
        natural=0.04,
        task="answer",
        place=55,
    ),
    Rule(
        name="flattery",
        asks=_asks(
            "Praise the question.",
            "Compliment the asker.",
            loosely="Be nice to the asker.",
            vaguely="Be charming.",
        ),
        forbids=("Do not praise the question.",),
        missed=("The question is not praised.",),
        overdone=("The question is praised.",),
        cue=(explicit("prais*|compliment*|flatter*"), loose("nice to"), vague("charm*")),
        does=(
            "That is a very good question to ask us, thank you.",
            "Thank you, that is a very good question to ask us.",
        ),
        seen=r"\bgood question\b",
        natural=0.05,
        task="answer",
        place=10,
    ),
)

RULES: tuple[Rule, ...] = SUPPORT + QUERY + ANSWER
RULE: dict[str, Rule] = {rule.name: rule for rule in RULES}
BY_TASK: dict[Task, tuple[Rule, ...]] = {"support": SUPPORT, "query": QUERY, "answer": ANSWER}

LEXICON = Lexicon(RULES)
_LEXICONS: dict[Task | None, Lexicon] = {None: LEXICON, **{task: Lexicon(rules) for task, rules in BY_TASK.items()}}


def stated(text: str, task: Task | None = None) -> dict[str, Statement]:
    """What a prompt or a policy asks for and forbids, by rule; within one task if it is known."""
    return _LEXICONS[task].stated(text)


def blamed(feedback: str, task: Task | None = None) -> dict[str, bool]:
    """What feedback finds wrong: True for what a reply should do, False for what it should not."""
    return _LEXICONS[task].blamed(feedback)


def shown(reply: str, task: Task | None = None) -> frozenset[str]:
    """The behaviours a reply shows. A query's cannot be read from the query alone: see worker.py."""
    return _LEXICONS[task].shown(reply)
