"""`python -m dspy_selfimprove` is the command line."""

from dspy_selfimprove.cli import main

main()
