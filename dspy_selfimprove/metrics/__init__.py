"""Measures that need no model, as pure functions: an answer in, a Score or a summary out.

    label.py      one of several labels: match, nearness on an ordered scale, sets; precision, recall and F1 over a set
    number.py     numbers found in text: closeness with a tolerance; mean errors over a set
    text.py       wording: exact, normalised, word overlap, longest common sequence, likeness in meaning
    structure.py  form: JSON against a schema, a pattern, tool calls with their arguments
    usage.py      what an answer takes: words, seconds, dollars

All give partial credit where there is such a thing. What an answer lacks (no number in it, no JSON) is the candidate's
own fault and scores low; what the *example* lacks (a reference that holds no number) leaves no verdict. Parameters are
named as `metric_of` finds them in the data: `output`, `expected`, `message`, `reference_message`, `seconds`,
`dollars`.
"""
