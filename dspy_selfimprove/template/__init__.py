"""The constant part and the slots of a system prompt, recovered from many rendered ones.

`infer` takes texts as production sent them and gives back templates in ChatPrompt's own form, the values of each text,
and for every text it cannot explain the reason. A text is only counted as explained if rendering its template with its
values gives it back character for character; this is checked for each.

How: equal texts are counted once; from a sample the prompt versions are told apart (`versions.py` says by what rule)
and each is aligned (`alignment.py`) over tokens that nobody would cut (`tokens.py`); all texts are read with the
result, and those that do not fit join the sample for another round. Which texts are drawn depends on their content and
not on their order, so the templates do not depend on the order either.

What no method can know, and what this one does about it:

- *A slot that never changed* is constant text. `Found.texts` and `.renderings` say how much stands behind a template,
  and `.proven` whether it is enough; with one text, the template is the text.
- *Where a slot ends*, if all its values share a beginning: at the nearest edge of a word, number or date.
- *Two slots with only a space between* are one, unless one of them is a date, an address or an amount in each text.
- *Two slots whose values are equal in every text* are one slot used twice, from five different values on.
- *An optional line right below a line that ends with a slot* and the same stop is one slot with it: nothing in the
  template could tell the two apart in a text it has not seen.
- *A version that adds a sentence and changes nothing else* looks like an optional block, and becomes a slot that may be
  empty. A version that changes a word or two becomes a slot of two values. A recorded version tells both apart.

Not covered: values that were escaped, cut or translated on their way into the prompt (they are taken as they stand),
and loops: a list is one slot.
"""

from dspy_selfimprove.template.hint import Hint
from dspy_selfimprove.template.inference import (
    NOTHING_IN_COMMON,
    TOO_FEW,
    Found,
    Inference,
    Rendering,
    infer,
)
from dspy_selfimprove.template.reading import AMBIGUOUS, Template

__all__ = [
    "AMBIGUOUS",
    "NOTHING_IN_COMMON",
    "TOO_FEW",
    "Found",
    "Hint",
    "Inference",
    "Rendering",
    "Template",
    "infer",
]
