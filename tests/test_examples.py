"""The examples that are not the demo: each runs as its docstring says."""

import os
import subprocess
import sys
from pathlib import Path

from dspy_selfimprove.rehearsal import RehearsalModel, serve

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_support_desk_answers_without_a_phoenix_and_says_only_its_answers(tmp_path):
    with serve(RehearsalModel(seed=1)) as rehearsal:
        environment = {**os.environ, "OPENAI_BASE_URL": rehearsal.url, "OPENAI_API_KEY": "none"}
        command = [sys.executable, str(EXAMPLES / "support_desk.py"), "--tickets", "3"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert rehearsal.counts().answers == 3
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nT0") + done.stdout.startswith("T0") == 3
    assert "Traceback" not in done.stderr


def test_without_a_key_it_says_what_to_do(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    command = [sys.executable, str(EXAMPLES / "support_desk.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rehearsal serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_prompts_are_compared_without_a_phoenix(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    command = [sys.executable, str(EXAMPLES / "compare.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Evaluation on 63 examples" in done.stdout
    assert "Comparison on 63 examples" in done.stdout
    (helpfulness,) = (line for line in done.stdout.splitlines() if line.startswith("helpfulness") and "→" in line)
    assert "better" in helpfulness
    assert "Traceback" not in done.stderr
