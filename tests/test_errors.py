import inspect
import pickle

import pytest

from dspy_selfimprove import errors
from dspy_selfimprove.errors import Outage, RateLimited, SelfImproveError, UsageError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SelfImproveError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_drawn_tree_is_the_real_one(kind):
    drawing = (errors.__doc__ or "").splitlines()
    (line,) = [number for number, text in enumerate(drawing) if text.strip("│├└─ ").split(" ")[0] == kind.__name__]
    if kind is SelfImproveError:
        return
    depth = len(drawing[line]) - len(drawing[line].lstrip(" │├└─"))
    above = [text for text in drawing[:line] if len(text) - len(text.lstrip(" │├└─")) < depth and text.strip()]
    assert above[-1].strip("│├└─ ").split(" ")[0] == kind.__bases__[0].__name__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_a_process_boundary(kind):
    error = pickle.loads(pickle.dumps(kind("It broke.", remedy="Mend it.")))
    assert type(error) is kind
    assert (error.problem, error.remedy, str(error)) == ("It broke.", "Mend it.", "It broke. Mend it.")


def test_what_a_service_asked_for_is_kept():
    error = pickle.loads(pickle.dumps(RateLimited("Later.", retry_after=2.5)))
    assert isinstance(error, Outage)
    assert error.retry_after == 2.5


def test_a_usage_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"Wrong\."):
        raise UsageError("Wrong.")
