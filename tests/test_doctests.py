"""Every public value shows one example in its docstring, and each of them runs."""

import doctest
from importlib import import_module

import pytest

import dspy_selfimprove

MODULES = sorted(
    {f"dspy_selfimprove.{home}" for home in dspy_selfimprove._HOMES.values()} - {"dspy_selfimprove.errors"}
)
# What starts something that outlives the call is shown in the README and in examples/ instead.
SHOWN_ELSEWHERE = {"instrument", "track_evaluators", "SelfImproveError", "Budget", "Spend", "Model"}
SHOWN_ELSEWHERE |= {"Comparison"}  # in `compare`, which makes it


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(dspy_selfimprove.__all__) - SHOWN_ELSEWHERE))
def test_each_public_value_shows_one(name):
    assert ">>> " in (getattr(dspy_selfimprove, name).__doc__ or "")
