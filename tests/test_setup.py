"""The set-up that make does, on machines that lack something: one sentence, and a code that is not zero."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    for name in (".setup.sh", "Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("dspy_selfimprove", "metrics", "datasets"):
        (tmp_path / name).mkdir()
    return tmp_path


def make(checkout, *arguments, **environment):
    bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(checkout), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        ["make", *arguments], cwd=checkout, capture_output=True, text=True, env={**bare, **environment}, check=False
    )


def fake_python(checkout, version):
    """A program that says it is an older Python, as far as the set-up asks."""
    path = checkout / "python-old"
    path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit 0\nexit 1\n')
    path.chmod(0o755)
    return path


def test_an_older_python_is_named(checkout):
    done = make(checkout, "test", PYTHON=str(fake_python(checkout, "3.9.2")))
    assert done.returncode != 0
    assert "is Python 3.9.2, and 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all(checkout):
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("make", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    done = make(checkout, "demo", PATH=str(tools))
    assert done.returncode != 0
    assert "No Python from 3.11 to 3.13 was found: install" in done.stderr


def test_no_network(checkout):
    """An index at a closed port: what pip meets on a machine without a network."""
    done = make(checkout, "setup", PYTHON=sys.executable, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    assert done.returncode != 0
    assert "could not be downloaded: connect to the network once, then run make again" in done.stderr
    assert not (checkout / ".venv" / ".ready").exists()


def test_a_folder_that_cannot_be_written(checkout):
    (checkout / ".venv").write_text("a file where the folder should be")
    done = make(checkout, "setup", PYTHON=sys.executable)
    assert done.returncode != 0
    assert "Cannot write to .venv" in done.stderr


def test_help_needs_nothing(checkout):
    done = make(checkout)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("demo", "test", "check", "bench"))
    assert not (checkout / ".venv").exists()
