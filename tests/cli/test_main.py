"""The command line as a user meets it: exit codes, errors as sentences, nothing that looks like a crash."""

import os
import subprocess
import sys

import pytest

import dspy_selfimprove


def run(*arguments, **environment):
    command = [sys.executable, "-m", "dspy_selfimprove", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_help_names_every_group():
    done = run("--help")
    assert done.returncode == 0
    assert "phoenix" in done.stdout
    assert "rehearsal" in done.stdout


def test_version():
    assert run("--version").stdout.strip() == dspy_selfimprove.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("phoenics",), "No such command 'phoenics'"),
        (("phoenix", "begin"), "No such command 'begin'"),
        (("rehearsal", "serve", "--latency", "soon"), "'soon' is not a latency"),
        (("rehearsal", "serve", "--faults", "many"), "does not say what goes wrong"),
        (("--nonsense",), "No such option"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(arguments, said):
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".selfimprove").write_text("a file")
    command = [sys.executable, "-m", "dspy_selfimprove", "phoenix", "start"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "a file is in its place" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_crash():
    command = f"{sys.executable} -m dspy_selfimprove --help | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
