"""Text as tokens: the units a slot's value may begin and end with.

A token is what a person would not cut: a word (with its hyphens, dots and apostrophes: `O'Brien`, `ORD-2231`,
`de-DE`), a number, a date however it is written, an amount with its currency, an e-mail address, the host of a web
address. Every line break and every single space is a token of its own, so that an empty value leaves its neighbours as
they are. Scripts without spaces between words are taken character by character. Joined, the tokens are the text.
"""

from __future__ import annotations

import re

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_WEEKDAY = r"(?:(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?\b\.?,? )?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?\b"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\b\.?)?(?: ?(?:Z|UTC|GMT|CET|[+-]\d{2}:?\d{2})\b)?"
_CODE = r"(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|BRL)"
_SIGN = r"[$€£¥₹]"
_AMOUNT = r"\d+(?:[.,]\d+)*(?!\w)"
# Scripts written without spaces: kana, Han, Thai, Lao, Khmer.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_LETTER = rf"[^\W{_UNSPACED}]"
_KINDS = {
    "date": (
        rf"\d{{4}}-\d{{2}}-\d{{2}}(?:[T ]{_CLOCK})?(?!\w)"
        rf"|{_WEEKDAY}(?:{_DAY}\.? (?:of )?{_MONTH}(?:,? \d{{4}}\b)?|{_MONTH} {_DAY}(?:,? \d{{4}}\b)?)(?: {_CLOCK})?"
        r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}(?!\w)"
    ),
    "time": rf"{_CLOCK}(?!\w)",
    "email": r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+",
    "url": r"\w+://[^\s/<>\"'()\[\]{}]*[^\s/<>\"'()\[\]{}.,;:!?]|www\.[\w-]+(?:\.[\w-]+)+",
    "amount": rf"[+-]?{_SIGN} ?{_AMOUNT}|{_CODE} {_AMOUNT}|{_AMOUNT} ?(?:{_SIGN}|{_CODE}\b)",
    "phone": r"\+\d{1,3}(?:[ -]?\(?\d{2,5}\)?){2,5}(?!\w)",
    # `30-day` is a number and a word; `2-F` and `10/12` are one thing.
    "number": r"\d+(?:[.,:/-]\d+)*(?:(?!\w|[-_./]\w)|(?=-[a-z]{2,}\b))",
    "word": rf"{_LETTER}(?:[\u0300-\u036f]|{_LETTER}|['\u2019](?![sS]\b)(?={_LETTER})|[-.&·](?={_LETTER}))*",
    "other": r"\r\n|[\s\S]",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _KINDS.items()))
_WORD = re.compile(r"\w")


def tokenize(text: str) -> list[str]:
    return [match.group() for match in _TOKEN.finditer(text)]


def kind_of(value: str) -> str:
    """What a whole value is (`date`, `email`, `amount`, ...), or `other` if it is not one token."""
    match = _TOKEN.fullmatch(value)
    return str(match.lastgroup) if match else "other"


def is_word(token: str) -> bool:
    """Whether it holds a letter, a digit or an underscore: anything but space and punctuation."""
    return _WORD.search(token) is not None


def cuts(text: str, at: int) -> bool:
    """Whether a cut here would go through a word or a number, as far as its two neighbours show."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum() and not _unspaced(text[at - 1 : at + 1])


def _unspaced(pair: str) -> bool:
    return any(
        "\u0e00" <= letter <= "\u0eff" or "\u1780" <= letter <= "\u17ff" or "\u3040" <= letter <= "\u9fff"
        for letter in pair
    )
